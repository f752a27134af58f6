"""What README, pages and notebook 09 say of the committed rivals, against their runs."""

from __future__ import annotations

import numpy as np
import pytest
from support import ROOT

from rlhf_tutorial.evaluation.intervals import bootstrap_interval
from rlhf_tutorial.studies.committed import committed_rivals


def test_the_committed_runs_are_whole_and_start_from_the_same_answers() -> None:
    table = committed_rivals()
    for (method, seed), rows in table.groupby(["method", "seed"]):
        assert len(rows) == 128 and rows["query"].is_unique, (method, seed)
    for seed, rows in table.groupby("seed"):
        for column in ("response_before", "score_before", "second_before"):
            same = rows.groupby("query")[column].nunique()
            assert (same == 1).all(), f"seed {seed}: one untouched policy"
    samples_none = table["method"].str.startswith(("best", "dpo, given"))
    assert (table["answers"] == np.where(samples_none, 0, 1280)).all(), "equal budgets"


def test_the_committed_runs_say_what_notebook_09_says_of_them() -> None:
    table = committed_rivals()
    table["first"] = table["score_after"] - table["score_before"]
    table["second"] = table["second_after"] - table["second_before"]
    of = table.groupby("method")[["first", "second", "kl"]].mean()
    trained = of.drop(index=["best of 4", "best of 16"])
    others = trained.drop(index="ppo, all layers")
    assert (table.groupby("method")["seed"].nunique() == 3).all()
    assert of.loc["best of 4", "first"] > of.loc["ppo", "first"]
    assert of.loc["best of 16", "first"] > trained["first"].max()
    assert abs(of.loc["best of 16", "second"] - of.loc["ppo", "second"]) < 0.1
    assert of.loc["ppo, all layers", "second"] > 0.1 + others["second"].max()
    for judge in ("first", "second"):
        scores = table.pivot(index=["query", "seed"], columns="method", values=judge)
        lead = (scores["ppo, all layers"] - scores["ppo"]).groupby("query").mean()
        assert lead.mean() > 2 * lead.std() / len(lead) ** 0.5, judge
    scores = table.pivot(index=["query", "seed"], columns="method", values="second")
    lead = (scores["ppo, all layers"] - scores["rloo"]).groupby("query").mean()
    low, high = bootstrap_interval(lead)
    assert (f"{lead.mean():.2f}", f"{low:.2f}", f"{high:.2f}") == ("0.19", "0.05", "0.33")
    online = of.loc[["rloo", "grpo", "ppo"]]
    assert online["first"].idxmax() == online["kl"].idxmax() == "grpo"
    assert online["second"].idxmin() == "grpo"
    each = table.groupby(["method", "seed"])[["first", "second", "kl"]].mean()
    assert (each.loc["dpo", "second"] < 0).all() and each.loc["dpo", "kl"].min() > 10
    assert of.loc["dpo, smaller rate", "kl"] < 1.5 and of.loc["dpo, smaller rate", "second"] > 0
    assert of.loc["dpo, given pairs", "second"] < 0.1
    assert each["first"].groupby("method").agg(np.ptp).max() == pytest.approx(0.6, abs=0.05)
    answers = table[(table["method"] == "grpo") & (table["seed"] == 1)]["response_after"]
    assert f"{answers.str.startswith('Here').mean():.0%}" == "96%"


def test_the_page_states_the_gains_of_the_rivals() -> None:
    table = committed_rivals()
    table["first"] = table["score_after"] - table["score_before"]
    table["other"] = table["second_after"] - table["second_before"]
    gains = table.groupby("method")[["first", "other"]].mean()
    page = ROOT / "docs" / "first-edition.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    for method, stated in {
        "best of 4": "best of 4 samples", "best of 16": "best of 16", "dpo": "DPO",
        "rloo": "RLOO", "grpo": "GRPO", "ppo": "PPO with the preset's settings",
        "ppo, all layers": "PPO with all layers trained, at three times the seconds,",
    }.items():  # fmt: skip
        first, other = gains.loc[method]
        assert f"{stated} {first:.2f} / {other:.2f}" in text, method


def test_the_page_says_how_little_the_second_judge_sees_of_best_of_16() -> None:
    from rlhf_tutorial.evaluation.compare import summarise

    table = committed_rivals()
    rows, seen = table[table["method"] == "best of 16"], []
    for judge in ("score", "second"):
        numbers = summarise(rows, judge)
        seen.append(f"{numbers['mean_gain'] / numbers['std_before']:.2f}")
    page = ROOT / "docs" / "first-edition.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert f"gains {seen[0]} under the one and {seen[1]} under the other" in text


def test_dpo_pushed_down_the_chosen_answers_as_well() -> None:
    """What notebook 09 says of its log: beta times the log-ratio, in the last four batches."""
    from rlhf_tutorial.studies.committed import _committed

    runs = [r for r in _committed("seed") if r["method"] == "dpo"]
    assert len(runs) == 3
    for run in runs:
        last = [row for row in run["log"] if "rewards/chosen" in row][-4:]
        chosen, rejected = (
            np.mean([row[f"rewards/{side}"] for row in last]) / 0.1
            for side in ("chosen", "rejected")
        )
        assert -12.5 < chosen < -10.5 and -15.5 < rejected < -12.5
