"""What a blind reading says: one kind of answer against another, over prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from ..feedback import Row

ACCEPTABLE = 3
"""From this grade on an answer is acceptable."""


def compare_sources(
    rows: Sequence[Row],
    before: str,
    after: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """The answers of some sources against those of another one to the same prompts.

    Args:
        rows: graded answers, each with a `source`; one of each source to a prompt.
        before: the source that is compared with. after: the same policy trained with several seeds.

    Returns:
        `n` pairs; `win_rate`, the share of them in which the later answer has the better grade, or
        at equal grades the better rank (equal texts count half); `grade_before`, `grade_after`,
        and the share `acceptable_` (grade 3 or better) and `ended_` of each. `win_rate_interval`
        and `grade_gain_interval` are 95% of a bootstrap that draws prompts and seeds anew, both
        (Efron & Tibshirani 1993, section 13.3), so that neither is taken for certain.

    Raises:
        DataError: if a prompt lacks an answer of one of the sources.
    """
    wins = np.empty((len(rows), len(after)))
    grades = np.empty((len(rows), 1 + len(after)))
    ended = np.empty_like(grades)
    for i, row in enumerate(rows):
        by_source = {answer["source"]: answer for answer in row["answers"]}
        if missing := {before, *after} - by_source.keys():
            raise DataError(f"{row['prompt']!r} has no answer of {sorted(missing)[0]}")
        answers = [by_source[name] for name in (before, *after)]
        grades[i] = [answer["grade"] for answer in answers]
        ended[i] = [answer["ended"] for answer in answers]
        wins[i] = [_won(answer, answers[0]) for answer in answers[1:]]
    gains = grades[:, 1:] - grades[:, :1]
    return {
        "n": int(wins.size),
        "win_rate": float(wins.mean()),
        "win_rate_interval": _two_way_interval(wins, resamples, seed),
        "grade_before": float(grades[:, 0].mean()),
        "grade_after": float(grades[:, 1:].mean()),
        "grade_gain_interval": _two_way_interval(gains, resamples, seed),
        "acceptable_before": float((grades[:, 0] >= ACCEPTABLE).mean()),
        "acceptable_after": float((grades[:, 1:] >= ACCEPTABLE).mean()),
        "ended_before": float(ended[:, 0].mean()),
        "ended_after": float(ended[:, 1:].mean()),
    }


def _won(answer: dict[str, Any], other: dict[str, Any]) -> float:
    if (answer["text"], answer["ended"]) == (other["text"], other["ended"]):
        return 0.5
    return float((answer["grade"], -answer["rank"]) > (other["grade"], -other["rank"]))


def _two_way_interval(values: np.ndarray, resamples: int, seed: int) -> list[float]:
    """95% of the mean of (prompts, seeds) when both are drawn anew, with replacement."""
    rng = np.random.default_rng(seed)
    prompts, seeds = values.shape
    means = np.empty(resamples)
    for i in range(resamples):
        columns = values[:, rng.integers(seeds, size=seeds)].mean(axis=1)
        means[i] = columns[rng.integers(prompts, size=prompts)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(low), float(high)]
