"""What the site states in numbers, from the committed results: nothing of it is typed in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from lessons import Lesson


def levers(reading: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the policy starts and where training takes it: name, what it is, grade.

    What is between, the levers that cost nothing, is a question of notebook 01.
    """
    nothing = reading["untouched, no prompt, temperature 1"]["grade_after"]
    rows = [{"name": "Nothing", "what": "no system message, temperature 1", "grade": nothing}]
    best = reading["best_temperatures"]
    for arm, what in (("default", "PPO, five minutes"), ("long", "PPO, the long run, greedy")):
        rows.append({"name": "Train", "what": what, "grade": best[arm]["grade_after"]})
    return rows


def last_run(lesson: Lesson, results: dict[str, Any], root: Path) -> str:
    """When the outputs were committed, and with what they were made, as far as is known."""
    python = lesson.notebook.metadata.language_info.version
    parts = [f"Python {python}"]
    printed = "".join(
        o.get("text", "") for c in lesson.notebook.cells for o in c.get("outputs", [])
    )
    if f"preset {results['preset']}" in printed:
        versions = results["versions"]
        parts += [f"torch {versions['torch']}", f"transformers {versions['transformers']}"]
        parts += [results["device"].upper()]
    date = committed_on(lesson.path, root)
    return "last run" + (f" {date}" if date else "") + ": " + ", ".join(parts)


def committed_on(path: Path, root: Path) -> str:
    """The day of the file's last commit; empty where git does not know it."""
    try:
        done = subprocess.run(
            ["git", "log", "-1", "--format=%cs", "--", str(path)],
            cwd=root, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:  # no git
        return ""
    return done.stdout.strip()


def read_json(path: Path) -> Any:
    """The file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
