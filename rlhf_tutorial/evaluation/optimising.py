"""Optimising a judge: the best of n in expectation, and where to stop a training."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from ..errors import DataError


def expected_best_of_n(proxy: np.ndarray, gold: np.ndarray, n: int) -> np.ndarray:
    """The gold score of the answer of n that the proxy likes best, expected over draws of n of N.

    With the N answers in the proxy's order, worst first, the one at place k (from 0) is the best of
    C(k, n - 1) of the C(N, n) draws: the estimator of Nakano et al. 2021 (WebGPT, appendix I),
    which uses every answer and has no noise of drawing.

    Args:
        proxy, gold: (prompts, N) scores of the same answers. n: from 1 to N.

    Returns:
        (prompts,)

    Raises:
        DataError: for an n that there are not enough answers for, or scores of unequal shape.
    """
    proxy, gold = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if proxy.shape != gold.shape or proxy.ndim != 2 or not 1 <= n <= proxy.shape[1]:
        raise DataError(
            f"best of {n} needs {n} answers a prompt at least, each with both scores; there are "
            f"scores of shape {proxy.shape} and {gold.shape}"
        )
    size = proxy.shape[1]
    weights = np.array([comb(k, n - 1) for k in range(size)], dtype=float) / comb(size, n)
    ordered = np.take_along_axis(gold, np.argsort(proxy, axis=1, kind="stable"), axis=1)
    return ordered @ weights


def last_within(kls: Sequence[float], most: float) -> int:
    """Where to stop: the last checkpoint before the first that is farther away than `most`.

    Args:
        kls: of the checkpoints in order, the first at the start.

    Returns:
        Its index, 0 if already the second is too far.
    """
    beyond = next((i for i, kl in enumerate(kls) if kl > most), len(kls))
    return max(beyond - 1, 0)
