"""What a blind reading says of two policies."""

from __future__ import annotations

import numpy as np
import pytest
from support.errors import one_line

from rlhf_tutorial.errors import DataError, RewardError
from rlhf_tutorial.evaluation.intervals import bootstrap_interval
from rlhf_tutorial.evaluation.reading import (
    compare_sources,
    gain_by_ending,
    gain_where_both_ended,
    gains_of,
    lead,
    pair_accuracy,
)


def answer(source: str, grade: int, rank: int, text: str | None = None, ended: bool = True) -> dict:
    text = text or f"{source} {grade} {rank}"
    return {"source": source, "grade": grade, "rank": rank, "text": text, "ended": ended}


def test_grade_decides_then_rank_and_equal_answers_count_half():
    rows = [
        {"prompt": "a", "answers": [answer("old", 2, 2), answer("new", 4, 1)]},
        {"prompt": "b", "answers": [answer("old", 3, 1), answer("new", 3, 2)]},
        {"prompt": "c", "answers": [answer("new", 1, 1), answer("old", 1, 2, ended=False)]},
        {"prompt": "d", "answers": [answer("old", 3, 1, "x"), answer("new", 3, 1, "x ")]},
        {"prompt": "e", "answers": [answer("old", 4, 3), answer("new", 3, 1)]},
    ]
    result = compare_sources(rows, "old", ["new"])
    assert result["n"] == 5 and result["seeds"] == 1
    assert result["win_rate"] == pytest.approx((1 + 0 + 1 + 0.5 + 0) / 5)
    assert result["grade_before"] == pytest.approx(13 / 5)
    assert result["grade_after"] == pytest.approx(14 / 5)
    assert result["acceptable_before"] == 3 / 5 and result["acceptable_after"] == 4 / 5
    assert result["ended_before"] == 4 / 5 and result["ended_after"] == 1


def test_ranks_of_two_sheets_decide_nothing():
    rows = [
        {"prompt": "a", "answers": [answer("old", 3, 1), answer("new", 3, 2) | {"sheet": 2}]},
        {"prompt": "b", "answers": [answer("old", 2, 1), answer("new", 3, 2) | {"sheet": 2}]},
    ]
    assert compare_sources(rows, "old", ["new"])["win_rate"] == 0.75


def graded(random: np.random.Generator, seeds: int, shift: float, between: float) -> list[dict]:
    offsets = between * random.normal(size=seeds)
    rows = []
    for i in range(120):
        level = random.normal(2.5, 1)
        grades = [level, *(level + shift + offsets + random.normal(size=seeds))]
        grades = np.clip(np.round(grades), 0, 5).astype(int)
        rank = np.argsort(np.argsort(-grades)) + 1
        names = ["old", *(f"new-{s}" for s in range(seeds))]
        triples = zip(names, grades.tolist(), rank.tolist(), strict=True)
        rows.append({"prompt": str(i), "answers": [answer(*triple) for triple in triples]})
    return rows


def test_with_one_seed_the_interval_is_that_of_the_bootstrap_over_prompts():
    rows = graded(np.random.default_rng(0), 1, 0.5, 0)
    result = compare_sources(rows, "old", ["new-0"])
    gains = [row["answers"][1]["grade"] - row["answers"][0]["grade"] for row in rows]
    assert result["grade_gain_interval"] == pytest.approx(bootstrap_interval(gains), abs=0.02)
    low, high = result["win_rate_interval"]
    assert low < result["win_rate"] < high and high - low == pytest.approx(0.175, abs=0.02)


def test_gains_of_grades_are_those_of_the_comparison_and_a_judges_scores_work_alike():
    rows = graded(np.random.default_rng(1), 3, 0.5, 0.2)
    for row in rows:
        for scored in row["answers"]:
            scored["first"] = 10.0 * scored["grade"]
    names = ["new-0", "new-1", "new-2"]
    whole, reader = compare_sources(rows, "old", names), gains_of(rows, "old", names)
    assert reader["mean_gain"] == pytest.approx(whole["grade_after"] - whole["grade_before"])
    assert reader["mean_gain_interval"] == pytest.approx(whole["grade_gain_interval"])
    assert np.mean(reader["gain_by_seed"]) == pytest.approx(reader["mean_gain"])
    judge = gains_of(rows, "old", names, key="first")
    assert judge["gain_by_seed"] == pytest.approx([10 * gain for gain in reader["gain_by_seed"]])


def test_the_gain_is_split_into_ending_and_content():
    """By hand: whole 3 and cut 1 before; after, twice as many end, and each is half a grade up."""
    old = [(3, True)] * 4 + [(1, False)] * 6
    new = [(4, True)] * 4 + [(3, True)] * 4 + [(2, False)] + [(1, False)]
    rows = [
        {"prompt": str(i), "answers": [answer("old", *a), answer("new", *b)]}
        for i, (a, b) in enumerate(
            ((g, 1, None, e), (h, 1, None, f)) for (g, e), (h, f) in zip(old, new, strict=True)
        )
    ]
    found = gain_by_ending(rows, "old", ["new"], resamples=200)
    names = ("whole_before", "whole_after", "cut_before", "cut_after")
    assert [found[name] for name in names] == pytest.approx([3, 3.5, 1, 1.5])
    assert found["by_ending"] == pytest.approx(0.4 * 2)
    assert found["by_content"] == pytest.approx(0.5)
    whole = compare_sources(rows, "old", ["new"])
    gain = whole["grade_after"] - whole["grade_before"]
    assert found["by_ending"] + found["by_content"] == pytest.approx(gain)
    low, high = found["by_content_interval"]
    assert low < 0.5 < high
    for row in rows:
        row["answers"][0]["ended"] = True
    with pytest.raises(DataError, match="some not"):
        gain_by_ending(rows, "old", ["new"])


def test_where_both_ended_answers_that_were_cut_off_on_either_side_are_left_out():
    """Of three prompts two count; of one of these only the seed whose answer ended."""
    rows = [
        {"prompt": "a", "answers": [answer("old", 1, 3), answer("x", 3, 1), answer("y", 2, 2)]},
        {
            "prompt": "b",
            "answers": [answer("old", 2, 2), answer("x", 5, 1), answer("y", 0, 3, ended=False)],
        },
        {
            "prompt": "c",
            "answers": [answer("old", 0, 3, ended=False), answer("x", 5, 1), answer("y", 5, 2)],
        },
    ]
    found = gain_where_both_ended(rows, "old", ["x", "y"])
    assert found["n"] == 2 and found["mean_gain"] == pytest.approx((1.5 + 3) / 2)
    assert found["mean_gain_interval"] == pytest.approx(bootstrap_interval([1.5, 3.0]))
    with pytest.raises(DataError, match="no prompt to which both") as error:
        gain_where_both_ended(rows[2:], "old", ["x", "y"])
    one_line(error)


def test_seeds_that_differ_widen_the_interval():
    names = ["new-0", "new-1", "new-2"]
    alike = compare_sources(graded(np.random.default_rng(1), 3, 0.5, 0.0), "old", names)
    unlike = compare_sources(graded(np.random.default_rng(1), 3, 0.5, 1.0), "old", names)

    def width(result: dict) -> float:
        low, high = result["grade_gain_interval"]
        return high - low

    assert alike["n"] == 360 and alike["seeds"] == 3
    assert np.mean(unlike["win_rate_by_seed"]) == pytest.approx(unlike["win_rate"])
    assert width(unlike) > 2 * width(alike)


@pytest.mark.parametrize(
    ("sources", "message"),
    [(["old"], "'a' has no answer of new"), (["old", "new", "new"], "'a' has two answers of new")],
)
def test_every_source_answers_every_prompt_once(sources, message):
    rows = [{"prompt": "a", "answers": [answer(name, 1, 1) for name in sources]}]
    with pytest.raises(DataError, match=message) as error:
        compare_sources(rows, "old", ["new"])
    one_line(error)
    with pytest.raises(DataError, match="nothing to compare"):
        compare_sources([], "old", ["new"])


def test_the_interval_covers_what_it_should_when_seeds_differ_a_little():
    """Of 100 experiments with three seeds, the truth is within about 95."""
    covered = 0
    for n in range(100):
        random = np.random.default_rng(n)
        level = random.normal(2.5, 1, size=(100, 1))
        seeds = 0.1 * random.normal(size=3)
        after = level + 0.5 + seeds + random.normal(size=(100, 3))
        rows = [
            {
                "prompt": str(i),
                "answers": [answer("old", level[i, 0], 1)]
                + [answer(f"new-{s}", after[i, s], 1) for s in range(3)],
            }
            for i in range(100)
        ]
        names = ["new-0", "new-1", "new-2"]
        low, high = compare_sources(rows, "old", names, resamples=400)["grade_gain_interval"]
        covered += low < 0.5 < high
    assert 88 <= covered <= 100


def test_a_judge_is_held_against_the_readers_order_within_each_prompt():
    rows = [
        {"prompt": "a", "answers": [answer("x", 1, 3), answer("y", 4, 1), answer("z", 4, 2)]},
        {"prompt": "b", "answers": [answer("x", 2, 1), answer("y", 0, 2)]},
    ]
    result = pair_accuracy(rows, [0.1, 0.3, 0.1, -5.0, 9.0])
    assert result["n"] == 3 and result["accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    with pytest.raises(DataError, match="4 scores for 5 answers"):
        pair_accuracy(rows, [1.0, 2, 3, 4])
    with pytest.raises(DataError, match="there is no pair"):
        pair_accuracy([{"prompt": "a", "answers": [answer("x", 1, 1)] * 2}], [1.0, 2.0])


def test_the_interval_of_an_accuracy_is_that_of_independent_prompts():
    """A pair a prompt: the bootstrap over prompts is then the one over pairs."""
    random = np.random.default_rng(0)
    rows = [
        {"prompt": str(i), "answers": [answer("x", 1, 2), answer("y", 3, 1)]} for i in range(200)
    ]
    right = random.random(200) < 0.7
    scores = [s for r in right for s in ((0.0, 1.0) if r else (1.0, 0.0))]
    result = pair_accuracy(rows, scores)
    low, high = bootstrap_interval(right.astype(float))
    assert (result["low"], result["high"]) == pytest.approx((low, high), abs=0.01)


def test_pairs_of_one_prompt_do_not_count_as_independent():
    """A judge that is right or wrong about a prompt as a whole: its pairs are worth one."""
    random = np.random.default_rng(0)
    rows, scores = [], []
    for i in range(200):
        rows.append(
            {"prompt": str(i), "answers": [answer(s, g, 4 - g) for g, s in enumerate("wxyz")]}
        )
        scores += [0.0, 1.0, 2.0, 3.0] if random.random() < 0.7 else [3.0, 2.0, 1.0, 0.0]
    result = pair_accuracy(rows, scores)
    assert result["n"] == 1200
    independent = 2 * 1.96 * (result["accuracy"] * (1 - result["accuracy"]) / 1200) ** 0.5
    assert result["high"] - result["low"] == pytest.approx(6**0.5 * independent, rel=0.1)
    with pytest.raises(RewardError, match="must be finite"):
        pair_accuracy(rows, [float("nan"), *scores[1:]])


def test_a_lead_is_certain_where_both_judges_fail_at_the_same_pairs():
    """Their accuracies have intervals that overlap; the second adds errors, and mends none."""
    random = np.random.default_rng(1)
    rows = [
        {"prompt": str(i), "answers": [answer("x", 1, 2), answer("y", 3, 1)]} for i in range(200)
    ]
    hard, more = random.random(200) < 0.3, random.random(200) < 0.08
    one = [s for wrong in hard for s in ((1.0, 0.0) if wrong else (0.0, 1.0))]
    other = [s for wrong in hard | more for s in ((1.0, 0.0) if wrong else (0.0, 1.0))]
    better, worse = pair_accuracy(rows, one), pair_accuracy(rows, other)
    assert better["low"] < worse["high"], "the intervals overlap"
    found = lead(rows, one, other)
    assert found["lead"] == pytest.approx(better["accuracy"] - worse["accuracy"])
    assert 0 < found["low"] < found["lead"] < found["high"]
    turned = lead(rows, other, one)
    assert turned["lead"] == -found["lead"] and turned["high"] == pytest.approx(-found["low"])
    with pytest.raises(DataError, match="3 scores for 400 answers"):
        lead(rows, one, one[:3])
