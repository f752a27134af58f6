"""Notebook 08b: the optimum, and the losses of PPO's rivals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..by_hand import dpo_loss, grpo_loss, k3, optimum, reinforce_loss, rloo_loss
from .checking import Exercise
from .inputs import logprobs, normal


def _spread(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / (scores.std() + 1e-4)


def _grpo(logprobs: Tensor, advantages: Tensor, penalty: Tensor) -> Tensor:
    ratio = torch.exp(logprobs - logprobs.detach())
    return -(advantages[:, None] * ratio - penalty).mean()


EXERCISES: dict[str, Exercise] = {
    "rloo_loss": Exercise(
        rloo_loss,
        [(logprobs(4, 3), normal(4) + 1), (logprobs(6, 2), normal(6))],
        {
            "The sign is turned: descending this loss makes good answers rarer.": (
                lambda p, r: -rloo_loss(p, r)
            ),
            "Each answer is in its own baseline: leave it out.": (
                lambda p, r: reinforce_loss(p, r, r.mean())
            ),
            "The others are N - 1, and you have divided by N.": (
                lambda p, r: reinforce_loss(p, r, (r.sum() - r) / len(r))
            ),
            "There is no baseline.": lambda p, r: reinforce_loss(p, r),
            "You take the mean over the tokens. The log-probability of an answer is their sum.": (
                lambda p, r: rloo_loss(p.mean(dim=1, keepdim=True), r)
            ),
        },
        learned=[0],
    ),
    "grpo_loss": Exercise(
        grpo_loss,
        [(logprobs(5, 3), logprobs(5, 3), normal(5) + 1, 0.3)],
        {
            "The advantages are not divided by their spread.": (
                lambda p, q, s, b: _grpo(p, s - s.mean(), b * k3(p, q))
            ),
            "The mean of the group is not taken off.": (
                lambda p, q, s, b: _grpo(p, s / (s.std() + 1e-4), b * k3(p, q))
            ),
            "The KL is missing.": lambda p, q, s, b: _grpo(p, _spread(s), 0 * p),
            "The KL has the wrong sign: distance is to cost something.": (
                lambda p, q, s, b: _grpo(p, _spread(s), -b * k3(p, q))
            ),
            "The KL is k1. In the loss its gradient is 0 on average, so that it holds nothing: "
            "GRPO takes k3.": lambda p, q, s, b: _grpo(p, _spread(s), b * (p - q)),
            "The ratio in the KL is upside down: it is pi_ref / pi.": (
                lambda p, q, s, b: _grpo(p, _spread(s), b * k3(q, p))
            ),
            "beta is missing in front of the KL.": lambda p, q, s, b: _grpo(
                p, _spread(s), k3(p, q)
            ),
        },
        learned=[0],
    ),
    "dpo_loss": Exercise(
        dpo_loss,
        [(normal(5), normal(5), 0.4), (normal(3), normal(3), 1.5)],
        {
            "Chosen and rejected are swapped.": lambda c, r, b: dpo_loss(r, c, b),
            "The minus in front is missing: this makes the choices that were made improbable.": (
                lambda c, r, b: -dpo_loss(c, r, b)
            ),
            "beta is missing: it belongs inside the sigmoid.": (
                lambda c, r, b: dpo_loss(c, r, 1.0)
            ),
            "beta stands in front. It belongs inside the sigmoid.": (
                lambda c, r, b: b * dpo_loss(c, r, 1.0)
            ),
            "The logarithm is missing.": (lambda c, r, b: -torch.sigmoid(b * (c - r)).mean()),
            "Each answer has a sigmoid of its own. It is their difference that counts.": (
                lambda c, r, b: -(F.logsigmoid(b * c) + F.logsigmoid(-b * r)).mean()
            ),
        },
        learned=[0, 1],
    ),
    "optimum": Exercise(
        optimum,
        [
            (normal(5).log_softmax(-1), normal(5), 0.5),
            (normal(3).log_softmax(-1), normal(3), 2),
        ],
        {
            "The probabilities do not sum to 1: divide by Z, or use log_softmax.": (
                lambda q, s, b: q + s / b
            ),
            "You multiply by beta. A small beta is to tilt more, so the score is divided by it.": (
                lambda q, s, b: (q + s * b).log_softmax(-1)
            ),
            "The reference is missing: what it never says, pi* does not say either.": (
                lambda q, s, b: (s / b).log_softmax(-1) + 0 * q
            ),
            "Those are the probabilities, and their logarithms are asked for.": (
                lambda q, s, b: optimum(q, s, b).exp()
            ),
            "The score has the wrong sign: this is the policy that the judge likes least.": (
                lambda q, s, b: optimum(q, -s, b)
            ),
            "The logarithms of the reference are missing: it is multiplied by exp(score / beta).": (
                lambda q, s, b: (q.exp() + s / b).log_softmax(-1)
            ),
        },
    ),
}
