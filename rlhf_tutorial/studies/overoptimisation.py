"""Over-optimisation against a known gold (Gao et al. 2022, "Scaling Laws for Reward Model
Overoptimization"): a proxy that knows little is maximised, and a gold that knows more looks on.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from ..assets import SMOLLM2, Bundled, resolve
from ..errors import DataError
from ..feedback import load_feedback
from ..reward import StateJudge
from .rivals import best_of_n_kl


def load_judge(name: str) -> StateJudge:
    """One of the judges that `scripts/overoptimisation.py` fitted: "gold", or "proxy-50-0".

    A proxy's name tells how many grades it knows (50, 200 or 800) and which draw of them (0 to 2).
    """
    return StateJudge.from_pretrained(resolve(SMOLLM2), resolve(Bundled("overoptimisation")) / name)


def known_to(size: int, seed: int) -> list[dict[str, Any]]:
    """The graded answers that the proxy `proxy-<size>-<seed>` was fitted to.

    Returns:
        So many of the untouched policy's answers to training prompts, four to a prompt, each with
        its `prompt`, `text`, `grade`, `rank`, and whether it `ended`.
    """
    graded = load_feedback(resolve(Bundled("feedback")) / "train.jsonl")
    order = np.random.default_rng(seed).permutation(len(graded))
    rows = [{"prompt": graded[i]["prompt"], **a} for i in order for a in graded[i]["answers"]]
    return rows[:size]


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


def best_of_n_curve(
    proxy: np.ndarray, gold: np.ndarray, sizes: Sequence[int] = (1, 2, 4, 8, 16)
) -> list[dict[str, float]]:
    """What the best of n by the proxy gains over one answer, under both judges.

    Args:
        proxy, gold: (prompts, N) scores of the same answers.

    Returns:
        A row per n: "n", "kl" (nats, at the most: `rivals.best_of_n_kl`), "proxy" and "gold" (mean
        gains over the prompts), and "gold_error" (the standard error of the latter).
    """
    rows = []
    for n in sizes:
        seen = {"n": float(n), "kl": best_of_n_kl(n)}
        for name, scores in (("proxy", proxy), ("gold", gold)):
            gains = expected_best_of_n(proxy, scores, n) - np.mean(scores, axis=1)
            seen[name] = float(gains.mean())
        rows.append(seen | {"gold_error": float(gains.std(ddof=1) / len(gains) ** 0.5)})
    return rows


def last_within(kls: Sequence[float], most: float) -> int:
    """Where to stop: the last checkpoint before the first that is farther away than `most`.

    Args:
        kls: of the checkpoints in order, the first at the start.

    Returns:
        Its index, 0 if already the second is too far.
    """
    beyond = next((i for i, kl in enumerate(kls) if kl > most), len(kls))
    return max(beyond - 1, 0)


def paired_difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The mean of `one` minus `other`, prompt by prompt, and its standard error.

    Args:
        one, other: (n,) numbers of the same n prompts, n at least 2.
    """
    apart = np.subtract(one, other)
    return float(apart.mean()), float(apart.std(ddof=1) / len(apart) ** 0.5)
