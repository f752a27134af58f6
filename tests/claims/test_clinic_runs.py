"""Notebook 05b: each committed training shows its own disease, and the healthy one shows none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import nbformat
import numpy as np
import pytest
from support import ROOT
from support.notebooks import outputs_and_prose

from rlhf_tutorial.exercises import check
from rlhf_tutorial.studies.clinic import PATIENTS
from rlhf_tutorial.studies.committed import committed_patients, committed_trainings

Stats = dict[str, np.ndarray]
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "05b_clinic.ipynb", as_version=4)
LOGS = committed_patients()
DEFAULT = ROOT / "notebooks" / "results" / "smollm2" / "stats.jsonl"
STATS = {
    name: {key: np.array(column) for key, column in log["stats"].items()}
    for name, log in LOGS.items()
}


def gap(s: Stats) -> np.ndarray:
    """Surprise minus entropy, nats per token."""
    return s["objective/entropy"] / s["tokens/responses_len_mean"] - s["ppo/policy/entropy"]


SIGNATURES: dict[str, Callable[[Stats], bool]] = {
    "dropout": lambda s: bool((s["first_ratio"] > 0.02).all()),
    "padding": lambda s: not s["tokens/responses_len_std"].any(),
    "prompt": lambda s: bool((s["tokens/responses_len_mean"] > 32).all()),
    "top-k": lambda s: gap(s).mean() < -4 * gap(s).std(ddof=1) / len(gap(s)) ** 0.5,
    "dead-value-head": lambda s: not s["ppo/val/var"].any() and set(s["ppo/val/mean"]) == {1.25},
    "no-kl": lambda s: not s["ppo/mean_non_score_reward"].any() and s["objective/kl"][-1] > 1,
    "sign": lambda s: s["ppo/mean_scores"][0] < s["ppo/val/mean"][0] - 2,
    "learning-rate": lambda s: s["ppo/policy/approxkl"].max() > 1,
}


def test_every_patient_is_there_and_each_has_sixteen_steps() -> None:
    assert LOGS.keys() == PATIENTS.keys() == SIGNATURES.keys() | {"healthy"}
    for name, stats in STATS.items():
        assert {len(column) for column in stats.values()} == {16}
        assert np.isfinite([*stats.values()]).all()
        rate, beta = stats["ppo/learning_rate"][0], stats["objective/kl_coef"][0]
        assert rate == (1e-3 if name == "learning-rate" else 1e-4)
        assert beta == (0.0 if name == "no-kl" else 0.05)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_disease_shows_in_its_own_log_and_not_in_the_healthy_one(name: str) -> None:
    assert SIGNATURES[name](STATS[name])
    assert not SIGNATURES[name](STATS["healthy"])


def test_all_began_with_the_same_policy_and_prompts() -> None:
    for log in LOGS.values():
        assert log["before"] == LOGS["healthy"]["before"]
        for key in ("tokens/queries_len_mean", "tokens/queries_len_std"):
            assert log["stats"][key] == LOGS["healthy"]["stats"][key]


def solution() -> Callable[[Stats], str]:
    """The notebook's own `examine`."""
    (cell,) = (cell for cell in NOTEBOOK.cells if cell.id == "solution-4")
    scope: dict[str, Callable[[Stats], str]] = {}
    exec(cell.source.split("\n\n\ncheck(")[0], scope)
    return scope["examine_solution"]


def test_the_doctor_knows_all_patients_and_finds_the_default_run_healthy() -> None:
    examine = solution()
    assert check("examine", examine).right
    rows = [json.loads(line) for line in DEFAULT.read_text(encoding="utf-8").splitlines()]
    default = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    assert examine(default | {"first_ratio": np.zeros(len(rows))}) == "healthy"


def test_a_wrong_diagnosis_is_told_and_so_is_an_empty_one() -> None:
    def not_yet(stats: Stats) -> str:
        raise NotImplementedError

    assert (
        check("examine", lambda stats: "healthy").words == "Of 'dead-value-head' it says 'healthy'."
    )
    assert "your turn" in check("examine", not_yet).words
    assert "KeyError" in check("examine", lambda stats: stats["nothing"]).words


PROSE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
HEALTHY = STATS["healthy"]


def said(text: str) -> bool:
    """Whether the notebook's prose says it, wherever its lines break."""
    return " ".join(text.split()) in " ".join(PROSE.split())


def last(name: str, key: str) -> float:
    """Mean of the last four steps."""
    return float(STATS[name][key][-4:].mean())


def test_two_answers_stand_under_each_chart_before_its_guess() -> None:
    cells = NOTEBOOK.cells
    by_id = {cell.id: i for i, cell in enumerate(cells)}
    shown = outputs_and_prose("05b_clinic.ipynb")[0]
    names = re.search(r'names = "(.+)"', cells[by_id["load"]].source)[1].split()
    for letter, backwards in zip("abcdefgh", names, strict=True):
        place = by_id[f"answers-{letter}"]
        assert by_id[f"chart-{letter}"] == place - 2, "caption between them"
        assert place < by_id[f"reveal-{letter}"]
        log = LOGS[backwards[::-1]]
        text = " ".join(shown[f"answers-{letter}"].replace("\\n", "\n").split())
        for n in range(3):
            there = [
                " ".join(log[when]["answers"][n].split()) in text for when in ("before", "after")
            ]
            assert there == [n < 2] * 2, (letter, n)


def test_each_patient_has_a_word_of_the_page_on_metrics() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = re.findall(r"\*Where \[metrics\.md\]\(\.\./docs/metrics\.md\) tells:\* (.+)", PROSE)
    assert len(told) == 8
    for line in told:
        keys = re.findall(r"`(\w+/[\w/]+)`", line)
        assert keys and all(f"`{key}`" in page for key in keys), line


def test_what_is_told_of_the_first_round() -> None:
    rate, padding, prompt = (STATS[name] for name in ("learning-rate", "padding", "prompt"))
    kl = "objective/kl"
    assert (round(rate[kl][1]), round(rate[kl].max()), HEALTHY[kl].max() < 6) == (17, 48, True)
    assert said(
        "17 nats after a single step and 48 at the worst, where the healthy run stays below 6"
    )
    assert abs(last("learning-rate", "ppo/mean_scores") - last("healthy", "ppo/mean_scores")) < 0.1
    opened = [text.startswith("Yes") for text in LOGS["learning-rate"]["after"]["answers"]]
    assert opened == [True] * 5 + [False] and said("Five of six begin with *Yes*")
    default = json.loads(DEFAULT.read_text(encoding="utf-8").splitlines()[0])
    assert f"{default['ppo/policy/approxkl']:.3f}" == "0.014" and said(
        "the default run, which drew other answers, had 0.014"
    )
    assert said("stays below 1 in the first steps; later it should be below 0.1")
    assert (
        HEALTHY["ppo/policy/approxkl"].max() < 1 and HEALTHY["ppo/policy/approxkl"][2:].max() < 0.1
    )
    moved = [s["ppo/policy/approxkl"][0] for s in (rate, HEALTHY)]
    assert [f"{x:.2g}" for x in moved] == ["21", "0.22"]
    assert said("It is 21 in the first step, where the healthy run has 0.22")
    assert (padding["tokens/responses_len_mean"] == 32).all()
    assert any("332870912" in text for text in LOGS["padding"]["warnings"])
    assert said(r"the mean over the mini-batch was $3\cdot10^8$")
    assert (f"{padding[kl][1]:.0f}", f"{HEALTHY[kl][1]:.1f}") == ("37", "0.3")
    assert f"{0.05 * padding[kl][1]:.1f}" == "1.9" and said("that costs 1.9 points of score")
    assert abs(last("padding", "ppo/mean_scores") - padding["ppo/mean_scores"][0]) < 0.1
    assert prompt["tokens/responses_len_mean"].min() > 60 and said("It's over 60 tokens long")
    assert [round(x) for x in (prompt[kl].min(), prompt[kl].max())] == [-18, 13]
    assert said("the KL swings between −18 and +13") and (gap(prompt) > 1).all()
    same = [LOGS[name]["first_step"]["surprise"][:16] for name in ("padding", "healthy")]
    assert same[0][:15] == same[1][:15] and same[0][15] != same[1][15]
    assert said("For 15 tokens the two runs are one")
    surprise = np.array(LOGS["prompt"]["first_step"]["surprise"])
    assert list(np.flatnonzero(surprise > 20)) == [0, 3, 4]
    assert said("Three of these tokens surprise the policy by more than 20 nats each")


def test_what_is_told_of_the_second_round() -> None:
    dropout, top_k, dead = (STATS[name] for name in ("dropout", "top-k", "dead-value-head"))
    off = dropout["first_ratio"]
    assert (f"{off.min():.1f}", f"{off.max():.0f}") == ("0.5", "20")
    assert said("off by 0.5 in the best step and by 20 in the worst")
    assert abs(dropout["ppo/policy/clipfrac"] - 0.2).max() < 0.04
    assert (dropout["ppo/loss/policy"] > 0).all() and f"{dropout['objective/kl'][0]:.1f}" == "-3.9"
    assert said("it's −3.9 nats")
    assert top_k["objective/kl"].min() >= 0 and said(
        "F, who has the top-k, never had a negative KL"
    )
    assert (gap(top_k) < 0).all() and f"{gap(top_k).mean():.2f}" == "-0.14"
    assert said("in every one of the 16 steps, by 0.14 nats per token")
    assert all(gap(STATS[name]).min() > 0 for name in ("padding", "prompt", "dropout"))
    errors = [
        abs(gap(STATS[n]).mean()) / (gap(STATS[n]).std(ddof=1) / 4)
        for n in ("learning-rate", "no-kl")
    ]
    assert 3.5 < errors[0] < 4.5 and 2.5 < errors[1] < 3.5
    assert said("A is 0.05 above, by four standard errors.")
    assert said("One of the two that you haven't met is 0.03 below, by three standard errors.")
    assert [f"{gap(STATS[name]).mean():.2f}" for name in ("learning-rate", "no-kl")] == [
        "0.05",
        "-0.03",
    ]
    for name in ("dead-value-head", "healthy", "no-kl"):
        assert f"{last(name, 'ppo/mean_scores'):.1f}" == "1.8"
    ours, theirs = dead["ppo/val/error"], HEALTHY["ppo/val/error"]
    assert 0.9 < ours[:11].mean() / theirs[:11].mean() < 1.1
    assert said("For eleven steps the errors are of one size")
    assert said(
        f"the dead head's is {ours[11:].mean():.2f} and the other's {theirs[11:].mean():.2f}"
    )
    assert dead["first_ratio"].max() == STATS["padding"]["first_ratio"].max() == 0


def test_what_is_told_of_the_third_round_and_the_ends() -> None:
    sign = STATS["sign"]
    kl = [f"{last(name, 'objective/kl'):.1f}" for name in ("no-kl", "healthy")]
    assert kl == ["4.9", "4.7"] and said("a KL of 4.9 nats, the healthy run's 1.8 and 4.7")
    rises = [
        last(name, "ppo/mean_scores") - STATS[name]["ppo/mean_scores"][:4].mean()
        for name in ("sign", "healthy")
    ]
    assert [f"{rise:.2f}" for rise in rises] == ["0.24", "0.32"]
    assert said("the score rises by 0.24 (the healthy run's by 0.32)")
    cut = [LOGS["sign"][when]["ended"][:6].count(False) for when in ("after", "before")]
    assert cut == [6, 4] and said("all six are cut off after the training, where four were before")
    assert f"{sign['ppo/mean_scores'][0]:.2f}" == "-1.30" and said("The score starts at −1.30")
    assert (sign["tokens/responses_len_mean"][6:] == 32).all()
    assert not sign["tokens/responses_len_std"][6:].any()
    assert sum(bool(log["warnings"]) for log in LOGS.values()) == 3
    assert said("only three drew a word from the trainer")
    held_out = {name: float(np.mean(log["after"]["kl"])) for name, log in LOGS.items()}
    assert max(held_out, key=lambda name: held_out[name]) == "learning-rate"
    assert held_out["learning-rate"] > 8 * sorted(held_out.values())[-2]
    assert last("dropout", "objective/kl") < 0 < held_out["dropout"]
    assert last("healthy", "objective/kl") > 1.2 * held_out["healthy"]
    assert said("In the healthy row the log's KL is much larger than that on the prompts")
    log = [json.loads(line) for line in DEFAULT.read_text(encoding="utf-8").splitlines()]
    kl = np.mean([row["objective/kl"] for row in log[-10:]])
    shown = outputs_and_prose("05_ppo_training.ipynb")[0]["signs-table"]
    assert f"{kl:.1f}" == "5.9" and re.search(r"KL \(nats per answer\) +0\.0 +5\.6", shown)
    assert said("on notebook 05's 96 the two agree, 5.9 and 5.6 nats")


def test_other_healthy_trainings_are_as_far_from_this_one_as_is_said() -> None:
    assert said("In the last four steps this run has a mean score of 1.82 and a KL of 4.7 nats")
    own = last("healthy", "ppo/mean_scores"), last("healthy", "objective/kl")
    assert [f"{own[0]:.2f}", f"{own[1]:.1f}"] == ["1.82", "4.7"]
    trainings = [committed_trainings()[f"default, seed {seed}"]["steps"] for seed in range(3)]
    scores, kls = (
        [np.mean([step[key] for step in steps[12:16]]) for steps in trainings]
        for key in ("score", "kl")
    )
    assert said("scores of {:.2f}, {:.2f} and {:.2f}".format(*scores))
    assert said("KLs of {:.1f}, {:.1f} and {:.1f} nats in the same steps 13 to 16".format(*kls))


def test_what_one_update_would_have_caught_is_certain_or_far_from_any_healthy_run() -> None:
    certain = ("dropout", "padding", "prompt", "no-kl")
    assert said("would have caught four of the eight for certain, and two more by a wide margin")
    first = {name: {key: of[:1] for key, of in s.items()} for name, s in STATS.items()}
    no_price = {"no-kl": lambda s: not s["objective/kl_coef"].any()}  # at the first step KL is 0
    for name in (*certain, "sign", "learning-rate"):
        shows = (SIGNATURES | no_price)[name]
        assert shows(first[name]) and not shows(first["healthy"]), name
