"""What the page on the first experiment and notebook 08 say of it, against its committed runs."""

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


def test_notebook_08_says_how_far_the_second_judge_fell_from_step_40() -> None:
    scores = {at["step"]: at["scores"] for at in study.load("lr 5e-05, KL 0")["looks"]}
    change = np.subtract(scores[240]["second"], scores[40]["second"])
    scale = np.std(scores[0]["second"], ddof=1)
    error = change.std(ddof=1) / len(change) ** 0.5
    stated = f"it is {change.mean() / scale:.2f} ± {error / scale:.2f}"
    text = (ROOT / "notebooks" / "08_overoptimisation.ipynb").read_text(encoding="utf-8")
    assert stated in text


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


def test_without_a_leash_the_first_judge_goes_up_and_the_second_comes_back_down() -> None:
    """What notebook 08 says of the committed training."""
    result = study.load("lr 5e-05, KL 0")
    scores = {at["step"]: at["scores"] for at in result["looks"]}

    def change(judge: str, start: int, end: int) -> tuple[float, float]:
        differences = np.subtract(scores[end][judge], scores[start][judge])
        return differences.mean(), differences.std(ddof=1) / len(differences) ** 0.5

    for judge, sign in (("first", 1), ("second", -1)):
        mean, error = change(judge, 80, 240)
        assert sign * mean > 2 * error, judge
    assert change("second", 0, 80)[0] > 2 * change("second", 0, 80)[1]


def test_the_default_horizon_does_nothing_and_a_short_one_overshoots_and_returns() -> None:
    """What notebook 08 says of the committed trainings."""
    steps = {h: study.load(f"controller, horizon {h}")["steps"] for h in (10_000, 64)}
    target = study.CONTROLLERS["controller, horizon 64"]["target"]
    assert np.ptp([step["kl_coef"] for step in steps[10_000]]) < 0.03 * 0.05
    assert np.mean([step["kl"] for step in steps[10_000][-10:]]) > 2.5 * target
    kl = np.convolve([step["kl"] for step in steps[64]], np.ones(10) / 10, "valid")
    assert kl.max() > 3 * target and kl[-1] < 2 * target
    weights = [step["kl_coef"] for step in steps[64]]
    assert min(weights) < 0.01 and weights[-1] > 0.2


def test_a_middle_horizon_holds_its_target_given_time() -> None:
    """What notebook 08 says of the committed training."""
    name = "controller, horizon 160"
    steps, target = study.load(name)["steps"], study.CONTROLLERS[name]["target"]
    kl = np.convolve([step["kl"] for step in steps], np.ones(20) / 20, "valid")
    assert 1.9 * target < kl.max() < 2.3 * target
    assert kl[160:].max() < 1.25 * target and kl[160:].min() > 0.85 * target  # from step 160 on
    assert np.mean([step["kl"] for step in steps[-80:]]) == pytest.approx(target, rel=0.15)
