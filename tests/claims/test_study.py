"""What the page on the first experiment says of it, against its committed runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial.evaluation.compare import gains_by_seed, load_table, summarise
from rlhf_tutorial.evaluation.measures import echoed
from rlhf_tutorial.presets import PRESETS

study = load_script("study")


def test_the_page_says_what_the_rule_chose_and_where_the_preset_stands() -> None:
    rows = study.tuning_rows()
    best, preset = study.choose(rows), PRESETS["sixteen-tokens"]
    page = (ROOT / "docs" / "first-edition.md").read_text(encoding="utf-8")
    assert study.tuning_table(rows, best) in page
    text = " ".join(page.split())
    rate, kl = (study.TUNING[best["name"]][k] for k in ("learning_rate", "init_kl_coef"))
    named = f"learning rate {rate:g}, KL weight {kl:g}, {best['step']} steps"
    assert f"**What the rule chose:** {named.replace('e-0', 'e-')}." in text
    assert f"It gains {best['gain']:.2f} ± {best['error']:.2f}" in text
    own = f"lr {preset.ppo['learning_rate']:g}, KL {preset.ppo['init_kl_coef']:g}"
    (default,) = (r for r in rows if r["name"] == own and r["step"] == 40 * preset.epochs)
    assert default is not best and default["worse"], "the preset would pass now: say so"
    assert f"{default['gain']:.2f} ± {default['error']:.2f} at a KL of {default['kl']:.1f}" in text


def test_the_page_says_which_later_trainings_pass_and_how_much_is_luck() -> None:
    text = " ".join((ROOT / "docs" / "first-edition.md").read_text(encoding="utf-8").split())

    def at(name: str, step: int) -> dict[str, Any]:
        settings = study.settings_of([study.load(name)], seconds_per_step=1.95)
        return next(setting for setting in settings if setting["step"] == step)

    for name, step in (("controller, horizon 10000", 80), ("lr 5e-05, KL 0", 40)):
        later = at(name, step)
        assert not later["worse"], name
        assert f"{later['gain']:.2f} ± {later['error']:.2f} (KL {later['kl']:.1f})" in text
    listed = at("lr 5e-05, KL 0.05", 80)
    assert f"{listed['gain']:.2f} ± {listed['error']:.2f} there" in text
    assert f"echoes {100 * listed['echoed']:.0f} points more" in text


def test_the_page_states_the_gains_of_the_seeds() -> None:
    text = " ".join((ROOT / "docs" / "first-edition.md").read_text(encoding="utf-8").split())
    seeds = json.loads((study.FOLDER / "seeds.json").read_text(encoding="utf-8"))
    for judge, name in (("score", "First"), ("second", "Second")):
        gain, (low, high) = seeds[judge]["mean_gain"], seeds[judge]["mean_gain_interval"]
        deviations = gain / seeds[judge]["std_before"]
        stated = f"{name} judge: gain {gain:.2f} ({low:.2f} to {high:.2f}), {deviations:.2f} of"
        assert stated in text
    minutes = [run["training"]["seconds"] / 60 for run in seeds["runs"]]
    assert f"Training: {min(minutes):.1f} to {max(minutes):.1f} minutes" in text


def test_the_gain_at_equal_echo_is_the_intercept_of_a_line() -> None:
    """Against NumPy's fit; and the pages state it."""
    table = load_table(study.RESULTS / "seeds.csv")
    echoes = {
        when: np.array([
            echoed(*pair) for pair in zip(table["query"], table[f"response_{when}"], strict=True)
        ])
        for when in ("before", "after")
    }  # fmt: skip
    page = " ".join((ROOT / "docs" / "first-edition.md").read_text(encoding="utf-8").split())
    for judge in ("score", "second"):
        gains = table[f"{judge}_after"] - table[f"{judge}_before"]
        value, low, high = study.at_equal_echo(table, judge)
        assert value == pytest.approx(np.polyfit(echoes["after"] - echoes["before"], gains, 1)[1])
        assert low < value < high
        correlation = np.corrcoef(echoes["before"], table[f"{judge}_before"])[0, 1]
        assert f"{value:.2f} ({low:.2f} to {high:.2f})" in page
        assert f"{correlation:.2f}" in page


def test_the_committed_seeds_add_up() -> None:
    table = load_table(study.RESULTS / "seeds.csv")
    result = json.loads((study.FOLDER / "seeds.json").read_text(encoding="utf-8"))
    assert sorted(table["seed"].unique()) == list(study.SEEDS)
    for judge in ("score", "second"):
        for key, value in summarise(table, judge).items():
            assert result[judge][key] == pytest.approx(value), key
        assert result[judge]["gain_by_seed"] == pytest.approx(gains_by_seed(table, judge).tolist())
