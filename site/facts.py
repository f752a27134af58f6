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


def cheap_levers(reading: dict[str, Any]) -> list[dict[str, Any]]:
    """The levers before training, as `levers`: what notebook 01 lets one guess, to be folded."""
    low = f"temperature {reading['temperatures']['untouched']:g}"
    named = {
        "untouched, temperature 1": ("Ask", "a system message, temperature 1"),
        "untouched, no prompt": ("Cool", f"no system message, {low}"),
        "untouched, best": ("Both", f"a system message, {low}"),
        "untouched, best of 4": ("Choose", "a system message, the best of four by the judge"),
    }
    return [
        {"name": name, "what": what, "grade": reading[source]["grade_after"]}
        for source, (name, what) in named.items()
    ]


def last_run(lesson: Lesson, results: dict[str, Any], root: Path) -> str:
    """Since when the outputs are what they are, and what made them, as far as is known."""
    python = lesson.notebook.metadata.language_info.version
    parts = [f"Python {python}"]
    printed = "".join(
        o.get("text", "") for c in lesson.notebook.cells for o in c.get("outputs", [])
    )
    if f"preset {results['preset']}" in printed:
        versions = results["versions"]
        parts += [f"torch {versions['torch']}", f"transformers {versions['transformers']}"]
        parts += [results["device"].upper()]
        if results.get("processor"):  # since 1.0.0 a run records it
            parts += [results["processor"]]
    date = outputs_since(lesson.path, root)
    return "last run" + (f" {date}" if date else "") + ": " + ", ".join(parts)


def outputs_since(path: Path, root: Path) -> str:
    """The day of the commit that brought a notebook's outputs; empty where git does not know it.

    Later commits may have changed its text.
    """
    shown, day = outputs(path.read_text(encoding="utf-8")), ""
    name = path.relative_to(root).as_posix()
    for line in git(root, "log", "--format=%H %cs", "--", name).splitlines():
        commit, date = line.split()
        if outputs(git(root, "show", f"{commit}:{name}")) != shown:
            break
        day = date
    return day


def outputs(notebook: str) -> list[Any]:
    """All outputs of a notebook that is given as text; none of what is no notebook."""
    cells = json.loads(notebook)["cells"] if notebook else []
    return [output for cell in cells for output in cell.get("outputs", [])]


def git(root: Path, *arguments: str) -> str:
    """What git says; empty where there is no git, no repository or no such commit."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", check=False
        )
    except OSError:
        return ""
    return done.stdout


def read_json(path: Path) -> Any:
    """The file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
