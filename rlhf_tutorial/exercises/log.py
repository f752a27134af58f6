"""Notebook 05: what is read off a training's log."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..ppo.math import masked_mean, masked_var, policy_loss
from .checking import Exercise
from .inputs import MASK, logprobs, normal

_SPREADS = np.random.default_rng(6).uniform(0.4, 1.0, size=8)


def _error_of_mean(stds: np.ndarray, batch_size: int) -> float:
    return float(np.sqrt((stds**2 / batch_size).sum()) / len(stds))


def _done_after(means: np.ndarray, errors: np.ndarray) -> int:
    for i in range(len(means)):
        lead, error = means[i:] - means[i], np.hypot(errors[i:], errors[i])
        if not (lead > 2 * error).any():
            return i
    raise AssertionError("nothing comes after the last block")


def _explained(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    return 1 - masked_mean((values - returns) ** 2, mask) / masked_var(returns, mask)


def _outside(ratio: Tensor, cliprange: float) -> Tensor:
    return ((ratio - 1).abs() > cliprange).double()


EXERCISES: dict[str, Exercise] = {
    "error_of_mean": Exercise(
        _error_of_mean,
        [(_SPREADS, 16), (_SPREADS[:5], 4)],
        {
            "That is the error of one batch's mean. Over several batches errors partly cancel.": (
                lambda s, n: (s / n**0.5).mean()
            ),
            "Errors of independent means don't add up: their squares do.": (
                lambda s, n: (s / n**0.5).sum()
            ),
            "That is the variance: its square root is missing.": (
                lambda s, n: (s**2 / n).sum() / len(s) ** 2
            ),
            "The batch size is missing: a batch's mean is surer than a single score.": (
                lambda s, n: _error_of_mean(s, 1)
            ),
            "The number of batches is missing: the sum's error isn't the mean's.": (
                lambda s, n: _error_of_mean(s, n) * len(s)
            ),
        },
    ),
    "done_after": Exercise(
        _done_after,
        [
            (np.array([1.6, 1.94, 2.0, 2.02]), np.full(4, 0.06)),
            (np.array([1.0, 1.1, 1.2, 1.3, 1.31]), np.full(5, 0.06)),
            (np.array([1.0, 1.05, 0.95]), np.array([0.02, 0.04, 0.03])),
            (np.array([2.0, 1.0]), np.array([0.1, 0.1])),
        ],
        {
            "You look at the next block only: many small rises add up to a large one.": (
                lambda m, e: next(
                    (
                        i
                        for i in range(len(m) - 1)
                        if m[i + 1] - m[i] <= 2 * np.hypot(e[i], e[i + 1])
                    ),
                    len(m) - 1,
                )
            ),
            "You take the best block. Its lead may be noise: ask which one nothing beats by more "
            "than two standard errors.": lambda m, e: int(np.argmax(m)),
            "One standard error is little: chance gets that far often. Take two.": (
                lambda m, e: _done_after(m, e / 2)
            ),
            "Standard errors don't add up: their squares do.": lambda m, e: next(
                i for i in range(len(m)) if not (m[i:] - m[i] > 2 * (e[i:] + e[i])).any()
            ),
            "Blocks are counted from 0.": lambda m, e: _done_after(m, e) + 1,
        },
    ),
    "explained_variance": Exercise(
        _explained,
        [(normal(3, 4) + 0.5, 2 * normal(3, 4) + 1, MASK) for _ in range(2)],
        {
            "The mask is forgotten: padding counts.": (
                lambda v, r, m: _explained(v, r, torch.ones_like(m))
            ),
            "That is the share that is left: take it from 1.": (
                lambda v, r, m: 1 - _explained(v, r, m)
            ),
            "You divide by the variance of the values. What is to be explained is the returns'.": (
                lambda v, r, m: 1 - masked_mean((v - r) ** 2, m) / masked_var(v, m)
            ),
            "You take the variance of the error, and so forgive a head that is off by the same "
            "amount everywhere: take the mean of its square.": (
                lambda v, r, m: 1 - masked_var(v - r, m) / masked_var(r, m)
            ),
            "That is the absolute error, and a variance is of squares.": (
                lambda v, r, m: 1 - masked_mean((v - r).abs(), m) / masked_var(r, m)
            ),
        },
    ),
    "clip_fraction": Exercise(
        lambda logprobs, old_logprobs, advantages, mask, cliprange: policy_loss(
            logprobs, old_logprobs, advantages, mask, cliprange
        )[2],
        [
            (old + 0.4 * normal(3, 8), old, normal(3, 8), MASK.repeat(1, 2), eps)
            for old, eps in ((logprobs(3, 8), 0.2), (logprobs(3, 8), 0.1))
        ],
        {
            "You count every ratio outside the band. The clip acts only where the advantage "
            "pushes further out: ratio too high and advantage positive, or both the other way.": (
                lambda p, o, a, m, c: masked_mean(_outside(torch.exp(p - o), c), m)
            ),
            "You count the tokens that come back: the clip takes away only the push outwards.": (
                lambda p, o, a, m, c: masked_mean(
                    _outside(torch.exp(p - o), c) * (a * (p - o) < 0), m
                )
            ),
            "The mask is forgotten: padding counts.": lambda p, o, a, m, c: (
                _outside(torch.exp(p - o), c) * (a * (p - o) > 0)
            ).mean(),
            "You count only what went up: a ratio may be too low as well.": (
                lambda p, o, a, m, c: masked_mean(
                    ((torch.exp(p - o) > 1 + c) & (a > 0)).double(), m
                )
            ),
            "That is the share that the clip left alone.": lambda p, o, a, m, c: (
                1 - policy_loss(p, o, a, m, c)[2]
            ),
        },
    ),
}
