"""scripts/feedback.py: sheets on the disk, and the grades that readers leave beside them."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.errors import one_line
from support.scripts import load_script

from rlhf_tutorial.errors import DataError


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("feedback")


def ungraded(prompts: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"question {i}?",
            "answers": [{"text": f"answer {i} {j}", "ended": True} for j in range(3)],
        }
        for i in range(prompts)
    ]


def read(folder: Path, parts: int) -> None:
    """A reader for each sheet, who goes by the last digit of an answer."""
    for k in range(parts):
        lines = []
        for block in (folder / f"sheet-{k}.txt").read_text().strip().split("\n\n"):
            grade = {m[1]: int(m[2]) for m in re.finditer(r"(\w)\) .*(\d)$", block, re.MULTILINE)}
            order = sorted(grade, key=lambda letter: -grade[letter])
            given = " ".join(f"{letter}{g}" for letter, g in grade.items())
            lines.append(f"{block.split(':')[0].split()[1]}: {given} | {' '.join(order)}")
        (folder / f"grades-{k}.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("parts", [1, 3])
def test_what_several_readers_wrote_comes_back_together(parts, script, tmp_path):
    rows = ungraded(10)
    script.write_sheets(rows, tmp_path, parts, seed=0)
    assert "How to grade" in (tmp_path / "guide.md").read_text()
    read(tmp_path, parts)
    graded = script.fold(rows, tmp_path, parts, seed=0)
    assert [row["prompt"] for row in graded] == [row["prompt"] for row in rows]
    assert all([a["grade"] for a in row["answers"]] == [0, 1, 2] for row in graded)


def test_grades_are_not_folded_into_another_sheets_order(script, tmp_path):
    rows = ungraded(10)
    script.write_sheets(rows, tmp_path, 2, seed=1)
    read(tmp_path, 2)
    for parts, seed, given in ((2, 0, rows), (1, 1, rows), (2, 1, rows[::-1])):
        with pytest.raises(DataError, match="was not made of these rows with --parts") as error:
            script.fold(given, tmp_path, parts, seed)
        one_line(error)


def test_prompts_are_bare_requests(script):
    prompts = script.prompts_of("validation")
    assert len(prompts) == 96 and not any("Human" in p or "\n" in p for p in prompts)
