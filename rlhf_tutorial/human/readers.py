"""Simulated readers, each with one taste that is written down, for what nobody can click.

They stand in for a person where the course is rendered and where five seeds are needed. What learns
never sees a taste, only choices: nothing that fits, chooses or trains imports this module.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..evaluation.measures import words
from .labels import Pair

ERRORS = 0.1
"""The share of choices between two unlike answers that a simulated reader gets the wrong way."""

HEDGES = set(
    words(
        """
        various many several often typically usually generally depending depends variety
        different important essential crucial combination consider considered however while
        overall specific certain unique concept process ensure ability factors aspects
        """
    )
)
"""Words of an answer that does not commit itself."""
WARM = set(
    words(
        """
        you your yours you're you'll you've yourself i i'm i'll i'd i've my me we we're we'll
        let's our us love lovely great good wonderful happy glad enjoy fun beautiful delicious
        cosy cozy sweet friend friends welcome sorry hope please thanks thank
        """
    )
)
"""Words that speak to somebody, or kindly."""
NUMBER_WORDS = set(
    words(
        """
        one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty
        forty fifty hundred hundreds thousand thousands million billion dozen half quarter twice
        """
    )
)


def short_and_concrete(text: str) -> float:
    """The fewer words the better, three at least; a hedge costs as much as five words more."""
    said = words(text)
    if len(said) < 3:
        return -100.0
    return -float(len(said) + 5 * sum(word in HEDGES for word in said))


def warm_and_personal(text: str) -> float:
    """How many different words speak to somebody, or kindly; beyond three it makes no difference.

    A word with an exclamation mark behind it counts as one such word.
    """
    return float(min(3, len(WARM & set(words(text))) + ("!" in text)))


def names_a_number(text: str) -> float:
    """1 for an answer with a number in it, in figures or in words; 0 for others."""
    return float(bool(re.search(r"\d", text)) or not NUMBER_WORDS.isdisjoint(words(text)))


TASTES: dict[str, Callable[[str], float]] = {
    "short and concrete": short_and_concrete,
    "warm and personal": warm_and_personal,
    "names a number": names_a_number,
}


def preferred(taste: Callable[[str], float], pair: Pair) -> str:
    """What somebody of this taste chooses who makes no errors: "a", "b" or "tie"."""
    a, b = taste(pair.a), taste(pair.b)
    return "tie" if a == b else "a" if a > b else "b"


@dataclass
class SimulatedReader:
    """Chooses by one of `TASTES`, but a tenth of its choices the wrong way round, by a seed."""

    taste: str
    seed: int = 0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def __call__(self, pair: Pair) -> str:
        """ "a", "b" or "tie"."""
        choice = preferred(TASTES[self.taste], pair)
        erred = self._draw.random() < ERRORS  # drawn for ties as well: one draw a pair
        return {"a": "b", "b": "a"}.get(choice, choice) if erred else choice
