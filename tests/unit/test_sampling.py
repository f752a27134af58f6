"""Answers to held-out prompts: the same for the same seed, in order, and in the judge's form."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from support.models import language_model

from rlhf_tutorial.evaluation.sampling import sample_answers
from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead
from rlhf_tutorial.template import PromptTemplate


class Numbers:
    """A tokenizer whose tokens are read as their numbers."""

    pad_token_id, eos_token_id = 0, 1

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(range(len(text)))

    def batch_decode(self, responses: list[torch.Tensor], **_: Any) -> list[str]:
        return [" ".join(str(int(token)) for token in response) for response in responses]


TEMPLATE = PromptTemplate("{instruction}").bind(Numbers())


QUERIES = [
    torch.tensor([3, 4, 5]),
    torch.tensor([6]),
    torch.tensor([7, 8]),
    torch.tensor([9, 3, 4, 5, 6]),
    torch.tensor([3]),
]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_samples_follow_the_seed_and_leave_the_global_state_alone(architecture):
    model = language_model(architecture, layers=1, vocab_size=20)
    options = {"max_new_tokens": 6, "batch_size": 2}
    state, python_state = torch.get_rng_state(), random.getstate()
    first = sample_answers(model, TEMPLATE, QUERIES, **options).texts
    torch.manual_seed(123)
    assert sample_answers(model, TEMPLATE, QUERIES, **options).texts == first
    assert sample_answers(model, TEMPLATE, QUERIES, seed=1, **options).texts != first
    torch.set_rng_state(state)
    sample_answers(model, TEMPLATE, QUERIES, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert len(first) == len(QUERIES)
    for response in first:
        tokens = response.split()
        assert 1 <= len(tokens) <= 6
        assert "1" not in tokens[:-1]  # nothing after the end of the sequence

    policy = AutoModelForCausalLMWithValueHead.from_pretrained(model)
    assert sample_answers(policy, TEMPLATE, QUERIES, **options).texts == first


def test_samples_come_in_the_callers_order_whatever_the_batches():
    model = language_model("llama", layers=1, vocab_size=20)
    options = {"max_new_tokens": 4, "do_sample": False, "bf16": False}
    expected = [sample_answers(model, TEMPLATE, [query], **options).texts[0] for query in QUERIES]
    assert len(set(expected)) > 1
    assert sample_answers(model, TEMPLATE, QUERIES, batch_size=2, **options).texts == expected
    assert sample_answers(model, TEMPLATE, QUERIES, **options).texts == expected


def test_dropout_is_off_while_sampling_and_the_mode_is_put_back():
    model = language_model("gpt2", layers=1, vocab_size=20)
    options = {"max_new_tokens": 8}
    expected = sample_answers(model, TEMPLATE, QUERIES, **options).texts
    model.train()
    assert sample_answers(model, TEMPLATE, QUERIES, **options).texts == expected
    assert model.training


def test_an_end_token_of_ones_own_ends_the_answers():
    options = {"max_new_tokens": 20}
    answers = sample_answers(
        language_model("llama", layers=1, vocab_size=20),
        TEMPLATE,
        QUERIES,
        eos_token_id=5,
        **options,
    ).texts
    ended = [answer.split() for answer in answers if "5" in answer.split()]
    assert ended
    assert all(answer.index("5") == len(answer) - 1 for answer in ended)


def test_answers_are_read_as_the_template_reads_them_and_kept_as_tokens() -> None:
    class Words(Numbers):
        def batch_decode(self, responses: list[torch.Tensor], **_: Any) -> list[str]:
            return [f" {' '.join(str(int(t)) for t in r)} ### End and more" for r in responses]

    template = PromptTemplate("{instruction}", end="### End").bind(Words())
    model = language_model("llama", layers=1, vocab_size=20)
    options = {"max_new_tokens": 6, "batch_size": 2}
    answers = sample_answers(model, template, QUERIES, **options)
    plain = sample_answers(model, TEMPLATE, QUERIES, **options)
    assert answers.texts == plain.texts
    assert Numbers().batch_decode(answers.responses) == answers.texts
    assert answers.trunk_states == [None] * 3  # of three batches: there is no frozen trunk
