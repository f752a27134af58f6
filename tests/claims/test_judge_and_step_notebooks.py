"""Notebooks 03 and 04: numbers in the prose against the outputs, guesses and exercises."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import nbformat
import pytest
from support import ROOT
from support.notebooks import outputs_and_prose, row

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.reading import pair_accuracy
from rlhf_tutorial.feedback import load_feedback

OWN_QUESTIONS = (
    "My laptop is very slow. What can I try first?",
    "What's a good name for a grey cat?",
    "How long do I boil an egg so the yolk stays soft?",
)
LADDER = json.loads((resolve(Bundled("judge")) / "ladder.json").read_text(encoding="utf-8"))["rows"]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]\d+)?", text)]


@pytest.mark.parametrize(
    ("name", "guesses", "exercises"), [("03_reward_model", 7, 4), ("04_ppo_by_hand", 4, 4)]
)
def test_the_reader_predicts_and_writes(name: str, guesses: int, exercises: int) -> None:
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    asked = [i for i, cell in enumerate(cells) if cell.source.startswith("guess = None")]
    assert len(asked) == guesses
    for i in asked:
        assert "**Guess.**" in cells[i - 1].source, "what is asked stands right above"
        following = next(c for c in cells[i + 1 :] if "reveal(" in c.source)
        before = [c for c in cells[i + 1 : cells.index(following)] if c.cell_type == "code"]
        if name == "03_reward_model":
            assert not before, "the answer is the next thing that runs"
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert [int(n) for n in re.findall(r"\*\*Exercise (\d+)\.\*\*", text)] == list(
        range(1, exercises + 1)
    )
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    assert len(solutions) == exercises


def test_the_reward_model() -> None:
    shown, prose = outputs_and_prose("03_reward_model.ipynb")
    assert "2,304 fitted weights" in shown["load"] and "2,304 weights" in prose
    test_accuracy, *_ = numbers(shown["judge-test"].split("test prompts:")[1])
    assert f"{test_accuracy:.0f}%" == "79%" and "79% of the test pairs" in prose

    scores = {
        name: row(re.sub(r" {2,}(?=[A-Z]).*", "", shown["meditate"]), name)[0]
        for name in ("helpful", "the same, broken off", "vague", "refusing", "the question again")
    }
    assert scores["the question again"] == max(scores.values())
    for said, name in (
        ("at the top with {}", "the question again"),
        ("the vague answer ({})", "vague"),
        ("the helpful one ({})", "helpful"),
        ("breaks off ({})", "the same, broken off"),
        ("refuses ({})", "refusing"),
    ):
        assert said.format(f"{scores[name]:.2f}") in prose
    margins = sorted(row(shown["own"], question)[-1] for question in OWN_QUESTIONS)
    assert 0 < margins[0] < 0.1 < margins[1] and "one of them by a hair" in prose

    ceiling = row(shown["agreement"], "same_order")[0]
    assert f"{ceiling:.1%}" == "95.6%" and "In 95.6% of the pairs" in prose
    rungs = {rung["judge"]: rung for rung in LADDER}
    for judge, part, said in (
        ("it ended, then the longer", "all", "A rule of one line manages 76%"),
        ("it ended, then the longer", "all", "78.7% against 75.9%"),
        ("line on states, the judge that trains", "all", "78.7% against 75.9%"),
        ("line on states, the judge that trains", "whole", "a difference in 72.8%"),
        ("MiniLM with an adapter (first edition)", "all", "a coin, 56% and 57%"),
        ("SmolLM2 with an adapter (first edition)", "all", "a coin, 56% and 57%"),
        ("mean log-probability", "all", "says a little, 61%"),
    ):
        digits = 1 if "." in said else 0
        assert said in prose and f"{100 * rungs[judge][part]['accuracy']:.{digits}f}%" in said
    lead = [numbers(line)[0] for line in shown["lead"].splitlines() if "points" in line]
    assert "by 4.6 points over all pairs, and by 12.5 among whole answers" in prose
    assert [f"{points:.1f}" for points in lead[2:]] == ["4.6", "12.5"]
    low, high = numbers(shown["lead"].splitlines()[1].split("interval")[1])
    assert low < 0 < high and "with the 128 test prompts alone" in prose

    wrong = re.search(
        r"(\d+) \(one grade apart\), (\d+) \(two grades\), (\d+) \(three or more\)",
        shown["answer-margins"],
    )
    one, two, three = map(int, wrong.groups())
    assert one > two > three
    fifth = row(shown["calibration"], "highest")
    assert abs(fifth[0] - fifth[1]) < 0.25 and "In the highest fifth they do." in prose
    others, own = re.findall(r": ([\d.]+)%", shown["live-line"])
    assert (others, own) == ("76.4", "85.9")
    assert "85.9% on the answers that the line was fitted to, 76.4% on others" in prose
    assert row(shown["live-training"], "4")[-1] == 0.925 and "The 0.925 at the end" in prose
    assert "+6.0 points" in shown["live-compare"] and "the line is 6 points ahead" in prose

    round_1 = load_feedback(resolve(Bundled("feedback")) / "round-1.jsonl")
    said_yes = [
        row["prompt"]
        for row in round_1
        for answer in row["answers"]
        if answer["source"] == "lr 5e-5, 40 steps" and answer["text"] == "Yes."
    ]
    asks = re.compile(r"(?i)(is|are|can|could|do|does|did|should|will|would|was|has|have|any)\b")
    assert 0.6 < sum(map(bool, map(asks.match, said_yes))) / len(said_yes) < 0.72
    assert "Two in three of those questions" in prose
    assert "recommend a paint finish for a small bathroom" in said_yes
    assert f"to {len(said_yes)} of 400 prompts" in shown["answer-rounds"]
    assert "Yes." in shown["answer-rounds"] and 'most of them **"Yes."**' in prose
    fitted, judged, reader, _ = row(shown["rounds-yes"], "all")
    assert f"{fitted - reader:.1f}" == "0.6" and "gives them 0.6 too much" in prose
    assert abs(judged - reader) < 0.1 and "the judge that has is near the reader" in prose

    table = {
        name: numbers(re.split(rf"(?m)^{re.escape(name)} {{2,}}", shown["fooled"])[1])
        for name in ("the good answer", "the prompt said back", "No, it's generally not.")
    }
    assert round(table["the good answer"][0], 1) == 1.2 and "At 1.2 it is lower" in prose
    assert 60 < 100 - table["No, it's generally not."][1] < 70
    assert prose.count("good answer two times in three") == 2
    assert abs(table["the prompt said back"][1] - 50) < 6


def test_twenty_five_prompts_bring_the_line_to_the_rule() -> None:
    metrics = json.loads((resolve(Bundled("judge")) / "metrics.json").read_text(encoding="utf-8"))
    sizes = list(metrics["by_prompts"].values())
    assert all(0 < b - a < 0.025 for a, b in pairwise(sizes))
    _, prose = outputs_and_prose("03_reward_model.ipynb")
    rows = load_feedback(resolve(Bundled("feedback")) / "validation.jsonl")
    rule = [1000 * a["ended"] + len(a["text"].split()) for row in rows for a in row["answers"]]
    assert abs(sizes[0] - pair_accuracy(rows, rule)["accuracy"]) < 0.01
    assert "25 prompts bring it to the rule" in prose
    assert "every doubling adds a point or two" in prose


def test_one_step() -> None:
    shown, prose = outputs_and_prose("04_ppo_by_hand.ipynb")
    by_kind = row(shown["kl"], "mean per answer")
    assert "1.81 and 1.83 nats per answer" in prose
    assert [f"{n:.2f}" for n in by_kind] == ["1.81", "1.83"]
    sampled, exact = row(shown["kl"], "smallest")
    assert sampled < -1 and exact == 0 and "the sampled one even falls below 0" in prose
    off, error = numbers(shown["kl-verdict"].split("tokens:")[1])[:2]
    assert abs(off) < error
    best, worst = (numbers(line) for line in shown["70f0a4d6"].splitlines()[:2])
    assert min(best) > 0 > max(worst)
    assert "Every token of the best answer is praised, and every token of the worst" in prose
    assert "score +2.83" in shown["chosen"] and "it would be flat, near 2.8" in prose
    assert "'For' with probability 0.15%" in shown["first-token"]
    assert '"For" had a probability of 0.15%' in prose
    reference, policy = numbers(shown["first-token"].split("last token")[1])
    assert 18 < reference < 22 and policy > 90 and "one of five cases" in prose
    mean, _ = numbers(shown["whiten"].splitlines()[0])
    assert f"{mean:.2f}" == "0.29" and "had the mean 0.29" in prose
    assert "a lot" in shown["shift-test"]

    second = row(shown["update"], "2")
    low, high, clipped = second[2], second[3], second[4]
    assert f"from {low:.2f} to {high:.1f}" == "from 0.02 to 5.9" and "from 0.02 to 5.9" in prose
    assert f"{clipped:.0%}" == "17%" and "17% at the second pass" in prose and second[0] < 0
    assert "' it', probability 11%, ratio 8.2" in shown["show-moved"]
    assert "a probability of 11%, and is now eight times as likely" in prose
    explained, kl = (numbers(line) for line in shown["moved-table"].splitlines())
    assert "3.30 nats, after 1.83" in prose and [f"{n:.2f}" for n in kl] == ["1.83", "3.30"]
    assert kl[0] * 0.7 < kl[1] - kl[0] < kl[0] and "nearly as far as the three before it" in prose
    assert [f"{n:.2f}" for n in explained] == ["-0.79", "-0.14"]
    assert "from -0.79 to -0.14" in prose

    largest, policies = re.findall(r"\d\.\de-\d\d", shown["agree"])
    assert "among the 19 numbers" in shown["agree"] and "Nineteen numbers agree" in prose
    assert float(largest) < 1e-4 and float(policies) < 1e-3 and "to four digits" in prose
