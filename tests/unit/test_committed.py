"""How the results of the long studies are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_tutorial.studies import committed


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(committed, "resolve", lambda source: tmp_path)
    return tmp_path


def test_the_methods_trainings_are_found_by_method_in_the_order_of_rate_and_seed(
    folder: Path,
) -> None:
    def training(what: str, method: str, rate: float, seed: int) -> None:
        found = {"method": method, "learning_rate": rate, "seed": seed}
        name = f"{what}_{method}_{rate:g}_{seed}.json"
        (folder / name).write_text(json.dumps(found), encoding="utf-8")

    training("trial", "ppo", 1e-4, 100)
    training("trial", "ppo", 5e-5, 100)
    training("seed", "ppo", 1e-4, 1)
    training("seed", "ppo", 1e-4, 0)
    training("seed", "dpo, graded pairs", 2e-4, 0)
    trials, seeds = committed.committed_methods("trial"), committed.committed_methods("seed")
    assert [each["learning_rate"] for each in trials["ppo"]] == [5e-5, 1e-4]
    assert [each["seed"] for each in seeds["ppo"]] == [0, 1]
    assert set(trials) == {"ppo"} and set(seeds) == {"ppo", "dpo, graded pairs"}


def test_the_samples_are_prompts_by_draws_and_their_mean_is_the_zero(folder: Path) -> None:
    draws: list[dict[str, Any]] = [
        {
            "answers": [f"a{i}", f"b{i}"],
            "ended": [True, False],
            "scores": {"first": [i, 10 + i], "second": [-i, 5]},
        }
        for i in range(3)
    ]
    found = {"test": {"queries": ["a", "b"], "draws": draws}, "validation": {"draws": draws[:1]}}
    (folder / "samples_best-of-n_0.json").write_text(json.dumps(found), encoding="utf-8")
    samples = committed.committed_samples()
    assert samples["answers"].tolist() == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
    assert samples["first"].tolist() == [[0, 1, 2], [10, 11, 12]]
    assert samples["second"].tolist() == [[0, -1, -2], [5, 5, 5]]
    assert samples["ended"].tolist() == [[True] * 3, [False] * 3]
    zero = committed.committed_zero("test")
    assert {judge: mean.tolist() for judge, mean in zero.items()} == {
        "first": [1, 11],
        "second": [-1, 5],
    }
    assert committed.committed_zero("validation")["first"].tolist() == [0, 10]


def test_the_committed_trainings_are_named_by_arm_and_seed(folder: Path) -> None:
    for arm, seed in (("default", 1), ("long", 0)):
        path = folder / f"{arm}-{seed}.json"
        path.write_text(json.dumps({"arm": arm, "seed": seed, "looks": []}), encoding="utf-8")
    found = committed.committed_trainings()
    assert list(found) == ["default, seed 1", "long, seed 0"]
    assert found["long, seed 0"]["arm"] == "long"
