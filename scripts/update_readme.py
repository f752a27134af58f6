"""Write the committed run's results into the README, between its two markers.

python scripts/update_readme.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "notebooks" / "results" / "smollm2"
START, END = "<!-- results: scripts/update_readme.py -->", "<!-- end of results -->"


def results_table(results: dict[str, Any], perplexity: dict[str, Any]) -> str:
    """The results as Markdown."""
    c, t = results["comparison"], results["training"]

    def interval(name: str, form: str = ".2f") -> str:
        low, high = c[f"{name}_interval"]
        return f"{low:{form}} to {high:{form}}"

    rows = [
        ("mean reward before", f"{c['mean_before']:.2f}", interval("mean_before")),
        ("mean reward after", f"{c['mean_after']:.2f}", interval("mean_after")),
        ("gain, paired", f"{c['mean_gain']:.2f}", interval("mean_gain")),
        ("win rate", f"{c['win_rate']:.1%}", interval("win_rate", ".1%")),
    ]
    lines = [
        f"On {c['n']} prompts that were never trained on, the same judge that trained the policy:",
        "",
        "| | value | 95% interval |",
        "| --- | --- | --- |",
        *(f"| {name} | {value} | {low_high} |" for name, value, low_high in rows),
        "",
        f"Training: {t['steps']} steps of 16 answers, each of {t['prompts']} prompts seen "
        f"{t['epochs']} times, seed {t['seed']}, {t['precision']} arithmetic, "
        f"{t['seconds'] / 60:.1f} minutes on two shared cores. The mean score of a batch went from "
        f"{t['mean_score_first_10_batches']:.2f} (first 10) to "
        f"{t['mean_score_last_10_batches']:.2f} (last 10) at a KL of "
        f"{t['kl_last_10_batches']:.1f} nats per answer.",
        "",
        "| perplexity on the test split (mean over texts) | before | after |",
        "| --- | --- | --- |",
    ]
    for kind, label in (("whole_text", "whole dialogue"), ("last_reply", "reply in the template")):
        before, after = (perplexity[when][kind]["mean_perplexity"] for when in ("before", "after"))
        lines.append(f"| {label} | {before:.2f} | {after:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Replace what stands between the markers."""
    results, perplexity = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("results", "perplexity")
    )
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, tail = text.split(START)[0], text.split(END)[1]
    block = f"{START}\n{results_table(results, perplexity)}\n{END}"
    readme.write_text(head + block + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
