"""Notebooks 05 to 07: what their prose says of the committed run, against its results."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from support import ROOT

RESULTS = ROOT / "notebooks" / "results" / "smollm2"
LOG = pd.DataFrame(
    [json.loads(line) for line in (RESULTS / "stats.jsonl").read_text("utf-8").splitlines()]
)


class Notebook:
    """A committed notebook: its prose in one line, and what its cells have shown."""

    def __init__(self, name: str) -> None:
        (path,) = (ROOT / "notebooks").glob(f"{name}_*.ipynb")
        self.cells: list[Any] = nbformat.read(path, as_version=4).cells
        told = "\n".join(cell.source for cell in self.cells if cell.cell_type == "markdown")
        self.prose = " ".join(told.split())

    def shown(self, cell: str) -> str:
        """A cell's outputs as text; of a guess the answer and the reason."""
        (outputs,) = (c.outputs for c in self.cells if c.id == cell)
        (text,) = (
            str(out.get("text") or out.data.get("text/markdown") or out.data["text/plain"])
            if "<details>" not in (html := out.get("data", {}).get("text/html", ""))
            else re.sub("<[^>]+>", "", html.split("</summary>")[1])
            for out in outputs
        )
        return text

    def says(self, *parts: str) -> bool:
        return all(part in self.prose for part in parts)


@pytest.fixture(scope="module")
def training() -> Notebook:
    return Notebook("05")


def tens(key: str) -> list[float]:
    """The means of a number of the log over ten steps each."""
    return LOG[key].to_numpy().reshape(-1, 10).mean(axis=1).tolist()


@pytest.mark.parametrize("name", ["05"])
def test_there_is_something_to_guess_and_something_to_write(name: str) -> None:
    cells = Notebook(name).cells
    order, solutions = [], 0
    for before, cell in pairwise(cells):
        if cell.cell_type == "code" and cell.source.startswith("guess = None"):
            assert "**Guess.**" in before.source
            order.append("guess")
        if cell.cell_type == "code" and "reveal(" in cell.source:
            order.append("answer")
        solutions += "solution" in cell.metadata.get("tags", [])
    assert order == ["guess", "answer"] * (len(order) // 2) and len(order) >= 6
    assert solutions >= 3


def test_the_training_rose_and_paid(training: Notebook) -> None:
    scores, kl = tens("ppo/mean_scores"), tens("objective/kl")
    assert training.says(f"from {scores[0]:.2f} in the first ten batches to {scores[-1]:.2f}")
    rise = scores[-1] - scores[0]
    errors = LOG["ppo/std_scores"].to_numpy().reshape(-1, 10) / 4
    of_ten = np.sqrt((errors**2).sum(axis=1)) / 10
    assert rise / np.hypot(of_ten[0], of_ten[-1]) > 4
    assert training.says(f"The rise of {rise:.2f} is more than four times its standard error")
    left = [score - 0.05 * nats for score, nats in zip(scores, kl, strict=True)]
    assert training.says("Read the last line: " + ", ".join(f"{x:.2f}" for x in left) + ".")
    assert scores[3] - scores[1] == pytest.approx(0.08, abs=0.005)
    assert kl[3] - kl[1] == pytest.approx(0.7, abs=0.05)
    late = left[3] - left[1]
    assert f"{late:.2f}" == "0.05" and late < np.hypot(of_ten[1], of_ten[3])
    assert training.says("0.08 of score for 0.7 nats, and what's left, 0.05, is less than its")
    assert f"{left[1] - left[0]:.2f}" == "0.17"
    assert 45 < 100 * 0.05 * (kl[-1] - kl[0]) / rise < 55 and training.says("here half of it was")
    falls = int((np.diff(LOG["ppo/mean_scores"]) < 0).sum())
    assert training.shown("falls").startswith(f"{falls}. Of 39.")


def test_the_training_is_as_healthy_as_the_table_says(training: Notebook) -> None:
    late = LOG["objective/kl"][15:]
    assert training.says(f"between {late.min():.1f} and {late.max():.1f} from step 16 on")
    for key, form in (
        ("ppo/policy/entropy", "{0:.2f} → {1:.2f} nats."),
        ("ppo/policy/clipfrac", "{0:.0%} → {1:.0%}: as"),
        ("tokens/responses_len_mean", "{0:.1f} → {1:.1f} tokens"),
    ):
        means = tens(key)
        assert training.says(form.format(means[0], means[-1])), key
    explained = tens("ppo/val/var_explained")
    assert [x < 0 for x in explained] == [False, True, False, False]
    assert f"{explained[-1]:.2f}" in ("0.14", "0.15") and training.says("0.15 at the end")
    lag = np.array(tens("ppo/returns/mean")) - tens("ppo/val/mean")
    assert lag.argmax() == 1 and training.says("the scores ran ahead of the head")


def test_the_run_on_new_prompts_is_as_its_tables_have_it(training: Notebook) -> None:
    signs = training.shown("signs-table")
    row = dict(re.findall(r"(?m)^(.+?) {2,}.*? (\S+)$", signs))
    assert row["ends in a sentence"] == "93%" and "48%" in signs
    assert training.says("48 end in a sentence", "one in fourteen", "shorter by nine words")
    assert training.says("15 answers in 100 before and 20 after", "no two words open more than 4")
    gains = re.findall(r"\+(0\.\d\d) \(", training.shown("prediction"))
    assert gains == ["0.82", "0.61"]
    assert training.says("0.82 grades by the judge that trained it, and 0.61 by a judge")
    assert training.says("0.6 to 0.8 grades better")
    assert training.shown("long-answer").startswith("1.33.")
