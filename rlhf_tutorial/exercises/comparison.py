"""Notebook 06: a mean against a win rate, an interval in pairs, and what a gain is made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .checking import Exercise, Verdict

_random = np.random.default_rng(6)


def _scores(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Before and after, in pairs: prompts differ, and two in five are ties."""
    before = _random.normal(0, 2, size=n).round(1)
    gain = _random.normal(0.4, 0.6, size=n).round(1) * (_random.random(n) < 0.6)
    return before, before + gain


def _paired_interval(before: np.ndarray, after: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return np.quantile((after - before)[drawn].mean(axis=1), [0.025, 0.975])


def _split_gain(
    before: tuple[float, float, float], after: tuple[float, float, float]
) -> tuple[float, float]:
    (p0, w0, c0), (p1, w1, c1) = before, after
    gain = p1 * w1 + (1 - p1) * c1 - p0 * w0 - (1 - p0) * c0
    by_ending = (p1 - p0) * ((w0 - c0) + (w1 - c1)) / 2
    return by_ending, gain - by_ending


def _split_at(
    before: tuple[float, float, float], after: tuple[float, float, float], side: int
) -> tuple[float, float]:
    """With the difference of one side in place of both sides' mean."""
    (p0, w0, c0), (p1, w1, c1) = before, after
    gain = p1 * w1 + (1 - p1) * c1 - p0 * w0 - (1 - p0) * c0
    by_ending = (p1 - p0) * ((w0 - c0), (w1 - c1))[side]
    return by_ending, gain - by_ending


WIN_RATES = (0.2, 1.0)  # of the two sets of gains to be made up
PROMPTS = 5  # in each


def same_mean(answer: Any) -> Verdict:
    """Whether two made-up sets of gains have one mean, and the win rates of `WIN_RATES`."""
    if answer is None:
        return Verdict(False, "Nothing is written here yet: it is your turn.")
    try:
        sets = [np.array(gains, dtype=float) for gains in answer]
    except (TypeError, ValueError):
        sets = []
    if [gains.shape for gains in sets] != [(PROMPTS,)] * 2:
        return Verdict(False, f"Give two lists with {PROMPTS} gains each.")
    for which, gains, wanted in zip(("first", "second"), sets, WIN_RATES, strict=True):
        won = np.mean((gains > 0) + 0.5 * (gains == 0))
        if not np.isclose(won, wanted):
            return Verdict(
                False,
                f"The win rate of your {which} set is {won:.0%}, and {wanted:.0%} is asked for "
                "(a gain of 0 is half a win).",
            )
    means = [float(gains.mean()) for gains in sets]
    if not math.isclose(means[0], means[1]):
        return Verdict(False, f"Your means are {means[0]:.3g} and {means[1]:.3g}: make them equal.")
    return Verdict(
        True,
        f"Both have a mean gain of {means[0]:.3g}. The first comes from one prompt in five, the "
        "second from all of them.",
    )


EXERCISES: dict[str, Exercise] = {
    "paired_interval": Exercise(
        _paired_interval,
        [(*_scores(n), _random.integers(n, size=(400, n))) for n in (20, 12)],
        {
            "The two sides are drawn apart. Draw a prompt with both of its scores: how hard it is "
            "cancels in the difference.": lambda b, a, drawn: np.quantile(
                a[drawn].mean(axis=1) - b[drawn[::-1]].mean(axis=1), [0.025, 0.975]
            ),
            "Only the answers after are drawn anew: a prompt brings both of its scores.": (
                lambda b, a, drawn: np.quantile(a[drawn].mean(axis=1) - b.mean(), [0.025, 0.975])
            ),
            "Between the 5% and the 95% quantile lie 90%: for 95% leave 2.5% on each side.": (
                lambda b, a, drawn: np.quantile((a - b)[drawn].mean(axis=1), [0.05, 0.95])
            ),
            "Each row of `drawn` is one draw of all prompts: take the mean along the rows.": (
                lambda b, a, drawn: np.quantile((a - b)[drawn].mean(axis=0), [0.025, 0.975])
            ),
            "Those are quantiles of the single gains. The interval is of their mean.": (
                lambda b, a, drawn: np.quantile((a - b)[drawn], [0.025, 0.975])
            ),
            "The sign is turned: it is after minus before.": lambda b, a, drawn: np.quantile(
                (b - a)[drawn].mean(axis=1), [0.025, 0.975]
            ),
        },
    ),
    "split_gain": Exercise(
        _split_gain,
        [((0.5, 2.0, 0.8), (0.9, 2.6, 1.1)), ((0.6, 1.7, 0.9), (0.7, 1.9, 0.4))],
        {
            "You weigh by the difference before, and all that the two changes did together goes "
            "to the content. Take the mean of both sides' differences.": (
                lambda b, a: _split_at(b, a, 0)
            ),
            "You weigh by the difference after, and all that the two changes did together goes "
            "to the ending. Take the mean of both sides' differences.": (
                lambda b, a: _split_at(b, a, 1)
            ),
            "The two parts are swapped: by ending comes first.": lambda b, a: _split_gain(b, a)[
                ::-1
            ],
            "The sign is turned: it is after minus before.": lambda b, a: _split_gain(a, b),
            "The two differences are added: take half of their sum.": lambda b, a: (
                2 * _split_gain(b, a)[0],
                sum(_split_gain(b, a)) - 2 * _split_gain(b, a)[0],
            ),
            "Your second number is the whole gain: what is left of it is asked for.": lambda b, a: (
                _split_gain(b, a)[0],
                sum(_split_gain(b, a)),
            ),
        },
    ),
}
