"""PPO on each family of language models, tiny, from its config: `support.families` is the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.errors import refused
from support.families import FAMILIES, GENERATE, IN_EVERY_PASS, OWN_CACHE, REFUSED, family
from support.tokenizers import PAD
from support.trainers import assert_same_weights, make_trainer, weights_of
from torch import Tensor

from rlhf_tutorial.errors import ModelError
from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead
from rlhf_tutorial.ppo import PPOTrainer
from rlhf_tutorial.ppo.rollout import collate, generate_responses

QUERIES = [torch.tensor([30, 7, 99, 12, 55]), torch.tensor([8, 140])]
SCORES = [1.0, -1.0]


def policy_of(name: str) -> AutoModelForCausalLMWithValueHead:
    return AutoModelForCausalLMWithValueHead.from_pretrained(family(name))


def trainer_of(name: str) -> PPOTrainer:
    two = {"batch_size": 2, "mini_batch_size": 2, "ppo_epochs": 2}
    return make_trainer(policy=policy_of(name), shared=2, **two)


@torch.no_grad()
def likeliest(model: Any, query: Tensor, n: int) -> list[int]:
    """The n likeliest tokens one after the other, each from a pass over all before it."""
    said = query.tolist()
    for _ in range(n):
        said.append(int(model(torch.tensor([said]), use_cache=False).logits[0, -1].argmax()))
    return said[len(query) :]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_a_family_answers_learns_is_saved_and_goes_on(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = trainer_of(name)
    policy = trainer.policy
    model = policy.pretrained_model
    assert policy.cache == (
        "own" if name in OWN_CACHE else "generate" if name in GENERATE else "plain"
    )
    assert (policy.halves is None) == (name in IN_EVERY_PASS) == (not trainer.shares_trunk)

    # Near temperature 0 a batch is answered as each query alone, without padding or cache.
    greedy = {"temperature": 1e-6, "max_new_tokens": 4, "eos_token_id": None, "pad_token_id": PAD}
    answers, _ = generate_responses(policy, QUERIES, **greedy)
    for query, answer in zip(QUERIES, answers, strict=True):
        assert answer.tolist() == likeliest(model, query, 4)

    # The layout of a step, with the frozen layers' states where there are some, says the same.
    batch = trainer.with_trunk_states(collate(QUERIES, answers, PAD))
    assert (batch.trunk_states is None) == (name in IN_EVERY_PASS)
    with torch.no_grad():
        logits = trainer.forward(policy, batch).logits
        for row, (query, answer) in enumerate(zip(QUERIES, answers, strict=True)):
            alone = model(torch.cat([query, answer])[None, :-1], use_cache=False).logits[0]
            alone = alone[len(query) - 1 :]
            torch.testing.assert_close(logits[row], alone, rtol=0, atol=1e-3 * alone.std().item())

    # Before the first update policy and reference are one, and what is frozen stays.
    before = weights_of(trainer)
    stats = trainer.step(QUERIES, answers, SCORES)
    assert abs(stats["objective/kl"]) < 1e-4
    assert abs(stats["ppo/policy/ratio"][:8] - 1).max() < 1e-3  # of the first epoch
    after = weights_of(trainer)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    trained = {k for k, p in trainer.model.named_parameters() if p.requires_grad}
    assert moved and moved <= trained < before.keys()

    # Another process goes on from a checkpoint as this one does.
    trainer.save_checkpoint(tmp_path / "checkpoints")
    again = trainer_of(name)
    assert again.resume(tmp_path / "checkpoints") == 1
    for going_on in (trainer, again):
        going_on.step(QUERIES, answers, SCORES)
    assert_same_weights(weights_of(trainer), weights_of(again))

    # What is saved is what was trained.
    trainer.save_pretrained(tmp_path / "policy")
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "policy")
    with torch.no_grad():
        for a, b in zip(loaded(QUERIES[0][None]), policy(QUERIES[0][None]), strict=True):
            assert a is b is None or torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_a_family_that_ppo_cannot_use_is_refused_when_the_policy_is_made(
    name: str, why: str
) -> None:
    with refused(ModelError, why, "another family"):
        policy_of(name)
