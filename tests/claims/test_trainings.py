"""The trainings that come with the package: the rule's limits, and what the page says of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.intervals import bootstrap_interval
from rlhf_tutorial.evaluation.reading import compare_sources, gain_by_ending
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.presets import PRESETS
from rlhf_tutorial.studies.committed import committed_trainings

tuning, reading = load_script("tuning"), load_script("reading")


def test_the_default_keeps_all_limits_but_the_time_and_the_page_says_so() -> None:
    rows = tuning.rows()
    assert all(row["seeds"] == 3 for row in rows), "an arm has three seeds"
    (default,) = (row for row in rows if row["arm"] == reading.DEFAULT)
    assert default["out"] == ["seconds"], "the page says that it breaks this limit, and no other"
    results = ROOT / "notebooks" / "results" / "smollm2" / "results.json"
    seconds = json.loads(results.read_text(encoding="utf-8"))["training"]["seconds"]
    assert default["seconds"] == pytest.approx(seconds, rel=0.05)
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert tuning.table(rows) in page
    assert "It keeps all limits but the first." in " ".join(page.split())
    assert tuning.preset_of("default", 0).num_shared_layers == PRESETS["smollm2"].num_shared_layers


def test_every_look_is_at_the_validation_prompts() -> None:
    prompts = sorted(load_script("feedback").prompts_of("validation"))
    trainings = committed_trainings()
    assert {"default, seed 0", "default, seed 1", "default, seed 2", "long, seed 0"} <= set(
        trainings
    )
    for name, training in trainings.items():
        assert sorted(training["queries"]) == prompts, name
        for look in training["looks"]:
            assert len(look["answers"]) == len(look["kl"]) == len(prompts)
            assert look["step"] <= len(training["steps"])


def test_before_training_every_run_is_the_untouched_policy() -> None:
    for name, training in committed_trainings().items():
        first = training["looks"][0]
        assert first["step"] == 0 and first["kl"] == pytest.approx([0.0] * 96, abs=1e-3), name


def test_the_page_says_what_more_steps_and_cheap_controls_gave() -> None:
    text = " ".join((ROOT / "docs" / "tuning.md").read_text(encoding="utf-8").split())
    folder = resolve(Bundled("feedback"))
    grades: dict[str, list[int]] = {}
    for name in ("temperatures-long", "reading"):
        for row in load_feedback(folder / f"{name}.jsonl"):
            for answer in row["answers"]:
                grades.setdefault(answer["source"], []).append(answer["grade"])
    mean = {source: f"{np.mean(values):.2f}" for source, values in grades.items()}
    early, late = (
        [mean[f"long, {steps} steps at {t}"] for t in (0.5, 0.01)] for steps in (80, 160)
    )
    stated = (
        f"({early[0]} against {late[0]} at temperature 0.5, {early[1]} against {late[1]} greedily"
    )
    assert stated in text
    trained = np.mean([grades[f"default-{seed}, best"] for seed in range(3)])
    untouched = mean["untouched, best"]
    assert (
        f"(a mean grade of {mean['untouched, first sentence']}, where the untouched policy has "
        f"{untouched} and the trained one {trained:.2f})" in text
    )
    for control in ("untouched, best of 4", "fine-tuned"):
        assert f"({mean[control]})" in text
    rows = load_feedback(folder / "reading.jsonl")
    for control, name in (
        ("untouched, first sentence", "the cut"),
        ("untouched, best of 4", "best of 4"),
        ("fine-tuned", "fine-tuning"),
    ):
        found = compare_sources(rows, control, [f"default-{seed}, best" for seed in range(3)])
        low, high = found["win_rate_interval"]
        assert f"{found['win_rate']:.0%} ({low:.0%} to {high:.0%}) against {name}" in text


def test_the_page_says_what_the_gain_is_made_of_and_what_drawing_again_would_give() -> None:
    text = " ".join((ROOT / "docs" / "tuning.md").read_text(encoding="utf-8").split())
    folder = resolve(Bundled("feedback"))
    rows, earlier = (load_feedback(folder / f"{name}.jsonl") for name in ("reading", "test"))
    seeds = [f"default-{seed}" for seed in range(3)]
    for before, after in (
        ("untouched", seeds),
        ("untouched, best", [f"{seed}, best" for seed in seeds]),
    ):
        found = gain_by_ending(rows, before, after)
        whole = [f"{found[f'whole_{when}']:.2f}" for when in ("before", "after")]
        assert (
            f"{whole[0]} before and {whole[1]} after at" in text
            or f"{whole[0]} and {whole[1]} at" in text
        )
        for part in ("by_ending", "by_content"):
            low, high = found[f"{part}_interval"]
            assert f"{found[part]:.2f} ({low:.2f} to {high:.2f})" in text
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in earlier]
    drawn_again, whole = [], []
    for row in earlier:
        grades = [answer["grade"] for answer in row["answers"] if answer["ended"]]
        whole.append(bool(grades))
        # Of four draws in any order the first that ends is each of those with equal probability.
        drawn_again.append(np.mean(grades or [answer["grade"] for answer in row["answers"]]))
    low, high = bootstrap_interval(drawn_again)
    assert f"(for {1 - np.mean(whole):.0%} of the prompts)" in text
    assert f"a mean grade of {np.mean(drawn_again):.2f} ({low:.2f} to {high:.2f})" in text
    trained = [
        np.mean([a["grade"] for a in row["answers"] if a["source"] in seeds]) for row in rows
    ]
    more = np.subtract(trained, drawn_again)
    low, high = bootstrap_interval(more)
    assert f"{np.mean(trained):.2f} there, {more.mean():.2f} more ({low:.2f} to {high:.2f})" in text
    one = [np.mean([answer["grade"] for answer in row["answers"]]) for row in earlier]
    assert f"single draws have {np.mean(one):.2f} on those sheets" in text


def test_more_than_half_of_the_gain_is_there_after_ten_steps() -> None:
    gains: dict[int, list[float]] = {10: [], 40: []}
    for seed in range(3):
        looks = {at["step"]: at for at in committed_trainings()[f"default, seed {seed}"]["looks"]}
        for step, found in gains.items():
            found += np.subtract(
                looks[step]["scores"]["first"], looks[0]["scores"]["first"]
            ).tolist()
    assert 0.5 < np.mean(gains[10]) / np.mean(gains[40]) < 0.9
