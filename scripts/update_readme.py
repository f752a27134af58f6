"""Write the results of the committed trainings into the README, between its two markers.

python scripts/update_readme.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT / "rlhf_tutorial" / "bundled" / "experiments" / "seeds.json"
START, END = "<!-- results: scripts/update_readme.py -->", "<!-- end of results -->"


def results_table(seeds: dict[str, Any]) -> str:
    """The results as Markdown."""
    first, second, runs = seeds["score"], seeds["second"], seeds["runs"]

    def interval(judge: dict[str, Any], name: str, form: str = ".2f") -> str:
        low, high = judge[f"{name}_interval"]
        return f"{judge[name]:{form}} ({low:{form}} to {high:{form}})"

    def deviations(judge: dict[str, Any]) -> str:
        return f"{judge['mean_gain'] / judge['std_before']:.2f}"

    def by_seed(judge: dict[str, Any]) -> str:
        return ", ".join(f"{gain:.2f}" for gain in judge["gain_by_seed"])

    rows = [
        ("mean score before", *(interval(j, "mean_before") for j in (first, second))),
        ("mean score after", *(interval(j, "mean_after") for j in (first, second))),
        ("gain, paired", *(interval(j, "mean_gain") for j in (first, second))),
        ("... in standard deviations of the scores before", deviations(first), deviations(second)),
        ("win rate", *(interval(j, "win_rate", ".1%") for j in (first, second))),
        ("gain of each seed", by_seed(first), by_seed(second)),
        ("their standard deviation", f"{first['seed_std']:.2f}", f"{second['seed_std']:.2f}"),
    ]
    training = [run["training"] for run in runs]
    t, minutes = training[0], [run["seconds"] / 60 for run in training]
    lines = [
        f"{len(runs)} trainings (seeds 0 to {len(runs) - 1}), {first['n']} prompts that were never "
        "trained on, 95% intervals over the prompts:",
        "",
        "| | judge of the training | second judge, unseen by PPO |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Each training: {t['steps']} steps of 16 answers, each of {t['prompts']} prompts seen "
        f"{t['epochs']} times, {t['precision']} arithmetic, {min(minutes):.1f} to "
        f"{max(minutes):.1f} minutes on two shared cores, to a KL of "
        f"{min(run['kl_last_10_batches'] for run in training):.1f} to "
        f"{max(run['kl_last_10_batches'] for run in training):.1f} nats per answer (mean of the "
        "last ten batches).",
        "",
        "| mean over the seeds | before | after |",
        "| --- | --- | --- |",
    ]
    for key, label, form in (
        ("words", "words per answer", ".1f"),
        ("distinct-2", "distinct-2", ".2f"),
        ("echoed", "share of the prompt's words echoed", ".0%"),
        ("ended", "answers that end in a sentence", ".0%"),
    ):
        cells = (
            f"{mean(run['measures'][when][key] for run in runs):{form}}"
            for when in ("before", "after")
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for kind, label in (("whole_text", "whole dialogue"), ("last_reply", "reply in the template")):
        cells = (
            f"{mean(run['perplexity'][when][kind]['mean_perplexity'] for run in runs):.2f}"
            for when in ("before", "after")
        )
        lines.append(f"| perplexity, {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Replace what stands between the markers."""
    seeds = json.loads(SEEDS.read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, tail = text.split(START)[0], text.split(END)[1]
    readme.write_text(f"{head}{START}\n{results_table(seeds)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
