"""Notebook 10: how often a hand slips, what choices say of a judge, and which would say most."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import Exercise
from .inputs import normal


def slip(agreement: Tensor) -> Tensor:
    """How often a choice goes wrong, of how often two choices on the same pair agree; both (N,)."""
    return (1 - (2 * agreement - 1).sqrt()) / 2


def log_posterior(w: Tensor, d: Tensor, y: Tensor, variance: float) -> Tensor:
    """Of weights (K,), but for a constant: (N, K) differences, (N,) choices, 1/2 for a tie."""
    fit = y * F.logsigmoid(d @ w) + (1 - y) * F.logsigmoid(-d @ w)
    return fit.sum() - w.square().sum() / (2 * variance)


def choice_information(p: Tensor) -> Tensor:
    """BALD, in nats (N,), of p (S, N), a row for each draw of the weights."""
    return _entropy(p.mean(dim=0)) - _entropy(p).mean(dim=0)


def _entropy(p: Tensor) -> Tensor:
    return -p * p.log() - (1 - p) * (1 - p).log()


def _mean_fit(w: Tensor, d: Tensor, y: Tensor, variance: float) -> Tensor:
    prior = w.square().sum() / (2 * variance)
    return (log_posterior(w, d, y, variance) + prior) / len(y) - prior


_CHOICES = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0], dtype=torch.float64)

EXERCISES: dict[str, Exercise] = {
    "slip": Exercise(
        slip,
        [(torch.tensor([0.82, 0.98, 0.68, 1.0], dtype=torch.float64),)],
        {
            "A pair of choices disagrees where either of the two has slipped: that's about twice "
            "as often as one slips.": lambda p: 1 - p,
            "Two slips agree, too: put e^2 + (1 - e)^2 for the agreement, and solve for e.": (
                lambda p: (1 - p) / 2
            ),
            "Two choices agree where neither has slipped, and also where both have: e^2 is "
            "missing.": lambda p: 1 - p.sqrt(),
            "The equation has two roots. Yours is a reader who slips more often than not: take the "
            "one below a half.": lambda p: (1 + (2 * p - 1).sqrt()) / 2,
        },
    ),
    "log_posterior": Exercise(
        log_posterior,
        [(normal(3), normal(5, 3), _CHOICES, 0.5), (normal(2), normal(4, 2), _CHOICES[1:], 3.0)],
        {
            "The prior is missing: nothing holds the weights back that no choice has settled.": (
                lambda w, d, y, v: log_posterior(w, d, y, math.inf)
            ),
            "You take the mean over the choices. Each new choice is evidence of its own: sum them, "
            "or a hundred weigh no more against the prior than one.": _mean_fit,
            "What says that b was chosen is missing: (1 - y) log sigma(-m).": (
                lambda w, d, y, v: (y * F.logsigmoid(d @ w)).sum() - w.square().sum() / (2 * v)
            ),
            "The differences are a minus b, and you read them as b less a.": (
                lambda w, d, y, v: log_posterior(w, -d, y, v)
            ),
            "The variance belongs below the squares: a wide prior holds back less.": (
                lambda w, d, y, v: log_posterior(w, d, y, 1 / v)
            ),
            "The 2 below the squares is missing.": lambda w, d, y, v: log_posterior(w, d, y, v / 2),
        },
        learned=[0],
    ),
    "choice_information": Exercise(
        choice_information,
        [(normal(6, 4).sigmoid(),), (normal(3, 5).sigmoid(),)],
        {
            "That is the entropy of the answer. It is large for a coin toss, too, from which there "
            "is nothing to learn: take off what would be left if you knew the weights.": (
                lambda p: _entropy(p.mean(dim=0))
            ),
            "That is what would be left if you knew the weights. Take it off the entropy of the "
            "mean.": lambda p: _entropy(p).mean(dim=0),
            "The entropy of a choice has two terms, and (1 - p) log(1 - p) is missing.": (
                lambda p: (p * p.log()).mean(dim=0) - p.mean(dim=0) * p.mean(dim=0).log()
            ),
            "That is in bits: for nats take the natural logarithm.": (
                lambda p: choice_information(p) / math.log(2)
            ),
        },
    ),
}
