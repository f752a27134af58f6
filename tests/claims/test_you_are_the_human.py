"""What notebook 10 says in numbers, against the committed study of simulated readers."""

from __future__ import annotations

import re

import nbformat
import numpy as np
from support import ROOT
from support.notebooks import outputs_and_prose, row

from rlhf_tutorial.human.judge import COMPONENTS, VARIANCES
from rlhf_tutorial.human.readers import short_and_concrete
from rlhf_tutorial.human.study import committed_curves

CELLS = nbformat.read(ROOT / "notebooks" / "10_you_are_the_human.ipynb", as_version=4).cells
PROSE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")


def agreement(taste: str, way: str, labels: int) -> float:
    """The mean over the seeds."""
    seeds = committed_curves()[taste][way]
    found = [row["agreement"] for seed in seeds for row in seed if row["labels"] == labels]
    assert len(found) == 5
    return float(np.mean(found))


def test_what_is_said_of_each_taste_is_what_its_curves_show() -> None:
    def lead(taste: str, labels: int, way: str = "active, weights") -> float:
        return agreement(taste, way, labels) - agreement(taste, "random", labels)

    others = ("short and concrete", "names a number")
    assert all(lead("warm and personal", 40) > lead(taste, 40) for taste in others)
    assert round(100 * lead("warm and personal", 80)) == 9
    assert "gains most, nine points still at 80 labels" in PROSE
    assert all(abs(lead("short and concrete", n)) < 0.02 for n in range(40, 201, 10))
    assert "the lines lie on each other" in PROSE
    assert lead("names a number", 20) > 0.1 and abs(lead("names a number", 60)) < 0.005
    assert "has lost its lead at 60 labels" in PROSE
    assert all(lead("names a number", n, "active, pairs") > 0.01 for n in range(40, 201, 10))
    assert "its rival, which asks about other pairs, keeps one" in PROSE


def test_the_judge_is_as_it_is_told() -> None:
    assert COMPONENTS == 64 and "there are 64 weights" in PROSE
    assert len(VARIANCES) == 11 and "the fit tries eleven" in PROSE


SHOWN, _ = outputs_and_prose("10_you_are_the_human.ipynb")


def numbers(cell: str, name: str) -> list[float]:
    return row(SHOWN[cell], name)


def by(start: str) -> str:
    (found,) = (cell.id for cell in CELLS if cell.source.startswith(start))
    return found


def test_the_first_round_is_told_as_it_went() -> None:
    habits = by("table = habits(asked")
    assert numbers(habits, "words") == [20.88, 1.06]
    assert numbers(habits, "opens with “no”") == [0.0, 0.96]
    assert "96% open with it, and an answer has 1.1 words where it had 20.9" in PROSE
    veil = SHOWN[by("judges = {")]
    assert "1 went to the trained policy, 19 to the untouched one" in veil
    assert "Your own judge agreed with you 1 of 20 times" in veil
    assert "The course's judge agreed with you 14 of 20 times" in veil
    assert "nineteen of twenty choices went to the *untouched* policy" in PROSE
    assert "agreed with the reader once in twenty" in PROSE and "agreed fourteen times" in PROSE
    assert "chooses as they do in 66%" in SHOWN[by("judge = BayesianJudge.fit(")]
    assert "right in two of three choices that it hasn't seen" in PROSE


def test_why_no_wins_the_judge_and_not_the_reader() -> None:
    assert "shortest answer that was labelled: 2\n" in SHOWN[by("trick = max(after")]
    assert "84% of the time, the judge says" in SHOWN[by("trick = max(after")]
    assert "nobody has ever asked it about an answer of one" in PROSE
    assert short_and_concrete("No no.") < short_and_concrete("No no no " * 20)
    assert numbers(by("prompts = [pair.prompt for pair in pairs] * 2"), "no")[0] > 0.5


def test_twelve_labels_change_what_wins() -> None:
    verdict = SHOWN[by("verdict = pd.DataFrame")]
    assert [round(100 * x) for x in numbers(by("verdict = pd.DataFrame"), "win_rate")] == [2, 70]
    assert "[0.5625, 0.822917]" in verdict and "2% into 70% (56% to 82%)" in PROSE
    said = SHOWN[by('pd.DataFrame({"prompt": asked, "before": before, "second round"')]
    for answer in re.findall(r"“([^”]+\.)” ", PROSE.split("Now read what the winner says:")[1]):
        assert answer in said
