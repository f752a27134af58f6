"""The experiments behind docs/first-edition.md, the README's headline and notebook 08.

    python scripts/study.py tuning        # six trainings; looks at validation prompts, first judge
    python scripts/study.py choose        # applies the rule of docs/first-edition.md to them
    python scripts/study.py second        # lets the second judge score what was answered
    python scripts/study.py sweep         # notebook 08: more KL weights, and controllers
    python scripts/study.py seeds         # five trainings of the preset, test prompts, both judges
    python scripts/study.py table-1       # notebook 08: perplexity with and without PPO-ptx

What is there already is not done again. Each experiment is a file of its own in
rlhf_tutorial/bundled/experiments/, so two processes can share the work (with OMP_NUM_THREADS=1
each: see docs/performance.md).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.data import prepare_queries
from rlhf_tutorial.evaluation.compare import gains_by_seed, save_table, summarise
from rlhf_tutorial.evaluation.intervals import bootstrap_interval
from rlhf_tutorial.evaluation.measures import echoed
from rlhf_tutorial.figures.studies import against_kl
from rlhf_tutorial.studies.looks import experiment, progress

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "notebooks" / "results" / "sixteen-tokens"
FOLDER = ROOT / "rlhf_tutorial" / "bundled" / "experiments"
RUNS = ROOT / "runs"

STEPS, LOOKS, SEED = 120, (20, 40, 80, 120), 100
TUNING: dict[str, dict[str, Any]] = {
    f"lr {lr:g}, KL {kl:g}": {"learning_rate": lr, "init_kl_coef": kl}
    for lr, kl in (
        (5e-5, 0.15), (5e-5, 0.3), (5e-5, 0.05), (1e-4, 0.3), (5e-5, 0.6), (3e-5, 0.15),
    )
}  # fmt: skip
RATE = 5e-5  # the preset's
SWEEP: dict[str, dict[str, Any]] = {
    f"lr {RATE:g}, KL {kl:g}": {"learning_rate": RATE, "init_kl_coef": kl}
    | ({"steps": 240} if kl == 0 else {})
    for kl in (0, 0.015, 1.5)
}
CONTROLLERS: dict[str, dict[str, Any]] = {
    f"controller, horizon {horizon}": {
        "learning_rate": RATE, "adap_kl_ctrl": True, "init_kl_coef": 0.05,
        "target": 3.0, "horizon": horizon,
    }
    for horizon in (10_000, 320, 64)
}  # fmt: skip
# A target that is reached early, a start near the weight that holds it, and twice the time.
CONTROLLERS["controller, horizon 160"] = {
    "learning_rate": RATE, "adap_kl_ctrl": True, "init_kl_coef": 0.15,
    "target": 2.0, "horizon": 160, "steps": 240,
}  # fmt: skip
PTX_COEF = 0.3
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
    queries, _ = prepare_queries(run.preferences("validation"), run.load_template())
    return queries


def train_all(
    experiments: dict[str, dict[str, Any]], judges: dict[str, Any], only: list[str]
) -> None:
    """Each experiment whose file is missing, on the default preset."""
    run = Run(load_preset("sixteen-tokens"), RUNS / "study")
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


def ask_second_judge() -> None:
    """Adds the second judge's scores to the looks that have only the first's."""
    judge = Run(load_preset("sixteen-tokens"), RUNS / "study").load_second_judge()
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        unasked = [at for at in result.get("looks", []) if "second" not in at["scores"]]
        for at in unasked:
            scores = judge(result["queries"], at["answers"])
            at["scores"]["second"] = [round(score, 4) for score in scores]
        if unasked:
            path.write_text(json.dumps(result) + "\n", encoding="utf-8")


# --- The rule of docs/first-edition.md ----------------------------------------------------------

MOST_SECONDS, SECONDS_PER_STEP = 300, 1.95
TOLERANCES = {"words": -1.25, "distinct-2": -0.09, "echoed": 0.05, "ended": -0.05}
"""How far a text measure may move in its bad direction, from the untouched policy's value."""


def settings_of(results: list[dict[str, Any]], seconds_per_step: float) -> list[dict[str, Any]]:
    """One row per experiment and look after the first: a setting that could be chosen."""
    rows = []
    for result in results:
        before, *later = progress(result)
        for at in later:
            moved = {k: at[k] - before[k] for k in TOLERANCES}
            rows.append(
                {
                    "name": result["name"],
                    "step": at["step"],
                    "seconds": at["step"] * seconds_per_step,
                    "gain": at["first"],
                    "error": at["first_error"],
                    "kl": at["kl"],
                    "std_before": at["first_std"],
                    **moved,
                    "worse": [k for k, t in TOLERANCES.items() if moved[k] / t > 1],
                }
            )
    return rows


def tuning_rows() -> list[dict[str, Any]]:
    """All settings that were tried. The speed is that of a quiet machine: docs/performance.md."""
    return settings_of([load(name) for name in TUNING], seconds_per_step=SECONDS_PER_STEP)


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
    """The setting that the rule of docs/first-edition.md takes."""
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


def write_page(rows: list[dict[str, Any]], chosen: dict[str, Any]) -> None:
    """The table of docs/first-edition.md, and its picture."""
    page = ROOT / "docs" / "first-edition.md"
    before, rest = page.read_text(encoding="utf-8").split("<!-- settings -->\n")
    after = rest[rest.index("<!-- end -->") :]
    table = f"<!-- settings -->\n{tuning_table(rows, chosen)}\n{after}"
    page.write_text(before + table, encoding="utf-8")
    curves = {name: [row for row in rows if row["name"] == name] for name in TUNING}
    against_kl(
        curves,
        {"gain": "Gain, first judge", "echoed": "Change of the share of echoed words"},
        marked={"chosen": chosen},
        path=ROOT / "images" / "first-edition.png",
    )


# --- Whole runs of the preset ------------------------------------------------------------------


def whole_run(name: str, **ppo: Any) -> Run:
    """All stages of the preset with these settings of PPO, in a folder of its own."""
    preset = load_preset("sixteen-tokens")
    run = Run(replace(preset, ppo={**preset.ppo, **ppo}), RUNS / "study" / name)
    run.compare()
    run.perplexity()
    return run


def summarise_seeds() -> None:
    """Five trainings of the preset: seeds.csv, and seeds.json."""
    tables, rows = [], []
    for seed in SEEDS:
        run = whole_run(f"seed-{seed}", seed=seed)
        tables.append(run.compare().assign(seed=seed))
        results = run.results()
        keep = {name: results[name] for name in ("training", "perplexity")}
        rows.append({"seed": seed, **keep, "measures": results["comparison"]["measures"]})
    table = pd.concat(tables, ignore_index=True)
    result: dict[str, Any] = {"name": "seeds", "runs": rows}
    for judge in ("score", "second"):
        gains = gains_by_seed(table, judge)
        result[judge] = {
            **summarise(table, judge),
            "gain_by_seed": gains.tolist(),
            "seed_std": float(gains.std()),
        }
    (FOLDER / "seeds.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save_table(table, RESULTS / "seeds.csv")


def at_equal_echo(table: pd.DataFrame, judge: str) -> tuple[float, float, float]:
    """The gain that is left where an answer echoes as much as before, with its 95% interval.

    It is the intercept of a least-squares line of each answer's gain on its change of `echoed`;
    the bootstrap resamples prompts with all their answers.
    """
    x = np.array([
        echoed(query, after) - echoed(query, before)
        for query, before, after in zip(
            table["query"], table["response_before"], table["response_after"], strict=True
        )
    ])  # fmt: skip
    y = (table[f"{judge}_after"] - table[f"{judge}_before"]).to_numpy()
    sums = pd.DataFrame({"n": 1.0, "x": x, "y": y, "xx": x * x, "xy": x * y})
    sums = sums.groupby(table["query"].to_numpy()).sum().to_numpy()

    def intercept(n, sx, sy, sxx, sxy):
        return (sy * sxx - sx * sxy) / (n * sxx - sx * sx)

    drawn = np.random.default_rng(0).integers(len(sums), size=(10_000, len(sums)))
    low, high = np.quantile(intercept(*sums[drawn].sum(axis=1).T), [0.025, 0.975])
    return float(intercept(*sums.sum(axis=0))), float(low), float(high)


def table_1() -> None:
    """The original's Table 1 with a third row: untouched, PPO, PPO-ptx."""
    plain, ptx = whole_run("seed-0", seed=0), whole_run("ptx", seed=0, ptx_coef=PTX_COEF)
    rows = []
    for policy, run, when in (
        ("original", plain, "before"), ("PPO", plain, "after"), ("PPO-ptx", ptx, "after"),
    ):  # fmt: skip
        table, results = run.compare(), run.results()
        row = {"policy": policy, "echoed": results["comparison"]["measures"][when]["echoed"]}
        for kind in ("whole_text", "last_reply"):
            row[kind] = results["perplexity"][when][kind]["mean_perplexity"]
            texts = [run.perplexity()[w][kind]["perplexities"] for w in ("before", when)]
            change = np.subtract(*np.log(texts[::-1]))  # per text, nats per token
            low, high = bootstrap_interval(change)
            row[f"{kind}_change"] = [float(np.exp(x) - 1) for x in (change.mean(), low, high)]
        for judge, name in (("score", "first"), ("second", "second")):
            gain = summarise(table, judge)
            low, high = gain["mean_gain_interval"]
            text = f"{gain['mean_gain']:.2f} ({low:.2f} to {high:.2f})"
            row[name] = "" if when == "before" else text
        kl = results["training"]["kl_last_10_batches"]
        row["kl"] = "0" if when == "before" else f"{kl:.1f}"
        rows.append(row)
    save("table 1", {"name": "table 1", "ptx_coef": PTX_COEF, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", choices=["tuning", "choose", "second", "sweep", "run", "seeds", "table-1"]
    )
    parser.add_argument("only", nargs="*", help="only these experiments, or the seeds to run")
    args = parser.parse_args()
    run = Run(load_preset("sixteen-tokens"), RUNS / "study")
    if args.what == "tuning":
        train_all(TUNING, {"first": run.load_reward()}, args.only)
    elif args.what == "choose":
        rows = tuning_rows()
        print(tuning_table(rows, choose(rows)))
        write_page(rows, choose(rows))
    elif args.what == "second":
        ask_second_judge()
    elif args.what == "sweep":
        train_all(SWEEP | CONTROLLERS, {"first": run.load_reward()}, args.only)
        ask_second_judge()
    elif args.what == "run":
        for seed in args.only:
            whole_run(f"seed-{seed}", seed=int(seed))
    elif args.what == "seeds":
        summarise_seeds()
    else:
        table_1()


if __name__ == "__main__":
    main()
