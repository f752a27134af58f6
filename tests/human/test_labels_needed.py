"""The study of simulated readers: labels needed, and the script that asks for them."""

import json

import pytest
from support.chosen import pairs_of, read

from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.human.choice import random_choice
from rlhf_tutorial.human.judge import BayesianJudge, Features
from rlhf_tutorial.human.labels import Pair
from rlhf_tutorial.human.readers import TASTES, SimulatedReader
from rlhf_tutorial.human.study import (
    agreement_in_taste,
    committed_curves,
    committed_steering,
    label_pairs,
    labels_needed,
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


def test_every_two_different_answers_are_a_pair(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "answers": [{"text": "x"}, {"text": "y"}, {"text": "x"}]}\n')
    assert pairs_of_rows(load_feedback(path)) == [Pair("p", "x", "y"), Pair("p", "y", "x")]


def test_every_taste_has_committed_curves_of_three_ways_and_five_seeds():
    curves = committed_curves()
    assert set(curves) == set(TASTES)
    for ways in curves.values():
        assert list(ways) == ["random", "active, weights", "active, pairs"]
        for seeds in ways.values():
            assert len(seeds) == 5
            assert all([row["labels"] for row in c] == list(range(10, 201, 10)) for c in seeds)


def test_steering_is_told_by_taste_with_its_seeds_together(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_tutorial.human.study.resolve", lambda source: tmp_path)
    assert committed_steering().empty
    for seed, rate, right in ((0, 0.6, 70), (1, 0.8, 80)):
        look = {"kl": [seed + 1.0, seed + 3.0], "measures": {"ended": 0.5 + seed / 4}}
        result = {"taste": TASTE, "win_rate": rate, "agreement": [right, 100], "before": look,
                  "after": look}  # fmt: skip
        (tmp_path / f"steer_short_{seed}.json").write_text(json.dumps(result))
    table = committed_steering()
    assert table.index.tolist() == [TASTE]
    row = table.loc[TASTE].to_dict()
    low, high = row.pop("low"), row.pop("high")
    assert 0.6 <= low < 0.7 < high <= 0.8
    assert row == pytest.approx(
        {"seeds": 2, "agreement": 0.75, "win_rate": 0.7, "kl": 2.5, "ended_before": 0.625,
         "ended_after": 0.625}
    )  # fmt: skip
