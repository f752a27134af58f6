"""Notebooks 03 and 04: numbers in the prose against the outputs, guesses and exercises."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise

import nbformat
import pytest
from support import ROOT
from support.notebooks import outputs_and_prose, row
from support.scripts import load_script

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.feedback import load_feedback, pairs
from rlhf_tutorial.reward.states import LAYERS

JUDGE = resolve(Bundled("judge"))
LADDER = json.loads((JUDGE / "ladder.json").read_text(encoding="utf-8"))["rows"]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]\d+)?", text)]


@pytest.mark.parametrize(
    ("name", "guesses", "exercises"), [("03_reward_model", 6, 4), ("04_ppo_by_hand", 4, 5)]
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
    assert "2,304 fitted weights" in shown["load"] and "4 · 576 = 2,304" in prose
    assert LAYERS == (18, 22) and "Of two layers, 18 and 22," in prose
    found = re.findall(r"<th>(.+?)</th>\s+<td>([\d.]+)</td>", shown["answer-replies"])
    replies = {name: float(score) for name, score in found}
    assert len(replies) == 6
    low = sorted(replies, key=lambda name: replies[name])[:2]
    assert set(low) == {"the same, broken off", "refusing"}
    assert max(replies, key=lambda name: replies[name]) != "helpful"
    assert "far lower scores than the rest" in prose
    for margin, cost in ((0, "0.69"), (2, "0.13"), (4, "0.02"), (-1, "1.31")):
        assert f"{math.log(1 + math.exp(-margin)):.2f}" == cost and cost in prose

    assert row(shown["agreement"], "pairs") == [343, 129]
    assert "(343 pairs; in 129 both answers ended)" in prose
    assert re.search(r"same order +96% +94%", shown["agreement"])
    assert "In 96% of them the second reading agrees" in prose
    rungs = {rung["judge"]: rung for rung in LADDER}
    for judge, part, said in (
        ("training judge", "all", "It puts 79% of the test pairs into the right order"),
        ("training judge", "all", "The training judge has 79%, the rule 76%"),
        ("rule: it ended, then longer", "all", "The training judge has 79%, the rule 76%"),
        ("training judge", "whole", "it still orders 73%"),
        ("MiniLM, fitted to other data", "all", "a coin, 56% and 57%"),
        ("SmolLM2, fitted to other data", "all", "a coin, 56% and 57%"),
        ("the policy's log-probability", "all", "says a little, 61%"),
        ("the policy's log-probability", "whole", "and 64% where both ended"),
        ("SmolLM2, fitted to other data", "whole", "Where both answers ended, SmolLM2 has 63%."),
        ("evaluating judge", "whole", "Where both ended it has 63% (54% to 71%)"),
        ("SmolLM2 with LoRA, 480 prompts' pairs", "all", "It has 69%, and 60% where both ended"),
        ("SmolLM2 with LoRA, 480 prompts' pairs", "whole", "It has 69%, and 60% where both ended"),
    ):
        assert said in prose and f"{rungs[judge][part]['accuracy']:.0%}" in said
    parts = load_script("fit_judges").graded_rows("judge")[0]
    asked = {row["prompt"] for part in parts for row in part}
    graded = load_feedback(resolve(Bundled("feedback")) / "train.jsonl")
    learned = pairs([row for row in graded if row["prompt"] in asked][:480])
    assert f"{len(learned):,} pairs, the grades of the same 480 prompts" in prose
    tuning = " ".join((ROOT / "docs" / "tuning.md").read_text(encoding="utf-8").split())
    trained = rungs["SmolLM2 with LoRA, 480 prompts' pairs"]
    for part in ("all", "whole"):
        share, low, high = (f"{trained[part][key]:.0%}" for key in ("accuracy", "low", "high"))
        assert f"{share} ({low} to {high}) of" in tuning
    rule = rungs["rule: it ended, then longer"]["all"]["accuracy"]
    assert 0.73 < rule < 0.77 and "three of four pairs" in prose
    second = rungs["evaluating judge"]
    assert second["all"]["accuracy"] < rule and "it's no better than the rule" in prose
    assert [f"{second['whole'][end]:.0%}" for end in ("low", "high")] == ["54%", "71%"]
    for other in ("the policy's log-probability", "SmolLM2, fitted to other data"):
        assert rungs[other]["whole"]["accuracy"] >= second["whole"]["accuracy"], "no more than"
    assert "<b>two-step.</b>" in shown["answer-ladder"]

    test, everywhere, ended = (
        numbers(line.split(":")[1]) for line in shown["lead"].splitlines()[1:4]
    )
    assert (
        test[1] < 0 < test[2] and "On the 128 test prompts alone the interval contains 0" in prose
    )
    assert everywhere[0] == pytest.approx(4, abs=1) and 0 < everywhere[1] < 1
    assert ended[0] == pytest.approx(12, abs=1) and ended[1] > 0
    assert "by about 4 points over all pairs, and by about 12 where both answers ended" in prose
    fifths = {name: row(shown["calibration"], name) for name in ("third", "highest")}
    assert abs(fifths["highest"][0] - fifths["highest"][1]) < 0.2 and "within 0.2" in prose
    assert fifths["third"][:2] == [1.22, 0.89] and "(1.22 for a grade of 0.89)" in prose
    assert 1.25 < 1.22 / 0.89 < 1.45 and "a third too much" in prose
    best, *_ = re.findall(r"mean grade is (\d\.\d+)", shown["answer-scale"])
    assert 4 < float(best) < 4.2 and "mean grade is a little above 4" in prose

    lead = numbers(shown["by-pairs"].split("comparisons: ")[-1])
    assert lead[1] < 0 < lead[2] and "the interval of the difference contains 0" in prose
    assert {round(-lead[1]), round(lead[2])} == {3} and "3 points better or worse" in prose
    by_grades, by_pairs = (numbers(line)[1] for line in shown["by-pairs"].splitlines()[:2])
    assert abs(by_grades - 1.28) < 0.15 and abs(by_pairs - 1.28) > 0.5
    sizes = json.loads((JUDGE / "metrics.json").read_text(encoding="utf-8"))["by_prompts"]
    assert f"from {sizes['25']:.0%} with 25 prompts to {sizes['480']:.0%} with 480" in prose
    assert all(0 < b - a < 0.025 for a, b in pairwise(sizes.values()))
    assert "a point or two for every doubling" in prose


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_pages_that_report_scores_say_how_often_the_judges_are_right(page: str) -> None:
    told = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    rungs = {rung["judge"]: rung for rung in LADDER}
    shares = [
        [f"{rungs[judge][part]['accuracy']:.0%}" for part in ("all", "whole")]
        for judge in ("training judge", "evaluating judge", "rule: it ended, then longer")
    ]
    (all_first, whole_first), (all_second, whole_second), rule = shares
    if page == "README.md":
        assert f"the reader's choice in {all_first} and {all_second} of the pairs" in told
        return
    assert re.search(f"{all_first} of the pairs.* {all_second}", told)
    assert f"where both answers ended, in {whole_first} and {whole_second}" in told
    assert f"has {rule[0]} and {rule[1]}" in told


def test_the_rounds_of_the_judge() -> None:
    shown, prose = outputs_and_prose("03_reward_model.ipynb")
    rows = load_feedback(resolve(Bundled("feedback")) / "round-1.jsonl")
    first = next(answer["source"] for row in rows for answer in row["answers"])
    said_yes = [
        row["prompt"]
        for row in rows
        for answer in row["answers"]
        if answer["source"] == first and answer["text"] == "Yes."
    ]
    asks = re.compile(r"(?i)(is|are|can|could|do|does|did|should|will|would|was|has|have|any)\b")
    assert 0.6 < sum(map(bool, map(asks.match, said_yes))) / len(said_yes) < 0.72
    assert "Two in three of those questions" in prose
    assert "recommend a paint finish for a small bathroom" in said_yes
    assert f"the whole of {len(said_yes)} of the policy's 400 answers" in shown["answer-rounds"]
    assert "Yes." in shown["answer-rounds"] and 'most of them **"Yes."**' in prose
    assert re.search(r"1 +A +400 +1.78 +92% +26% +1.41", shown["rounds-read"])
    assert "A quarter of this policy's answers" in prose and "the reader 1.41" in prose
    found = json.loads((JUDGE / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
    card = (JUDGE / "README.md").read_text(encoding="utf-8").split("## Round by round")[1]
    rounds = {
        int(n): [float(share) for share in re.findall(r"([\d.]+)% \(", shares)]
        for n, shares in re.findall(r"(?m)^\| ([2-4]) rounds \|(.*)$", card)
    }
    moved = [abs(b - a) for n in (3, 4) for a, b in zip(rounds[2], rounds[n], strict=True)]
    assert len(moved) == 10 and max(moved) < 2.5 and "moved by a point or two" in prose
    for kind, count, share in (("round", 747, "67%"), ("", 280, "72%")):
        parts = [v["whole"] for k, v in found.items() if k.startswith("round") == bool(kind)]
        n = sum(part["n"] for part in parts)
        right = sum(part["n"] * part["accuracy"] for part in parts)
        assert (n, f"{right / n:.0%}") == (count, share)
    told = "67% of 747 pairs right where both answers ended, and 72% of 280 pairs"
    assert told in prose


def test_the_tricks_and_their_control() -> None:
    shown, prose = outputs_and_prose("03_reward_model.ipynb")
    assert "<b>No, it&#x27;s generally not.</b>" in shown["tricks"].replace("'", "&#x27;")
    (share,) = set(re.findall(r"above the good answer in (\d+)%", shown["tricks"]))
    assert 57 < int(share) < 63 and "wins six times in ten" in prose
    told = shown["fooled"].splitlines()
    good, trick, average = (numbers(line.split(": ")[1]) for line in told[1:4])
    assert [f"{mean:.1f}" for mean in good] == ["1.4", "2.3"]
    assert "good answers 1.4 on average, and the policy's own 2.3" in prose
    assert [f"{mean:.1f}" for mean in trick] == ["1.5", "1.6"]
    assert average == [1.28] and "average answer has 1.28" in prose
    assert 'not." gets 1.5 to 1.6' in prose
    verdict = shown["solution-4"]
    assert "Right. The judge gives it 2.23 or more" in verdict


def test_one_step() -> None:
    shown, prose = outputs_and_prose("04_ppo_by_hand.ipynb")
    by_kind = row(shown["kl"], "mean per answer")
    assert "1.51 and 1.58 nats per answer" in prose
    assert [f"{n:.2f}" for n in by_kind] == ["1.51", "1.58"]
    sampled, exact = row(shown["kl"], "smallest")
    assert sampled < -1 and exact == 0 and "the sampled one even falls below 0" in prose
    off, error = numbers(shown["kl-verdict"].split("tokens:")[1])[:2]
    assert abs(off) / error == pytest.approx(1 / 6, abs=0.02)
    assert "the difference is a sixth of its standard error" in prose
    best, worst = (numbers(line) for line in shown["70f0a4d6"].splitlines()[:2])
    assert min(best) > 0 > min(worst) and f"{max(worst):+.2f}" == "+0.03"
    praised = "Every token of the best answer is praised, and no token of the worst gets more than"
    assert f"{praised} +0.03" in prose
    assert "score +2.59" in shown["chosen"] and "it would be flat, near 2.6" in prose
    assert "'It' with probability 0.67%" in shown["first-token"]
    assert '"It" had a probability of 0.67%' in prose
    reference, policy = numbers(shown["first-token"].split("last token")[1])
    assert reference == policy == 100 and "The end was certain to both" in prose
    mean, _ = numbers(shown["whiten"].splitlines()[0])
    assert f"{mean:.2f}" == "0.21" and "had the mean 0.21" in prose
    assert "a lot" in shown["shift-test"]

    second = row(shown["update"], "2")
    assert f"{second[2]:.0%}" == "18%" and "18% at the second pass" in prose and second[0] < 0
    assert "ratio" not in shown["update"], "the largest one is still to be guessed"
    assert "' connected', probability 3%, ratio 6.3" in shown["show-moved"]
    assert "a probability of 3%, and is now six times as likely" in prose
    explained, kl = (numbers(line) for line in shown["moved-table"].splitlines())
    assert "3.10 nats, after 1.58" in prose and [f"{n:.2f}" for n in kl] == ["1.58", "3.10"]
    assert kl[0] * 0.7 < kl[1] - kl[0] < kl[0]
    assert "one step adds nearly as much as the three before it together" in prose
    tokens = re.findall(r"\s(\d\d)\s+\d\.\d\d(?=\s)", shown["scores"])
    full = tokens.count("32")
    assert len(tokens) == 16 and (full, full - (12 - (16 - full))) == (5, 4)
    assert "12 of them ended" in shown["sample"] and "Five answers of the table have" in prose
    assert "Four of these are cut off" in prose
    assert [f"{n:.2f}" for n in explained] == ["-0.77", "-0.19"]
    assert "from -0.77 to -0.19" in prose

    largest, policies = re.findall(r"\d\.\de-\d\d", shown["agree"])
    assert "among the 19 numbers" in shown["agree"] and "Nineteen numbers agree" in prose
    assert float(largest) < 1e-4 and float(policies) < 1e-3 and "to four digits" in prose
    sources = {
        cell.id: cell.source
        for cell in nbformat.read(ROOT / "notebooks" / "04_ppo_by_hand.ipynb", 4).cells
    }
    assert '"mixed_precision": "no"' in sources["trainer"], "in float32, whatever the processor"
    assert "assert policies < 1e-3" in sources["agree"] and "by more than 0.001" in prose
