"""The committed trainings as the data of the film: see static/film.js, which shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_tutorial.evaluation.measures import commonest_opening
from rlhf_tutorial.studies.committed import committed_overoptimisation, committed_trainings

JUDGES = {
    "first": "training judge",
    "second": "judge that only watches",
    "proxy": "training judge",
    "gold": "gold",
}


def films() -> list[dict[str, Any]]:
    """The groups of trainings that one can choose from, each with runs on the same prompts."""
    trainings = committed_trainings()
    first = sorted(trainings, key=lambda name: not name.startswith("default"))
    named = ((name.replace("default", "default run"), trainings[name]) for name in first)
    _, pushed = committed_overoptimisation()
    pushed.sort(key=lambda run: (run["size"], run["seed"]))
    against = ((f"judge fitted to {r['size']} grades, seed {r['seed']}", r) for r in pushed)
    return [
        group("The course's run", named),
        group("A judge that knows little, and a gold", against),
    ]


def group(name: str, runs: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Runs under one name: "name", "queries", "judges" (their labels) and "runs"."""
    runs = list(runs)
    first = runs[0][1]
    judges = list(first["looks"][0]["scores"])
    return {
        "name": name,
        "queries": first["queries"],
        "judges": [JUDGES.get(judge, judge) for judge in judges],
        "runs": [
            {"name": label, "looks": [frame(look, judges) for look in run["looks"]]}
            for label, run in runs
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
