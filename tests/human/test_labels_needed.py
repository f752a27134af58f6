"""The study of simulated readers: labels needed, and the script that asks for them."""

import json

import numpy as np
import pytest
from support.chosen import pairs_of, read

from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.human.choice import random_choice
from rlhf_tutorial.human.judge import BayesianJudge, Features
from rlhf_tutorial.human.labels import Pair
from rlhf_tutorial.human.readers import TASTES, SimulatedReader
from rlhf_tutorial.human.study import (
    FROM_COURSE,
    agreement_in_taste,
    committed_curves,
    committed_steering,
    label_pairs,
    labels_needed,
    labels_needed_table,
    learning_curve,
    pairs_of_rows,
)

TASTE = "short and concrete"


@pytest.fixture(scope="module")
def learned():
    """Forty labels of a taste for few words, which `read` can see."""
    pairs = pairs_of(80)
    features = Features.fit(read, pairs)
    return (
        features,
        label_pairs(pairs[:60], SimulatedReader(TASTE), 40, random_choice(1)),
        pairs[60:],
    )


def test_a_taste_is_learned_and_the_curve_ends_where_the_judge_is(learned):
    features, labels, held_out = learned
    found = agreement_in_taste(BayesianJudge.fit(features, labels, ""), held_out, TASTE)
    assert found.share > 0.85
    curve = learning_curve(features, labels, held_out, TASTE, every=20)
    assert [row["labels"] for row in curve] == [20, 40]
    assert curve[-1]["agreement"] == pytest.approx(found.share, abs=1e-4)
    assert curve[-1]["told"] == sum(label.choice != "tie" for label in labels)


def test_a_lucky_point_does_not_count_as_enough_labels():
    shares = [0.5, 0.72, 0.69, 0.71, 0.75, 0.74, 0.6]
    curve = [{"labels": 10 * (i + 1), "agreement": share} for i, share in enumerate(shares)]
    assert labels_needed(curve, 0.7) == 40
    assert labels_needed(curve, 0.74) is None


def test_the_labels_that_a_taste_needs_are_told_over_its_seeds():
    def curve(*shares):
        return [{"labels": 10 * n, "agreement": share} for n, share in enumerate(shares, start=1)]

    seeds = [curve(0.6, 0.7, 0.7, 0.7), curve(0.8, 0.8, 0.8, 0.8), curve(0.6, 0.6, 0.9, 0.9)]
    table = labels_needed_table({TASTE: {"random": seeds, "active": seeds[:1]}}, shares=(0.7,))
    assert table.loc[(TASTE, "random"), "70%"] == "20 (10 to over 40)"
    assert table.loc[(TASTE, "active"), "70%"] == "20 (20 to 20)"


def test_every_two_different_answers_are_a_pair(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "answers": [{"text": "x"}, {"text": "y"}, {"text": "x"}]}\n')
    assert pairs_of_rows(load_feedback(path)) == [Pair("p", "x", "y"), Pair("p", "y", "x")]


def test_every_taste_has_committed_curves_of_four_ways_and_five_seeds():
    curves = committed_curves()
    assert set(curves) == set(TASTES)
    for ways in curves.values():
        assert list(ways) == ["random", "active, weights", "active, pairs", FROM_COURSE]
        for seeds in ways.values():
            assert len(seeds) == 5
            assert all([row["labels"] for row in c] == list(range(10, 201, 10)) for c in seeds)


def test_steering_is_told_by_taste_and_way_with_its_seeds_together(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_tutorial.human.study.resolve", lambda source: tmp_path)
    assert committed_steering().empty
    queries, before = ["one?", "two?"], ["a longer answer than that.", "it is said in four words"]
    for seed, after in ((0, ["three words here.", "Far more words than there ever were."]),
                        (1, ["three words here.", "no more words."])):  # fmt: skip
        result = {
            "taste": TASTE, "agreement": [70 + 10 * seed, 100], "queries": queries,
            "before": {"answers": before, "scores": {"course": [1.0, 2.0]}},
            "after": {"answers": after, "kl": [seed + 1.0, seed + 3.0],
                      "scores": {"course": [0.5, 2.0]}},
        }  # fmt: skip
        (tmp_path / f"steer_short_{seed}.json").write_text(json.dumps(result))
    ways = {taste: {"best of 4": {"answers": before}} for taste in TASTES}
    (tmp_path / "controls_0.json").write_text(
        json.dumps({"seed": 0, "queries": queries, "before": before, "ways": ways})
    )
    table = committed_steering()
    assert list(table.loc[TASTE].index) == ["first round", "best of 4"]
    row = table.loc[(TASTE, "first round")].to_dict()
    low, high = row.pop("low"), row.pop("high")
    assert 0 <= low < 0.75 < high <= 1
    assert row == pytest.approx(
        {"seeds": 2, "win_rate": 0.75, "worst": 0.5, "best": 1.0, "kl": 2.5, "agreement": 0.75,
         "words": 4.0, "ended": 1.0, "opening": 0.5, "gain": -0.25}
    )  # fmt: skip
    alike = table.loc[(TASTE, "best of 4")]
    assert alike["win_rate"] == 0.5 and np.isnan(alike["kl"])  # the same answers: all ties
