"""What is counted in answers, against counts by hand."""

from __future__ import annotations

import pytest

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.evaluation.measures import (
    bare_yes_or_no,
    commonest_opening,
    distinct,
    echoed,
    ends_in_sentence,
    first_sentence,
    text_measures,
    words,
)


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert words("Don't stop -- it's 42, ÉCLAIR!") == ["don't", "stop", "it's", "42", "éclair"]
    assert words(" ... ") == []


@pytest.mark.parametrize(
    ("query", "response", "share"),
    [
        ("How do I boil an egg?", "Boil the egg.", 2 / 6),
        ("the the the cat", "The dog", 1 / 2),  # different words count once
        ("Why?", "because", 0.0),
        ("Why?", "WHY why, Why!", 1.0),
        ("?!", "anything", 0.0),
        ("egg", "eggs", 0.0),  # words, not letters
    ],
)
def test_echoed_is_the_share_of_the_querys_words(query: str, response: str, share: float) -> None:
    assert echoed(query, response) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("Done.", True), ("Done. \n", True), ('She said "no."', True), ("(Really?)", True),
        ("Wait…", True), ("Done", False), ("1. Take", False), ("", False), ("e.g. this", False),
        ("one:", False), ("**Stop!**", False),
    ],
)  # fmt: skip
def test_sentence_endings(text: str, ends: bool) -> None:
    assert ends_in_sentence(text) is ends


def test_distinct_counts_over_all_responses() -> None:
    # a-b, b-a, a-b / a-b: four bigrams, two kinds.
    assert distinct(["a b a b", "A b"]) == pytest.approx(2 / 4)
    assert distinct(["a b a b", "A b"], n=1) == pytest.approx(2 / 6)
    assert distinct(["one", ""]) == 0.0


def test_all_four_together() -> None:
    measures = text_measures(["a b", "c"], ["A x.", "y z w"])
    assert measures == {
        "words": pytest.approx(2.5),
        "distinct-2": pytest.approx(1.0),
        "echoed": pytest.approx(0.25),
        "ended": pytest.approx(0.5),
    }


@pytest.mark.parametrize(("queries", "responses"), [([], []), (["a"], ["b", "c"])])
def test_lists_that_do_not_match_are_refused(queries: list[str], responses: list[str]) -> None:
    with pytest.raises(DataError, match="one response per query"):
        text_measures(queries, responses)


def test_the_commonest_opening_is_counted_in_lower_case_and_by_words() -> None:
    responses = ["Use a pan.", "use A pot", "Try this", "Use the oven"]
    assert commonest_opening(responses) == ("use a", 0.5)
    assert commonest_opening(responses, n=1) == ("use", 0.75)
    with pytest.raises(DataError, match="no responses"):
        commonest_opening([])


@pytest.mark.parametrize(
    ("query", "response", "bare"),
    [
        ("How do I sleep better?", "Yes.", True),
        ("Name a fish", "No, not really.", True),
        ("Is tea good for me?", "Yes.", False),  # asks for one
        ("I have a cold, can I swim?", "No.", False),
        ("Name a fish", "Yes, trout is a fish.", False),  # says more
        ("Name a fish", "", False),
    ],
)
def test_a_bare_yes_or_no_answers_what_was_not_asked(query: str, response: str, bare: bool) -> None:
    assert bare_yes_or_no(query, response) is bare


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Use salt. It is then", "Use salt."),
        ("Really? Yes, it", "Really?"),
        ("Use salt and then", "Use salt and then"),
        ("1. Take salt\n2. Then", "1. Take salt\n2. Then"),
        ("About 2.5 g is enough.", "About 2.5 g is enough."),
    ],
)
def test_the_first_sentence_ends_before_white_space(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence
