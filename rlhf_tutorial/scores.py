"""What a reward is, and what it gave, checked: one finite number per response."""

from __future__ import annotations

import math
import numbers
from typing import Any, Protocol

from .errors import RewardError


class Reward(Protocol):
    """A reward is any callable that gives one finite float per (query, response)."""

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]: ...


def checked_scores(scores: Any, count: int) -> list[float]:
    """What a reward returned for `count` responses, as floats.

    Numbers may also be tensors or arrays of one element each.

    Raises:
        RewardError: unless there are as many finite numbers as responses.
    """
    wanted = "it must give a list of numbers, one per response"
    try:
        if isinstance(scores, (str, bytes, dict, set)):
            raise TypeError
        values = list(scores)
    except TypeError as error:
        raise RewardError(f"the reward gave a {type(scores).__name__}: {wanted}") from error
    if len(values) != count:
        raise RewardError(
            f"the reward gave {len(values)} scores for {count} responses: it must give one per "
            "response"
        )
    return [_checked_score(value, i) for i, value in enumerate(values)]


def _checked_score(value: Any, i: int) -> float:
    shape = getattr(value, "shape", ())
    if math.prod(shape) == 1 and hasattr(value, "item"):  # of torch or NumPy
        value = value.item()
    if not isinstance(value, numbers.Real):
        what = f"of shape {tuple(shape)}" if shape else f"a {type(value).__name__}"
        raise RewardError(f"the score of response {i} is {what}: it must be one number")
    try:
        score = float(value)
    except OverflowError:  # an integer of hundreds of digits
        score = math.inf
    if not math.isfinite(score):
        raise RewardError(f"the score of response {i} is {score}: the reward must be finite")
    return score


def check_one_each(queries: list[str], responses: list[str]) -> None:
    if len(queries) != len(responses):
        raise RewardError(
            f"{len(queries)} queries but {len(responses)} responses: give one query a response"
        )
