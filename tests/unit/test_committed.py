"""How the committed runs of the rivals are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_tutorial.studies import committed


def test_the_committed_runs_are_read_in_as_compared(monkeypatch: Any, tmp_path: Path) -> None:
    at = {"scores": {"first": [1.0], "second": [2.0]}, "answers": ["a"], "kl": [0.0]}
    after = {"scores": {"first": [3.0], "second": [1.5]}, "answers": ["b"], "kl": [0.7]}
    result = {"method": "m", "seed": 1, "answers": 9, "queries": ["q"]}
    (tmp_path / "seed_m_1.json").write_text(json.dumps(result | {"before": at, "after": after}))
    (tmp_path / "trial_m_1.json").write_text("{}")
    monkeypatch.setattr(committed, "resolve", lambda _: tmp_path)
    (row,) = committed.committed_rivals().to_dict("records")
    assert (row["response_before"], row["response_after"]) == ("a", "b")
    assert (row["score_before"], row["score_after"]) == (1.0, 3.0)
    assert (row["second_before"], row["second_after"]) == (2.0, 1.5)
    assert (row["method"], row["seed"], row["answers"], row["kl"]) == ("m", 1, 9, 0.7)


def test_the_committed_trials_and_costs_are_read(monkeypatch: Any, tmp_path: Path) -> None:
    for rate, after in ((2e-4, 3.0), (5e-5, 1.5)):
        at = {
            "before": {"scores": {"first": [1.0, 0.0]}},
            "after": {"scores": {"first": [after, 0]}},
        }
        at["after"]["kl"] = [0.5, 1.5]
        trial = {"method": "m", "learning_rate": rate}
        (tmp_path / f"trial_m_{rate}.json").write_text(json.dumps(trial | at))
    for cost in (
        {"method": "m", "seconds_per_step": 2.0, "peak_bytes": 2**31},
        {"method": "one answer", "seconds_at_use": 0.5, "peak_bytes": 2**30},
    ):
        (tmp_path / f"seconds_{cost['method']}_0.json").write_text(json.dumps(cost))
    monkeypatch.setattr(committed, "resolve", lambda _: tmp_path)
    assert committed.committed_trials().to_dict("records") == [
        {"method": "m", "learning_rate": 5e-5, "gain": 0.25, "kl": 1.0},
        {"method": "m", "learning_rate": 2e-4, "gain": 1.0, "kl": 1.0},
    ]
    costs = committed.committed_costs()
    assert costs.loc["m", "training (s)"] == costs.loc["m", "peak memory (GiB)"] == 2
    assert costs.loc["one answer", "at use (s)"] == 0.5 and np.isnan(costs.loc["m", "at use (s)"])


def test_the_committed_trainings_are_named_by_arm_and_seed(
    monkeypatch: Any, tmp_path: Path
) -> None:
    for arm, seed in (("default", 1), ("long", 0)):
        path = tmp_path / f"{arm}-{seed}.json"
        path.write_text(json.dumps({"arm": arm, "seed": seed, "looks": []}), encoding="utf-8")
    monkeypatch.setattr(committed, "resolve", lambda source: tmp_path)
    found = committed.committed_trainings()
    assert list(found) == ["default, seed 1", "long, seed 0"]
    assert found["long, seed 0"]["arm"] == "long"
