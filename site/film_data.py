"""The committed trainings as the data of the film: see static/film.js, which shows them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
import tuning

from rlhf_tutorial.evaluation.measures import commonest_opening
from rlhf_tutorial.studies.committed import (
    committed_controls,
    committed_overoptimisation,
    committed_trainings,
)

JUDGES = {
    "first": "training judge",
    "second": "judge that only watches",
    "proxy": "training judge",
    "gold": "gold",
}
DEFAULT = "default"
WAYS = {
    "all-layers": "all layers trained",
    "long": "the long run",
    "lora-1e-3": "LoRA at rate 1e-3",
    "lora-5e-4": "LoRA at rate 5e-4",
    "top-8": "8 layers trained",
}
"""Arms of `scripts/tuning.py` in words."""
Run = tuple[float, str, dict[str, Any]]
"""A KL weight, what else tells the training from its neighbours, and the training as committed."""


def films() -> list[dict[str, Any]]:
    """The groups of trainings that one can choose from, each with runs on the same prompts."""
    groups = [
        group("The course's run, by KL weight", by_weight()),
        group("The course's run, varied", in_other_ways()),
        group("A judge that knows little, and a gold", gold_runs()),
    ]
    return [g for g in groups if g["runs"]]


def by_weight() -> list[Run]:
    """The default run, and those that differ from it in the KL weight only."""
    runs = [
        (kl_weight(run), f"seed {run['seed']}", run)
        for run in committed_trainings().values()
        if differs_in_weight_only(run)
    ]
    return sorted(runs, key=lambda run: (-run[0], run[2]["seed"]))


def in_other_ways() -> list[Run]:
    """The other trainings of `scripts/tuning.py`."""
    return [
        (kl_weight(run), f"{WAYS.get(run['arm'], run['arm'])}, seed {run['seed']}", run)
        for run in committed_trainings().values()
        if not differs_in_weight_only(run)
    ]


def kl_weight(training: dict[str, Any]) -> float:
    """What the training's arm says: the files of `scripts/tuning.py` name the arm alone."""
    return tuning.preset_of(training["arm"], training["seed"]).ppo["init_kl_coef"]


def differs_in_weight_only(training: dict[str, Any]) -> bool:
    """Whether nothing but the KL weight tells it from the default run."""
    return set(tuning.ARMS[training["arm"]]) <= {"init_kl_coef"}


def gold_runs() -> list[Run]:
    """Trainings against a proxy with a gold watching: one on a leash, then the smallest proxy's."""
    leashed = committed_controls()["leash"] | {"size": 200, "seed": 0}
    _, runs = committed_overoptimisation()
    return [
        (
            run["settings"]["init_kl_coef"],
            f"judge fitted to {run['size']} grades, seed {run['seed']}",
            run,
        )
        for run in [leashed, *sorted(runs, key=lambda run: (run["size"], run["seed"]))]
    ]


def group(name: str, runs: list[Run]) -> dict[str, Any]:
    """Runs under one name: "name", "queries", "judges" (their labels), "runs" and "opens".

    It opens at the default run where that is one of them, else at the first.
    """
    first = runs[0][2] if runs else {"queries": [], "looks": [{"scores": {}}]}
    judges = list(first["looks"][0]["scores"])
    defaults = [i for i, (_, _, run) in enumerate(runs) if run.get("arm") == DEFAULT]
    return {
        "name": name,
        "queries": first["queries"],
        "judges": [JUDGES.get(judge, judge) for judge in judges],
        "opens": next(iter(defaults), 0),
        "runs": [
            {
                "name": f"KL weight {weight:g}" + (f", {label}" if label else ""),
                "weight": weight,
                "looks": [frame(look, judges) for look in run["looks"]],
            }
            for weight, label, run in runs
        ],
    }


def frame(look: dict[str, Any], judges: list[str]) -> dict[str, Any]:
    """One look: the step, means over the prompts, the answers and their scores by judge."""
    opening, share = commonest_opening(look["answers"])
    return {
        "step": look["step"],
        "kl": round(float(np.mean(look["kl"])), 3),
        "means": [round(float(np.mean(look["scores"][judge])), 3) for judge in judges],
        "opening": opening,
        "share": round(share, 4),
        "ended": round(look["measures"]["ended"], 4),
        "words": round(look["measures"]["words"], 2),
        "answers": look["answers"],
        "scores": [
            [round(s, 2) for s in look["scores"][judge][: len(look["answers"])]] for judge in judges
        ],
    }


def write(path: Path) -> None:
    """The data as a script, which a page that was opened from the disk may load."""
    text = json.dumps(films(), ensure_ascii=False, separators=(",", ":"))
    path.write_text(f"window.FILMS = {text};\n", encoding="utf-8")
