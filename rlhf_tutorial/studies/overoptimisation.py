"""Over-optimisation against a known gold (Gao et al. 2022, "Scaling Laws for Reward Model
Overoptimization"): a proxy that knows little is maximised, and a gold that knows more looks on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..assets import SMOLLM2, Bundled, resolve
from ..evaluation.optimising import expected_best_of_n
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
