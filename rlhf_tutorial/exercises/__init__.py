"""Exercises that check themselves: `check("gae", my_gae)` says in words what is wrong.

An exercise is one of the course's own functions, left for you to write. Your function gets a few
small inputs, and its results are held against the package's. Where they differ, they are compared
with what common slips would give: a sign, a mask forgotten, one position off.
"""

from __future__ import annotations

from typing import Any

from ..errors import TutorialError
from ..scores import Reward
from . import (
    clinic,
    comparison,
    gradient,
    human,
    judging,
    log,
    methods,
    overoptimisation,
    perplexity,
    policy,
    ppo,
    prompts,
    rivals,
    step,
)
from .checking import Exercise, Verdict, examined
from .fooled import BAR, QUESTIONS, fooled

__all__ = ["BAR", "EXERCISES", "QUESTIONS", "Exercise", "Verdict", "check"]

EXERCISES: dict[str, Exercise] = {
    name: exercise
    for part in (
        prompts,
        policy,
        judging,
        gradient,
        ppo,
        step,
        log,
        clinic,
        comparison,
        perplexity,
        overoptimisation,
        rivals,
        methods,
        human,
    )
    for name, exercise in part.EXERCISES.items()
}
"""Every function to write, by its name: a module for each part of the course."""


def check(name: str, answer: Any, judge: Reward | None = None) -> Verdict:
    """Say whether an answer to an exercise is right and, where it is not, what is wrong.

    Args:
        name: one of `EXERCISES`, "examine", "fool_the_judge" or "same_mean".
        answer: a function with the arguments of the one that is asked for; to fool a judge, a text;
            for "same_mean" two lists of gains.
        judge: the judge to fool.

    Raises:
        TutorialError: for a name that is no exercise, or "fool_the_judge" without a judge.
    """
    if name == "fool_the_judge":
        if judge is None:
            raise TutorialError(
                "there is no judge to fool: check(name, text, judge=run.load_reward())"
            )
        return fooled(judge, answer)
    if name == "examine":
        return clinic.named(answer)
    if name == "same_mean":
        return comparison.same_mean(answer)
    if name not in EXERCISES:
        names = ", ".join([*EXERCISES, "examine", "fool_the_judge", "same_mean"])
        raise TutorialError(f"there is no exercise {name!r}: choose one of {names}")
    return examined(EXERCISES[name], answer)
