"""Simulated readers: their tastes on hand-made texts, and their errors."""

import pytest

from rlhf_tutorial.human.labels import Pair
from rlhf_tutorial.human.readers import (
    SimulatedReader,
    names_a_number,
    preferred,
    short_and_concrete,
    warm_and_personal,
)


def test_short_and_concrete():
    assert short_and_concrete("Boil it for six minutes.") == -5
    assert short_and_concrete("It depends on various factors, typically.") == -(6 + 5 * 4)
    assert short_and_concrete("Boil it.") == short_and_concrete("") == -100
    assert short_and_concrete("Boil it well.") > short_and_concrete("Boil it well, and serve.")


def test_warm_and_personal():
    assert warm_and_personal("The oven is hot.") == 0
    assert warm_and_personal("You can trust your oven.") == 2
    assert warm_and_personal("You, you and YOU.") == 1
    assert warm_and_personal("Enjoy!") == 2
    assert warm_and_personal("I hope you enjoy your lovely day!") == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [("Wait 10 minutes.", 1), ("Wait ten minutes.", 1), ("Wait a while.", 0), ("Often.", 0)],
)
def test_names_a_number(text, named):
    assert names_a_number(text) == named


def test_what_is_preferred():
    assert preferred(names_a_number, Pair("p", "Take 3.", "Take some.")) == "a"
    assert preferred(names_a_number, Pair("p", "Take some.", "Take 3.")) == "b"
    assert preferred(names_a_number, Pair("p", "Take 4.", "Take 3.")) == "tie"


def test_a_tenth_of_the_choices_is_flipped_and_no_tie():
    read = SimulatedReader("names a number", seed=5)
    told, tied = Pair("p", "Take 3.", "Take some."), Pair("p", "Take 3.", "Take 4.")
    choices = [read(told) for _ in range(2000)]
    assert set(choices) == {"a", "b"}
    assert choices.count("b") / 2000 == pytest.approx(0.1, abs=0.02)
    assert {read(tied) for _ in range(100)} == {"tie"}


def test_a_seed_fixes_the_errors():
    pair = Pair("p", "Take 3.", "Take some.")
    one, same, other = (SimulatedReader("names a number", seed) for seed in (1, 1, 2))
    first = [one(pair) for _ in range(200)]
    assert first == [same(pair) for _ in range(200)]
    assert first != [other(pair) for _ in range(200)]
