"""The trainings that come with the package: the rule's limits, and what the page says of them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.reading import compare_sources, gain_by_ending
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.presets import PRESETS
from rlhf_tutorial.studies.committed import committed_trainings

tuning, reading = load_script("tuning"), load_script("reading")


def test_the_rule_takes_the_default_and_the_page_says_so() -> None:
    """If this fails: python scripts/tuning.py choose."""
    rows = tuning.rows()
    assert all(row["seeds"] == 3 for row in rows), "an arm has three seeds"
    (default,) = (row for row in rows if row["arm"] == reading.DEFAULT)
    assert not default["out"] and tuning.chosen(rows) == default
    results = ROOT / "notebooks" / "results" / "smollm2" / "results.json"
    seconds = json.loads(results.read_text(encoding="utf-8"))["training"]["seconds"]
    assert default["seconds"] == pytest.approx(seconds, rel=0.05)
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert tuning.table(rows) in page and tuning.table_at_equal_kl() in page
    assert {row["arm"] for row in rows} == set(tuning.CANDIDATES)
    weight, layers = (next(r for r in rows if r["arm"] == arm) for arm in ("kl-0.1", "top-8"))
    assert weight["out"] == layers["out"] == ["ended"]
    assert f"{weight['ended']:.0%}" == f"{layers['ended']:.0%}"
    told = f"{weight['ended']:.0%} end with either, where 85% are asked for"
    assert "**The rule takes the default.**" in page and told in TEXT
    for other in (weight, layers):
        assert other["gain"] < default["gain"] - default["error"]
    found = tuning.gains_at_equal_kl()
    for at in (2.0, 3.0, 4.0):
        assert abs(found[at]["kl-0.1"]["more"]) < 0.05, "on one line with the default"
    assert found[3.0]["top-8"]["more"] < 0 < found[4.0]["long"]["more"]
    assert tuning.preset_of("default", 0).num_shared_layers == PRESETS["smollm2"].num_shared_layers


def test_the_page_shows_what_lora_and_all_layers_gained() -> None:
    """If this fails: python scripts/tuning.py lora."""
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert tuning.table_of_what_is_trained() in page
    gains = sorted(tuning.measured([run])["gain"] for run in tuning.trainings_of("default"))
    (lora,) = (tuning.measured([run])["gain"] for run in tuning.trainings_of("lora-5e-4"))
    stated = f"gained {lora:.2f} where they gained {gains[0]:.2f} to {gains[-1]:.2f}."
    assert stated in " ".join(page.split())
    for arm in tuning.WHAT_IS_TRAINED:
        preset = tuning.preset_of(arm, 100)
        lora = arm.startswith("lora")
        assert preset.lora_rank == (16 if lora else None)
        assert preset.num_shared_layers == (18 if arm == "default" else None)
        (rate,) = re.findall(r"rate (\S+)", tuning.WHAT_IS_TRAINED[arm])
        assert float(rate) == preset.ppo["learning_rate"]


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


SEEDS = [f"default-{seed}" for seed in range(3)]
BEST = [f"{seed}, best" for seed in SEEDS]
ROWS = load_feedback(resolve(Bundled("feedback")) / "reading.jsonl")
TEXT = " ".join((ROOT / "docs" / "tuning.md").read_text(encoding="utf-8").split())


def test_the_page_says_what_cheap_controls_gave() -> None:
    grades: dict[str, list[int]] = {}
    for row in ROWS:
        for answer in row["answers"]:
            grades.setdefault(answer["source"], []).append(answer["grade"])
    mean = {source: f"{np.mean(values):.2f}" for source, values in grades.items()}
    trained = np.mean([grades[source] for source in BEST])
    assert (
        f"(a mean grade of {mean['untouched, first sentence']}, where the untouched policy has "
        f"{mean['untouched, best']} and the trained one {trained:.2f})" in TEXT
    )
    for control in ("untouched, until it ends", "untouched, best of 4", "fine-tuned", "long, best"):
        assert f"({mean[control]})" in TEXT, control
    controls = ("untouched, first sentence", "untouched, until it ends", "untouched, best of 4")
    for control in (*controls, "fine-tuned"):
        for trained_policies in (BEST, ["long, best"]):
            found = compare_sources(ROWS, control, trained_policies)
            low, high = found["win_rate_interval"]
            share = f"{found['win_rate']:.0%}"
            assert (
                f"{share} ({low:.0%} to {high:.0%})" in TEXT
                or f"its {share} ({low:.0%} to {high:.0%})" in TEXT
            ), (control, trained_policies)


def test_the_page_says_what_the_gain_is_made_of() -> None:
    for before, after in (
        ("untouched", SEEDS),
        ("untouched, best", BEST),
        ("untouched, best", ["long, best"]),
    ):
        found = gain_by_ending(ROWS, before, after)
        for part in ("by_ending", "by_content"):
            low, high = found[f"{part}_interval"]
            assert f"{found[part]:.2f} ({low:.2f} to {high:.2f})" in TEXT
        whole = [f"{found[f'whole_{when}']:.2f}" for when in ("after", "before")]
        assert f"{whole[0]} against {whole[1]}" in TEXT or f"answers have {whole[0]}" in TEXT


def test_the_long_run_gains_more_at_the_same_kl() -> None:
    trainings = committed_trainings()

    def last(name: str) -> tuple[float, float]:
        at = trainings[name]["looks"][-1]
        return float(np.mean(at["scores"]["first"])), float(np.mean(at["kl"]))

    score, kl = last("long, seed 0")
    scores, kls = zip(*(last(f"default, seed {seed}") for seed in range(3)), strict=True)
    each = "{:.2f}, {:.2f} and {:.2f}".format(*scores)
    assert f"gives its last answers {score:.2f}, and those of the default's seeds {each}" in TEXT
    assert f"at a KL of {kl:.1f} and {np.mean(kls):.1f}" in TEXT
    assert score > max(scores) and abs(score - np.mean(scores) - 0.15) < 0.05


def test_the_seeds_differ_and_so_do_the_draws_that_they_are_compared_with() -> None:
    looks = [committed_trainings()[f"default, seed {seed}"]["looks"] for seed in range(3)]
    before, after = ([np.mean(each[i]["scores"]["first"]) for each in looks] for i in (0, -1))
    gains = np.subtract(after, before)
    stated = "{:.2f}, {:.2f} and {:.2f}".format(*gains)
    assert f"gained {stated}, a standard deviation of {np.std(gains, ddof=1):.2f}" in TEXT
    assert "mean is {:.2f}, {:.2f} and {:.2f} in the three".format(*before) in TEXT


def test_more_than_half_of_the_gain_is_there_after_ten_steps() -> None:
    gains: dict[int, list[float]] = {10: [], 40: []}
    for seed in range(3):
        looks = {at["step"]: at for at in committed_trainings()[f"default, seed {seed}"]["looks"]}
        for step, found in gains.items():
            found += np.subtract(
                looks[step]["scores"]["first"], looks[0]["scores"]["first"]
            ).tolist()
    assert 0.5 < np.mean(gains[10]) / np.mean(gains[40]) < 0.9


def test_the_page_says_how_the_long_run_was_read_on_the_way() -> None:
    """From `reading-long.jsonl`: grades by step, against what the training judge saw."""
    rows = load_feedback(resolve(Bundled("feedback")) / "reading-long.jsonl")
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    means = {}
    for look in committed_trainings()["long, seed 0"]["looks"]:
        given = [
            a for r in rows for a in r["answers"] if a["source"] == f"long, step {look['step']}"
        ]
        grades = np.array([a["grade"] for a in given])
        assert [a["text"] for a in given] == look["answers"]
        ended, judge = np.mean([a["ended"] for a in given]), np.mean(look["scores"]["first"])
        means[look["step"]] = grades.mean()
        cells = f"{grades.mean():.2f} | {ended:.0%} | {np.mean(grades >= 3):.0%} | {judge:.2f}"
        assert f"| {look['step']} | {cells} |" in page
        assert 0.07 < grades.std(ddof=1) / len(grades) ** 0.5 < 0.13
    gained = (means[10] - means[0]) / (means[40] - means[0])
    assert 0.7 < gained < 0.85 and "Three quarters of the gain is there after ten steps" in TEXT
    assert compare_sources(rows, "long, step 20", ["long, step 40"])["grade_gain_interval"][0] < 0
