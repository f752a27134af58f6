"""The bundled judges are what their cards say."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
from support import ROOT
from support.judges import load
from support.scripts import load_script

from rlhf_tutorial import assets

ADAPTER = ROOT / "rlhf_tutorial" / "bundled" / "reward_adapter"
SECOND = ROOT / "rlhf_tutorial" / "bundled" / "second_judge"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train_reward_adapter")


@pytest.mark.slow
@pytest.mark.weights
def test_the_bundled_adapter_is_as_good_as_its_card_says(script):
    judge = load(assets.resolve(assets.MINILM), adapter=ADAPTER)
    metrics = json.loads((ADAPTER / "metrics.json").read_text(encoding="utf-8"))
    test = script.course_pairs(script.BUNDLED / "preferences", "test")
    accuracy = script.rate(judge, test)["accuracy"]
    assert accuracy == pytest.approx(metrics["lora"]["whole"]["course"]["accuracy"], abs=0.01)
    assert accuracy > 0.8
    assert f"{accuracy:.1%}" in (ADAPTER / "README.md").read_text(encoding="utf-8")

    question = "How do I teach kids to meditate?"
    helpful, refusing = judge([question] * 2, list(script.MEDITATION))
    assert helpful - refusing > 1


def test_the_bundled_adapter_is_small_and_names_its_base():
    config = json.loads((ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert sum(path.stat().st_size for path in ADAPTER.iterdir()) < 2_000_000


def test_the_judges_share_neither_pairs_nor_kinds_of_bad_answers(script):
    """What the split promises, on dialogues of any first turn."""
    turns = [f"question {i}" for i in range(3000)]
    splits = {turn: script.split_of(turn) for turn in turns}
    assert {name[:6] for name in splits.values()} == {"judge1", "judge2"}
    share = sum(name.startswith("judge2") for name in splits.values()) / len(turns)
    assert share == pytest.approx(0.4, abs=0.03)
    metrics = json.loads((SECOND / "metrics.json").read_text(encoding="utf-8"))
    ours = {kind.__name__.replace("_", " ") for kind in script.SHARES}
    assert not ours & metrics["training"]["kinds"].keys()


@pytest.mark.slow
@pytest.mark.weights
def test_the_second_judge_is_the_one_that_its_card_measured(script):
    judge = load(assets.resolve(assets.SMOLLM2), adapter=SECOND)
    metrics = json.loads((SECOND / "metrics.json").read_text(encoding="utf-8"))
    pairs = script.course_pairs(script.BUNDLED / "preferences", "test")[:16]
    prompts = [pair["prompt"] for pair in pairs]
    chosen, rejected = (judge(prompts, [p[side] for p in pairs]) for side in ("chosen", "rejected"))
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    assert margins == pytest.approx(metrics["margins"], abs=5e-3)
    card = (SECOND / "README.md").read_text(encoding="utf-8")
    for judged in metrics["second"].values():
        assert f"{judged['course']['accuracy']:.1%}" in card


def test_the_second_judge_is_small_and_names_its_base():
    config = json.loads((SECOND / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert sum(path.stat().st_size for path in SECOND.iterdir()) < 6_000_000
