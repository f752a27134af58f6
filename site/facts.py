"""What the site states in numbers, from the committed results: nothing of it is typed in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from lessons import Lesson

# What each lever adds, by the names of the blind reading; a lever's number is its best grade.
LEVERS = {
    "Ask better": ("a system message of eleven words", "untouched, temperature 1"),
    "Sample colder": ("and at the temperature that suits the policy", "untouched, best"),
    "Pick or cut": ("the best of four answers, by the judge", "untouched, best of 4"),
}


def levers(reading: dict[str, Any]) -> list[dict[str, Any]]:
    """The four levers in the order in which one should try them: name, what it is, grade."""
    nothing = reading["untouched, no prompt, temperature 1"]["grade_after"]
    rows = [{"name": "Nothing", "what": "no prompt, temperature 1", "grade": nothing}]
    rows += [
        {"name": name, "what": what, "grade": reading[source]["grade_after"]}
        for name, (what, source) in LEVERS.items()
    ]
    best = reading["best_temperatures"]
    for arm, what in (("default", "PPO, five minutes"), ("long", "PPO, the long run")):
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
