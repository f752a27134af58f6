"""Numbers in the prose of notebooks 01 and 02, against the outputs beside it."""

from __future__ import annotations

import json
import math
import re

import pytest
from safetensors import safe_open
from support import ROOT
from support.notebooks import outputs_and_prose

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.data import first_prompt, load_preferences
from rlhf_tutorial.exercises import EXERCISES
from rlhf_tutorial.ppo import PPOConfig
from rlhf_tutorial.presets import PRESETS

RESULTS = ROOT / "notebooks" / "results" / "smollm2"


def test_prompts() -> None:
    shown, prose = outputs_and_prose("01_prompts.ipynb")
    assert "better on 80" in shown["answer-pushed"] and "on 80 of them" in prose
    assert "2.03 points, and the first answer 1.14" in prose
    assert {"1.14", "2.03"} == set(re.findall(r"\d\.\d\d", shown["three"]))
    validation = load_preferences(Bundled("preferences"), "validation")
    assert f"*validation*, has {len(validation)} prompts" in prose
    assert "finds nothing, and nothing of `validation` in either of them" in prose
    asked = {
        split: {
            tuple(re.findall(r"\w+", first_prompt(text).lower()))
            for text in load_preferences(Bundled("preferences"), split)["chosen"]
        }
        for split in ("train", "validation", "test")
    }
    assert len(set.union(*asked.values())) == sum(map(len, asked.values())) == 640 + 96 + 128
    assert "Rowing is not rowing." in shown["three"] and '"Rowing is not rowing."' in prose
    reading, results = (
        json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for name in ("reading.json", "results.json")
    )
    neither, asked, colder, both, best_of_4 = (
        reading[f"untouched, {name}"]["grade_after"]
        for name in ("no prompt, temperature 1", "temperature 1", "no prompt", "best", "best of 4")
    )
    assert f"untouched policy's mean grade is {neither:.2f}" in prose
    assert f"The system message alone makes it {asked:.2f}" in prose
    assert f"The lower temperature alone (0.3) makes it {colder:.2f}" in prose
    assert f"<b>{both - colder:.3f}.</b> The two together have {both:.2f}" in shown["levers"]
    assert reading["temperatures"]["untouched"] == 0.3
    adds = f"At temperature 1 the system message adds {asked - neither:.2f}. How much does it add"
    assert f"{adds} at 0.3, on top of the {colder:.2f}?" in prose
    trained = reading["best_temperatures"]["default"]["grade_after"]
    assert f"end at {trained:.2f}, the two free levers at {both:.2f}" in prose
    assert f"So PPO adds {trained - both:.2f}," in prose
    assert f"the free levers had added more, {both - neither:.2f}," in prose
    share = (colder - neither) / (both - neither)
    assert 0.45 < share < 0.55 and "Alone, the temperature brings half of the way" in prose
    assert asked - neither < 0.15 and "the system message next to nothing" in prose
    beyond, *_ = re.findall(
        r"bring (\S+) more than they add up to; 95% interval (\S+) to", shown["levers"]
    )
    assert float(beyond[1]) > 0 and "they bring more than the sum" in prose
    assert f"comes near PPO, with {best_of_4:.2f}" in prose
    assert f"one answer alone has {reading['default']['grade_before']:.2f}" in prose
    assert "24 of 64, 38%" in outputs_and_prose("02_policy_and_reference.ipynb")[0]["how-many-end"]
    assert f"{results['comparison']['measures']['before']['ended']:.0%}" == "56%"
    assert "it ends about half of its answers in that room" in prose
    assert "<b>3.</b> 3 prompts from 7 rows" in shown["answer-toy"]
    assert "640 prompts from 640 rows" in shown["prepare"] and "Our own 640 rows all" in prose
    assert "**40 steps**" in shown["steps"] and "Forty steps aren't many" in prose
    assert PRESETS["smollm2"].ppo["ppo_epochs"] == 2 and "is used for two updates" in prose


def test_the_chat_text_of_the_exercise_is_what_the_policy_reads() -> None:
    shown, _ = outputs_and_prose("01_prompts.ipynb")
    (request,) = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", shown["render"])
    text = EXERCISES["chat_text"].solution(PRESETS["smollm2"].template.system, request)
    assert shown["render"].startswith(text) and repr(text) in shown["render"]


def test_policy_and_reference() -> None:
    shown, prose = outputs_and_prose("02_policy_and_reference.ipynb")
    assert f"has {134_515_585 * 4 / 1e6:.0f} MB of weights" in prose
    assert "<b>2690.</b> 5.0 times the policy" in shown["full-copy"]
    assert "several times the memory" in prose
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
    assert "mean 0.022, largest 0.24" in shown["kl-zero"] and "0.022 nats per token" in prose
    (share,) = re.findall(r"<b>(0\.\d+)\.</b>", shown["answer-tail"])
    assert 0.25 < float(share) < 0.33 and "more than every fourth" in prose
    assert "<b>negative.</b>" in shown["answer-sign"]
    whole, split = map(int, re.findall(r"passes: (\d+) ms whole, (\d+) ms", shown["timing"])[0])
    assert 0.4 < 1 - split / whole < 0.5 and "Nearly half of the time is saved" in prose
    assert "0.5: 24 of 64, 38%" in shown["how-many-end"] and "At temperature 0.5, 38%" in prose
    assert "35 of 64" in shown["answer-ending"]
    shares = [int(n) / 64 for n in re.findall(r": (\d+) of 64", shown["how-many-end"])][:3]
    errors = [(p * (1 - p) / 64) ** 0.5 for p in shares]
    hot, middle, cold = shares
    assert abs(middle - hot) < math.hypot(*errors[:2]) and "first two can't be told apart" in prose
    assert abs((cold - middle) / math.hypot(*errors[1:]) - 2) < 0.1
    assert "by two standard errors of the difference" in prose
    card = (resolve(Bundled("feedback")) / "README.md").read_text(encoding="utf-8")
    assert "| 44.7% |" in card and "as 45% to 56%" in prose
    assert "| `train.jsonl` | 640 | 2,560 | 1.24 |" in card and "have a mean of 1.24" in prose
    assert preset.value_head_start == 1.25 and "about the mean grade, 1.25" in prose
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert "21.6 processor seconds with the frozen trunk, 33.3 with LoRA and 40.4 with" in page
    assert 33.3 / 40.4 > 0.8 and "saves less than a fifth of the time" in prose
    assert 0.5 < 21.6 / 40.4 < 0.55 and "the shared trunk saves nearly half" in prose
    assert (
        PPOConfig(batch_size=128).ppo_epochs == 4 and "TRL's default has four PPO epochs" in prose
    )
    assert preset.ppo["ppo_epochs"] == 2 and "(ours two, notebook 05)" in prose
    found = re.findall(r"(SmolLM2|GPT-2) +([\d.]+)% +([\d.]+)%", shown["position-effect"])
    real, columns = ({row[0]: float(row[i]) for row in found} for i in (1, 2))
    assert set(real.values()) == {0.0} and columns["SmolLM2"] == 1e-4 and columns["GPT-2"] > 1
    assert "(0.0001% is rounding)" in prose
    assert "<b>10.</b> As many as ended early" in shown["early-eos"]
    assert "and 10 of the answers end before their 32nd token" in prose


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
