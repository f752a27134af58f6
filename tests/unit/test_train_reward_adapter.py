"""The script that trains the first judge: its pairs, its split, its constructed bad answers."""

from __future__ import annotations

import random
from types import ModuleType

import pytest
from support.judges import WORDS
from support.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train_reward_adapter")


def test_single_turn_takes_the_place_where_the_dialogues_part(script):
    one = {
        "chosen": "\n\nHuman: a\nb\n\nAssistant: yes",
        "rejected": "\n\nHuman: a\nb\n\nAssistant: no",
    }
    assert script.single_turn(one) == {
        "prompt": "a b", "chosen": "yes", "rejected": "no", "turn": "first",
    }  # fmt: skip
    start = "\n\nHuman: a\n\nAssistant: same\n\nHuman: c\n\nAssistant: "
    two = {"chosen": start + "yes", "rejected": start + "no"}
    assert script.single_turn(two) == {
        "prompt": "a c", "chosen": "yes", "rejected": "no", "turn": "last",
    }  # fmt: skip
    same = {"chosen": start + "yes", "rejected": start + "yes"}
    assert script.single_turn(same) is None
    assert script.single_turn({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}) is None


def test_the_split_is_fixed_by_the_first_human_turn(script):
    splits = [script.split_of(f"prompt {i}") for i in range(5000)]
    shares = {name: splits.count(name) / 5000 for name in set(splits)}
    expected = {
        "judge1-train": 0.48, "judge1-validation": 0.06, "judge1-test": 0.06,
        "judge2-train": 0.32, "judge2-validation": 0.04, "judge2-test": 0.04,
    }  # fmt: skip
    assert shares == pytest.approx(expected, abs=0.02)
    assert script.split_of("How are you?") == script.split_of(" How are you?\n")
    # The rule is part of the card: a change would mix a second judge's data into this one's.
    assert script.split_of("What is the most popular dip flavor?") == "judge1-train"


def test_constructed_answers_repeat_by_seed_and_are_what_they_say(script):
    pairs = [
        {"prompt": f"how to w{i} w{i + 1} at home", "chosen": " ".join(WORDS[i : i + 20])}
        for i in range(30)
    ]
    make = script.constructed_pairs
    assert make(pairs, random.Random(3)) == make(pairs, random.Random(3))
    assert make(pairs, random.Random(3)) != make(pairs, random.Random(4))

    def bad(kind):
        made = make(pairs, random.Random(0), {kind: 1})
        assert all(m["chosen"] == p["chosen"] for m, p in zip(made, pairs, strict=True))
        assert all(m["rejected"] and m["rejected"] != m["chosen"] for m in made)
        return list(zip(pairs, (m["rejected"] for m in made), strict=True))

    answers = {pair["chosen"] for pair in pairs}
    assert all(text in answers and text != pair["chosen"] for pair, text in bad(script.off_topic))
    assert all(pair["prompt"].lower() in text.lower() for pair, text in bad(script.repeated_prompt))
    assert all(
        sorted(text.split()) == sorted(pair["chosen"].split())
        for pair, text in bad(script.shuffled)
    )
    assert all(
        set(text.split()) <= set(pair["chosen"].split()) and len(text.split()) > 30
        for pair, text in bad(script.looping)
    )
    assert all(
        set(text.split()) <= set(pair["prompt"].split()) for pair, text in bad(script.keyword_soup)
    )
    assert len({text for _, text in bad(script.refusal)}) > 25
    seen = {script.refusal("", "", [], random.Random(i)) for i in range(2000)}
    assert not any(text in other for text in script.UNSEEN_REFUSALS for other in seen)
    for kind in script.SHARES:
        bad(kind)
