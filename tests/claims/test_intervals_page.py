"""docs/intervals.md against the committed comparison and reading."""

from __future__ import annotations

import numpy as np
import pytest
from support import ROOT

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.compare import load_table, summarise
from rlhf_tutorial.evaluation.reading import compare_sources
from rlhf_tutorial.feedback import load_feedback

PAGE = (ROOT / "docs" / "intervals.md").read_text(encoding="utf-8")
TABLE = load_table(ROOT / "notebooks" / "results" / "smollm2" / "comparison.csv")
SEEDS = [f"default-{seed}, best" for seed in range(3)]
CONTROLS = {
    "greedy": "untouched, greedy",
    "first sentence only": "untouched, first sentence",
    "drawn again until it ends": "untouched, until it ends",
    "best of 4": "untouched, best of 4",
    "fine-tuned": "fine-tuned",
}


def test_what_pairs_are_worth_is_as_the_page_says() -> None:
    before, after = TABLE["score_before"].to_numpy(), TABLE["score_after"].to_numpy()
    covariance = np.cov(after, before)
    paired = covariance.trace() - 2 * covariance[0, 1]
    assert paired == pytest.approx(np.var(after - before, ddof=1))
    random, n = np.random.default_rng(0), len(TABLE)
    drawn = [
        random.choice(after, n).mean() - random.choice(before, n).mean() for _ in range(10_000)
    ]
    apart = np.quantile(drawn, [0.025, 0.975]).tolist()
    inside = summarise(TABLE)["mean_gain_interval"]
    for label, variance, (low, high) in (
        ("in pairs", paired, inside),
        ("as if the two policies had answered different prompts", covariance.trace(), apart),
    ):
        row = f"| {label} | {variance:.3f} | {low:.2f} to {high:.2f} | {high - low:.2f} |"
        assert row in PAGE
    width = (inside[1] - inside[0]) / (apart[1] - apart[0])
    assert 1 / 7 < 1 - width < 1 / 5 and "a sixth narrower" in PAGE


def test_the_checks_on_16_prompts_are_the_tables() -> None:
    parts = [summarise(TABLE.sample(16, random_state=seed)) for seed in range(5)]
    shown = 0
    for label, part in [*(("16 prompts", p) for p in parts), ("all 128", summarise(TABLE))]:
        low, high = part["mean_gain_interval"]
        row = f"| {label} | {part['mean_gain']:.2f} | {low:.2f} to {high:.2f} | "
        assert f"{row}{part['win_rate']:.0%} |" in PAGE
        shown += low > 0
    assert shown == 4 and "Two of the five" in PAGE


def test_five_looks_are_allowed_for_as_the_page_says() -> None:
    """p: twice the share of the resampled win rates on the other side of a half."""
    rows = load_feedback(resolve(Bundled("feedback")) / "reading.jsonl")
    values, said = {}, {}
    for label, control in CONTROLS.items():
        won = np.array([wins_of(row, control) for row in rows])
        random = np.random.default_rng(0)
        means = np.array(
            [
                won[:, random.integers(3, size=3)]
                .mean(axis=1)[random.integers(len(won), size=len(won))]
                .mean()
                for _ in range(10_000)
            ]
        )
        assert won.mean() == pytest.approx(
            compare_sources(rows, control, SEEDS, resamples=1)["win_rate"]
        )
        values[label] = 2 * min((means <= 0.5).mean(), (means >= 0.5).mean())
        (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {label} |"))
        wins, *said[label] = line.strip("| ").split(" | ")[1:]
        assert wins == f"{won.mean():.0%}"
    strictest = 0.0
    for place, label in enumerate(sorted(values, key=values.__getitem__)):
        strictest = max(strictest, (5 - place) * values[label])
        for value, told in zip((values[label], strictest), said[label], strict=True):
            if told == "below 0.001":
                assert value < 0.001
            else:
                assert value == pytest.approx(float(told), rel=0.5), label


def wins_of(row: dict, control: str) -> list[float]:
    """Of one prompt, whether each seed's answer is better than the control's; a half if equal."""
    places = {a["source"]: (a["grade"], -a["rank"]) for a in row["answers"]}
    other = places[control]
    return [0.5 if places[s] == other else float(places[s] > other) for s in SEEDS]
