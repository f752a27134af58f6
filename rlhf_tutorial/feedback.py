"""Graded answers: sheets for a blind reading, and what comes back of them.

A row is a prompt and some answers to it, as `bundled/feedback/*.jsonl` holds them: `prompt`, and
`answers`, each with `text`, `ended` (whether it ended by itself within its room), and, once it is
read, `grade` (0 to 5, higher is better) and `rank` (1 is the best of its prompt); `sheet`, where
the answers to a prompt were not all read together.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from .errors import DataError

Row = dict[str, Any]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Sheet:
    """What a reader gets, and what tells whose answer is whose."""

    text: str
    """Prompts and answers in random order, and nothing else."""
    key: list[tuple[int, list[list[int]]]]
    """For each prompt of the sheet its row, and for each letter the answers with this text."""


def load_feedback(path: str | Path) -> list[Row]:
    """The rows of a file of graded answers."""
    with Path(path).open(encoding="utf-8") as file:  # its lines end at "\n" alone
        return [json.loads(line) for line in file]


def save_feedback(rows: list[Row], path: str | Path) -> None:
    """Write rows as `load_feedback` reads them."""
    Path(path).write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def make_sheet(rows: list[Row], seed: int = 0) -> Sheet:
    """A sheet for a blind reading: who made an answer shows neither in its place nor in its name.

    An answer that several of a row share stands once. One that did not end by itself is marked.
    """
    draw = random.Random(seed)
    order = draw.sample(range(len(rows)), len(rows))
    blocks, key = [], []
    for number, index in enumerate(order, start=1):
        alike: dict[tuple[str, bool], list[int]] = {}
        for i, answer in enumerate(rows[index]["answers"]):
            alike.setdefault((answer["text"].strip(), answer["ended"]), []).append(i)
        if len(alike) > len(LETTERS):
            raise DataError(f"{len(alike)} answers to one prompt: a sheet has {len(LETTERS)}")
        shown = draw.sample(list(alike), len(alike))
        lines = [f"PROMPT {number}: {_one_line(rows[index]['prompt'])}"]
        for letter, (text, ended) in zip(LETTERS, shown, strict=False):
            lines.append(f"  {letter}) {_one_line(text)}{'' if ended else ' [CUT]'}")
        blocks.append("\n".join(lines))
        key.append((index, [alike[each] for each in shown]))
    return Sheet("\n\n".join(blocks) + "\n", key)


def fold_grades(rows: list[Row], sheet: Sheet, grades: str) -> list[Row]:
    """The rows with what a reader wrote: a line `17: a4 b2 c0 | a b c` for each prompt.

    Behind the bar stand the letters, best first. Answers of equal text have equal grade and rank.

    Raises:
        DataError: for a prompt or an answer that has no grade or two, or one that is on no sheet,
            or an order that contradicts the grades.
    """
    written: dict[int, tuple[list[tuple[str, int]], list[str]]] = {}
    for line in grades.splitlines():
        if match := re.fullmatch(r"\s*(\d+):((?:\s+[a-z][0-5])+)\s*\|((?:\s+[a-z])+)\s*", line):
            number = int(match[1])
            if number in written:
                raise DataError(f"prompt {number} has two lines of grades: leave one")
            tokens = match[2].split()
            written[number] = [(token[0], int(token[1])) for token in tokens], match[3].split()
        elif line.strip():
            raise DataError(f"{line.strip()!r} is not of the form '17: a4 b2 c0 | a b c'")
    numbers = set(range(1, len(sheet.key) + 1))
    if differing := sorted(numbers ^ written.keys()):
        raise DataError(f"prompt {differing[0]} is not both on the sheet and among the grades")
    folded: dict[int, Row] = {}
    for number, (index, places) in enumerate(sheet.key, start=1):
        graded, best_first = written[number]
        letters = list(LETTERS[: len(places)])
        if sorted(letter for letter, _ in graded) != letters or sorted(best_first) != letters:
            raise DataError(f"prompt {number}: grade and rank each of {', '.join(letters)} once")
        given = dict(graded)
        if (order := [given[letter] for letter in best_first]) != sorted(order, reverse=True):
            raise DataError(f"prompt {number}: the order contradicts the grades, mend one of them")
        answers = [dict(answer) for answer in rows[index]["answers"]]
        for letter, same in zip(letters, places, strict=True):
            for i in same:
                answers[i] |= {"grade": given[letter], "rank": best_first.index(letter) + 1}
        folded[index] = {**rows[index], "answers": answers}
    return [folded[index] for index in sorted(folded)]


def pairs(rows: list[Row]) -> list[dict[str, str]]:
    """Every two answers of a prompt that have different grades: `prompt`, `chosen`, `rejected`."""
    found = []
    for row in rows:
        for two in combinations(row["answers"], 2):
            worse, better = sorted(two, key=lambda answer: answer["grade"])
            if worse["grade"] < better["grade"]:
                texts = {"chosen": better["text"], "rejected": worse["text"]}
                found.append({"prompt": row["prompt"], **texts})
    return found


def _one_line(text: str) -> str:
    return " / ".join(line.strip() for line in text.splitlines() if line.strip())
