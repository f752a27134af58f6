"""Before and after: the table of scores, its summary and its listing."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from rlhf_tutorial.errors import DataError, RewardError
from rlhf_tutorial.evaluation.compare import (
    compare,
    format_examples,
    gains_by_seed,
    load_table,
    save_table,
    summarise,
)
from rlhf_tutorial.evaluation.intervals import bootstrap_interval


def table_of(before: list[float], after: list[float]) -> pd.DataFrame:
    scores = iter([before, after])
    names = [f"q{i}" for i in range(len(before))]
    return compare(
        names, [f"b{i}" for i in names], [f"a{i}" for i in names], lambda q, r: next(scores)
    )


# The table and its summary ----------------------------------------------------------------------


def test_compare_scores_each_response_with_its_own_prompt():
    def reward(queries: list[str], responses: list[str]) -> list[float]:
        return [len(r) - 10 * len(q) for q, r in zip(queries, responses, strict=True)]

    table = compare(["a", "bbb"], ["12345", "1"], ["12", "123456"], reward)
    expected = pd.DataFrame(
        {
            "query": ["a", "bbb"],
            "response_before": ["12345", "1"],
            "response_after": ["12", "123456"],
            "score_before": [-5.0, -29.0],
            "score_after": [-8.0, -24.0],
            "gain": [-3.0, 5.0],
        }
    )
    pd.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize(
    ("prompts", "before", "after"),
    [(["a"], ["b"], []), (["a"], [], ["b"]), ([], ["a"], ["b"]), ([], [], [])],
)
def test_lists_that_do_not_match_are_an_error(prompts, before, after):
    with pytest.raises(DataError, match="one of each per prompt"):
        compare(prompts, before, after, lambda q, r: [0.0] * len(r))


@pytest.mark.parametrize(
    ("scores", "message"), [([1.0], "1 scores for 2"), ([0.5, float("nan")], "response 1 is nan")]
)
def test_a_reward_that_is_not_one_finite_number_each_is_an_error(scores, message):
    with pytest.raises(RewardError, match=message):
        compare(["a", "b"], ["c", "d"], ["e", "f"], lambda q, r: scores)


def test_the_summary_of_a_small_table_by_hand():
    summary = summarise(table_of([1.0, 2.0, 3.0, 10.0, 5.0], [2.0, 2.0, 4.0, 9.0, 5.0]))
    assert summary["n"] == 5
    assert summary["mean_before"] == pytest.approx(4.2)
    assert summary["mean_after"] == pytest.approx(4.4)
    assert summary["mean_gain"] == pytest.approx(0.2)
    assert (summary["median_before"], summary["median_after"]) == (3.0, 4.0)
    assert summary["ties"] == 2
    assert summary["win_rate"] == pytest.approx((2 + 0.5 * 2) / 5)
    for name in ("mean_before", "mean_after", "mean_gain", "win_rate"):
        low, high = summary[f"{name}_interval"]
        assert low < summary[name] < high
    assert json.loads(json.dumps(summary)) == summary


def test_intervals_are_those_of_the_columns_and_follow_the_seed():
    rng = np.random.default_rng(2)
    table = table_of(rng.normal(size=40).tolist(), rng.normal(0.5, size=40).tolist())
    summary = summarise(table, seed=9)
    gain = bootstrap_interval(table["gain"], seed=9)
    assert tuple(summary["mean_gain_interval"]) == pytest.approx(gain)
    wins = bootstrap_interval(table["gain"] > 0, seed=9)
    assert tuple(summary["win_rate_interval"]) == pytest.approx(wins)
    assert summary != summarise(table, seed=10)


def test_pairing_narrows_the_interval_of_the_gain():
    rng = np.random.default_rng(4)
    prompt_difficulty = rng.normal(scale=3.0, size=200)
    before = (prompt_difficulty + rng.normal(scale=0.3, size=200)).tolist()
    after = (prompt_difficulty + 0.5 + rng.normal(scale=0.3, size=200)).tolist()
    paired = summarise(table_of(before, after))
    shuffled = summarise(table_of(before, rng.permutation(after).tolist()))
    assert shuffled["mean_gain"] == pytest.approx(paired["mean_gain"])

    def width(summary: dict) -> float:
        return summary["mean_gain_interval"][1] - summary["mean_gain_interval"][0]

    # Standard deviations of the differences: 0.3 sqrt(2) paired, sqrt(9.09) sqrt(2) shuffled.
    assert width(shuffled) / width(paired) == pytest.approx(np.sqrt(9.09) / 0.3, rel=0.3)


# The listing ------------------------------------------------------------------------------------


def test_the_listing_has_the_tutorials_form_best_first():
    scores = iter([[0.0, 0.0, 0.0], [1.0, 3.0, 2.0]])
    table = compare(
        ["Why?", "How do I bake?", "What now?"],
        ["x", "You  could\ntry", "w"],
        ["y", "Mix, then bake\n\nit.", ""],
        lambda q, r: next(scores),
    )
    assert format_examples(table, n=2) == (
        "prompt: How do I bake?\n"
        "answer (before): You could try\n"
        "answer (after): Mix, then bake it.\n"
        "\n"
        "prompt: What now?\n"
        "answer (before): w\n"
        "answer (after): "
    )
    assert format_examples(table, n=1, pick="worst").startswith("prompt: Why?\n")
    assert format_examples(table, n=9).count("prompt: ") == 3


def test_random_rows_follow_their_seed():
    table = table_of([0.0] * 30, [float(i) for i in range(30)])
    draws = {seed: format_examples(table, pick="random", seed=seed) for seed in range(4)}
    assert draws[0] == format_examples(table, pick="random")
    assert len(set(draws.values())) == 4
    assert all(len(set(draw.split("\n\n"))) == 5 for draw in draws.values())


def test_a_table_comes_back_from_its_file_as_it_was_whatever_the_texts(tmp_path):
    texts = ["a\rb", "c\nd", "e\r\nf", 'says "x"', "g,h", "", "NA", "nan", "\x0b s\x02", " é "]
    table = pd.DataFrame({"query": texts, "score_after": [i / 7 for i in range(len(texts))]})
    save_table(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(load_table(tmp_path / "table.csv"), table)


# Several judges and several trainings --------------------------------------------------------


def test_a_second_judge_scores_the_same_answers_in_columns_of_its_own() -> None:
    def count(queries: list[str], responses: list[str]) -> list[float]:
        return [float(len(q) + len(r)) for q, r in zip(queries, responses, strict=True)]

    def first(queries: list[str], responses: list[str]) -> list[float]:
        return [float(r == "cc") for r in responses]

    table = compare(["a", "bb"], ["x", "yyy"], ["cc", "d"], first, count)
    assert table["second_before"].tolist() == [2.0, 5.0]
    assert table["second_after"].tolist() == [3.0, 3.0]
    assert table["second_gain"].tolist() == [1.0, -2.0]
    assert table["gain"].tolist() == [1.0, 0.0]
    assert summarise(table, "second")["mean_gain"] == pytest.approx(-0.5)
    assert "second_gain" not in compare(["a"], ["x"], ["y"], first)


def seeds_table(n: int = 60, runs: int = 5, noise: float = 0.1) -> pd.DataFrame:
    """Gains that differ between prompts far more than between runs."""
    rng = np.random.default_rng(8)
    of_prompt = rng.normal(1.0, 1.0, size=n)
    tables = []
    for seed in range(runs):
        before = rng.normal(scale=noise, size=n)
        table = table_of(before.tolist(), (before + of_prompt + 0.1 * seed).tolist())
        tables.append(table.assign(seed=seed, query=[f"q{i}" for i in range(n)]))
    return pd.concat(tables, ignore_index=True)


def test_all_runs_of_a_prompt_are_resampled_together() -> None:
    """Five runs on the same prompts are no five times as many prompts."""
    table = seeds_table()
    summary = summarise(table, seed=3)
    assert summary["n"] == 60
    each = table.groupby("query", sort=False)["gain"].mean()
    assert summary["mean_gain"] == pytest.approx(table["gain"].mean())
    assert tuple(summary["mean_gain_interval"]) == pytest.approx(bootstrap_interval(each, seed=3))
    low, high = summary["mean_gain_interval"]
    alone = summarise(table[table["seed"] == 0])["mean_gain_interval"]
    assert high - low == pytest.approx(alone[1] - alone[0], rel=0.1)
    as_rows = bootstrap_interval(table["gain"], seed=3)
    assert (high - low) / (as_rows[1] - as_rows[0]) == pytest.approx(np.sqrt(5), rel=0.15)


def test_the_spread_between_runs_is_that_of_their_means() -> None:
    table = seeds_table()
    gains = gains_by_seed(table)
    assert gains.index.tolist() == [0, 1, 2, 3, 4]
    for seed in range(5):
        assert gains[seed] == pytest.approx(table[table["seed"] == seed]["gain"].mean())
    assert np.diff(gains).tolist() == pytest.approx([0.1] * 4, abs=1e-6)


def test_best_and_worst_can_be_picked_by_the_change() -> None:
    table = table_of([0.0, 5.0, 1.0], [2.0, 6.0, 0.0])
    table["query"] = ["rose by 2", "high all along", "fell"]
    assert format_examples(table, n=1).startswith("prompt: high all along")
    assert format_examples(table, n=1, by="gain").startswith("prompt: rose by 2")
    assert format_examples(table, n=1, pick="worst", by="gain").startswith("prompt: fell")
