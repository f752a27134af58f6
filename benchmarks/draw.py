"""Draw images/speed.png, and write the tables of docs/performance.md, from benchmarks/results/.

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
    "step on a GPU": (ppo_step, "ppo_step_gpu"),
    "scoring": (scoring, "scoring"),
    "perplexity": (perplexity, "perplexity"),
    "scaling": (scaling, "scaling"),
}
"""Marker on the page: what makes the table, and from which file of results."""


def tables(text: str, results: dict[str, Any]) -> str:
    """The page with each table between its markers made anew."""
    for name, (script, result) in TABLES.items():
        table = script.table(results[result])
        start, end = f"<!-- {name} -->", "<!-- end -->"
        head, rest = text.split(start)
        text = f"{head}{start}\n{table}\n{end}{rest.split(end, 1)[1]}"
    return text


def main() -> None:
    """Read, draw, write."""
    folder = ROOT / "benchmarks" / "results"
    results = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")}
    figure = speed(results["ppo_step"])
    figure.savefig(ROOT / "images" / "speed.png", dpi=160, facecolor="white")
    page = ROOT / "docs" / "performance.md"
    page.write_text(tables(page.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
