"""Notebook 05: what is read off a training's log."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..figures.style import moving_mean
from ..ppo.math import masked_mean, masked_var, policy_loss
from .checking import Exercise
from .inputs import MASK, logprobs, normal

_SCORES = np.random.default_rng(5).normal(2, 0.5, size=12)
_SPREADS = np.random.default_rng(6).uniform(0.4, 1.0, size=8)


def _error_of_mean(stds: np.ndarray, batch_size: int) -> float:
    return float(np.sqrt((stds**2 / batch_size).sum()) / len(stds))


def _explained(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    return 1 - masked_mean((values - returns) ** 2, mask) / masked_var(returns, mask)


def _outside(ratio: Tensor, cliprange: float) -> Tensor:
    return ((ratio - 1).abs() > cliprange).double()


EXERCISES: dict[str, Exercise] = {
    "moving_mean": Exercise(
        moving_mean,
        [(_SCORES, 3), (_SCORES[:7], 5)],
        {
            "At the start there are fewer values than the window is long: divide by how many "
            "there are.": lambda x, w: [
                x[max(0, i + 1 - w) : i + 1].sum() / w for i in range(len(x))
            ],
            "That is the mean of all so far: an old value is to drop out of the window.": (
                lambda x, w: np.cumsum(x) / np.arange(1, len(x) + 1)
            ),
            "Your window holds one value too many.": lambda x, w: moving_mean(x, w + 1),
            "The value of the step itself is missing from its window.": (
                lambda x, w: [x[max(0, i - w) : max(i, 1)].mean() for i in range(len(x))]
            ),
            "Your window looks ahead. While a training runs, the future isn't there yet.": (
                lambda x, w: moving_mean(x[::-1], w)[::-1]
            ),
        },
    ),
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
