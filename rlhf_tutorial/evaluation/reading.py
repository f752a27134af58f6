"""What a blind reading says: of one kind of answer against another, and of a judge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..errors import DataError
from ..feedback import Row
from ..scores import checked_scores

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
        `n` pairs, of so many `seeds`; `win_rate`, the share of them in which the later answer has
        the better grade, or at equal grades the better rank (equal answers count half), and
        `win_rate_by_seed`; `grade_before`, `grade_after`, and the share `acceptable_` (grade 3 or
        better) and `ended_` of each. `win_rate_interval` and `grade_gain_interval` are 95% of a
        bootstrap that draws prompts and seeds anew, both (Owen 2007, "The pigeonhole bootstrap").
        With one seed it is the interval of this one policy. With three it is too narrow if they
        differ much: look at `win_rate_by_seed`.

    Raises:
        DataError: without rows or sources, or if a prompt has not one answer of each source.
    """
    if not rows or not after:
        raise DataError("there is nothing to compare: give rows, and a source at least")
    chosen = [_answers_of(row, (before, *after)) for row in rows]
    grades = np.array([[a["grade"] for a in answers] for answers in chosen], dtype=float)
    ended = np.array([[a["ended"] for a in answers] for answers in chosen], dtype=float)
    wins = np.array([[_won(a, answers[0]) for a in answers[1:]] for answers in chosen])
    gains = grades[:, 1:] - grades[:, :1]
    return {
        "n": int(wins.size),
        "seeds": len(after),
        "win_rate": float(wins.mean()),
        "win_rate_by_seed": wins.mean(axis=0).tolist(),
        "win_rate_interval": _two_way_interval(wins, resamples, seed),
        "grade_before": float(grades[:, 0].mean()),
        "grade_after": float(grades[:, 1:].mean()),
        "grade_gain_interval": _two_way_interval(gains, resamples, seed),
        "acceptable_before": float((grades[:, 0] >= ACCEPTABLE).mean()),
        "acceptable_after": float((grades[:, 1:] >= ACCEPTABLE).mean()),
        "ended_before": float(ended[:, 0].mean()),
        "ended_after": float(ended[:, 1:].mean()),
    }


def gains_of(
    rows: Sequence[Row], before: str, after: Sequence[str], key: str = "grade"
) -> dict[str, Any]:
    """What a reader, or a judge whose scores the rows hold, sees in the same answers.

    Args:
        rows, before, after: as of `compare_sources`. key: what of an answer is compared.

    Returns:
        `mean_gain`, its 95% interval `mean_gain_interval`, over prompts and seeds as above, and
        `gain_by_seed`.
    """
    chosen = [_answers_of(row, (before, *after)) for row in rows]
    values = np.array([[answer[key] for answer in answers] for answers in chosen], dtype=float)
    gains = values[:, 1:] - values[:, :1]
    return {
        "mean_gain": float(gains.mean()),
        "mean_gain_interval": _two_way_interval(gains, resamples=10_000, seed=0),
        "gain_by_seed": gains.mean(axis=0).tolist(),
    }


def pair_accuracy(
    rows: Sequence[Row], scores: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """How often a judge orders two answers of different grade to one prompt as the reader does.

    Args:
        rows: graded answers. scores: one for each answer, prompt by prompt.

    Returns:
        `n` pairs, `accuracy` (equal scores count half), and `low` and `high`, 95% of a bootstrap
        over prompts: the pairs of one prompt are not independent.

    Raises:
        DataError: if there is not one score an answer, or no pair.
    """
    count = sum(len(row["answers"]) for row in rows)
    if len(scores) != count:
        raise DataError(f"{len(scores)} scores for {count} answers: give one for each")
    given = iter(checked_scores(scores, count))
    right, pairs = np.zeros(len(rows)), np.zeros(len(rows))
    for i, row in enumerate(rows):
        graded = [(answer["grade"], next(given)) for answer in row["answers"]]
        for (grade, score), (other_grade, other_score) in combinations(graded, 2):
            if grade != other_grade:
                pairs[i] += 1
                right[i] += (np.sign(grade - other_grade) * np.sign(score - other_score) + 1) / 2
    if not pairs.any():
        raise DataError("no two answers to a prompt have different grades: there is no pair")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(rows), size=(resamples, len(rows)))
    resampled = right[drawn].sum(axis=1) / np.maximum(pairs[drawn].sum(axis=1), 1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {
        "n": int(pairs.sum()),
        "accuracy": float(right.sum() / pairs.sum()),
        "low": float(low),
        "high": float(high),
    }


def agreement(first: Sequence[Row], second: Sequence[Row]) -> dict[str, float]:
    """How alike two readings of the same answers are.

    Returns:
        `n` answers; the `correlation` of their grades, and the share that have the `same_grade`; of
        the `pairs` of a prompt that the first reading graded differently, the share that the second
        orders alike, `same_order` (one that it does not tell apart counts half).

    Raises:
        DataError: for readings of different answers, or without such a pair.
    """

    def texts(rows: Sequence[Row]) -> list[list[str]]:
        return [[row["prompt"], *(a["text"] for a in row["answers"])] for row in rows]

    if texts(first) != texts(second):
        raise DataError("the two readings are not of the same answers in the same order")
    grades = np.array([[a["grade"] for row in rows for a in row["answers"]]
                       for rows in (first, second)], dtype=float)  # fmt: skip
    pairs = pair_accuracy(first, grades[1].tolist())  # the second reading as a judge of the first
    return {
        "n": grades.shape[1],
        "correlation": float(np.corrcoef(grades)[0, 1]),
        "same_grade": float((grades[0] == grades[1]).mean()),
        "pairs": pairs["n"],
        "same_order": pairs["accuracy"],
    }


def _answers_of(row: Row, sources: Sequence[str]) -> list[dict[str, Any]]:
    """The row's answer of each source, in their order."""
    by_source: dict[str, dict[str, Any]] = {}
    for answer in row["answers"]:
        if answer["source"] in by_source:
            raise DataError(f"{row['prompt']!r} has two answers of {answer['source']}")
        by_source[answer["source"]] = answer
    if missing := set(sources) - by_source.keys():
        raise DataError(f"{row['prompt']!r} has no answer of {sorted(missing)[0]}")
    return [by_source[name] for name in sources]


def _won(answer: dict[str, Any], other: dict[str, Any]) -> float:
    mine, its = ((a["grade"], -a["rank"]) for a in (answer, other))
    return 0.5 if mine == its else float(mine > its)


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
