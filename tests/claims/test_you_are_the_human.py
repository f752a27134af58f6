"""What notebook 10 says in numbers, against the committed study of simulated readers."""

from __future__ import annotations

import nbformat
import numpy as np
from support import ROOT

from rlhf_tutorial.human.judge import COMPONENTS, VARIANCES
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
