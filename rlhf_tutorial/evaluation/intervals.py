"""95% intervals: the bootstrap for a mean, over prompts or over seeds too; Wilson's for a share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import DataError


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    statistic: Callable[..., np.ndarray] = np.mean,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3).

    Args:
        values: (n,) independent observations; for a paired comparison, their differences.
        statistic: called as `statistic(samples, axis=1)` on (resamples, n), as NumPy's reductions.
        level: the share of the resampled statistics between the two ends.

    Raises:
        DataError: without a single value.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise DataError(f"values has shape {values.shape}: give at least one, in one dimension")
    rng = np.random.default_rng(seed)
    # In blocks: all resamples of a few thousand values at once would fill hundreds of megabytes.
    block = max(1, 1_000_000 // len(values))
    statistics = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        indices = rng.integers(len(values), size=(rows, len(values)))
        statistics.append(statistic(values[indices], axis=1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(statistics), [tail, 1 - tail])
    return float(low), float(high)


def two_way_interval(
    values: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95% of the mean when rows and columns are both drawn anew, with replacement.

    For prompts that several seeds of a training have answered: neither is the whole population
    (Owen 2007, "The pigeonhole bootstrap").

    Args:
        values: (prompts, seeds). With one seed this is the interval over prompts alone.

    Raises:
        DataError: without a value.
    """
    if values.ndim != 2 or not values.size:
        raise DataError(f"values has shape {values.shape}: give a table of at least one value")
    rng = np.random.default_rng(seed)
    prompts, seeds = values.shape
    means = np.empty(resamples)
    for i in range(resamples):
        columns = values[:, rng.integers(seeds, size=seeds)].mean(axis=1)
        means[i] = columns[rng.integers(prompts, size=prompts)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def paired_difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The mean of `one` minus `other`, prompt by prompt, and its standard error.

    Args:
        one, other: (n,) numbers of the same n prompts, n at least 2.
    """
    apart = np.subtract(one, other)
    return float(apart.mean()), float(apart.std(ddof=1) / len(apart) ** 0.5)


def accuracy_interval(correct: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval for `correct` successes in `n` trials (Wilson 1927)."""
    if not 0 <= correct <= n or n == 0:
        raise DataError(f"{correct} correct of {n}: need 0 <= correct <= n and n > 0")
    z = 1.959963984540054  # the normal distribution's 97.5% quantile
    centre = (correct + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(correct * (n - correct) / n + z**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
