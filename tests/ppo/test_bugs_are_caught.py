"""Would the parity tests notice? Ten plausible bugs, planted one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import parity
from torch import Tensor

from rlhf_tutorial.ppo import math, trainer
from rlhf_tutorial.ppo.rollout import Batch, Evaluation

PPO = trainer.PPOTrainer


def index_shifted_by_one(patch: Callable[..., None]) -> None:
    """Each token's probability is read two places before it, not one."""
    right = Batch.predicting.fget
    patch(Batch, "predicting", property(lambda batch: right(batch) - 1))


def mask_forgotten_in_the_loss(patch: Callable[..., None]) -> None:
    patch(
        trainer,
        "policy_loss",
        lambda lp, old, a, mask, c: math.policy_loss(lp, old, a, torch.ones_like(mask), c),
    )


def whitened_per_mini_batch(patch: Callable[..., None]) -> None:
    patch(trainer, "masked_whiten", lambda values, mask, shift_mean=True: values)
    patch(
        trainer,
        "policy_loss",
        lambda lp, old, a, mask, c: math.policy_loss(lp, old, math.masked_whiten(a, mask), mask, c),
    )


def kl_with_the_wrong_sign(patch: Callable[..., None]) -> None:
    patch(trainer, "kl_per_token", lambda lp, ref, kind: math.kl_per_token(ref, lp, kind))


def returns_from_whitened_advantages(patch: Callable[..., None]) -> None:
    right = PPO.advantages

    def wrong(self: Any, evaluation: Evaluation, rewards: Tensor) -> tuple[Tensor, Tensor]:
        advantages, _ = right(self, evaluation, rewards)
        return advantages, advantages + evaluation.values

    patch(PPO, "advantages", wrong)


def clipped_on_the_wrong_side(patch: Callable[..., None]) -> None:
    """The minimum of the two losses in place of the maximum: an optimist's bound."""

    def wrong(lp: Tensor, old: Tensor, a: Tensor, mask: Tensor, c: float) -> tuple:
        _, ratio, clipfrac = math.policy_loss(lp, old, a, mask, c)
        losses = torch.minimum(-a * ratio, -a * ratio.clamp(1 - c, 1 + c))
        return math.masked_mean(losses, mask), ratio, clipfrac

    patch(trainer, "policy_loss", wrong)


def score_on_the_first_token(patch: Callable[..., None]) -> None:
    def wrong(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        rewards = -beta * kl
        rewards[:, 0] += scores
        return rewards, -beta * kl

    patch(trainer, "rewards_per_token", wrong)


def biased_variance(patch: Callable[..., None]) -> None:
    """Divided by n, not n - 1."""

    def wrong(values: Tensor, mask: Tensor) -> Tensor:
        return math.masked_mean((values - math.masked_mean(values, mask)) ** 2, mask)

    patch(math, "masked_var", wrong)


def gamma_and_lambda_swapped(patch: Callable[..., None]) -> None:
    patch(trainer, "gae", lambda rewards, values, gamma, lam: math.gae(rewards, values, lam, gamma))


def controller_counting_batches(patch: Callable[..., None]) -> None:
    patch(
        trainer,
        "adapted_kl_coef",
        lambda beta, kl, target, samples, horizon: math.adapted_kl_coef(
            beta, kl, target, 1, horizon
        ),
    )


BUGS = {
    index_shifted_by_one: "kl",
    mask_forgotten_in_the_loss: "kl",
    whitened_per_mini_batch: "mini_batches",
    kl_with_the_wrong_sign: "kl",
    returns_from_whitened_advantages: "llama",
    clipped_on_the_wrong_side: "kl",
    score_on_the_first_token: "llama",
    biased_variance: "kl",
    gamma_and_lambda_swapped: "gamma_lambda",
    controller_counting_batches: "adaptive_controller",
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_parity_rejects(bug, tokenizer, monkeypatch):
    fixture = parity.load(BUGS[bug])
    bug(monkeypatch.setattr)
    found = parity.differences(fixture, tokenizer, steps=3)
    assert found and all(" off, " in line for line in found), "numbers differ, nothing crashed"


@pytest.mark.parametrize("name", sorted(set(BUGS.values())))
def test_and_without_a_bug_it_does_not(name, tokenizer):
    assert parity.differences(parity.load(name), tokenizer, steps=3) == []
