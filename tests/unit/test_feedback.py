"""Sheets for a blind reading, and the grades that come back."""

from __future__ import annotations

import random
import re

import pytest
from support.errors import one_line

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.evaluation.reading import agreement
from rlhf_tutorial.feedback import (
    fold_grades,
    load_feedback,
    make_sheet,
    pairs,
    save_feedback,
)


def ungraded(prompts: int = 12, answers: int = 5) -> list[dict]:
    return [
        {
            "prompt": f"question {i}?",
            "answers": [
                {"text": f"answer {i} {j}", "ended": (i + j) % 3 > 0, "source": f"policy-{j}"}
                for j in range(answers)
            ],
        }
        for i in range(prompts)
    ]


def read_by_rule(sheet_text: str) -> str:
    """The grades of a reader who goes by the last digit of an answer's text."""
    lines = []
    for block in sheet_text.strip().split("\n\n"):
        number = re.match(r"PROMPT (\d+): ", block)[1]
        grade = {
            m[1]: int(m[2]) for m in re.finditer(r"  (\w)\) .*?(\d)(?: \[CUT\])?(?:\n|$)", block)
        }
        best_first = sorted(grade, key=lambda letter: -grade[letter])
        given = " ".join(f"{letter}{g}" for letter, g in grade.items())
        lines.append(f"{number}: {given} | {' '.join(best_first)}")
    return "\n".join(lines)


def test_grades_come_back_to_the_answers_they_were_given_for():
    rows = ungraded()
    sheet = make_sheet(rows, seed=3)
    graded = fold_grades(rows, sheet, read_by_rule(sheet.text))
    assert [row["prompt"] for row in graded] == [row["prompt"] for row in rows]
    for before, after in zip(rows, graded, strict=True):
        for j, (old, new) in enumerate(zip(before["answers"], after["answers"], strict=True)):
            assert new == {**old, "grade": j, "rank": 5 - j}
    assert "grade" not in rows[0]["answers"][0], "the rows that were given stay as they were"


def test_a_sheet_shows_prompts_and_answers_in_random_order_and_nothing_else():
    rows = ungraded(60)
    sheet = make_sheet(rows, seed=0)
    assert "policy" not in sheet.text
    first = [places[0][0] for _, places in sheet.key]
    assert {first.count(j) >= 4 for j in range(5)} == {True}, "every source stands first at times"
    assert [index for index, _ in sheet.key] != list(range(60))
    assert make_sheet(rows, seed=0) == sheet != make_sheet(rows, seed=1)
    state = random.getstate()
    make_sheet(rows)
    assert random.getstate() == state
    for block in sheet.text.strip().split("\n\n"):
        for j, line in enumerate(block.splitlines()[1:]):
            i, k = map(int, re.search(r"answer (\d+) (\d+)", line).groups())
            assert line == f"  {'abcde'[j]}) answer {i} {k}" + ("" if (i + k) % 3 else " [CUT]")


def test_equal_answers_stand_once_and_share_their_grade():
    answers = [("Yes.", True), ("No.", True), ("Yes.", True), ("Yes.", False)]
    rows = [{"prompt": "?", "answers": [{"text": t, "ended": e} for t, e in answers]}]
    sheet = make_sheet(rows)
    assert sheet.text.count("\n  ") == 3
    lines = sheet.text.strip().splitlines()[1:]
    whole_yes = next(line.strip()[0] for line in lines if line.endswith("Yes."))
    others = [letter for letter in "abc" if letter != whole_yes]
    grades = f"1: {whole_yes}5 {others[0]}1 {others[1]}0 | {whole_yes} {others[0]} {others[1]}"
    graded = fold_grades(rows, sheet, grades)[0]["answers"]
    assert graded[0]["grade"] == graded[2]["grade"] == 5 and graded[2]["rank"] == 1
    assert {graded[1]["grade"], graded[3]["grade"]} == {0, 1}


def test_an_answer_of_several_lines_stands_on_one():
    rows = [{"prompt": "a\nb", "answers": [{"text": "1. x\n\n 2. y", "ended": True}]}]
    assert make_sheet(rows).text == "PROMPT 1: a / b\n  a) 1. x / 2. y\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[1:], "prompt 1 is not both"),
        (lambda lines: [*lines, "13: a1 | a"], "prompt 13 is not both"),
        (lambda lines: [lines[0].replace("a", "f"), *lines[1:]], "prompt 1: grade and rank each"),
        (lambda lines: [re.sub(r" \w$", "", lines[0]), *lines[1:]], "prompt 1: grade and rank"),
        (lambda lines: [lines[0].replace("|", ""), *lines[1:]], "is not of the form"),
        (lambda lines: [*lines, lines[3]], "prompt 4 has two lines"),
        (lambda lines: [re.sub(r"a\d", "a1 a1", lines[0]), *lines[1:]], "prompt 1: grade and rank"),
        (lambda lines: [re.sub(r"a\d", "a6", lines[0]), *lines[1:]], "is not of the form"),
    ],
)
def test_grades_that_do_not_fit_the_sheet_are_refused(damage, message):
    rows = ungraded()
    sheet = make_sheet(rows)
    lines = read_by_rule(sheet.text).splitlines()
    with pytest.raises(DataError, match=message) as error:
        fold_grades(rows, sheet, "\n".join(damage(lines)))
    one_line(error)


def graded(*grades: list[int]) -> list[dict]:
    return [
        {"prompt": str(i), "answers": [{"text": f"{i}{j}", "grade": g} for j, g in enumerate(row)]}
        for i, row in enumerate(grades)
    ]


def test_pairs_are_those_of_different_grade():
    found = pairs(graded([1, 4, 4], [2, 2], [0, 3]))
    texts = [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in found]
    assert texts == [("0", "01", "00"), ("0", "02", "00"), ("2", "21", "20")]


def test_an_order_that_contradicts_the_grades_is_refused():
    rows = ungraded(1, 2)
    with pytest.raises(DataError, match="prompt 1: the order contradicts the grades") as error:
        fold_grades(rows, make_sheet(rows), "1: a1 b3 | a b")
    one_line(error)


def test_agreement_counts_pairs_within_a_prompt():
    """Three pairs of the first prompt and one of the second; that one the second reading ties."""
    first, second = graded([0, 1, 2], [5, 3]), graded([0, 2, 1], [4, 4])
    result = agreement(first, second)
    assert result["n"] == 5 and result["pairs"] == 4
    assert result["same_order"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert result["same_grade"] == pytest.approx(1 / 5)
    # Pearson's r of (0, 1, 2, 5, 3) and (0, 2, 1, 4, 4), by hand: 11.8 / sqrt(14.8 * 12.8).
    assert result["correlation"] == pytest.approx(11.8 / (14.8 * 12.8) ** 0.5)


def test_rows_go_to_the_disk_and_back(tmp_path):
    rows = ungraded()
    rows[0]["answers"][0]["text"] = "a\u2028b\u0085c\nd"  # more line ends than JSON's lines have
    save_feedback(rows, tmp_path / "rows.jsonl")
    assert load_feedback(tmp_path / "rows.jsonl") == rows


def test_readings_of_different_answers_are_not_compared():
    first = graded([0, 1], [2, 4])
    with pytest.raises(DataError, match="not of the same answers"):
        agreement(first, first[::-1])
    with pytest.raises(DataError, match="there is no pair"):
        agreement(graded([1, 1]), graded([1, 2]))
