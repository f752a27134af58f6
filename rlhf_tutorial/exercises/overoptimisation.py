"""Notebook 08: the best of n in expectation, where to stop, and two judges of the same answers."""

from __future__ import annotations

from math import comb

import numpy as np

from ..evaluation.intervals import paired_difference
from ..evaluation.optimising import expected_best_of_n, last_within
from .checking import Exercise

_RANDOM = np.random.default_rng(8)
_SCORES = _RANDOM.normal(size=(2, 3, 6))
_GAINS = _RANDOM.normal(size=(3, 12)).round(2)


def _weighted(order: np.ndarray, gold: np.ndarray, counts: list[float]) -> np.ndarray:
    ordered = np.take_along_axis(gold, np.argsort(order, axis=1), axis=1)
    return ordered @ np.array(counts, dtype=float)


def _counts(size: int, n: int, shift: int = 0) -> list[float]:
    return [comb(k + shift, n - 1) / comb(size, n) for k in range(size)]


def _unpaired(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    spread = one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)
    return float((one - other).mean()), float(spread**0.5)


EXERCISES: dict[str, Exercise] = {
    "expected_best_of_n": Exercise(
        expected_best_of_n,
        [(_SCORES[0], _SCORES[1], 3), (_SCORES[1], _SCORES[0], 2)],
        {
            "That is the best of all N. Of n drawn answers it is often not among them.": (
                lambda p, g, n: np.take_along_axis(g, p.argmax(1)[:, None], axis=1)[:, 0]
            ),
            "The gold does the choosing in yours. The proxy chooses, the gold only looks on.": (
                lambda p, g, n: _weighted(g, g, _counts(g.shape[1], n))
            ),
            "You give the proxy's score of the chosen answer. The gold's is asked for.": (
                lambda p, g, n: _weighted(p, p, _counts(p.shape[1], n))
            ),
            "The order is turned round: yours keeps the answer that the proxy likes least.": (
                lambda p, g, n: _weighted(-p, g, _counts(p.shape[1], n))
            ),
            "One place too far: the answer at place k has k others below it, not k + 1.": (
                lambda p, g, n: _weighted(p, g, _counts(p.shape[1], n, shift=1))
            ),
            "Those are sums over the draws. Divide by how many draws of n there are.": (
                lambda p, g, n: _weighted(p, g, [comb(k, n - 1) for k in range(p.shape[1])])
            ),
            "That is the best of the first n answers: one draw, with its noise.": (
                lambda p, g, n: np.take_along_axis(g, p[:, :n].argmax(1)[:, None], axis=1)[:, 0]
            ),
            "You average over the prompts too. A number for each prompt is asked for.": (
                lambda p, g, n: np.full(len(p), expected_best_of_n(p, g, n).mean())
            ),
        },
    ),
    "last_within": Exercise(
        last_within,
        [
            ([0.0, 3.0, 6.0, 9.0, 19.0, 16.0, 25.0], 17.0),
            ([0.0, 4.0, 8.0], 20.0),
            ([0.0, 5.0, 4.0, 9.0], 2.0),
        ],
        {
            "That is the first checkpoint that is too far. You want the one before it.": (
                lambda kls, most: next((i for i, kl in enumerate(kls) if kl > most), len(kls) - 1)
            ),
            "A training can come back below the limit, as the first one here does. When you stop, "
            "you don't know that it will.": (
                lambda kls, most: max(i for i, kl in enumerate(kls) if kl <= most)
            ),
            "That is the checkpoint's KL. Its index is asked for.": (
                lambda kls, most: kls[last_within(kls, most)]
            ),
            "Where no checkpoint is too far, the training goes to its end.": (
                lambda kls, most: max(next((i for i, kl in enumerate(kls) if kl > most), 0) - 1, 0)
            ),
        },
    ),
    "paired_difference": Exercise(
        paired_difference,
        [(_GAINS[0], 0.5 * _GAINS[0] + _GAINS[1]), (_GAINS[2], _GAINS[1])],
        {
            "The sign is turned: the first minus the second is asked for.": (
                lambda one, other: paired_difference(other, one)
            ),
            "That is the spread of the differences. The standard error is this over the square "
            "root of n.": lambda one, other: (
                (one - other).mean(),
                (one - other).std(ddof=1),
            ),
            "The standard error is that of two separate groups. Take the differences prompt by "
            "prompt first.": _unpaired,
            "The spread is divided by n. For a sample take n - 1: std(ddof=1).": (
                lambda one, other: (
                    (one - other).mean(),
                    (one - other).std() / len(one) ** 0.5,
                )
            ),
            "That is the variance over n: take the square root.": lambda one, other: (
                (one - other).mean(),
                (one - other).var(ddof=1) / len(one),
            ),
        },
    ),
}
