"""The trainings that come with the package: the rule takes the preset, and the page says so."""

from __future__ import annotations

import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial.presets import PRESETS
from rlhf_tutorial.studies.committed import committed_trainings

tuning, reading = load_script("tuning"), load_script("reading")


def test_the_rule_takes_the_default() -> None:
    rows = tuning.rows()
    assert all(row["seeds"] == 3 for row in rows), "an arm has three seeds"
    chosen = tuning.chosen(rows)
    assert chosen is not None and chosen["arm"] == reading.DEFAULT == "default"
    assert tuning.preset_of("default", 0).num_shared_layers == PRESETS["smollm2"].num_shared_layers
    assert tuning.table(rows) in (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")


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
