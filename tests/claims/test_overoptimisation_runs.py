"""The judges and trainings behind notebook 08, and what it says of them."""

from __future__ import annotations

import json

import nbformat
import numpy as np
import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.measures import words
from rlhf_tutorial.evaluation.reading import compare_sources
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.studies.committed import committed_overoptimisation
from rlhf_tutorial.studies.looks import progress
from rlhf_tutorial.studies.overoptimisation import best_of_n_curve, load_judge

script = load_script("overoptimisation")
FOLDER = resolve(Bundled("overoptimisation"))
SCORES, TRAININGS = committed_overoptimisation()
BY_NAME = {(each["size"], each["seed"]): each for each in TRAININGS}
NOTEBOOK = ROOT / "notebooks" / "08_overoptimisation.ipynb"


def prose() -> str:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return " ".join(" ".join(c.source for c in cells if c.cell_type == "markdown").split())


def test_there_is_a_training_of_each_size_without_a_leash() -> None:
    assert {size for size, _ in BY_NAME} == set(script.SIZES)
    for training in TRAININGS:
        assert training["settings"]["init_kl_coef"] == 0
        assert {step["kl_coef"] for step in training["steps"]} == {0.0}


def test_every_look_is_at_the_validation_prompts_and_the_first_at_the_untouched_policy() -> None:
    prompts = sorted(load_script("feedback").prompts_of("validation"))
    for name, training in BY_NAME.items():
        assert sorted(training["queries"]) == prompts, name
        assert [at["step"] for at in training["looks"]] == [0, *script.LOOKS, script.STEPS], name
        assert training["looks"][0]["kl"] == pytest.approx([0.0] * len(prompts), abs=1e-3), name
        for look in training["looks"]:
            assert len(look["answers"]) == len(look["kl"]) == len(prompts)
    assert {rows.shape for rows in SCORES.values()} == {(len(prompts), script.ANSWERS)}


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("name", ["gold", "proxy-200-0"])
def test_the_judges_are_those_that_looked_on(name: str) -> None:
    training = BY_NAME[200, 0]
    judge, at = load_judge(name), training["looks"][-1]
    key = "gold" if name == "gold" else "proxy"
    # Scored in bfloat16 where the processor has it.
    again = judge(training["queries"][:8], at["answers"][:8])
    assert again == pytest.approx(at["scores"][key][:8], abs=0.15)


def test_a_proxy_knows_other_prompts_than_its_neighbours_and_the_gold_orders_best() -> None:
    known = json.loads((FOLDER / "judges.json").read_text(encoding="utf-8"))
    assert set(known) == set(script.NAMES) == set(SCORES)
    best = max(known, key=lambda name: known[name]["accuracy"])
    assert best == "gold"
    lines = [load_line(name) for name in script.NAMES]
    assert len({line.tobytes() for line in lines}) == len(lines)


def load_line(name: str) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(FOLDER / name / "line.safetensors")["weights"]


def test_the_reading_is_of_the_answers_at_the_golds_best_look_and_at_the_end() -> None:
    rows = load_feedback(FOLDER / "reading.jsonl")
    wanted = script.rows_to_read()
    by_prompt = {row["prompt"]: row for row in rows}
    assert len(rows) == len(by_prompt) == len(wanted)
    for row in wanted:
        graded = by_prompt[row["prompt"]]["answers"]
        assert [{k: a[k] for k in ("text", "ended", "source")} for a in graded] == row["answers"]
        assert all(0 <= a["grade"] <= 5 and a["rank"] >= 1 for a in graded)


PATHS = {key: progress(training) for key, training in BY_NAME.items()}


def best(path: list[dict[str, float]]) -> dict[str, float]:
    return max(path[1:], key=lambda at: at["gold"])


def test_the_judges_are_as_often_right_as_the_notebook_says() -> None:
    known = json.loads((FOLDER / "judges.json").read_text(encoding="utf-8"))
    right = {
        size: sorted(round(100 * known[f"proxy-{size}-{seed}"]["accuracy"]) for seed in (0, 1, 2))
        for size in script.SIZES
    }
    gold = known["gold"]
    stated = (
        f"A proxy of 50 grades is right in {right[50][0]}% to {right[50][-1]}% of the cases, one "
        f"of 200 in {right[200][0]}% or {right[200][-1]}%, one of 800 in {right[800][0]}% to "
        f"{right[800][-1]}%, the gold in {100 * gold['accuracy']:.0f}%. On {gold['n']} pairs"
    )
    assert stated in prose()
    grades = sum(
        len(row["answers"])
        for path in (script.FEEDBACK / "train.jsonl", *script.FEEDBACK.glob("round-*.jsonl"))
        for row in load_feedback(path)
    )
    assert f"*all* {grades:,} grades" in prose()


def test_best_of_16_gives_more_than_ppo_at_its_best_look() -> None:
    top = best(PATHS[200, 0])
    row = best_of_n_curve(SCORES["proxy-200-0"], SCORES["gold"])[-1]
    assert f"at best {top['gold']:+.2f}, at {top['kl']:.0f} nats" in prose()
    assert f"best of 16 has {row['gold']:+.2f} within 2 nats" in prose()
    assert row["n"] == 16 and row["kl"] < 2 and row["gold"] > top["gold"]
    stated = []
    for size in script.SIZES:
        curves = [best_of_n_curve(SCORES[f"proxy-{size}-{k}"], SCORES["gold"]) for k in (0, 1, 2)]
        low, *_, high = sorted(curve[-1]["gold"] for curve in curves)
        stated.append(f"{low:+.2f} to {high:+.2f} with {size}")
    stated[0] += " of them"
    assert f"Best of 16 gains {', '.join(stated)}." in prose()
    for size, seed in BY_NAME:  # those that know more help more
        gains = [
            best_of_n_curve(SCORES[f"proxy-{s}-{d}"], SCORES["gold"])[-1]["gold"]
            for s, d in ((size, seed), (800, seed))
        ]
        assert 0 < gains[0] <= gains[1]


def test_the_gold_sees_a_gain_at_first_and_mostly_a_loss_at_the_end() -> None:
    for path in PATHS.values():
        assert best(path)["gold"] > 2 * best(path)["gold_error"]
    assert best(PATHS[50, 0])["step"] == 1, "it turns after the first step"
    lost = [key for key, path in PATHS.items() if path[-1]["gold"] < 0]
    assert sorted(lost) == [(50, 0), (200, 0), (800, 1)]
    assert all(PATHS[key][-1]["proxy"] > 0 for key in lost)
    broke = PATHS[200, 0]
    assert f"come to {broke[-1]['kl']:.0f} nats" in prose()
    assert broke[-1]["proxy"] < 0.1 < max(at["proxy"] for at in broke)


def test_one_policy_says_no_to_everybody_and_its_proxy_had_a_reason() -> None:
    assert {answer.strip(" .").lower() for answer in BY_NAME[800, 1]["looks"][-1]["answers"]} == {
        "no"
    }
    graded = load_feedback(script.FEEDBACK / "train.jsonl")

    def short(size: int, seed: int) -> list[int]:
        drawn = np.random.default_rng(seed).permutation(len(graded))[: size // 4]
        answers = [a for i in drawn for a in graded[i]["answers"]]
        return sorted(a["grade"] for a in answers if a["ended"] and len(words(a["text"])) <= 3)

    assert short(800, 1) == [1, 1, 1, 4, 4, 4]
    assert short(800, 0) == [0]


def test_the_reader_sees_the_gold_over_optimised() -> None:
    rows = load_feedback(FOLDER / "reading.jsonl")

    def gain(source: str) -> tuple[float, float, float]:
        found = compare_sources(rows, "untouched", [source], resamples=1000)
        low, high = found["grade_gain_interval"]
        return found["grade_after"] - found["grade_before"], low, high

    assert sum(gain(f"{size}, gold's best")[1] > 0 for size in script.SIZES) == 2
    assert all(-1.1 < gain(f"{size}, last")[0] < -0.9 for size in (50, 200))
    mean, _, high = gain("800, last")
    assert -0.4 < mean < -0.25 and high < 0.05
    assert 0.4 < PATHS[800, 0][-1]["gold"] < 0.5


def test_stopping_within_five_nats_keeps_a_gain() -> None:
    for path in PATHS.values():
        assert 2.5 < path[1]["kl"] < 5.5
        inside = [at for at in path[1:] if at["kl"] <= 5]
        assert inside and inside[-1]["gold"] > 0.2
