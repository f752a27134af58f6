"""The rule by which the default settings were chosen."""

from __future__ import annotations

from typing import Any

from support.scripts import load_script

study = load_script("study")


def row(name: str, gain: float, kl: float, **more: Any) -> dict[str, Any]:
    filled = {"error": 0.2, "seconds": 100, "worse": [], "std_before": 1.5, "echoed": 0.0}
    return {"name": name, "gain": gain, "kl": kl} | filled | more


def chosen(*rows: dict[str, Any]) -> str:
    return study.choose(list(rows))["name"]


def test_the_frontier_is_what_nothing_beats() -> None:
    rows = [row("a", 1.0, 2.0), row("b", 1.2, 3.0), row("c", 1.1, 3.5), row("d", 0.9, 2.0)]
    assert [r["name"] for r in study.frontier(rows)] == ["a", "b"]


def test_the_smallest_kl_within_one_error_of_the_best_wins() -> None:
    assert chosen(row("far", 1.5, 9), row("near", 1.35, 4), row("low", 1.2, 1)) == "near"
    assert chosen(row("far", 1.5, 9, error=0.35), row("near", 1.35, 4), row("low", 1.2, 1)) == "low"


def test_slow_settings_and_those_with_a_worse_measure_are_out() -> None:
    slow, fooled = row("slow", 3.0, 1, seconds=301), row("fooled", 2.0, 2, worse=["echoed"])
    assert chosen(slow, fooled, row("honest", 0.5, 3)) == "honest"


def test_where_all_are_out_the_least_echo_of_large_gains_wins() -> None:
    out = {"worse": ["echoed"]}
    rows = [
        row("large", 2.0, 9, echoed=0.3, **out),
        row("fair", 1.6, 5, echoed=0.2, **out),
        row("small", 0.5, 1, echoed=0.06, **out),
    ]
    assert chosen(*rows) == "fair"
    assert chosen(rows[2], row("smaller", 0.4, 0.5, echoed=0.1, **out)) == "small"


def test_measures_count_as_worse_in_their_bad_direction_only() -> None:
    measures = {"words": 12.0, "distinct-2": 0.9, "echoed": 0.2, "ended": 0.1}

    def look(step: int, score: float, **moved: float) -> dict[str, Any]:
        return {
            "step": step,
            "scores": {"first": [score, score + 1]},
            "kl": [1.0, 3.0],
            "measures": {k: v + moved.get(k.replace("-", "_"), 0) for k, v in measures.items()},
        }

    looks = [
        look(0, 0.0),
        look(1, 1.0, words=9, distinct_2=0.2, echoed=-0.2, ended=0.5),
        look(2, 2.0, words=-1.3, echoed=0.06),
        look(3, 2.0, distinct_2=-0.1, ended=-0.06),
    ]
    rows = study.settings_of([{"name": "x", "looks": looks}], seconds_per_step=2.0)
    assert [r["worse"] for r in rows] == [[], ["words", "echoed"], ["distinct-2", "ended"]]
    assert [r["gain"] for r in rows] == [1.0, 2.0, 2.0]
    assert [r["seconds"] for r in rows] == [2.0, 4.0, 6.0]
    assert rows[0]["kl"] == 2.0
