"""The trainings behind notebook 09, and what it says of them and of TRL."""

from __future__ import annotations

import re

import nbformat
import numpy as np
import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.reading import agreement, compare_sources, gain_by_ending
from rlhf_tutorial.feedback import load_feedback, pairs
from rlhf_tutorial.studies.committed import committed_methods, committed_samples
from rlhf_tutorial.studies.looks import progress
from rlhf_tutorial.studies.matched import gains_at_kl, track_of
from rlhf_tutorial.studies.overoptimisation import best_of_n_curve

script = load_script("methods")
TRIALS, SEEDS = committed_methods("trial"), committed_methods("seed")
CELLS = nbformat.read(ROOT / "notebooks" / "09_rivals.ipynb", as_version=4).cells
PROSE = " ".join(" ".join(c.source for c in CELLS if c.cell_type == "markdown").split())


def source(cell: str) -> str:
    (found,) = (c.source for c in CELLS if c.id == cell)
    return found


def test_every_method_was_tuned_and_trained_at_the_rate_that_the_rule_takes() -> None:
    assert set(TRIALS) == set(script.RATES)
    assert set(SEEDS) >= set(script.RATES) - {script.GRADED}
    for method, trainings in SEEDS.items():
        trials = script.trials_of(method)
        assert {row["rate"] for row in trials} >= set(script.RATES[method])
        assert script.next_rate(method) is None, "no trial is missing"
        assert {each["learning_rate"] for each in trainings} == {script.rate_of(trials)}
        assert [each["seed"] for each in trainings] == list(range(len(trainings)))
    for method, trials in TRIALS.items():
        assert {each["seed"] for each in trials} == {script.TRIAL_SEED}, method


@pytest.mark.parametrize(("trainings", "split"), [(TRIALS, "validation"), (SEEDS, "test")])
def test_every_look_is_at_the_held_out_prompts_and_the_first_at_the_untouched_policy(
    trainings: dict, split: str
) -> None:
    prompts = sorted(load_script("feedback").prompts_of(split))
    untouched: dict[int, list[str]] = {}
    for method, runs in trainings.items():
        steps = 20 if method.startswith("dpo") else 40
        for training in runs:
            assert sorted(training["queries"]) == prompts
            first, last = training["looks"][0], training["looks"][-1]
            assert np.mean(first["kl"]) == pytest.approx(0, abs=0.01)
            answers = untouched.setdefault(training["seed"], first["answers"])
            # The trials ran on several processors, on which rounding draws other answers.
            assert split == "validation" or answers == first["answers"], "one untouched policy"
            looked = [at["step"] for at in training["looks"]]
            quarters = [0, steps // 4, steps // 2] if split == "test" else [0]
            assert looked[:-1] == quarters and steps - 1 <= last["step"] <= steps
            assert training["answers"] == (0 if "graded" in method else 640)
            assert training["updates"] == {"ppo": 80}.get(method, last["step"])


def test_the_samples_are_sixteen_answers_to_every_test_prompt() -> None:
    samples = committed_samples()
    assert {x.shape for x in samples.values()} == {(128, 16)}


def test_the_notebook_trains_with_the_weights_and_groups_of_the_script() -> None:
    terms: dict[str, str] = {}
    exec(source("budget").split("}\n")[0] + "}", terms)
    weights = {"ppo": script.PRESET.ppo["init_kl_coef"], **script.BETA}
    weights[script.GRADED] = script.BETA["dpo"]
    stated = {method: float(text.split(",")[0]) for method, text in terms["KL_TERM"].items()}
    assert stated == weights
    assert f"beta={weights['rloo']}" in source("train-rloo")
    assert '"rloo": 4, "grpo": 4' in source("budget")
    assert "num_generations: int = 4" in (
        ROOT / "rlhf_tutorial" / "studies" / "rivals.py"
    ).read_text(encoding="utf-8")
    epochs = script.PRESET.ppo["ppo_epochs"]
    assert epochs == 2 and "PPO makes two updates on a batch" in PROSE
    layers = 30 - script.PRESET.num_shared_layers
    assert f"its {layers} trained layers" in PROSE


def test_what_the_notebook_says_of_trl() -> None:
    from trl import DPOConfig, GRPOConfig, RLOOConfig

    fields = {config: config.__dataclass_fields__ for config in (DPOConfig, GRPOConfig, RLOOConfig)}
    assert "temperature" not in fields[DPOConfig] and "temperature" in fields[RLOOConfig]
    assert fields[GRPOConfig]["beta"].default == 0 and "has *no KL at all*" in PROSE
    assert fields[GRPOConfig]["loss_type"].default == "dapo"
    assert all(fields[c]["num_iterations"].default == 1 for c in (GRPOConfig, RLOOConfig))


def test_the_bound_of_best_of_16_is_below_two_nats() -> None:
    from rlhf_tutorial.studies.rivals import best_of_n_kl

    assert 1.8 < best_of_n_kl(16) < 2
    assert "A 16-fold price moves the policy by less than two nats" in PROSE


def test_the_rule_is_told_as_it_stands_in_the_script() -> None:
    assert all(len(rates) == 3 for rates in script.RATES.values())
    assert all(np.allclose(np.divide(rates[1:], rates[:-1]), 2) for rates in script.RATES.values())
    assert f"goes further than {script.MOST_KL:.0f} nats" in PROSE
    prompts = len(load_script("feedback").prompts_of("validation"))
    assert f"looked at with the {prompts} validation prompts" in PROSE


def test_there_are_as_many_graded_pairs_as_the_notebook_has_them() -> None:
    rows = load_feedback(resolve(Bundled("feedback")) / "train.jsonl")
    assert len(pairs(rows)) > 2000
    assert "all pairs that the reader has graded, and not 320 of them" in PROSE


def test_the_notebook_says_how_many_seeds_there_are() -> None:
    """With a second seed, its text and its figure's caption have to say something else."""
    assert all(len(trainings) == 1 for trainings in SEEDS.values())
    assert "One training each so far" in PROSE and "Each line is one training" in PROSE
    assert script.GRADED not in SEEDS and "DPO on graded pairs has only its trials so far" in PROSE


def trial(method: str, rate: float) -> dict[str, float]:
    (found,) = (row for row in script.trials_of(method) if row["rate"] == rate)
    return found


def test_what_the_notebook_says_of_the_trials() -> None:
    small, large = trial("ppo", 1e-4), trial("ppo", 2e-4)
    assert (
        f"PPO gains {small['gain']:.2f} at {small['kl']:.1f} nats and {large['gain']:.2f} at "
        f"{large['kl']:.1f}"
    ) in PROSE
    dpo = script.trials_of("dpo")
    assert "With DPO's two smaller rates more than a fifth of the answers break off" in PROSE
    assert [row["ended"] < 0.8 for row in dpo] == [True, True, False, False]
    assert all(row["kl"] > script.MOST_KL for row in dpo[2:])
    first = dpo[0]
    assert f"DPO's first row: {first['gain']:+.2f} at {first['kl']:.1f} nats" in PROSE
    others = [row for method in script.RATES for row in script.trials_of(method)]
    assert max(row["gain"] for row in others if row["kl"] <= 1.5) == first["gain"]


def test_the_reader_has_graded_the_last_answers_of_every_method_and_the_untouched_ones() -> None:
    looks = {"untouched": SEEDS["ppo"][0]["looks"][0]}
    looks |= {method: trainings[0]["looks"][-1] for method, trainings in SEEDS.items()}
    graded = load_feedback(resolve(Bundled("methods")) / "reading.jsonl")
    assert [row["prompt"] for row in graded] == SEEDS["ppo"][0]["queries"]
    for i, row in enumerate(graded):
        told = {answer["source"]: (answer["text"], answer["ended"]) for answer in row["answers"]}
        assert told == {name: (at["answers"][i], at["ended"][i]) for name, at in looks.items()}


def test_best_of_sixteen_is_ahead_of_all_trainings() -> None:
    samples = committed_samples()
    best = best_of_n_curve(samples["first"], samples["second"])[-1]
    assert f"best of 16 has {best['gold']:+.2f} within 1.8 nats" in PROSE
    ends = [look["second"] for runs in SEEDS.values() for run in runs for look in progress(run)]
    assert max(ends) < best["gold"]


def between(low: float, high: float) -> str:
    return f"({low:.0%} to {high:.0%})"


def test_what_the_notebook_says_of_the_reading() -> None:
    graded = load_feedback(resolve(Bundled("methods")) / "reading.jsonl")
    for method, trainings in SEEDS.items():
        found = compare_sources(graded, "untouched", [method])
        assert found["grade_gain_interval"][0] > 0
        gain = found["grade_after"] - found["grade_before"]
        last = progress(trainings[0])[-1]
        assert gain > max(last["first"], last["second"])
    for method in ("rloo", "grpo", "dpo"):
        found = compare_sources(graded, "ppo", [method])
        rate, interval = found["win_rate"], found["win_rate_interval"]
        assert re.search(
            f"{method.upper()}'s (win )?{rate:.0%} {re.escape(between(*interval))}", PROSE
        )
        assert (interval[0] < 0.5 < interval[1]) == (method != "dpo")
    parts = {
        method: gain_by_ending(graded, "untouched", [method]) for method in ("ppo", "rloo", "grpo")
    }
    low, high = parts["ppo"]["by_ending_interval"]
    assert f"that makes {parts['ppo']['by_ending']:.2f} ({low:.2f} to {high:.2f})" in PROSE
    assert f"it makes {parts['rloo']['by_ending']:.2f}" in PROSE
    low, high = parts["grpo"]["by_content_interval"]
    assert low < 0 < high and "left of GRPO's 0.63 has an interval that holds 0" in PROSE
    by_judge = {method: progress(runs[0])[-1]["first"] for method, runs in SEEDS.items()}
    assert max(by_judge, key=by_judge.get) == "grpo"
    again = load_feedback(resolve(Bundled("methods")) / "reading-again.jsonl")
    prompts = {row["prompt"] for row in again}
    two = agreement([row for row in graded if row["prompt"] in prompts], again)
    assert (
        f"graded {len(again)} of the prompts anew: the grades correlate at "
        f"{two['correlation']:.2f}, and {two['same_order']:.0%} of {two['pairs']} pairs"
    ) in PROSE


def test_what_the_notebook_says_of_the_gains_at_four_nats() -> None:
    tracks = {method: track_of(trainings, "second") for method, trainings in SEEDS.items()}
    found = gains_at_kl(tracks, 4.0, than="ppo")
    gains = {method: f"{each['gain']:.2f}" for method, each in found.items()}
    assert f"RLOO has gained {gains['rloo']} and PPO {gains['ppo']}." in PROSE
    assert f"GRPO has {gains['grpo']} and DPO {gains['dpo']}" in PROSE
    assert found["rloo"]["more_low"] < 0 < found["rloo"]["more_high"]
    assert all(found[method]["more_high"] < 0 for method in ("grpo", "dpo"))
    rates = {method: trainings[0]["learning_rate"] for method, trainings in SEEDS.items()}
    assert rates["grpo"] == rates["dpo"] == 2 * rates["ppo"]
    first = trial("dpo", rates["dpo"] / 4)
    assert f"DPO had {first['gain']:+.2f} at {first['kl']:.1f} nats (in the trials)" in PROSE
    there = gains_at_kl(
        {m: track_of(t, "first") for m, t in SEEDS.items()}, first["kl"], than="ppo"
    )
    assert max(each["gain"] for each in there.values()) < first["gain"]


def test_nothing_is_left_to_be_written() -> None:
    assert not re.search("AWAITS", PROSE)
