"""How far labels can be trusted: a rater against the same rater later, and against others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..evaluation.intervals import accuracy_interval, bootstrap_interval
from .labels import Label, check_raters, load_labels


def self_agreement(labels: Iterable[Label]) -> dict[str, Any]:
    """How often a rater chose the same answer again when the pair came back, sides swapped.

    Returns:
        `n` pairs that came back (skipped ones left out), `agreed`, and with any `share` and
        `interval`, Wilson's at 95%.
    """
    first: dict[tuple[str, ...], str | None] = {}
    again: list[bool] = []
    for label in labels:
        if label.choice == "skip":
            continue
        key = (label.rater, label.purpose, *label.pair.key)
        if not label.repeat:
            first[key] = _chosen(label)
        elif key in first:
            again.append(first[key] == _chosen(label))
    return _share(sum(again), len(again), "agreed")


def position_bias(labels: Iterable[Label]) -> dict[str, Any]:
    """How often the answer on the left was chosen: half the time by who looks at the texts alone.

    Returns:
        `n` choices that are no tie, `left`, and with any `share` and `interval` as above.
    """
    told = [label for label in labels if label.choice in ("a", "b")]
    return _share(sum(label.choice == label.left for label in told), len(told), "left")


def between_raters(labels: Iterable[Label], seed: int = 0) -> dict[str, Any]:
    """How far several raters agree on the pairs that more than one of them has answered.

    Krippendorff's alpha is 1 for perfect agreement and 0 for that of chance; it takes any number of
    raters, who need not all have seen all pairs (Krippendorff 2018, "Content Analysis", chapter
    12). A tie lies between the two answers: the level of measurement is ordinal.

    Returns:
        `raters`; `n` pairs with two raters at least; `alpha` and its `interval`, 95% of a bootstrap
        over pairs, both None where they cannot be told; `shares`, for each two raters with pairs in
        common how often they made the same choice, as `self_agreement` gives it.
    """
    choices: dict[tuple[str, ...], dict[str, str | None]] = {}
    for label in labels:
        if label.choice != "skip" and not label.repeat:
            choices.setdefault(label.pair.key, {})[label.rater] = _chosen(label)
    shared = {key: given for key, given in choices.items() if len(given) > 1}
    raters = sorted({rater for given in choices.values() for rater in given})
    shares = {}
    for one, other in combinations(raters, 2):
        both = [g[one] == g[other] for g in shared.values() if one in g and other in g]
        if both:
            shares[f"{one}, {other}"] = _share(sum(both), len(both), "agreed")
    table = np.full((len(raters), len(shared)), np.nan)
    for column, (key, given) in enumerate(shared.items()):
        for rater, text in given.items():
            table[raters.index(rater), column] = 1 if text is None else 0 if text == key[1] else 2

    def alphas(samples: np.ndarray, axis: int) -> np.ndarray:
        return np.array([_alpha(table[:, row.astype(int)]) for row in samples])

    alpha = _alpha(table)
    interval = None
    if not np.isnan(alpha):
        drawn = bootstrap_interval(
            np.arange(len(shared)), statistic=alphas, resamples=1000, seed=seed
        )
        interval = None if np.isnan(drawn).any() else list(drawn)
    return {
        "raters": raters,
        "n": len(shared),
        "alpha": None if np.isnan(alpha) else float(alpha),
        "interval": interval,
        "shares": shares,
    }


def merge_labels(
    paths: Sequence[str | Path], policy: str | Collection[str] | None = None
) -> list[Label]:
    """The labels of several files, each label once.

    Args:
        policy: name or names of the policies that they must be about.

    Raises:
        DataError: for a file that is not there or cannot be used (see `load_labels`), or two raters
            under one name.
    """
    labels: dict[Label, None] = {}
    for path in paths:
        if not Path(path).exists():
            raise DataError(f"there is no {path}: check the path")
        labels |= dict.fromkeys(load_labels(path, policy))
    check_raters(labels, " and ".join(map(str, paths)))
    return list(labels)


def report(labels: Sequence[Label]) -> str:
    """In a few lines: how many choices, and how far they can be trusted."""
    counted = [label for label in labels if label.choice != "skip"]
    ties, skipped = sum(x.choice == "tie" for x in counted), len(labels) - len(counted)
    lines = [f"{len(counted)} choices, {ties} of them ties; {skipped} pairs skipped."]
    if (again := self_agreement(labels))["n"]:
        lines.append(f"Chosen alike when a pair came again: {_in_words(again, 'agreed')}.")
    if (left := position_bias(labels))["n"]:
        lines.append(f"The left answer was chosen {_in_words(left, 'left')}.")
    raters = between_raters(labels)
    for names, share in raters["shares"].items():
        lines.append(f"{names.replace(', ', ' and ')} chose alike: {_in_words(share, 'agreed')}.")
    if raters["alpha"] is not None:
        within = "too few for an interval"
        if raters["interval"] is not None:
            within = "95% interval {:.2f} to {:.2f}".format(*raters["interval"])
        lines.append(
            f"Krippendorff's alpha over {raters['n']} pairs: {raters['alpha']:.2f} "
            f"({within}; 1 is agreement, 0 is chance)."
        )
    return "\n".join(lines)


def _chosen(label: Label) -> str | None:
    """The chosen text; None for a tie."""
    return {"a": label.a, "b": label.b}.get(label.choice)


def _share(count: int, n: int, name: str) -> dict[str, Any]:
    if not n:
        return {"n": 0, name: 0}
    return {"n": n, name: count, "share": count / n, "interval": list(accuracy_interval(count, n))}


def _in_words(share: dict[str, Any], name: str) -> str:
    low, high = share["interval"]
    return (
        f"{share[name]} of {share['n']} times, {share['share']:.0%} "
        f"(95% interval {low:.0%} to {high:.0%})"
    )


def _alpha(table: np.ndarray) -> float:
    """Krippendorff's alpha of (raters, pairs), 0, 1 or 2; NaN for nothing but ties, or nothing.

    Which of two answers is 0 and which is 2 says nothing, so that each pair counts both ways round.
    """
    import krippendorff

    both_ways = np.hstack([table, 2 - table])
    if len(np.unique(both_ways[~np.isnan(both_ways)])) < 2:
        return float("nan")
    return float(krippendorff.alpha(both_ways, level_of_measurement="ordinal"))
