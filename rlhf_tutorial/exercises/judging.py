"""Notebook 03: a loss for comparisons, a judge's accuracy, a linear judge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import Exercise
from .inputs import normal


def _accuracy(
    grades: Tensor, scores: Tensor, tie: float = 0.5, all_pairs: bool = False, turned: bool = False
) -> Tensor:
    """The share of pairs that the scores order as the grades do; a tie in the scores counts so."""
    first, second = torch.combinations(torch.arange(len(grades))).T
    by_grade, by_score = grades[first] - grades[second], scores[first] - scores[second]
    agree = by_grade.sign() * by_score.sign() * (-1 if turned else 1)
    right = (agree > 0) + tie * (by_score == 0)
    told_apart = by_grade != 0
    return right[told_apart].sum() / (len(right) if all_pairs else told_apart.sum())


def _ridge(z: Tensor, grades: Tensor, penalty: Tensor | float) -> Tensor:
    return torch.linalg.solve(
        z.T @ z + penalty * torch.eye(z.shape[1], dtype=z.dtype), z.T @ grades
    )


def _scaled(rows: int, columns: int) -> Tensor:
    z = normal(rows, columns)
    return (z - z.mean(dim=0)) / z.std(dim=0, correction=0)


EXERCISES: dict[str, Exercise] = {
    "bradley_terry_loss": Exercise(
        lambda chosen, rejected: -F.logsigmoid(chosen - rejected).mean(),
        [(normal(4), normal(4)), (normal(7) + 1, normal(7))],
        {
            "The sign is turned: a loss is minimised, and this one grows as the better answers "
            "win.": lambda c, r: F.logsigmoid(c - r).mean(),
            "The two are swapped: this judge learns to prefer the rejected answers.": (
                lambda c, r: -F.logsigmoid(r - c).mean()
            ),
            "The logarithm is missing: that is minus the probability, not minus its log.": (
                lambda c, r: -torch.sigmoid(c - r).mean()
            ),
            "The sigmoid is missing: that is the mean margin, and it has no lower end.": (
                lambda c, r: (r - c).mean()
            ),
            "That is the sum over the pairs, not their mean.": (
                lambda c, r: -F.logsigmoid(c - r).sum()
            ),
            "You take the mean of the margins first. Each pair has a probability of its own.": (
                lambda c, r: -F.logsigmoid((c - r).mean())
            ),
        },
        learned=[0, 1],
    ),
    "pair_accuracy": Exercise(
        _accuracy,
        [
            (
                torch.tensor([4.0, 3.0, 3.0, 1.0]),
                torch.tensor([1.2, 1.2, 2.0, 0.3]),
            ),
            (
                torch.tensor([0.0, 2.0, 5.0, 2.0, 1.0]),
                torch.tensor([0.1, 0.4, 0.2, 0.1, 0.1]),
            ),
        ],
        {
            "Equal scores count as wrong, and should count half: the judge tosses a coin.": (
                lambda g, s: _accuracy(g, s, tie=0.0)
            ),
            "Equal scores count as right, and should count half: a judge that gives everything "
            "the same score would be perfect.": lambda g, s: _accuracy(g, s, tie=1.0),
            "You divide by all pairs. Those with equal grades have no right order: leave them "
            "out.": lambda g, s: _accuracy(g, s, all_pairs=True),
            "That is the share of pairs that are in the wrong order.": (
                lambda g, s: _accuracy(g, s, turned=True)
            ),
        },
    ),
    "ridge": Exercise(
        _ridge,
        [(_scaled(6, 3), normal(6) + 2, 0.5), (_scaled(4, 5), normal(4), 2.0)],
        {
            "The penalty counts the answers: it is k times the identity, however many they are.": (
                lambda z, g, k: _ridge(z, g, k * len(z))
            ),
            "The penalty has the wrong sign: it makes the weights larger.": (
                lambda z, g, k: _ridge(z, g, -k)
            ),
            "The penalty is missing: that line goes through as many grades as it can.": (
                lambda z, g, k: torch.linalg.pinv(z) @ g
            ),
            "Each feature for itself: z'g is there, and nothing is solved. Features that say the "
            "same would count twice.": lambda z, g, k: z.T @ g,
        },
    ),
}
