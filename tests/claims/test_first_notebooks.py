"""Numbers in the prose of notebooks 01 and 02, against the outputs beside it."""

from __future__ import annotations

import re

import pytest
from safetensors import safe_open
from support import ROOT
from support.notebooks import outputs_and_prose

from rlhf_tutorial.assets import resolve
from rlhf_tutorial.exercises import EXERCISES
from rlhf_tutorial.presets import PRESETS


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


def test_policy_and_reference() -> None:
    shown, prose = outputs_and_prose("02_policy_and_reference.ipynb")
    assert f"has {134_515_585 * 4 / 1e6:.0f} MB of weights" in prose
    assert "<b>2690.</b> 5.0 times the policy" in shown["full-copy"]
    assert "five times the memory" in prose
    assert "42,482,305 of 134,515,585" in shown["shared-form"]
    everything, shared, lora = (
        4 * (4 * trained + policy)
        for trained, policy in (
            (134_515_585, 134_515_585),
            (42_482_305, 134_515_585),
            (4_885_057, 139_400_065),
        )
    )
    assert shared < everything / 2 and "less than half of" in prose
    assert lora < everything / 4 and "LoRA less than a quarter" in prose
    mean, spread = re.search(r"mean (\S+), .* ± (\S+)", shown["value-head"]).groups()
    assert round(float(mean)) == -1 and round(float(spread)) == 1 and "a mean of -1" in prose
    preset = PRESETS["smollm2"]
    assert preset.value_head_learning_rate == 5 * preset.ppo["learning_rate"]
    assert "five times the policy's learning rate" in prose
    assert "mean 0.022, largest 0.24" in shown["kl-zero"] and "0.022 nats a token" in prose
    (share,) = re.findall(r"<b>(0\.\d+)\.</b>", shown["answer-tail"])
    assert 0.25 < float(share) < 0.33 and "more than every fourth" in prose
    assert "<b>negative.</b>" in shown["answer-sign"]
    whole, split = map(int, re.findall(r"passes: (\d+) ms whole, (\d+) ms", shown["timing"])[0])
    assert 0.4 < 1 - split / whole < 0.5 and "Nearly half of the time is gone" in prose
    assert "0.5: 24 of 64, 38%" in shown["how-many-end"] and "At temperature 0.5, 38%" in prose
    assert "35 of 64" in shown["answer-ending"]


@pytest.mark.weights
def test_the_levels_on_the_page_are_in_the_weights() -> None:
    policy = resolve(PRESETS["smollm2"].policy)
    with safe_open(policy / "model.safetensors", "pt") as weights:
        matrix = weights.get_tensor("model.layers.0.mlp.down_proj.weight").float()
    blocks = matrix[:100].reshape(-1, 32)
    levels = [len(block.unique()) for block in blocks]
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    assert f"{min(levels)} to {max(levels)} different numbers" in " ".join(page.split())
    assert f"# {[round(x, 4) for x in blocks[0, :8].tolist()]}" in page
