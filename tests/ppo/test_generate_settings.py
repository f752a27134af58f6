"""What `generate` makes of transformers' settings: where answers end, and how long they may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.errors import refused
from support.tokenizers import EOS, PAD
from torch import Tensor
from transformers import GenerationConfig

from rlhf_tutorial.errors import ModelError
from rlhf_tutorial.ppo import PPOTrainer
from rlhf_tutorial.ppo.generation import plain_settings

QUERIES = [torch.arange(5, 9 + i) for i in range(6)]
STOPS = range(60, 90)


def stops_at_some(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
    return torch.isin(input_ids[:, -1], torch.tensor(list(STOPS)))


@pytest.mark.parametrize("how", ["stop_strings", "stopping_criteria"])
def test_an_answer_ends_where_it_was_stopped_and_holds_no_padding(how, make_trainer, tokenizer):
    trainer: PPOTrainer = make_trainer()
    settings = {
        "stop_strings": {"stop_strings": [tokenizer.decode([i]) for i in STOPS]},
        "stopping_criteria": {"stopping_criteria": [stops_at_some]},
    }[how]
    asked = {"max_new_tokens": 30, "return_prompt": False, "eos_token_id": None, **settings}
    answers = trainer.generate(QUERIES, **asked)
    lengths = [len(answer) for answer in answers]
    assert min(lengths) < max(lengths)
    for answer in answers:
        assert PAD not in answer.tolist()
        assert not set(answer[:-1].tolist()) & set(STOPS)
        assert len(answer) == 30 or int(answer[-1]) in STOPS
    stats = trainer.step(QUERIES, answers, [0.0] * 6)
    assert stats["tokens/responses_dist"].tolist() == lengths


def test_a_criterion_that_stops_all_stops_all(make_trainer):
    trainer = make_trainer()
    asked = {"max_new_tokens": 9, "return_prompt": False, "eos_token_id": None}
    answers = trainer.generate(QUERIES, stopping_criteria=[lambda ids, _, **__: True], **asked)
    assert [len(answer) for answer in answers] == [1] * 6


def test_an_answer_ends_at_every_end_token_of_the_checkpoint(make_trainer):
    """Gemma's turn ends with <end_of_turn>, its tokenizer's texts with <eos>."""
    trainer = make_trainer()
    ends = list(range(100, 180))
    trainer.policy.pretrained_model.generation_config.eos_token_id = ends
    assert trainer.end_token_ids([EOS]) == [EOS, *ends]
    answers = trainer.generate(QUERIES, return_prompt=False, max_new_tokens=40)
    for answer in answers:
        assert not set(answer[:-1].tolist()) & {EOS, *ends}
        assert len(answer) == 40 or int(answer[-1]) in {EOS, *ends}
    assert min(map(len, answers)) < 40
    trainer.policy.pretrained_model.generation_config.eos_token_id = EOS
    assert trainer.end_token_ids([EOS]) == [EOS]


def test_a_length_beyond_the_context_is_refused_however_it_is_set(make_trainer):
    trainer = make_trainer("gpt2")  # of 64 positions; the longest query has 9 tokens
    room = {"max_length": 64}
    for asked in (room, {"generation_config": GenerationConfig(**room)}):
        answers = trainer.generate(QUERIES, return_prompt=False, eos_token_id=None, **asked)
        assert [len(answer) for answer in answers] == [64 - 9] * 6
    for asked in (
        {"max_length": 65},
        {"max_new_tokens": 56},
        {"max_new_tokens": 2, "min_new_tokens": 56},
        {"generation_config": GenerationConfig(max_new_tokens=56)},
    ):
        with refused(ModelError, "take 65 tokens together, but the policy reads 64"):
            trainer.generate(QUERIES, **asked)
    with refused(ModelError, "max_length is 9, and a query has 9 tokens"):
        trainer.generate(QUERIES, max_length=9)
    answers = trainer.generate(QUERIES, max_new_tokens=None, eos_token_id=None, return_prompt=False)
    assert [len(answer) for answer in answers] == [20] * 6, "as many as transformers' default"


def test_a_generation_config_goes_before_pure_sampling_and_single_settings_before_it():
    config = GenerationConfig(do_sample=False, max_new_tokens=7, top_k=3, eos_token_id=9)
    plain = plain_settings({"generation_config": config, "top_k": 5})
    assert (plain["max_new_tokens"], plain["top_k"], plain["eos_token_id"]) == (7, 5, 9)


def test_a_generation_config_is_followed(make_trainer):
    trainer = make_trainer()
    config = GenerationConfig(max_new_tokens=5, do_sample=True, top_k=1)
    first, second = (
        trainer.generate(QUERIES, return_prompt=False, generation_config=config) for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert a.tolist() == b.tolist(), "with top_k=1 nothing is left to chance"


def test_what_changes_no_answer_is_taken_and_what_does_is_refused(make_trainer):
    trainer, query = make_trainer(), QUERIES[0]
    whole = trainer.generate(
        query,
        attention_mask=torch.ones_like(query),
        return_dict_in_generate=True,
        num_return_sequences=1,
        max_new_tokens=3,
    )
    assert isinstance(whole, Tensor) and whole.shape[0] == 1
    with refused(ModelError, "attention_mask that hides tokens"):
        trainer.generate(query, attention_mask=torch.tensor([0, 1, 1, 1]), max_new_tokens=3)
    with refused(ModelError, "num_return_sequences is not supported: repeat each query"):
        trainer.generate(query, num_return_sequences=2, max_new_tokens=3)
    with refused(ModelError, "PPOConfig.temperature is 0.5"):
        make_trainer(temperature=0.5).generate(
            query, generation_config=GenerationConfig(temperature=2.0, do_sample=True)
        )


@pytest.mark.parametrize(
    "preferred",
    [
        {"min_p": 0.9},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(3, 200))},
        {"num_beams": 3},
    ],
    ids=lambda preferred: next(iter(preferred)),
)
def test_what_the_checkpoints_author_preferred_changes_no_answer(preferred, make_trainer):
    """Also where transformers' own loop draws, which fills such settings in."""

    def answers(**settings: Any) -> list[list[int]]:
        trainer = make_trainer()
        own = trainer.policy.pretrained_model.generation_config
        own.update(**settings)
        asked = {"stopping_criteria": [stops_at_some], "max_new_tokens": 8}
        drawn = trainer.generate(QUERIES, return_prompt=False, eos_token_id=None, **asked)
        assert trainer.policy.pretrained_model.generation_config is own
        return [answer.tolist() for answer in drawn]

    assert answers(**preferred) == answers()


def test_without_a_pad_token_the_tokenizers_is_taken(make_trainer):
    asked = {"max_new_tokens": 5, "return_prompt": False}
    given, not_given = (
        make_trainer().generate(QUERIES, **asked, **more) for more in ({"pad_token_id": None}, {})
    )
    assert [a.tolist() for a in given] == [a.tolist() for a in not_given]


@pytest.mark.parametrize("shared", [None, 2])
def test_an_answer_of_no_token_is_refused(shared, make_trainer):
    trainer = make_trainer(shared=shared)
    with refused(ModelError, "max_new_tokens is 0", "use 1 or more"):
        trainer.generate(QUERIES, max_new_tokens=0)
    with refused(ModelError, "max_new_tokens is 0", "length_sampler"):
        trainer.generate(QUERIES, lambda: 0)


def test_stops_beside_beams_are_refused(make_trainer):
    """They were cut where another beam's text had ended."""
    with refused(ModelError, "do not go with num_beams"):
        make_trainer().generate(QUERIES, num_beams=3, stopping_criteria=[stops_at_some])
