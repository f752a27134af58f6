"""What a judge has learned: a planted word is found, and what is plain is told as plain."""

import numpy as np
import pytest

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.human.learned import extremes, liked_words, plain_causes


def answers(n=300, seed=0):
    rng = np.random.default_rng(seed)
    vocabulary = [f"word{i}" for i in range(30)]
    texts = [" ".join(rng.choice(vocabulary, 6)) for _ in range(n)]
    return texts, rng


def test_a_planted_word_comes_first():
    texts, rng = answers()
    scores = [2.0 * ("word7" in text.split()) + rng.normal() for text in texts]
    table = liked_words(texts, scores)
    assert table.index[0] == "word7"
    assert table["difference"].iloc[0] == pytest.approx(2, abs=4 * table["error"].iloc[0])
    has = ["word7" in text.split() for text in texts]
    assert table["answers"].iloc[0] == sum(has)
    with_it = np.array(scores)[has].mean() - np.array(scores)[~np.array(has)].mean()
    assert table["difference"].iloc[0] == pytest.approx(with_it)


def test_a_rare_word_and_one_in_every_answer_are_left_out():
    texts, rng = answers()
    texts = [f"always {text}" for text in texts[:-1]] + ["always never"]
    table = liked_words(texts, rng.normal(size=300))
    assert not {"always", "never"} & set(table.index)
    assert table["answers"].min() >= 10


def test_best_and_worst():
    table = extremes(list("pqrst"), list("abcde"), [3.0, 5.0, 1.0, 4.0, 2.0], n=2)
    assert table["answer"].tolist() == ["b", "d", "e", "c"]
    assert table["prompt"].tolist() == ["q", "s", "t", "r"]
    few = extremes(["p", "q"], ["a", "b"], [1.0, 2.0], n=5)
    assert few["answer"].tolist() == ["b", "a"]


def test_length_and_ending():
    texts = ["one.", "one two", "one two three.", "one two three four"]
    found = plain_causes(texts, [1.0, 2.0, 3.0, 4.0])
    assert found["words"] == pytest.approx(1)
    assert found["ends"] == pytest.approx(np.corrcoef([1, 0, 1, 0], [1, 2, 3, 4])[0, 1])
    assert plain_causes(["alike", "alike"], [1.0, 2.0]) == {"words": 0.0, "ends": 0.0}


def test_a_single_answer_shows_no_preference():
    with pytest.raises(DataError, match="two at least"):
        liked_words(["one"], [1.0])
