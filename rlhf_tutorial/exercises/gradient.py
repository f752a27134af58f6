"""Notebook 03b: the exact gradient, a baseline, REINFORCE."""

from __future__ import annotations

from ..by_hand import exact_gradient, reinforce_loss
from .checking import Exercise
from .inputs import logprobs, normal

EXERCISES: dict[str, Exercise] = {
    "exact_gradient": Exercise(
        exact_gradient,
        [(normal(3), normal(3)), (normal(5), normal(5) + 2)],
        {
            "The expected score is not taken off: then every good score pushes up, and the "
            "gradient does not sum to 0.": lambda z, s: z.softmax(-1) * s,
            "The probability in front is missing.": lambda z, s: s - z.softmax(-1) @ s,
            "You take off the plain mean of the scores. The expected score weighs each with its "
            "probability.": lambda z, s: z.softmax(-1) * (s - s.mean()),
        },
    ),
    "leave_one_out": Exercise(
        lambda rewards: (rewards.sum() - rewards) / (len(rewards) - 1),
        [(normal(4),), (normal(7),)],
        {
            "That is the mean of all: an answer's own reward must not be in its baseline, or the "
            "gradient is biased.": lambda r: r.mean().expand(len(r)),
            "The others are N - 1, and you have divided by N.": lambda r: (r.sum() - r) / len(r),
            "That is the sum of the others, not their mean.": lambda r: r.sum() - r,
        },
    ),
    "reinforce_loss": Exercise(
        reinforce_loss,
        [(logprobs(5, 4), normal(5) + 2, 1.7), (logprobs(3, 1), normal(3), -0.4)],
        {
            "The sign is turned: descending this loss makes good answers rarer.": (
                lambda p, r, b: -reinforce_loss(p, r, b)
            ),
            "The baseline is missing.": lambda p, r, b: reinforce_loss(p, r),
            "The baseline is added, and it should be taken off.": (
                lambda p, r, b: reinforce_loss(p, r, -b)
            ),
            "You take the mean over the tokens. The log-probability of an answer is their sum.": (
                lambda p, r, b: -((r - b) * p.mean(dim=1)).mean()
            ),
            "You use the probability. The trick is the gradient of its logarithm.": (
                lambda p, r, b: -((r - b) * p.sum(dim=1).exp()).mean()
            ),
            "That is the sum over the answers, not their mean.": (
                lambda p, r, b: -((r - b) * p.sum(dim=1)).sum()
            ),
        },
        learned=[0],
    ),
}
