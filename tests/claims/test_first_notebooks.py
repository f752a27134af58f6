"""Numbers in the prose of notebooks 01 and 02, against the outputs beside it."""

from __future__ import annotations

import re

import nbformat
from support import ROOT

from rlhf_tutorial.exercises import EXERCISES
from rlhf_tutorial.presets import PRESETS


def outputs_and_prose(name: str) -> tuple[dict[str, str], str]:
    """The text of each code cell's outputs by the cell's id, and all prose."""
    cells = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
    shown = {
        cell.id: "\n".join(
            out.get("text") or "\n".join(map(str, out["data"].values())) for out in cell.outputs
        )
        for cell in cells
        if cell.cell_type == "code"
    }
    return shown, "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_prompts() -> None:
    shown, prose = outputs_and_prose("01_prompts.ipynb")
    assert "better on 80" in shown["answer-pushed"] and "on 80 of them" in prose
    assert "Rowing is not rowing." in shown["three"] and '"Rowing is not rowing."' in prose
    assert "<b>colder.</b>" in shown["levers"] and "colder +0.94" in shown["levers"]
    assert "train +0.77" in shown["levers"], "smaller than what the temperature gives"
    assert "<b>3.</b> 3 prompts from 7 rows" in shown["answer-toy"]
    assert "640 prompts from 640 rows" in shown["prepare"] and "Our own 640 rows all" in prose
    assert "**40 steps**" in shown["steps"] and "Forty steps aren't many" in prose
    assert PRESETS["smollm2"].ppo["ppo_epochs"] == 2 and "learned from twice" in prose


def test_the_chat_text_of_the_exercise_is_what_the_policy_reads() -> None:
    shown, _ = outputs_and_prose("01_prompts.ipynb")
    (request,) = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", shown["render"])
    text = EXERCISES["chat_text"].solution(PRESETS["smollm2"].template.system, request)
    assert shown["render"].startswith(text) and repr(text) in shown["render"]
