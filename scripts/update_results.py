"""Write the results of the blind reading and of the committed run into docs/results.md.

python scripts/update_results.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "notebooks" / "results" / "smollm2"
PAGE = ROOT / "docs" / "results.md"
START, END = "<!-- results: scripts/update_results.py -->", "<!-- end of results -->"

TRAINED = (
    ("default run, 3 seeds, both at 0.5", ["default"]),
    ("default run, 3 seeds, {default-0}; untouched {untouched}", ["best_temperatures", "default"]),
    ("long run, both at 0.5", ["long"]),
    ("long run, {long}; untouched {untouched}", ["best_temperatures", "long"]),
)
"""What is compared, with each policy's chosen temperature, and where its figures are."""
CONTROLS = (
    ("no system message, temperature 1", "untouched, no prompt, temperature 1"),
    ("system message, temperature 1", "untouched, temperature 1"),
    ("no system message, {untouched}", "untouched, no prompt"),
    ("system message, {untouched}", "untouched, best"),
    ("... first sentence only", "untouched, first sentence"),
    ("... drawn again until it ends", "untouched, until it ends"),
    ("... best of 4 by the judge, drawn at 0.5", "untouched, best of 4"),
    ("... fine-tuned on one-sentence replies", "fine-tuned"),
)


def _temperatures(reading: dict[str, Any]) -> dict[str, str]:
    """In words the temperature that validation prompts chose for each policy."""
    return {
        name: "greedy" if value < 0.1 else f"at {value:g}"
        for name, value in reading["temperatures"].items()
    }


def _found(reading: dict[str, Any], path: list[str]) -> dict[str, Any]:
    for name in path:
        reading = reading[name]
    return reading


def _share(figures: dict[str, Any]) -> str:
    low, high = figures["win_rate_interval"]
    return f"{figures['win_rate']:.1%} ({low:.1%} to {high:.1%})"


def reading_tables(reading: dict[str, Any]) -> str:
    """What the blind reading found, as Markdown."""
    n, at = reading["long"]["n"], _temperatures(reading)
    lines = [
        f"A blind reading of {n} test prompts, grades 0 to 5, each answer read once by a language "
        "model that saw neither names nor scores; 95% intervals over prompts and seeds:",
        "",
        "| trained against untouched | wins | grade | gain | of it by ending | 3 or better "
        "| ended |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, path in TRAINED:
        found, split = _found(reading, path), _found(reading["gain_by_ending"], path)
        low, high = found["grade_gain_interval"]
        ending_low, ending_high = split["by_ending_interval"]
        lines.append(
            f"| {label.format(**at)} | {_share(found)} | {found['grade_before']:.2f} to "
            f"{found['grade_after']:.2f} | {found['grade_after'] - found['grade_before']:+.2f} "
            f"({low:+.2f} to {high:+.2f}) | {split['by_ending']:+.2f} ({ending_low:+.2f} to "
            f"{ending_high:+.2f}) | {found['acceptable_before']:.0%} to "
            f"{found['acceptable_after']:.0%} | {found['ended_before']:.0%} to "
            f"{found['ended_after']:.0%} |"
        )
    lines += [
        "",
        "| without PPO | grade | ended | the default run's wins against it | the long run's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, name in CONTROLS:
        found = reading[name]
        lines.append(
            f"| {label.format(**at)} | {found['grade_after']:.2f} | {found['ended_after']:.0%} | "
            f"{_share(found['default_against_it'])} | {_share(found['long_against_it'])} |"
        )
    return "\n".join(lines)


def run_table(results: dict[str, Any]) -> str:
    """What was counted in the committed run of the notebooks, as Markdown."""
    training, comparison = results["training"], results["comparison"]
    lines = [
        f"The notebooks' own run: {training['steps']} steps of 16 answers, each of "
        f"{training['prompts']} prompts {'once' if training['epochs'] == 1 else 'several times'}, "
        f"{training['precision']} arithmetic, {training['seconds'] / 60:.1f} minutes on two cores, "
        f"to a KL of {training['kl_last_10_batches']:.1f} nats per answer (mean of the last ten "
        "batches).",
        "",
        "| the same prompts, equal temperature | before | after |",
        "| --- | --- | --- |",
        f"| training judge | {comparison['mean_before']:.2f} | {comparison['mean_after']:.2f} |",
        f"| evaluating judge | {comparison['second']['mean_before']:.2f} | "
        f"{comparison['second']['mean_after']:.2f} |",
    ]
    for key, label, form in (
        ("words", "words per answer", ".1f"),
        ("distinct-2", "distinct-2", ".2f"),
        ("echoed", "share of the prompt's words echoed", ".0%"),
        ("ended", "answers that end in a sentence", ".0%"),
    ):
        cells = (f"{comparison['measures'][when][key]:{form}}" for when in ("before", "after"))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for kind, label in (
        ("whole_text", "perplexity of the whole dialogue, pooled"),
        ("last_reply", "perplexity of the reply in its template, pooled, temperature 1"),
    ):
        cells = (
            f"{results['perplexity'][when][kind]['pooled_perplexity']:.2f}"
            for when in ("before", "after")
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def results_section() -> str:
    """All that is between the page's two markers."""
    reading, results = (
        json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for name in ("reading.json", "results.json")
    )
    return f"{reading_tables(reading)}\n\n{run_table(results)}"


def main() -> None:
    """Replace what is between the markers."""
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text.split(START)[0], text.split(END)[1]
    PAGE.write_text(f"{head}{START}\n{results_section()}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
