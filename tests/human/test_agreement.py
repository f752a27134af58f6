"""Self-agreement, position bias, agreement between raters, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.labelling import PAIRS, session

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.human.agreement import (
    between_raters,
    merge_labels,
    position_bias,
    report,
    self_agreement,
)
from rlhf_tutorial.human.labels import Label, append_label


def made(pair: int, choice: str, rater: str = "you", swap: bool = False, **other: object) -> Label:
    """A label of `PAIRS[pair]`; with `swap` its answers have each other's name."""
    given = PAIRS[pair]
    a, b = (given.b, given.a) if swap else (given.a, given.b)
    choice = {"a": "b", "b": "a"}.get(choice, choice) if swap else choice
    at = f"2026-01-01T10:{pair:02}:{30 if other.get('repeat') else 0:02}+00:00"
    values = {"left": "a", "seconds": 1.0, "time": at, "policy": "tiny, untouched", **other}
    return Label(given.prompt, a, b, choice=choice, rater=rater, **values)  # type: ignore[arg-type]


def test_self_agreement_counts_the_same_text_again() -> None:
    labels = [made(i, choice) for i, choice in enumerate(["a", "a", "b", "tie", "a", "skip"])]
    labels += [made(i, c, repeat=True) for i, c in enumerate(["a", "b", "b", "tie", "skip"])]
    result = self_agreement(labels)
    assert (result["n"], result["agreed"], result["share"]) == (4, 3, 0.75)
    assert result["interval"] == pytest.approx([0.3006, 0.9544], abs=1e-4)  # Wilson, 3 of 4
    assert self_agreement(labels[:5]) == {"n": 0, "agreed": 0}
    # The name of an answer is none of its qualities.
    assert self_agreement([made(0, "a"), made(0, "a", swap=True, repeat=True)])["agreed"] == 1
    # Another rater's repeat is nothing to mine.
    assert self_agreement([made(0, "a"), made(0, "a", rater="x", repeat=True)])["n"] == 0


def test_position_bias_is_the_share_of_left_among_choices_that_are_no_tie() -> None:
    labels = [made(i, "a", left=left) for i, left in enumerate("aaab")]
    labels += [made(8, "tie"), made(9, "skip")]
    result = position_bias(labels)
    assert (result["n"], result["left"], result["share"]) == (4, 3, 0.75)


def test_the_words_that_follow_a_session_have_its_numbers(tmp_path: Path) -> None:
    labelled = session(tmp_path)
    while labelled.current is not None:
        labelled.choose("left")
    told = report(labelled.labels)
    assert "26 choices, 0 of them ties; 0 pairs skipped." in told
    assert "Chosen alike when a pair came again: 0 of 2 times, 0%" in told
    assert "The left answer was chosen 26 of 26 times, 100%" in told
    assert "alpha" not in told
    assert report([]) == "0 choices, 0 of them ties; 0 pairs skipped."


def ordinal_alpha(units: list[list[int]]) -> float:
    """Krippendorff (2018), chapter 12: the coincidences, and ordinal distances, written out."""
    coincidences = np.zeros((3, 3))
    for values in units:
        for i, one in enumerate(values):
            for j, other in enumerate(values):
                if i != j:
                    coincidences[one, other] += 1 / (len(values) - 1)
    totals = coincidences.sum(axis=1)
    distances = np.zeros((3, 3))
    for c in range(3):
        for k in range(c, 3):
            between = totals[c : k + 1].sum() - (totals[c] + totals[k]) / 2
            distances[c, k] = distances[k, c] = between**2
    observed = (coincidences * distances).sum()
    expected = (np.outer(totals, totals) * distances).sum() / (totals.sum() - 1)
    return 1 - observed / expected


def test_alpha_of_three_raters_who_did_not_all_see_everything() -> None:
    choices = {"x": "aabbt-a-", "y": "abbbta-a", "z": "aab-ta--"}
    names = {"a": "a", "b": "b", "t": "tie"}
    labels = [
        made(i, names[c], rater, swap=rater == "y")
        for rater, each in choices.items()
        for i, c in enumerate(each)
        if c != "-"
    ]
    result = between_raters(labels)
    # A pair that one rater alone has seen is no unit.
    value = {"a": 0, "t": 1, "b": 2}
    units = [
        [value[c] for c in column if c != "-"] for column in zip(*choices.values(), strict=True)
    ]
    units = [unit for unit in units if len(unit) > 1]
    mirrored = [[2 - v for v in unit] for unit in units]
    assert result["n"] == len(units) == 6 and result["raters"] == ["x", "y", "z"]
    assert result["alpha"] == pytest.approx(ordinal_alpha(units + mirrored))
    low, high = result["interval"]
    assert low <= result["alpha"] <= high <= 1
    assert result["shares"]["x, y"]["n"] == 5 and result["shares"]["x, y"]["agreed"] == 4
    assert "Krippendorff's alpha over 6 pairs" in report(labels)
    # Which answer is called a is arbitrary, and so is the alphabet's order of their texts.
    renamed = [made(i, names[c], r, swap=i % 2 == 0)
               for r, each in choices.items() for i, c in enumerate(each) if c != "-"]  # fmt: skip
    assert between_raters(renamed)["alpha"] == pytest.approx(result["alpha"])


def test_alpha_at_its_ends_and_where_it_cannot_be_told() -> None:
    same = [made(i, "ab"[i % 2], rater) for i in range(6) for rater in ("x", "y")]
    assert between_raters(same)["alpha"] == pytest.approx(1)
    rng, alphas = np.random.default_rng(0), []
    for _ in range(8):
        coins = [made(i, rng.choice(["a", "b"]), r) for i in range(24) for r in ("x", "y", "z")]
        alphas.append(between_raters(coins)["alpha"])
    assert abs(np.mean(alphas)) < 0.15  # three standard errors
    against = [made(i, "ab"[r == "y"], r) for i in range(6) for r in ("x", "y")]
    assert between_raters(against)["alpha"] < -0.5
    ties = [made(i, "tie", rater) for i in range(6) for rater in ("x", "y")]
    assert between_raters(ties)["alpha"] is None
    assert between_raters([made(0, "a"), made(1, "a", "x")])["n"] == 0
    # Of three pairs, two of them ties, many a resample has ties alone.
    few = [made(i, choice, rater) for i, choice in enumerate(["a", "tie", "tie"]) for rater in "xy"]
    assert between_raters(few)["interval"] is None
    assert "1.00 (too few for an interval;" in report(few)


def test_files_of_several_raters_merge_each_label_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    mine, theirs = [made(0, "a"), made(1, "b")], [made(0, "a", "friend")]
    for path, labels in ((one, mine), (two, [*mine[:1], *theirs])):
        for label in labels:
            append_label(path, label)
    assert merge_labels([one, two], "tiny, untouched") == mine + theirs


def test_what_does_not_merge_is_told_in_one_line(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    append_label(one, made(0, "a"))
    append_label(two, made(0, "b", time="2026-01-02T00:00:00+00:00"))
    with pytest.raises(DataError, match="'you' answered a pair twice") as raised:
        merge_labels([one, two])
    assert "one.jsonl and" in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(DataError, match="not of 'dlite, untouched'"):
        merge_labels([one], "dlite, untouched")
    with pytest.raises(DataError, match="there is no .*three.jsonl"):
        merge_labels([one, tmp_path / "three.jsonl"])
