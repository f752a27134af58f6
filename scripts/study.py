"""The experiments behind docs/tuning.md, the README's headline and notebook 08.

    python scripts/study.py tuning        # six trainings; looks at validation prompts, first judge
    python scripts/study.py choose        # applies the rule of docs/tuning.md to them
    python scripts/study.py second        # lets the second judge score what was answered
    python scripts/study.py sweep         # notebook 08: KL weights, controllers, PPO-ptx
    python scripts/study.py seeds         # five trainings of the preset, test prompts, both judges

What is there already is not done again. Each experiment is a file of its own in
notebooks/results/smollm2/experiments/, so two processes can share the work (with OMP_NUM_THREADS=1
each: see docs/performance.md).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.data import prepare_queries
from rlhf_tutorial.evaluation.compare import gains_by_seed, summarise
from rlhf_tutorial.experiment import experiment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "notebooks" / "results" / "smollm2"
FOLDER = RESULTS / "experiments"
RUNS = ROOT / "runs"

STEPS, LOOKS, SEED = 120, (20, 40, 80, 120), 100
TUNING: dict[str, dict[str, Any]] = {
    f"lr {lr:g}, KL {kl:g}": {"learning_rate": lr, "init_kl_coef": kl}
    for lr, kl in (
        (5e-5, 0.15), (5e-5, 0.3), (5e-5, 0.05), (1e-4, 0.3), (5e-5, 0.6), (3e-5, 0.15),
    )
}  # fmt: skip
SEEDS = range(5)


def path_of(name: str) -> Path:
    return FOLDER / f"{name.replace(', ', '_').replace(' ', '-')}.json"


def load(name: str) -> dict[str, Any]:
    return json.loads(path_of(name).read_text(encoding="utf-8"))


def save(name: str, result: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path_of(name).write_text(json.dumps(result) + "\n", encoding="utf-8")


def validation_queries(run: Run) -> Any:
    """The validation prompts, prepared as the test prompts are."""
    queries, _ = prepare_queries(
        run.preferences("validation"), run.load_tokenizer(), run.preset.template
    )
    return queries


def train_all(
    experiments: dict[str, dict[str, Any]], judges: dict[str, Any], only: list[str]
) -> None:
    """Each experiment whose file is missing, on the default preset."""
    run = Run(load_preset("smollm2"), RUNS / "study")
    queries = validation_queries(run)
    for name, ppo in experiments.items():
        if path_of(name).exists() or (only and name not in only):
            continue
        settings = {"seed": SEED} | ppo
        steps = settings.pop("steps", STEPS)
        print(f"{name} ({steps} steps)", flush=True)
        looks = [*LOOKS, *range(160, steps, 40)]
        result = experiment(
            run, judges, queries, steps=steps, looks=looks, examples=len(queries), **settings
        )
        save(name, {"name": name, **result})


# --- The rule of docs/tuning.md ------------------------------------------------------------------

MOST_SECONDS = 300
TOLERANCES = {"words": -1.25, "distinct-2": -0.09, "echoed": 0.05, "ended": -0.05}
"""How far a text measure may move in its bad direction, from the untouched policy's value."""


def settings_of(results: list[dict[str, Any]], seconds_per_step: float) -> list[dict[str, Any]]:
    """One row per experiment and look after the first: a setting that could be chosen."""
    rows = []
    for result in results:
        before, *later = result["looks"]
        for look in later:
            gain = np.subtract(look["scores"]["first"], before["scores"]["first"])
            moved = {k: look["measures"][k] - before["measures"][k] for k in TOLERANCES}
            rows.append(
                {
                    "name": result["name"],
                    "step": look["step"],
                    "seconds": look["step"] * seconds_per_step,
                    "gain": float(gain.mean()),
                    "error": float(gain.std(ddof=1) / len(gain) ** 0.5),
                    "kl": float(np.mean(look["kl"])),
                    "std_before": float(np.std(before["scores"]["first"], ddof=1)),
                    **moved,
                    "worse": [k for k, t in TOLERANCES.items() if moved[k] / t > 1],
                }
            )
    return rows


def frontier(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings that no other beats in gain without more KL."""
    return [
        row
        for row in rows
        if not any(
            other["gain"] >= row["gain"] and other["kl"] <= row["kl"] and other is not row
            for other in rows
        )
    ]


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting that the rule of docs/tuning.md takes."""
    quick = [row for row in rows if row["seconds"] <= MOST_SECONDS]
    if passing := frontier([row for row in quick if not row["worse"]]):
        best = max(passing, key=lambda row: row["gain"])
        close = [row for row in passing if row["gain"] >= best["gain"] - best["error"]]
        return min(close, key=lambda row: row["kl"])
    large = [row for row in frontier(quick) if row["gain"] >= row["std_before"]]
    return min(large or frontier(quick), key=lambda row: row["echoed"])


def tuning_table(rows: list[dict[str, Any]], chosen: dict[str, Any]) -> str:
    """The settings as Markdown, by KL."""
    best = frontier([row for row in rows if row["seconds"] <= MOST_SECONDS])
    lines = [
        "| setting | steps | seconds | gain | KL | words | distinct-2 | echoed | ended | worse | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: row["kl"]):
        note = "**chosen**" if row is chosen else "frontier" if row in best else ""
        moved = " | ".join(f"{row[k]:+.2f}" for k in TOLERANCES)
        lines.append(
            f"| {row['name']} | {row['step']} | {row['seconds']:.0f} | {row['gain']:.2f} ± "
            f"{row['error']:.2f} | {row['kl']:.1f} | {moved} | {', '.join(row['worse'])} | {note} |"
        )
    return "\n".join(lines)


# --- Seeds ---------------------------------------------------------------------------------------


def run_seeds(only: list[str]) -> None:
    """The preset as it is with five seeds, each stage of the course in a folder of its own."""
    import pandas as pd

    tables, rows = [], []
    preset = load_preset("smollm2")
    for seed in SEEDS:
        run = Run(replace(preset, ppo={**preset.ppo, "seed": seed}), RUNS / "seeds" / str(seed))
        if only and str(seed) not in only:
            continue
        tables.append(run.compare().assign(seed=seed))
        run.perplexity()
        training, perplexity = run.results()["training"], run.results()["perplexity"]
        rows.append(
            {
                "seed": seed,
                "seconds": training["seconds"],
                "kl": training["kl_last_10_batches"],
                "perplexity": {when: perplexity[when] for when in ("before", "after")},
            }
        )
    if only:
        return
    table = pd.concat(tables, ignore_index=True)
    result: dict[str, Any] = {"runs": rows}
    for judge in ("score", "second"):
        gains = gains_by_seed(table, judge)
        result[judge] = {
            **summarise(table, judge),
            "gain_by_seed": gains.tolist(),
            "seed_std": float(gains.std()),
        }
    (RESULTS / "seeds.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table.to_csv(RESULTS / "seeds.csv", index=False, quoting=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tuning", "choose", "seeds"])
    parser.add_argument("only", nargs="*", help="only these experiments or seeds")
    args = parser.parse_args()
    run = Run(load_preset("smollm2"), RUNS / "study")
    if args.what == "tuning":
        train_all(TUNING, {"first": run.load_reward()}, args.only)
    elif args.what == "choose":
        rows = settings_of([load(name) for name in TUNING], seconds_per_step=1.95)
        print(tuning_table(rows, choose(rows)))
    else:
        run_seeds(args.only)


if __name__ == "__main__":
    main()
