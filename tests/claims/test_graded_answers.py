"""The graded answers that come with the course: their form, and what their card says of them."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_tutorial import assets
from rlhf_tutorial.evaluation.reading import agreement, pair_accuracy
from rlhf_tutorial.feedback import load_feedback

FOLDER = Path(assets.__file__).parent / "bundled" / "feedback"
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
SPLITS = ("train", "validation", "test")
GRADED = sorted(path.name for path in FOLDER.glob("*.jsonl"))


def answers(name: str) -> list[dict[str, Any]]:
    return [answer for row in load_feedback(FOLDER / name) for answer in row["answers"]]


def prompts_of(split: str) -> list[str]:
    path = FOLDER.parent / "preferences" / f"{split}.jsonl"
    dialogues = [json.loads(line)["chosen"] for line in path.read_text("utf-8").splitlines()]
    return [text.split("\n\nAssistant: ")[0].removeprefix("\n\nHuman: ") for text in dialogues]


@pytest.mark.parametrize("split", SPLITS)
def test_there_are_four_answers_to_every_prompt_of_the_split(split):
    rows = load_feedback(FOLDER / f"{split}.jsonl")
    assert [row["prompt"] for row in rows] == prompts_of(split)
    assert all(len(row["answers"]) == 4 for row in rows)


@pytest.mark.parametrize("name", GRADED)
def test_every_answer_is_graded_and_ranked_as_the_guide_says(name):
    for row in load_feedback(FOLDER / name):
        assert row.keys() == {"prompt", "answers"}
        for answer in row["answers"]:
            by_whom = {"source", "first", "second"}  # first and second: the judges' scores
            assert answer.keys() - by_whom == {"text", "ended", "grade", "rank"}
            assert answer["grade"] in range(6) and answer["rank"] >= 1
        ranked = sorted(row["answers"], key=lambda answer: answer["rank"])
        assert ranked[0]["rank"] == 1
        grades = [answer["grade"] for answer in ranked]
        assert grades == sorted(grades, reverse=True), f"{row['prompt']}: rank against grade"


@pytest.mark.parametrize("name", GRADED)
def test_a_cut_answer_has_one_at_the_most(name):
    assert max(answer["grade"] for answer in answers(name) if not answer["ended"]) <= 1


def test_what_rounds_and_candidates_answer_are_training_prompts():
    train = set(prompts_of("train"))
    others = [*FOLDER.glob("round-*.jsonl"), *(FOLDER / "candidates").glob("*.jsonl")]
    assert len(others) >= 4
    for path in others:
        assert {row["prompt"] for row in load_feedback(path)} <= train


def test_the_cards_table_is_that_of_the_files():
    table = re.findall(r"^\| `(\S+\.jsonl)` \| (.+) \|$", CARD, flags=re.MULTILINE)
    assert {name for name, _ in table} == {name for name in GRADED if "-again" not in name}
    for name, cells in table:
        stated = [float(cell.strip(" %").replace(",", "")) for cell in cells.split("|")]
        grades = np.array([answer["grade"] for answer in answers(name)], dtype=float)
        ended = np.array([answer["ended"] for answer in answers(name)])
        found = [
            len(load_feedback(FOLDER / name)),
            len(grades),
            grades.mean(),
            grades[ended].mean(),
            grades[~ended].mean(),
            100 * ended.mean(),
        ]
        rounding = np.array([0, 0, 0.0051, 0.0051, 0.0051, 0.051])
        assert (np.abs(np.subtract(stated, found)) <= rounding).all(), (name, stated, found)


def test_the_cards_agreement_is_that_of_the_two_readings():
    first, second = (load_feedback(FOLDER / f"validation{again}.jsonl") for again in ("", "-again"))
    assert [row["prompt"] for row in first] == [row["prompt"] for row in second]
    for one, other in zip(first, second, strict=True):
        texts = [[answer["text"] for answer in row["answers"]] for row in (one, other)]
        assert texts[0] == texts[1]
    found, text = agreement(first, second), " ".join(CARD.split())
    assert f"graded the {found['n']} validation answers anew" in text
    assert f"correlate at {found['correlation']:.3f}, and {found['same_grade']:.1%} are" in text
    stated = f"the {found['pairs']} pairs that the first reading told apart, the second orders "
    assert stated + f"{found['same_order']:.1%} alike" in text


def test_the_cards_second_agreement_is_that_of_the_long_runs_two_readings():
    rows = load_feedback(FOLDER / "reading-long.jsonl")
    again = load_feedback(FOLDER / "reading-long-again.jsonl")
    found, text = agreement(rows[: len(again)], again), " ".join(CARD.split())
    assert (
        f"on those {found['n']} answers the grades correlate at {found['correlation']:.3f}" in text
    )
    assert f"{found['same_grade']:.1%} are the same" in text
    told = f"the {found['pairs']} pairs that the first told apart {found['same_order']:.1%} are"
    assert told in text


CUES = {
    "the shorter one, in words": lambda answer: -len(answer["text"].split()),
    "it ended": lambda answer: answer["ended"],
    "it ended, then the longer one": lambda answer: (
        1000 * answer["ended"] + len(answer["text"].split())
    ),
}


@pytest.mark.parametrize("cue", CUES)
def test_the_cards_shallow_cues_are_those_of_the_files(cue):
    found = []
    for split in ("validation", "test"):
        rows = load_feedback(FOLDER / f"{split}.jsonl")
        scores = [float(CUES[cue](answer)) for row in rows for answer in row["answers"]]
        found.append(f"{pair_accuracy(rows, scores, resamples=1)['accuracy']:.1%}")
    assert f"| {cue} | {found[0]} | {found[1]} |" in CARD


def test_the_cards_log_probability_is_the_ladders():
    rows = json.loads((FOLDER.parent / "judge" / "ladder.json").read_text(encoding="utf-8"))["rows"]
    (found,) = (r["all"] for r in rows if r["judge"] == "the policy's log-probability")
    assert f"log-probability reaches {found['accuracy']:.1%} on the test prompts" in CARD


def test_the_card_says_how_the_temperature_does_and_how_answers_vary():
    text = " ".join(CARD.split())
    grades: dict[str, list[int]] = {}
    for name in ("temperatures-untouched.jsonl", "reading.jsonl"):
        for answer in answers(name):
            grades.setdefault(answer["source"], []).append(answer["grade"])

    def mean(source: str) -> str:
        return f"{np.mean(grades[source]):.2f}"

    *others, last = (mean(f"untouched at {t}") for t in (0.01, 0.3, 0.5, 0.7))
    assert f"({', '.join(others)} and {last} at 0.01, 0.3, 0.5 and 0.7" in text
    errors = [np.std(grades[f"untouched at {t}"], ddof=1) / 96**0.5 for t in (0.01, 0.3, 0.5, 0.7)]
    assert min(errors) > 0.07 and max(errors) < 0.15
    names = ("untouched, best", "untouched", "untouched, greedy")
    assert f"({', '.join(map(mean, names))})" in text
    different, shared = {}, {}
    for name in ("train.jsonl", "candidates/untouched_form.jsonl"):
        of_prompt = [[a["text"] for a in r["answers"]] for r in load_feedback(FOLDER / name)]
        fours = [four for texts in of_prompt for four in combinations(texts, 4)]
        different[name] = np.mean([len(set(four)) for four in fours])
        sets = [[set(text.lower().split()) for text in texts] for texts in of_prompt]
        shared[name] = np.mean(
            [len(a & b) / max(1, len(a | b)) for each in sets for a, b in combinations(each, 2)]
        )
    half, third = different.values()
    assert f"({half:.2f} different texts of four, {third:.2f} at 0.3)" in text
    half, third = shared.values()
    assert f"share {half:.0%} of their words, where at 0.3 they share {third:.0%}" in text


def test_the_cards_headroom_is_that_of_the_script_and_the_choice_follows_the_rule():
    path = FOLDER / "candidates" / "headroom.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    for name, r in results.items():
        low, high = r["recovered_interval"]
        cells = [
            name,
            f"{r['mean']:.2f}",
            f"{r['best_of_8_by_the_reader']:.2f}",
            f"{r['best_of_8_by_the_judge']:.2f}",
            f"{r['recovered']:.2f} ({low:.2f} to {high:.2f})",
            f"{r['by_ending_alone']:.2f}",
            f"{r['pair_accuracy']:.0%}",
        ]
        assert f"| {' | '.join(cells)} |" in CARD, name
    near = max(r["recovered"] for r in results.values()) - 0.05
    without_a_stage = {
        name: r["recovered"]
        for name, r in results.items()
        if r["recovered"] >= near and "fine-tuning" not in name
    }
    assert max(without_a_stage, key=without_a_stage.get) == "form, a cut answer at most 1"
    guide = (FOLDER / "GUIDE.md").read_text(encoding="utf-8")
    assert "at most 1, however well it" in guide
