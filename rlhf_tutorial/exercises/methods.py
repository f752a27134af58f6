"""Notebook 09: what best-of-n says, what DPO's log says, and a gain at a matched KL."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .checking import Exercise

_random = np.random.default_rng(9)


def _best_of(p: np.ndarray, n: int) -> np.ndarray:
    """Of answers with probabilities p, worst first: the chances to be the best of n draws."""
    return np.diff(np.cumsum(p) ** n, prepend=0.0)


def _dpo_numbers(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """TRL's `rewards/margins` and `rewards/accuracies` of a batch of pairs."""
    margins = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return torch.stack([margins.mean(), (margins > 0).double().mean()])


def _gain_at_kl(kl: np.ndarray, gain: np.ndarray, at: float) -> float:
    """Where the KL first is `at` or more, on a line over its root from the look before."""
    last = int(np.argmax(kl >= at))
    two = slice(last - 1, last + 1)
    return float(np.interp(at**0.5, kl[two] ** 0.5, gain[two]))


def _straight(kl: np.ndarray, gain: np.ndarray, at: float) -> float:
    """With a line over the KL itself."""
    last = int(np.argmax(kl >= at))
    return float(np.interp(at, kl[last - 1 : last + 1], gain[last - 1 : last + 1]))


def _pairs(n: int) -> tuple[Tensor, ...]:
    """Log-probabilities of answers: chosen and rejected, by the policy and by the reference."""
    policy, reference = (torch.from_numpy(_random.normal(-12, 1, size=(2, n))) for _ in range(2))
    return (*policy, *reference)


_PATHS = [
    (np.array([0.0, 2.0, 5.0, 3.0, 7.0, 4.0]), np.array([0.0, 0.3, 0.6, 0.5, 0.7, 0.2]), 4.5),
    (np.array([0.0, 1.0, 4.5, 3.8]), np.array([0.0, 0.25, 0.4, 0.9]), 4.0),
]

EXERCISES: dict[str, Exercise] = {
    "best_of": Exercise(
        _best_of,
        [(_random.dirichlet(np.ones(6)), 4), (_random.dirichlet(np.ones(4)), 3)],
        {
            "Those are the chances to be the worst of n: all others are to be better.": (
                lambda p, n: -np.diff((p[::-1].cumsum()[::-1]) ** n, append=0.0)
            ),
            "That is the chance that all n draws are this very answer.": lambda p, n: p**n,
            "That is the chance that the answer is among the n. It must also be the best there.": (
                lambda p, n: 1 - (1 - p) ** n
            ),
            "That is the chance that the best is this answer or a worse one: take off what belongs "
            "to the worse ones.": lambda p, n: np.cumsum(p) ** n,
            "You place the answer in one of n draws and let the others be no better. Where two "
            "draws are the same answer, that counts it twice.": (
                lambda p, n: n * p * np.cumsum(p) ** (n - 1)
            ),
            "You place the answer in one of n draws and let the others be worse. They may also be "
            "the same answer.": lambda p, n: n * p * (np.cumsum(p) - p) ** (n - 1),
        },
    ),
    "dpo_numbers": Exercise(
        _dpo_numbers,
        [(*_pairs(8), 0.1), (*_pairs(5), 0.5)],
        {
            "beta is missing in the margin.": lambda c, r, rc, rr, b: _dpo_numbers(
                c, r, rc, rr, 1.0
            ),
            "The reference is missing: a policy is asked how much more it prefers the chosen "
            "answer than the reference does.": lambda c, r, rc, rr, b: _dpo_numbers(
                c, r, 0 * rc, 0 * rr, b
            ),
            "Your accuracy compares the policy's own log-probabilities. It is the share of pairs "
            "with a margin above 0.": lambda c, r, rc, rr, b: torch.stack(
                [_dpo_numbers(c, r, rc, rr, b)[0], (c > r).double().mean()]
            ),
            "The sign is turned: chosen less rejected.": lambda c, r, rc, rr, b: _dpo_numbers(
                r, c, rr, rc, b
            ),
            "The two are swapped: the mean margin comes first.": (
                lambda c, r, rc, rr, b: _dpo_numbers(c, r, rc, rr, b).flip(0)
            ),
            "That is the sum of the margins: take their mean.": lambda c, r, rc, rr, b: torch.stack(
                [len(c) * _dpo_numbers(c, r, rc, rr, b)[0], _dpo_numbers(c, r, rc, rr, b)[1]]
            ),
        },
    ),
    "gain_at_kl": Exercise(
        _gain_at_kl,
        _PATHS,
        {
            "Your line is straight over the KL. It is to be straight over its root, as the figures "
            "are.": _straight,
            "That is the gain at the look before. Go on to `at` along the line.": (
                lambda kl, gain, at: float(gain[np.argmax(kl >= at) - 1])
            ),
            "That is the gain at the first look beyond. Go back to `at` along the line.": (
                lambda kl, gain, at: float(gain[np.argmax(kl >= at)])
            ),
            "You read it on the way back. The KL falls again: take the first crossing.": (
                lambda kl, gain, at: _gain_at_kl(kl[::-1], gain[::-1], at)
            ),
            "That is the gain at the last look. Did you take where the training stopped, or give "
            "`np.interp` all looks? It wants a KL that only rises: give it the two about `at`.": (
                lambda kl, gain, at: float(gain[-1])
            ),
            "You sort the looks by their KL. They are to stay in the order of the training.": (
                lambda kl, gain, at: float(
                    np.interp(at**0.5, np.sort(kl) ** 0.5, gain[np.argsort(kl)])
                )
            ),
        },
    ),
}
