"""Each patient of the clinic has one thing broken, and that one alone."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.reward import rule_reward
from rlhf_tutorial.studies.clinic import (
    PATIENTS,
    TopKSampling,
    by_position,
    departure,
    examined,
    farthest,
    warnings_of,
)
from rlhf_tutorial.studies.looks import experiment

STEPS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    preset = load_preset("tiny")
    ppo = {**preset.ppo, "learning_rate": 1e-4, "init_kl_coef": 0.1}
    return Run(replace(preset, value_head_start=0.5, ppo=ppo), tmp_path_factory.mktemp("clinic"))


@pytest.fixture(scope="module")
def found(run: Run) -> dict[str, dict[str, Any]]:
    queries = run.queries("test").select(range(4))
    return {
        name: examined(run, patient, rule_reward, queries, STEPS)
        for name, patient in PATIENTS.items()
    }


def column(found: dict[str, dict[str, Any]], name: str, key: str) -> np.ndarray:
    return np.array(found[name]["stats"][key])


@pytest.mark.slow
def test_the_healthy_one_is_an_ordinary_training(run: Run, found: dict[str, Any]) -> None:
    queries = run.queries("test").select(range(4))
    ordinary = experiment(run, {"judge": rule_reward}, queries, steps=STEPS)
    for key, name in {"ppo/mean_scores": "score", "objective/kl": "kl"}.items():
        expected = [step[name] for step in ordinary["steps"]]
        assert column(found, "healthy", key) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    for key in ("scores", "kl"):
        assert found["healthy"]["after"][key] == ordinary["looks"][-1][key]
    assert not found["healthy"]["warnings"]
    assert len(json.dumps(found["healthy"])) < 20_000


@pytest.mark.slow
def test_all_begin_with_the_same_policy_and_prompts(found: dict[str, Any]) -> None:
    for name in PATIENTS:
        assert found[name]["before"] == found["healthy"]["before"]
        assert list(column(found, name, "tokens/queries_len_mean")) == list(
            column(found, "healthy", "tokens/queries_len_mean")
        )


@pytest.mark.slow
def test_settings_and_the_judge_are_broken_where_they_are_said_to_be(found: dict[str, Any]) -> None:
    keys = "ppo/learning_rate", "objective/kl_coef"
    for name in PATIENTS:
        rate, beta = (column(found, name, key)[0] for key in keys)
        assert rate == (1e-3 if name == "learning-rate" else 1e-4)
        assert beta == (0 if name == "no-kl" else 0.1)
        same = {"sign": -1, "top-k": None, "dropout": None}.get(name, 1)
        if same:
            score = column(found, "healthy", "ppo/mean_scores")[0]
            assert column(found, name, "ppo/mean_scores")[0] == pytest.approx(same * score)
    assert not column(found, "no-kl", "ppo/mean_non_score_reward").any()


@pytest.mark.slow
def test_a_dead_value_head_says_what_it_said_at_the_start(found: dict[str, Any]) -> None:
    assert list(column(found, "dead-value-head", "ppo/val/mean")) == [0.5] * STEPS
    assert column(found, "healthy", "ppo/val/mean")[-1] != 0.5


@pytest.mark.slow
def test_prompts_and_padding_make_the_responses_longer(found: dict[str, Any]) -> None:
    keys = "tokens/responses_len_mean", "tokens/responses_len_std"
    lengths = {
        name: [column(found, name, key)[0] for key in keys]
        for name in ("healthy", "prompt", "padding")
    }
    queries = column(found, "healthy", "tokens/queries_len_mean")[0]
    assert lengths["prompt"][0] == pytest.approx(lengths["healthy"][0] + queries, rel=1e-3)
    assert lengths["padding"] == [16, 0] and lengths["healthy"][1] > 0
    (prompt,), (padding,) = found["prompt"]["warnings"], found["padding"]["warnings"]
    assert "begins with its query" in prompt and "padding" in padding


@pytest.mark.slow
def test_only_dropout_moves_the_first_ratio(found: dict[str, Any]) -> None:
    for name in PATIENTS:
        off = column(found, name, "first_ratio")
        assert (off > 0.01).all() if name == "dropout" else not off.any()
    assert column(found, "dropout", "objective/kl")[0] != 0


@pytest.mark.slow
def test_top_k_draws_from_five_tokens(run: Run) -> None:
    trainer = run.make_trainer()
    trainer.__class__ = TopKSampling
    query = run.queries()["input_ids"][0]
    (text,) = trainer.generate([query], max_new_tokens=12)
    bf16 = trainer.accelerator.mixed_precision == "bf16"  # as the processor has it
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = trainer.policy(input_ids=text[None])[0][0]
    ranks = (logits[:-1] > logits[:-1].gather(1, text[1:, None])).sum(dim=1)[len(query) - 1 :]
    assert len(ranks) == 12 and ranks.max() < 5 and ranks.max() > 0


def test_the_departure_counts_the_first_mini_batch_and_no_padding() -> None:
    mask = np.array([[1.0, 1.0], [1.0, 0.0]])
    ratio = np.array([1.2, 0.9, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0])
    stats = {"objective/mask": mask, "ppo/policy/ratio": ratio}
    assert departure(stats) == pytest.approx(0.3 / 3)


def test_positions_are_means_over_the_responses_that_reach_them() -> None:
    stats = {
        "objective/mask": np.array([[1.0, 1.0], [1.0, 0.0]]),
        "objective/logprobs": np.array([[-1.0, -0.5], [-2.0, -99.0]]),
        "objective/ref_logprobs": np.array([[-1.5, -2.5], [-2.0, 99.0]]),
    }
    assert by_position(stats) == {"responses": [2, 1], "surprise": [1.5, 0.5], "kl": [0.25, 2.0]}


def test_warnings_are_heard_once_each_and_only_in_the_meantime() -> None:
    logger = logging.getLogger("rlhf_tutorial.a_test")
    with warnings_of("rlhf_tutorial") as heard:
        for i in (1, 2):
            logger.warning("response %d is no text", i)
        logger.info("nothing")
    logger.warning("too late")
    assert heard == ["response 1 is no text"]


def test_the_farthest_panels_are_named_by_the_healthy_ones_scatter() -> None:
    healthy = pd.DataFrame({"a": [1.0, 3.0], "b": [10.0, 30.0], "c": [0.0, 0.0]})
    patient = pd.DataFrame({"a": [9.0, 9.0], "b": [30.0, 30.0], "c": [0.01, 0.01]})
    told = farthest(patient, healthy, {"a": "A", "b": "B", "c": "C"}, number=2)
    assert told.endswith("mean of all steps: C: 0.01 (healthy: 0); A: 9 (healthy: 2).")
