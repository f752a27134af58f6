"""Write into docs/ what its pages repeat: figures of the committed run, fields, and refusals.

python scripts/update_docs.py
"""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import fields
from pathlib import Path

from rlhf_tutorial import PPOConfig, models
from rlhf_tutorial.ppo import config

ROOT = Path(__file__).resolve().parent.parent
METRICS, FROM_TRL = ROOT / "docs" / "metrics.md", ROOT / "docs" / "coming-from-trl.md"
LOG = ROOT / "notebooks" / "results" / "smollm2" / "stats.jsonl"

NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
RUN = re.compile(rf"run: {NUMBER} (to|→) {NUMBER}")
ROW = re.compile(r"^\| `([a-z]+/[\w/]+)` \|.*$", re.MULTILINE)


def committed_log() -> list[dict[str, float]]:
    """The steps of the committed run."""
    return [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()]


def short(x: float) -> str:
    """A number of the log as the page has it."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.2g}"


def with_run_figures(page: str, log: list[dict[str, float]]) -> str:
    """The page with each "run: a to b" and "run: a → b" as the log has it for its row's key.

    The first gives the least and the greatest value, the second the means of the first and of the
    last ten steps.

    Raises:
        KeyError: if a row with such a figure names a key that the log lacks.
    """

    def row(match: re.Match[str]) -> str:
        def measured(found: re.Match[str]) -> str:
            values = [line[match[1]] for line in log]
            first, last = values[:10], values[-10:]
            pair = min(values), max(values)
            if found[1] == "→":
                pair = sum(first) / len(first), sum(last) / len(last)
            return f"run: {short(pair[0])} {found[1]} {short(pair[1])}"

        return RUN.sub(measured, match[0])

    return ROW.sub(row, page)


def refusals(reasons: dict[str, str], title: str = "refused", why: str = "reason") -> str:
    """What is refused, or taken without effect, and why, as a table."""
    rows = [f"| `{name}` | {reason} |" for name, reason in reasons.items()]
    return "\n".join([f"| {title} | {why} |", "| --- | --- |", *rows])


def with_fields(page: str) -> str:
    """The page with PPOConfig's fields and what is refused as the code has them."""
    names = ", ".join(f"`{f.name}`" for f in fields(PPOConfig))
    parts = {
        "fields": textwrap.fill(f"{names}.", 100),
        "refused: PPOConfig": refusals(config.NOT_SUPPORTED),
        "without effect: PPOConfig": refusals(config.WITHOUT_EFFECT, "taken"),
        "read once: PPOConfig": refusals(config.READ_ONCE, "read once", "to change it"),
        "refused: from_pretrained": refusals(models.NOT_SUPPORTED),
    }
    for name, content in parts.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, rest = page.split(start)
        page = f"{before}{start}{content}\n{end}{rest.split(end, 1)[1]}"
    return page


def main() -> None:
    """Bring both pages up to date."""
    page = METRICS.read_text(encoding="utf-8")
    METRICS.write_text(with_run_figures(page, committed_log()), encoding="utf-8")
    page = FROM_TRL.read_text(encoding="utf-8")
    FROM_TRL.write_text(with_fields(page), encoding="utf-8")


if __name__ == "__main__":
    main()
