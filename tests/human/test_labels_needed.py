"""The study of simulated readers: labels needed, and the script that asks for them."""

import pytest
from support.chosen import pairs_of, read

from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.human.choice import random_choice
from rlhf_tutorial.human.judge import BayesianJudge, Features
from rlhf_tutorial.human.labels import Pair
from rlhf_tutorial.human.readers import SimulatedReader
from rlhf_tutorial.human.study import (
    agreement_in_taste,
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
