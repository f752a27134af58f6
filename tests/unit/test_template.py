"""Templates: what a prompt looks like to a model, where an answer ends, how it is read."""

from __future__ import annotations

import copy

import pytest
import torch
from support.errors import one_line
from support.tokenizers import byte_tokenizer, with_chat_template

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
    without = PromptTemplate("{instruction}", end="").bind(tokenizer)
    assert without.decode(responses) == CHAT.bind(tokenizer).decode(responses)


def test_a_special_token_that_a_text_spells_out_is_read_as_text(tokenizer):
    bound = CHAT.bind(tokenizer)
    letters = [tokenizer(letter)["input_ids"][0] for letter in "No<eos>"]
    (answer,) = bound.decode([torch.tensor(letters)])
    assert answer == "No<eos>", "a policy can write it in ordinary tokens"
    assert tokenizer.eos_token_id in tokenizer(answer)["input_ids"]
    specials = set(tokenizer.all_special_ids)
    for text in (answer, "<eos><pad>", "<e<eos>os>", "a<bos"):
        assert not specials & set(tokenizer(bound.plain(text))["input_ids"])
        assert bound.plain(text).replace(" ", "") == text
    for text in ("", "a < b", "Plain text.", "<eo s>"):
        assert bound.plain(text) == text
    marked = copy.deepcopy(tokenizer)
    marked.pad_token = "!"
    assert CHAT.bind(marked).plain("Stop!<eos>") == "Stop!< eos>", "a space has no place in it"


# What belongs to all texts, where a turn ends, and what a model thinks -------------------------


@pytest.mark.parametrize("default", ["", DEFAULT_SYSTEM, REFUSES_SYSTEM])
def test_a_prefix_that_is_no_bos_stays(default, tokenizer):
    """As GLM's: a template's own words before everything, with a default system message or not."""
    template = default + MESSAGES
    template = template.replace("{% for m", "[gMASK]<sop>{% for m", 1)
    template = "[gMASK]<sop>" + template.replace("[gMASK]<sop>", "", 1)
    chat = CHAT.bind(with_chat_template(tokenizer, template))
    assert chat.render([("Human", "hi")]) == "[gMASK]<sop><user>hi</><assistant>"


def test_words_of_every_system_turn_stay():
    """As Llama 3.2's date, which stands in a system turn whether there is a message or not."""
    template = (
        "{{ bos_token }}{% set given = messages[0]['role'] == 'system' %}"
        "{% set s = messages[0]['content'] if given else '' %}"
        "{% set rest = messages[1:] if given else messages %}"
        "<system>Today: Sunday. {{ s }}</>"
        "{% for m in rest %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    chat = CHAT.bind(with_chat_template(byte_tokenizer(), template))
    assert chat.render([("Human", "hi")]) == (
        "<bos><system>Today: Sunday. </><user>hi</><assistant>"
    )
    brief = BRIEF.bind(chat.tokenizer).render([("Human", "hi")])
    assert brief == "<bos><system>Today: Sunday. Be brief.</><user>hi</><assistant>"


def test_a_dialogues_own_system_message_goes_before_the_templates(tokenizer):
    turns = [("System", "Rhyme."), ("Human", "hi")]
    for template in (CHAT, BRIEF):
        chat = template.bind(with_chat_template(tokenizer, DEFAULT_SYSTEM + MESSAGES))
        assert chat.render(turns) == "<system>Rhyme.</><user>hi</><assistant>"
        assert chat.encode("\n\nSystem: Rhyme.\n\nHuman: hi") == chat.encode(turns)


def test_a_text_template_keeps_what_the_tokenizer_puts_before_every_text():
    wraps = byte_tokenizer(wraps=True)  # BOS before, EOS behind
    rendered = "\n### Instruction:\na\n### Response:\n"
    assert wraps.decode(DLITE.bind(wraps).encode("a")) == "<bos>" + rendered
    plain = byte_tokenizer()
    assert plain.decode(DLITE.bind(plain).encode("a")) == rendered
    written = PromptTemplate("<bos>{instruction}").bind(wraps)
    assert wraps.decode(written.encode("a")) == "<bos>a", "no second one"


def test_an_answer_ends_at_every_token_that_its_turn_ends_with():
    """As Gemma's and Phi-3's, whose tokenizers name another token as EOS."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<end_of_turn>", "<start_of_turn>"]})
    end, start = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<start_of_turn>"])
    gemma = (
        "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    chat = CHAT.bind(with_chat_template(tokenizer, gemma))
    assert chat.eos_token_ids == [end, tokenizer.eos_token_id] and start not in chat.eos_token_ids
    phi = gemma.replace("{% if", "{% if not add_generation_prompt %}<eos>{% endif %}{% if")
    assert CHAT.bind(with_chat_template(tokenizer, phi)).eos_token_ids == [end, 1]
    said = "Sure.<end_of_turn>\n<start_of_turn>user\nThank you!<end_of_turn>"
    assert chat.decode([torch.tensor(tokenizer(said)["input_ids"])]) == ["Sure."]
    refuses = "{{ raise_exception('no answers') if messages[-1]['role'] == 'assistant' }}" + gemma
    assert CHAT.bind(with_chat_template(tokenizer, refuses)).eos_token_ids == [1]


def test_thinking_is_off_unless_asked_for(tokenizer):
    """As Qwen3's template, in short."""
    qwen = MESSAGES.replace(
        "<assistant>{%",
        "<assistant>{% if enable_thinking is defined and enable_thinking is false %}"
        "<think></think>{% endif %}{%",
    )
    tokenizer = with_chat_template(tokenizer, qwen)
    turns = [("Human", "hi")]
    assert CHAT.bind(tokenizer).render(turns) == "<user>hi</><assistant><think></think>"
    thinking = PromptTemplate(thinking=True)
    assert thinking.bind(tokenizer).render(turns) == "<user>hi</><assistant>"
    # A run's folder is known by this text: what was made before there was such a setting is kept.
    assert repr(CHAT) == "PromptTemplate(text=None, end=None, system=None)"
    assert repr(thinking) != repr(CHAT) and "thinking=True" in repr(thinking)
