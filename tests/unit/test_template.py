"""Templates: what a prompt looks like to a model, where an answer ends, how it is read."""

from __future__ import annotations

import copy

import pytest
import torch
from support.errors import one_line
from support.tokenizers import with_chat_template

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.template import CHAT, DLITE, PromptTemplate


def test_dlites_template_is_the_originals(tokenizer):
    rendered = DLITE.bind(tokenizer).render([("Human", "Use {braces}, please")])
    assert rendered == "\n### Instruction:\nUse {braces}, please\n### Response:\n"
    turns = [("Human", "a"), ("Assistant", "b"), ("Human", "c")]
    template = DLITE.bind(tokenizer)
    assert template.render(turns) == "\n### Instruction:\na\nb\nc\n### Response:\n"
    assert tokenizer.decode(template.encode("a")) == template.render(turns[:1])


MESSAGES = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<system>You are a helpful bot</>{% endif %}"
)


REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)


@pytest.mark.parametrize("prefix", ["", DEFAULT_SYSTEM, REFUSES_SYSTEM])
def test_a_chat_template_gives_the_turns_and_no_system_message(prefix, tokenizer):
    tokenizer = with_chat_template(tokenizer, prefix + MESSAGES)
    assert CHAT.bind(tokenizer).render([("Human", "hi")]) == "<user>hi</><assistant>"
    turns = [("Human", "a"), ("Assistant", "b"), ("Human", "c")]
    assert CHAT.bind(tokenizer).render(turns) == "<user>a</><assistant>b</><user>c</><assistant>"


# As Llama 2's: the system message goes into the first turn of the user.
SYSTEM_IN_THE_TURN = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '(' + messages[0]['content'] + ')' %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<{{ m['role'] }}>{{ system if loop.first }}{{ m['content'] }}</>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_system_message_inside_of_the_first_turn_is_left_out(tokenizer):
    tokenizer = with_chat_template(tokenizer, SYSTEM_IN_THE_TURN)
    system = [{"role": "system", "content": "-"}, {"role": "user", "content": "hi"}]
    assert "(-)" in tokenizer.apply_chat_template(system, tokenize=False)
    assert CHAT.bind(tokenizer).render([("Human", "hi")]) == "<user>hi</><assistant>"


BRIEF = PromptTemplate(system="Be brief.")


def test_a_system_message_of_the_presets_own_comes_first(tokenizer):
    whole = with_chat_template(tokenizer, DEFAULT_SYSTEM + MESSAGES)
    assert BRIEF.bind(whole).render([("Human", "hi")]) == (
        "<system>Be brief.</><user>hi</><assistant>"
    )
    inside = with_chat_template(tokenizer, SYSTEM_IN_THE_TURN)
    assert BRIEF.bind(inside).render([("Human", "hi")]) == "<user>(Be brief.)hi</><assistant>"


def test_a_system_message_that_cannot_be_said_is_refused(tokenizer):
    drops = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
    for prefix, message in [
        (REFUSES_SYSTEM, "takes no system message"),
        (drops, "drops the system"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            BRIEF.bind(with_chat_template(tokenizer, prefix + MESSAGES)).encode("hi")
        one_line(error)
    with pytest.raises(DataError, match="has no chat template"):
        BRIEF.bind(tokenizer).encode("hi")
    with pytest.raises(DataError, match="needs a chat template"):
        PromptTemplate("{instruction}", system="Be brief.")


@pytest.mark.parametrize("prefix", ["", DEFAULT_SYSTEM])
def test_the_token_that_starts_every_text_stays(prefix, tokenizer):
    """As in Llama 3's template."""
    tokenizer = with_chat_template(tokenizer, "{{ bos_token }}" + prefix + MESSAGES)
    assert CHAT.bind(tokenizer).render([("Human", "hi")]) == "<bos><user>hi</><assistant>"


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer):
    with pytest.raises(DataError, match="has no chat template") as error:
        CHAT.bind(tokenizer).encode("hi")
    one_line(error)


def test_the_end_key_stops_an_answer_where_it_is_one_token(tokenizer):
    assert DLITE.bind(tokenizer).eos_token_ids == [tokenizer.eos_token_id]  # many tokens here
    with_key = copy.deepcopy(tokenizer)
    with_key.add_tokens(["### End"], special_tokens=True)
    key = with_key.convert_tokens_to_ids("### End")
    assert DLITE.bind(with_key).eos_token_ids == [key, with_key.eos_token_id]
    assert PromptTemplate("{instruction}", end="<eos>").bind(tokenizer).eos_token_ids == [1]


def test_answers_are_read_up_to_the_end_key_without_special_tokens(tokenizer):
    def tokens(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer(text)["input_ids"])

    responses = [tokens(" Fine.### End of it"), tokens("Plain<eos>"), tokens("<eos>")]
    assert DLITE.bind(tokenizer).decode(responses) == ["Fine.", "Plain", ""]
    assert CHAT.bind(tokenizer).decode(responses) == ["Fine.### End of it", "Plain", ""]
