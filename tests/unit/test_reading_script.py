"""scripts/reading.py: who is read, at which temperature, and what is reported."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from support.scripts import load_script

from rlhf_tutorial.evaluation.reading import compare_sources
from rlhf_tutorial.ppo import PPOConfig


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("reading")


def row(prompt: str, grades: dict[str, int]) -> dict[str, Any]:
    order = sorted(grades, key=lambda name: -grades[name])
    return {
        "prompt": prompt,
        "answers": [
            {"source": s, "text": s, "ended": g > 0, "grade": g, "rank": order.index(s) + 1}
            for s, g in grades.items()
        ],
    }


def test_the_best_temperature_has_the_best_mean_and_of_equal_ones_is_the_lowest(script):
    names = ["untouched at 0.3", "untouched at 0.01", "long at 0.5", "long at 0.3"]
    rows = [
        row(prompt, dict(zip(names, grades, strict=True)))
        for prompt, grades in {"a": (2, 1, 3, 3), "b": (2, 2, 1, 1)}.items()
    ]
    assert script.best_temperatures(rows) == {"untouched": 0.3, "long": 0.3}


def test_every_control_and_every_training_is_read_and_reported(script):
    best = {"untouched": 0.3, "default-0": 0.01, "long": 0.5}
    sources = script.test_sources(best)
    assert sources["default-2, best"].temperature == 0.01, "seeds share the first one's temperature"
    assert sources["long, best"].temperature == 0.5
    assert sources["untouched"].temperature == script.PRESET.ppo["temperature"]
    assert not sources["untouched, no prompt"].system
    assert sources["untouched, best of 4"].best_of == 4
    assert sources["untouched, until it ends"].until_ended == 8
    rows = [row(str(i), {name: (i + k) % 6 for k, name in enumerate(sources)}) for i in range(12)]
    results = script.report(rows, best)
    seeds = ["default-0", "default-1", "default-2"]
    assert results["default"] == compare_sources(rows, "untouched", seeds)
    assert results["best_temperatures"]["long"] == compare_sources(
        rows, "untouched, best", ["long, best"]
    )
    controls = {name for name in sources if name.startswith("untouched,")} | {"fine-tuned"}
    trained = {"default", "long", "best_temperatures", "gain_by_ending"}
    assert set(results) == {"temperatures", *trained, *controls}
    assert set(results["gain_by_ending"]) == trained - {"gain_by_ending"}


def test_the_arms_are_the_preset_with_one_thing_changed():
    tuning = load_script("tuning")
    preset = tuning.preset_of("default", 2)
    assert PPOConfig(**preset.ppo).seed == 2 and preset.num_shared_layers == 18
    assert tuning.preset_of("top-8", 0).num_shared_layers == 22
    long = tuning.preset_of("long", 0)
    assert long.epochs == 4 and long.ppo["batch_size"] == long.ppo["mini_batch_size"] == 64
    assert tuning.preset_of("kl-0.1", 0).ppo["init_kl_coef"] == 0.1


def test_drawing_again_stops_at_the_first_answer_that_ends(script):
    ended = {"a": [False, True, True], "b": [True, False, False], "c": [False, False, False]}
    rows = [
        {"prompt": p, "answers": [{"text": str(i), "ended": e} for i, e in enumerate(row)]}
        for p, row in ended.items()
    ]
    assert [answer["text"] for answer in script._first_ended(rows)] == ["1", "0", "2"]


def test_of_several_answers_the_judge_chooses(script):
    rows = [{"prompt": "?", "answers": [{"text": t} for t in ("a", "bbb", "cc")]}]
    chosen = list(script._chosen(rows, lambda prompts, texts: [len(t) for t in texts]))
    assert chosen == [{"text": "bbb"}]


@pytest.mark.parametrize(
    ("text", "kept", "ended"),
    [
        ("Use salt. It is then", "Use salt.", True),
        ("Use salt and then", "Use salt and then", False),
        ("1. Take salt\n2. Then", "1. Take salt\n2. Then", False),
        ("About 2.5 g is", "About 2.5 g is", False),
        ("Really? Yes, it", "Really?", True),
    ],
)
def test_an_answer_is_cut_after_its_first_sentence(text, kept, ended, script):
    answer = {"text": text, "ended": False}
    assert script.cut(answer) == {"text": kept, "ended": ended}
