"""scripts/tuning.py: the rule that chooses the default's settings, on made-up arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.scripts import load_script

tuning = load_script("tuning")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms that keep the five minutes, whatever the machine's pace was."""
    monkeypatch.setattr(tuning, "SECONDS_PER_STEP", {"default": 5.0})


def candidate(name: str, gain: float, kl: float, **changed: Any) -> dict[str, Any]:
    return {"arm": name, "gain": gain, "error": 0.1, "kl": kl, "out": [], **changed}


def test_of_those_near_the_best_the_one_with_the_smallest_kl_wins() -> None:
    arms = [candidate("far", 0.80, 9), candidate("near", 0.72, 5), candidate("weak", 0.6, 1)]
    assert tuning.chosen(arms)["arm"] == "near"


def test_an_arm_that_is_out_neither_wins_nor_sets_the_mark() -> None:
    arms = [candidate("hacked", 1.5, 2, out=["opening"]), candidate("honest", 0.7, 5)]
    assert tuning.chosen(arms)["arm"] == "honest"
    assert tuning.chosen(arms[:1]) is None


def look(scores: list[float], answers: list[str], ended: float, kl: float) -> dict[str, Any]:
    return {
        "scores": {"first": scores, "second": [s / 2 for s in scores]},
        "answers": answers,
        "kl": [kl] * len(scores),
        "ended": [ended] * len(scores),
        "measures": {"ended": 0.0},  # by full stops, which the rule doesn't count
    }


def training(answers: list[str], ended: float, gain: float = 1.0) -> dict[str, Any]:
    before = look([1.0, 2.0, 1.0, 2.0], ["Some words of mine."] * 4, 0.4, 0.0)
    after = look([1.0 + gain, 2.0 + gain, 1.0 + gain, 2.0], answers, ended, 6.0)
    queries = ["How do I sleep?", "Name a fish", "Is tea good?", "Why?"]
    return {"queries": queries, "steps": [{}] * 40, "looks": [before, after]}


STARTS = ("Take", "Try", "Do", "Use")
LONG = [f"{start} a slow walk every evening before you go to bed" for start in STARTS]


def test_what_is_measured_is_the_last_look_less_the_first() -> None:
    row = tuning.row_of("default", [training(LONG, 0.9, 1.0), training(LONG, 0.9, 2.0)])
    assert row["gain"] == pytest.approx((3 * 1.5) / 4)
    # Prompts' mean gains are 1.5, 1.5, 1.5 and 0: their standard error.
    assert row["error"] == pytest.approx(0.75 / 2)
    assert row["second"] == pytest.approx(row["gain"] / 2)
    assert (row["kl"], row["ended"], row["words"]) == (6.0, 0.9, 11)
    assert row["opening"] == 0.25 and row["bare"] == 0.0 and row["out"] == []


@pytest.mark.parametrize(
    ("answers", "ended", "reason"),
    [
        (LONG, 0.8, ["ended"]),
        (["Use a pan of hot water and stir it well."] * 4, 0.9, ["opening"]),
        (["Yes."] * 4, 0.9, ["words", "opening", "bare"]),
    ],
)
def test_an_arm_that_breaks_a_limit_is_out(answers: list[str], ended: float, reason: list[str]):
    assert tuning.row_of("default", [training(answers, ended)])["out"] == reason


def test_an_arm_that_takes_more_than_five_minutes_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SECONDS_PER_STEP", {"default": 7.6})
    assert tuning.row_of("default", [training(LONG, 0.9)])["out"] == ["seconds"]
    with pytest.raises(KeyError):  # an arm whose pace nobody measured is not let through
        tuning.row_of("top-8", [training(LONG, 0.9)])


def test_only_candidates_and_their_three_seeds_come_under_the_rule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "TRAININGS", tmp_path)
    others = [("default", 100, 9.0), ("lora-1e-3", 100, 2.0), ("kl-0.1", 0, 3.0)]
    for arm, seed, gain in [*(("default", seed, 1.0) for seed in range(3)), *others]:
        found = {"arm": arm, "seed": seed, **training(LONG, 0.9, gain)}
        (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps(found), encoding="utf-8")
    (row,) = tuning.rows()
    assert row["arm"] == "default" and row["seeds"] == 3 and row["gain"] == pytest.approx(0.75)
    shown = tuning.table_of_what_is_trained().splitlines()[2:]
    names = tuning.WHAT_IS_TRAINED
    assert shown[0].startswith(f"| {names['default']} | 4 | 2.25 ± ")
    assert shown[1].startswith(f"| {names['lora-1e-3']} | 1 | 1.50 ± ") and len(shown) == 2
