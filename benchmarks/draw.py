"""Draw images/speed.png, and write the tables of docs/, from benchmarks/results/.

python benchmarks/draw.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import perplexity
import ppo_step
import scaling
import scoring
from matplotlib import rc_context
from matplotlib.figure import Figure

from rlhf_tutorial.figures.style import BLUE, INK, ORANGE, STYLE

ROOT = Path(__file__).resolve().parent.parent


@rc_context(STYLE)
def speed(rows: list[dict]) -> Figure:
    """A bar per variant: seconds of generation and of the PPO step, and how many times faster."""
    figure = Figure(figsize=(9, 0.55 * len(rows) + 1.4), layout="constrained")
    ax = figure.subplots()
    original = next((r["seconds"]["total"] for r in rows if r["variant"] == "original"), None)
    for y, row in enumerate(rows):
        s = row["seconds"]
        ax.barh(y, s["generate"], color=ORANGE, label="generation" if y == 0 else None)
        ax.barh(y, s["step"], left=s["generate"], color=BLUE, label="PPO" if y == 0 else None)
        ratio = (
            "" if original is None or s["total"] == original else f", {original / s['total']:.1f}x"
        )
        ax.text(s["total"], y, f"  {s['total']:.1f} s{ratio}", va="center", color=INK)
    labels = {"original": "original loop (TRL 0.11.4, float32)"}
    ax.set_yticks(range(len(rows)), [labels.get(r["variant"], r["variant"]) for r in rows])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("seconds a step, 16 answers of 16 tokens")
    ax.set_xlim(0, 1.18 * max(r["seconds"]["total"] for r in rows))
    ax.legend(loc="lower right")
    return figure


TABLES = {
    "step": (ppo_step, "ppo_step"),
    "scoring": (scoring, "scoring"),
    "perplexity": (perplexity, "perplexity"),
    "scaling": (scaling, "scaling"),
}
"""Marker on a page: what makes the table, and from which file of results."""
PROMPTS = 6_400
PAGES = ("performance", "perplexity", "presets", "tuning")
"""Of docs/, those with tables."""


def on_a_gpu(results: dict[str, Any]) -> str:
    """All that scripts/on_gpu.py measured; the old rows where it has not been run yet."""
    if "on_gpu" not in results:
        return ppo_step.table(results["ppo_step_gpu"])
    steps = {k: rows for k, rows in results["on_gpu"].items() if "variant" in rows[0]}
    judges = [rows for k, rows in results["on_gpu"].items() if k not in steps]
    parts = [f"{name}:\n\n{ppo_step.table(rows)}" for name, rows in steps.items()]
    if judges and (dlite := [r for rows in steps.values() for r in rows if r["model"] == "dlite"]):
        parts.append(epochs(dlite, {row["batch_size"]: row["seconds"] for row in judges[0]}))
    return "\n\n".join(parts)


def epochs(rows: list[dict], scoring: dict[int, float]) -> str:
    """The original experiment's one pass over 6,400 prompts: steps, and a judge's seconds each."""
    lines = [f"{PROMPTS:,} prompts, scoring included:", "", "| | batch | minutes |"]
    lines.append("| --- | --- | --- |")
    for row in rows:
        if (n := row["batch_size"]) in scoring:
            seconds = PROMPTS / n * (row["seconds"]["total"] + scoring[n])
            lines.append(f"| {row['variant']} | {n} | {seconds / 60:.1f} |")
    return "\n".join(lines)


def tables(text: str, results: dict[str, Any]) -> str:
    """The page with each table between its markers, where it has them, made anew."""
    made = {name: script.table(results[result]) for name, (script, result) in TABLES.items()}
    for name, table in (made | {"step on a GPU": on_a_gpu(results)}).items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        head, *rest = text.split(start)
        if rest:
            text = f"{head}{start}\n{table}\n{end}{rest[0].split(end, 1)[1]}"
    return text


def main() -> None:
    """Read, draw, write."""
    folder = ROOT / "benchmarks" / "results"
    results = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")}
    figure = speed(results["ppo_step"])
    figure.savefig(ROOT / "images" / "speed.png", dpi=160, facecolor="white")
    for page in (ROOT / "docs" / f"{name}.md" for name in PAGES):
        page.write_text(tables(page.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
