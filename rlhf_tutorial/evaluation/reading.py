"""What a blind reading says: of one kind of answer against another, and of a judge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..errors import DataError
from ..feedback import Row
from ..scores import checked_scores
from .intervals import bootstrap_interval, two_way_interval

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
    chosen = _chosen(rows, before, after)
    grades, ended = _values(chosen, "grade"), _values(chosen, "ended")
    wins = np.array([[_won(a, answers[0]) for a in answers[1:]] for answers in chosen])
    gains = grades[:, 1:] - grades[:, :1]
    return {
        "n": int(wins.size),
        "seeds": len(after),
        "win_rate": float(wins.mean()),
        "win_rate_by_seed": wins.mean(axis=0).tolist(),
        "win_rate_interval": list(two_way_interval(wins, resamples=resamples, seed=seed)),
        "grade_before": float(grades[:, 0].mean()),
        "grade_after": float(grades[:, 1:].mean()),
        "grade_gain_interval": list(two_way_interval(gains, resamples=resamples, seed=seed)),
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
    values = _values(_chosen(rows, before, after), key)
    gains = values[:, 1:] - values[:, :1]
    return {
        "mean_gain": float(gains.mean()),
        "mean_gain_interval": list(two_way_interval(gains)),
        "gain_by_seed": gains.mean(axis=0).tolist(),
    }


def gain_by_ending(
    rows: Sequence[Row],
    before: str,
    after: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """How much of the gain in grades is that more answers end, and how much that they are better.

    With p the share that ended, w the mean grade of those and c that of the others, the mean grade
    is p w + (1 - p) c, and its change is (p' - p) times the mean of w - c, "by_ending", and what is
    left, the change of w and c at the mean of p, "by_content" (Kitagawa 1955, "Components of a
    Difference Between Two Rates").

    Args:
        rows, before, after: as of `compare_sources`; seeds are taken together.

    Returns:
        `whole_before`, `whole_after`, `cut_before`, `cut_after` (mean grades), `by_ending` and
        `by_content`, and 95% intervals of these two over prompts and seeds, as above.

    Raises:
        DataError: as of `compare_sources`, or where all answers of a side ended, or none.
    """
    chosen = _chosen(rows, before, after)
    grades, ended = _values(chosen, "grade"), _values(chosen, "ended")
    if not all(0 < part.mean() < 1 for part in (ended[:, :1], ended[:, 1:])):
        raise DataError("of each side some answers must have ended, and some not")

    def parts(columns: np.ndarray, prompts: np.ndarray) -> tuple[float, ...]:
        sides = []
        for kept in (np.zeros(1, dtype=int), 1 + columns):
            whole, grade = ended[np.ix_(prompts, kept)], grades[np.ix_(prompts, kept)]
            share = whole.mean()
            of_whole, of_cut = (whole * grade).mean(), ((1 - whole) * grade).mean()
            with np.errstate(invalid="ignore"):
                sides.append((share, of_whole / share, of_cut / (1 - share)))
        (p0, w0, c0), (p1, w1, c1) = sides
        by_ending = (p1 - p0) * ((w0 - c0) + (w1 - c1)) / 2
        middle = (p0 + p1) / 2
        return w0, w1, c0, c1, by_ending, middle * (w1 - w0) + (1 - middle) * (c1 - c0)

    everything = parts(np.arange(len(after)), np.arange(len(rows)))
    rng = np.random.default_rng(seed)
    drawn = [
        parts(rng.integers(len(after), size=len(after)), rng.integers(len(rows), size=len(rows)))
        for _ in range(resamples)
    ]
    names = ("whole_before", "whole_after", "cut_before", "cut_after", "by_ending", "by_content")
    result: dict[str, Any] = dict(zip(names, map(float, everything), strict=True))
    for name, values in zip(names[4:], np.array(drawn)[:, 4:].T, strict=True):
        # A draw in which every answer ended has no cut one to compare: it is left out.
        result[f"{name}_interval"] = np.nanquantile(values, [0.025, 0.975]).tolist()
    return result


def gain_where_both_ended(
    rows: Sequence[Row], before: str, after: Sequence[str], key: str = "grade"
) -> dict[str, Any]:
    """The gain on those prompts alone where the answers of both sides ended.

    What "by content" of `gain_by_ending` estimates, without its flaw: a policy may finish its
    answers to the easier prompts, and then answers to other prompts are compared.

    Args:
        rows, before, after, key: as of `gains_of`. Of several seeds those whose answer ended count,
            and a prompt's gain is their mean.

    Returns:
        `n` prompts; `mean_gain`, and its 95% interval `mean_gain_interval` over these prompts.

    Raises:
        DataError: as of `compare_sources`, or without such a prompt.
    """
    chosen = _chosen(rows, before, after)
    values, ended = _values(chosen, key), _values(chosen, "ended").astype(bool)
    gains = [
        (value[1:][kept[1:]] - value[0]).mean()
        for value, kept in zip(values, ended, strict=True)
        if kept[0] and kept[1:].any()
    ]
    if not gains:
        raise DataError("there is no prompt to which both sides' answers ended")
    return {
        "n": len(gains),
        "mean_gain": float(np.mean(gains)),
        "mean_gain_interval": list(bootstrap_interval(gains)),
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
    right, pairs = _right(rows, scores)
    low, high = _share_interval(right, pairs, resamples, seed)
    return {
        "n": int(pairs.sum()),
        "accuracy": float(right.sum() / pairs.sum()),
        "low": low,
        "high": high,
    }


def lead(
    rows: Sequence[Row],
    scores: Sequence[float],
    other: Sequence[float],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """In how many more of the pairs one judge is right than another: both see the same pairs.

    Args:
        rows, scores: as of `pair_accuracy`. other: the other judge's scores of the same answers.

    Returns:
        `lead`, the difference of the accuracies, and `low` and `high`, 95% of a bootstrap over
        prompts.

    Raises:
        DataError: as of `pair_accuracy`.
    """
    (right, pairs), (other_right, _) = _right(rows, scores), _right(rows, other)
    ahead = right - other_right
    low, high = _share_interval(ahead, pairs, resamples, seed)
    return {"lead": float(ahead.sum() / pairs.sum()), "low": low, "high": high}


def _right(rows: Sequence[Row], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Of each prompt: how many pairs of different grade are ordered right, and how many it has."""
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
    return right, pairs


def _share_interval(
    right: np.ndarray, pairs: np.ndarray, resamples: int, seed: int
) -> tuple[float, float]:
    """95% of the sum of `right` over that of `pairs`, when prompts are drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(pairs), size=(resamples, len(pairs)))
    resampled = right[drawn].sum(axis=1) / np.maximum(pairs[drawn].sum(axis=1), 1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


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


def _chosen(rows: Sequence[Row], before: str, after: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Of each row the answers of these sources, in their order."""
    if not rows or not after:
        raise DataError("there is nothing to compare: give rows, and a source at least")
    chosen = []
    for row in rows:
        by_source: dict[str, dict[str, Any]] = {}
        for answer in row["answers"]:
            if answer["source"] in by_source:
                raise DataError(f"{row['prompt']!r} has two answers of {answer['source']}")
            by_source[answer["source"]] = answer
        if missing := {before, *after} - by_source.keys():
            raise DataError(f"{row['prompt']!r} has no answer of {sorted(missing)[0]}")
        chosen.append([by_source[name] for name in (before, *after)])
    return chosen


def _values(chosen: list[list[dict[str, Any]]], key: str) -> np.ndarray:
    """What stands under this key, (prompts, sources)."""
    return np.array([[answer[key] for answer in answers] for answers in chosen], dtype=float)


def _won(answer: dict[str, Any], other: dict[str, Any]) -> float:
    # Ranks are among the answers of one sheet: from two sheets, equal grades are a tie.
    one_sheet = answer.get("sheet") == other.get("sheet")
    mine, its = ((a["grade"], -a["rank"] if one_sheet else 0) for a in (answer, other))
    return 0.5 if mine == its else float(mine > its)
