"""Rewards that need no weights: plain rules, for tests and for the preset `tiny`."""

from __future__ import annotations

from ..scores import check_one_each


def rule_reward(queries: list[str], responses: list[str]) -> list[float]:
    """A reward in [-1, 1] that needs no weights: share of letters and spaces, less repetition.

    The share of characters that are ASCII letters or spaces, minus the share of words that already
    stood earlier in the response. An empty response scores -1.
    """
    check_one_each(queries, responses)
    return [_rule_score(response) for response in responses]


def _rule_score(response: str) -> float:
    words = response.lower().split()
    if not words:
        return -1.0
    plain = sum(c == " " or (c.isascii() and c.isalpha()) for c in response) / len(response)
    return plain - (1 - len(set(words)) / len(words))


def rule_of_variety(queries: list[str], responses: list[str]) -> list[float]:
    """The second judge where there are no weights: the number of different words, over ten."""
    check_one_each(queries, responses)
    return [len(set(response.lower().split())) / 10 for response in responses]
