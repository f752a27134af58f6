"""The bundled preferences: their form, their balance, and what their card says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.scripts import load_script

from rlhf_tutorial import assets
from rlhf_tutorial.data import load_preferences, parse_dialogue

FOLDER = Path(assets.__file__).parent / "bundled" / "preferences"
ROWS = {"train": 640, "validation": 96, "test": 128}
KINDS = {"different", "vague", "offpoint", "padded", "refusing", "wrong"}


@pytest.fixture(scope="module")
def baselines() -> ModuleType:
    return load_script("preference_baselines")


@pytest.fixture(scope="module")
def splits(baselines: ModuleType) -> dict[str, list[Any]]:
    return {name: baselines.read_split(FOLDER / f"{name}.jsonl") for name in ROWS}


@pytest.fixture(scope="module")
def rows(splits: dict[str, list[Any]]) -> list[Any]:
    return [row for split in splits.values() for row in split]


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads((FOLDER / "baselines.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("split", ROWS)
def test_rows_are_one_request_with_two_replies(split: str) -> None:
    data = load_preferences(FOLDER, split)
    assert len(data) == ROWS[split]
    assert set(data.column_names) == {"chosen", "rejected", "topic", "kind"}
    for row in data:
        chosen, rejected = parse_dialogue(row["chosen"]), parse_dialogue(row["rejected"])
        assert [role for role, _ in chosen] == [role for role, _ in rejected]
        assert [role for role, _ in chosen] == ["Human", "Assistant"]
        assert chosen[0] == rejected[0]
        assert chosen[1] != rejected[1]
        assert row["kind"] in KINDS


def test_lengths(rows: list[Any]) -> None:
    for row in rows:
        assert 15 <= len(row.prompt) <= 99, row.prompt
        assert 15 <= len(row.chosen.split()) <= 70, row.chosen
        assert 15 <= len(row.rejected.split()) <= 70, row.rejected


def test_no_request_stands_twice(rows: list[Any]) -> None:
    folded = [" ".join(re.findall(r"\w+", row.prompt.lower())) for row in rows]
    assert len(set(folded)) == sum(ROWS.values())


def test_topics_and_kinds_in_every_split(splits: dict[str, list[Any]]) -> None:
    for split in splits.values():
        assert len({row.topic for row in split}) >= 15
        assert {row.kind for row in split} == KINDS


def test_plain_text(rows: list[Any]) -> None:
    markup = re.compile(r"https?:|www\.|\*\*|`|</?[a-z]+>|^\s*[-*#]\s|[“”‘’\n\t]")
    for row in rows:
        for text in (row.prompt, row.chosen, row.rejected):
            assert not markup.search(text), text


def test_the_better_reply_is_as_often_the_shorter(
    baselines: ModuleType, splits: dict[str, list[Any]], rows: list[Any]
) -> None:
    for split in splits.values():
        assert 0.4 <= np.mean([baselines.longer(row) for row in split]) <= 0.6
    for kind in KINDS:
        share = np.mean([baselines.longer(row) for row in rows if row.kind == kind])
        assert 0.3 <= share <= 0.7, kind


def test_the_length_difference_predicts_nothing(baselines: ModuleType, rows: list[Any]) -> None:
    margins = baselines.cross_validated_margins(baselines.length_differences(rows))
    assert baselines.accuracy(margins)["accuracy"] <= 0.6


def test_no_function_of_length_predicts_more_than_60_percent(
    baselines: ModuleType, rows: list[Any]
) -> None:
    margins = baselines.cross_validated_margins(baselines.length_step_differences(rows, 3))
    assert baselines.accuracy(margins)["accuracy"] <= 0.6


def test_baselines_are_those_of_these_rows(
    baselines: ModuleType, splits: dict[str, list[Any]], committed: dict[str, Any]
) -> None:
    now = baselines.cheap_figures(splits)
    assert now == {name: committed[name] for name in now}


@pytest.mark.parametrize(
    "feature",
    ["length in steps of 3 words", pytest.param("word presence", marks=pytest.mark.slow)],
)
def test_shortcuts_are_no_stronger_than_the_card_says(
    feature: str, baselines: ModuleType, rows: list[Any], committed: dict[str, Any]
) -> None:
    features = baselines.length_features(rows) | baselines.bag_features(rows)
    found = baselines.accuracy(baselines.cross_validated_margins(features[feature]))
    stated = committed["fitted"][feature]["cross-validated"]
    # Another machine's rounding may turn a row or two whose margin is next to zero.
    assert abs(found["correct"] - stated["correct"]) <= 2


def test_the_card_quotes_the_baselines(baselines: ModuleType, committed: dict[str, Any]) -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for table in baselines.tables(committed):
        assert table in card
    for name, sizes in committed["lengths"].items():
        assert f"| {name} | {sizes['min']} to {sizes['max']}, mean {sizes['mean']} |" in card
    for topic, number in committed["topics"].items():
        assert f"{topic} ({number})" in card
    assert f"similarity of {committed['closest prompts']['cosine']} under MiniLM" in card
    shown = committed["fitted"]
    in_text = [
        shown["word presence"]["train to test"]["accuracy"],
        shown["length in steps of 5 words"]["cross-validated"]["accuracy"],
    ]
    prose = "\n".join(line for line in card.splitlines() if not line.startswith("|"))
    for share in in_text:
        assert f"{100 * share:.1f}%" in prose


def test_the_regression_finds_the_minimum(baselines: ModuleType) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)) + np.array([0.5, 0.0, -0.3])
    train, penalty = np.arange(40), 0.01
    # Margins on the unit vectors are the weights; the gradient of the loss there must vanish.
    weights = baselines.logistic_margins(np.vstack([x, np.eye(3)]), train, np.arange(40, 43))
    p = 1 / (1 + np.exp(-(x @ weights)))
    gradient = -(x * (1 - p)[:, None]).mean(axis=0) + penalty * weights
    assert np.abs(gradient).max() < 1e-8
    assert np.abs(weights).max() > 0.1


def test_cross_validation_never_sees_the_row_it_judges(baselines: ModuleType) -> None:
    # Each row has a feature of its own and nothing else: known rows are certain, unseen ones ties.
    x = np.eye(50)
    assert (baselines.logistic_margins(x, np.arange(50), np.arange(50)) > 0).all()
    assert (baselines.cross_validated_margins(x) == 0).all()
    assert baselines.accuracy(np.zeros(50))["correct"] == 25


@pytest.mark.slow
@pytest.mark.weights
def test_no_two_requests_are_near_paraphrases(
    baselines: ModuleType, rows: list[Any], committed: dict[str, Any]
) -> None:
    closest = baselines.closest_prompts([row.prompt for row in rows])
    assert closest["cosine"] <= 0.9
    assert closest["prompts"] == committed["closest prompts"]["prompts"]
    assert closest["cosine"] == pytest.approx(committed["closest prompts"]["cosine"], abs=0.005)
