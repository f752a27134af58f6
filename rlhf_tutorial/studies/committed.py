"""The results of the long studies, which come with the package."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..assets import Bundled, resolve
from ..feedback import load_feedback

if TYPE_CHECKING:
    import pandas as pd


def committed_trainings() -> dict[str, dict[str, Any]]:
    """The trainings of `scripts/tuning.py` that come with the package, by arm and seed.

    Returns:
        "arm, seed n" to `arm`, `seed`, `steps` (a row of numbers each), `queries` (validation
        prompts) and `looks` on the way (see `studies.looks.look_at`, and "step").
    """
    paths = sorted(resolve(Bundled("trainings")).glob("*.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return {f"{result['arm']}, seed {result['seed']}": result for result in results}


def committed_patients() -> dict[str, dict[str, Any]]:
    """The trainings of `scripts/clinic.py` that come with the package, by what is broken in each.

    Returns:
        Name to what `studies.clinic.examined` found.
    """
    paths = sorted(resolve(Bundled("clinic")).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def committed_overoptimisation() -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """What `scripts/overoptimisation.py` left in the package.

    Returns:
        The scores of the untouched policy's answers to the validation prompts, (prompts, answers)
        by judge: "gold", and "proxy-<grades>-<seed>". And the trainings against a proxy, each with
        `size` (the grades that it knows), `seed`, `settings`, `steps`, `queries` and `looks`.
    """
    folder = resolve(Bundled("overoptimisation"))
    scores = json.loads((folder / "best-of-n.json").read_text(encoding="utf-8"))
    trainings = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("ppo-*.json"))
    ]
    return {name: np.array(rows) for name, rows in scores.items()}, trainings


def committed_controls() -> dict[str, dict[str, Any]]:
    """The training against proxy-200-0 again, but for one thing, by `scripts/overoptimisation.py`.

    Returns:
        "leash", with the default's KL penalty, and "gold", with the gold as the reward: each as the
        trainings of `committed_overoptimisation`. "leash-bf16" and "gold-bf16" are the same two,
        trained in bfloat16, where the others are in float32: other draws from the first step on.
    """
    return {
        path.stem.removeprefix("control-"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(resolve(Bundled("overoptimisation")).glob("control-*.json"))
    }


def committed_three() -> pd.DataFrame:
    """The validation prompts, answered before training, after it, and by a policy pushed too far.

    Before is the untouched policy, after the default run's first seed, both at temperature 0.5.
    Pushed is the last look at PPO without a KL penalty against a judge that knows 50 grades.

    Returns:
        A row a prompt: `prompt`, and of each of "before", "after" and "pushed" the answer,
        `_ended`, and `_grade` by a blind reader (0 to 5; "after" was on a sheet of its own); of
        "before" and "pushed" the `_score` of the judge that pushed.
    """
    import pandas as pd

    over, feedback = resolve(Bundled("overoptimisation")), resolve(Bundled("feedback"))
    sheets = {
        "before": (over / "reading.jsonl", "untouched"),
        "after": (feedback / "temperatures-default.jsonl", "default-0 at 0.5"),
        "pushed": (over / "reading.jsonl", "50, last"),
    }
    columns: dict[str, Any] = {}
    for when, (sheet, source) in sheets.items():
        rows = {row["prompt"]: row["answers"] for row in load_feedback(sheet)}
        prompts = columns.setdefault("prompt", list(rows))
        answers = [next(a for a in rows[p] if a["source"] == source) for p in prompts]
        columns[when] = [answer["text"] for answer in answers]
        for key in ("ended", "grade"):
            columns[f"{when}_{key}"] = [answer[key] for answer in answers]
    training = json.loads((over / "ppo-50-0.json").read_text(encoding="utf-8"))
    for when, look in (("before", training["looks"][0]), ("pushed", training["looks"][-1])):
        scores = dict(zip(training["queries"], look["scores"]["proxy"], strict=True))
        columns[f"{when}_score"] = [scores[prompt] for prompt in columns["prompt"]]
    return pd.DataFrame(columns)


def widest_swing(three: pd.DataFrame) -> pd.Series:
    """The row whose grade rises most and then falls furthest: an extreme, to show both at once."""
    swing = 2 * three["after_grade"] - three["before_grade"] - three["pushed_grade"]
    return three.iloc[int(swing.argmax())]


def committed_methods(what: Literal["trial", "seed", "hotter"]) -> dict[str, list[dict[str, Any]]]:
    """The trainings of `scripts/methods.py` that come with the package, by method.

    Args:
        what: "trial", of learning rates, looked at with the validation prompts; "seed", at the rate
            that the rule takes, with the test prompts; or "hotter", as "seed", at a larger rate.

    Returns:
        Of each method the trainings by rate and seed, each with `learning_rate`, `seed`, `answers`
        (sampled in training), `updates`, `log`, `queries` and `looks` (see `studies.looks.look_at`,
        and "step"; the first is the untouched policy).
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(resolve(Bundled("methods")).glob(f"{what}_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(result["method"], []).append(result)
    for results in found.values():
        results.sort(key=lambda result: (result["learning_rate"], result["seed"]))
    return found


def committed_samples(split: Literal["validation", "test"] = "test") -> dict[str, np.ndarray]:
    """Sixteen answers of the untouched policy to each prompt, by `scripts/methods.py samples`.

    Returns:
        "answers", whether they "ended" by themselves and, by judge, "first" and "second" scores,
        (prompts, 16) each.
    """
    path = resolve(Bundled("methods")) / "samples_best-of-n_0.json"
    draws = json.loads(path.read_text(encoding="utf-8"))[split]["draws"]
    found = {key: np.array([draw[key] for draw in draws]).T for key in ("answers", "ended")}
    for judge in draws[0]["scores"]:
        found[judge] = np.array([draw["scores"][judge] for draw in draws]).T
    return found


def committed_zero(split: Literal["validation", "test"]) -> dict[str, np.ndarray]:
    """What the methods' gains are measured from: the untouched policy's mean score of each prompt.

    The mean over one answer to each prompt may be a tenth of a grade off that over sixteen.

    Returns:
        By judge, "first" and "second", (prompts,).
    """
    samples = committed_samples(split)
    return {judge: samples[judge].mean(axis=1) for judge in ("first", "second")}
