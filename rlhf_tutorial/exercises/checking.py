"""What an exercise is, and how an answer to it is held against the package's function."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

Function = Callable[..., Any]
KINDS: dict[type[Any], str] = {
    Tensor: "a tensor or an array",
    Real: "a number",
    str: "a text",
    list: "a list",
}


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what to say of it. A notebook shows the words."""

    right: bool
    words: str

    def __repr__(self) -> str:
        return ("Right. " if self.right else "Not yet. ") + self.words


@dataclass(frozen=True)
class Exercise:
    """A function to write, inputs to try it on, and the slips that many make."""

    solution: Function
    cases: Sequence[tuple[Any, ...]]
    slips: Mapping[str, Function]
    """What to say of a slip, to a function that makes it."""
    learned: Sequence[int] = field(default=())
    """Which arguments the gradient is for. It is compared too: it is what a loss is there for."""


def examined(exercise: Exercise, answer: Function) -> Verdict:
    """The verdict on a function, by its results on the exercise's cases."""
    results = []
    for case in exercise.cases:
        wanted, wanted_gradients = _run(exercise.solution, case, exercise.learned)
        try:
            given, gradients = _run(answer, case, exercise.learned)
        except NotImplementedError:
            return Verdict(False, "Nothing is written here yet: it is your turn.")
        except Exception as error:
            told = (str(error).splitlines() or [""])[0]
            return Verdict(False, f"Your function stops with {type(error).__name__}: {told}")
        results.append((given, wanted, gradients, wanted_gradients))
    for given, wanted, _, _ in results:
        if problem := _form(given, wanted):
            return Verdict(False, _slip(exercise, results) or problem)
    return _compare(exercise, results)


def _run(function: Function, case: tuple[Any, ...], learned: Sequence[int]) -> tuple[Any, Any]:
    """What a function makes of a case, and the gradients for its learned arguments, or None."""
    arguments = [copy.deepcopy(x) for x in case]
    leaves = [arguments[i].requires_grad_() for i in learned]
    value = _as_tensor(function(*arguments))
    if not leaves or not isinstance(value, Tensor) or not value.requires_grad:
        return value, None
    gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    pairs = zip(gradients, leaves, strict=True)
    filled = [torch.zeros_like(x) if g is None else g for g, x in pairs]
    return value.detach(), torch.cat([g.flatten() for g in filled])


def _as_tensor(value: Any) -> Any:
    """Numbers in an array, a tuple or a list as a tensor; anything else as it is."""
    if not isinstance(value, (np.ndarray, tuple, list)) or not len(value):
        return value
    try:
        return torch.as_tensor(np.array(value, dtype=float, order="C"))  # its strides may be < 0
    except (TypeError, ValueError, RuntimeError):
        return value


def _form(given: Any, wanted: Any) -> str | None:
    """What is wrong with the kind, the shape or the finiteness of a result, if anything is."""
    if given is None:
        return "Your function gives None: does it end with `return`?"
    kind, name = next((kind, name) for kind, name in KINDS.items() if isinstance(wanted, kind))
    if not isinstance(given, kind):
        return f"Your function gives a {type(given).__name__}, and {name} is wanted."
    if not isinstance(wanted, Tensor):
        return None
    if given.shape != wanted.shape:
        shapes = f"the shape {tuple(given.shape)}, and {tuple(wanted.shape)} is wanted"
        if wanted.ndim == 0:
            return f"Your result has {shapes}: a loss is one number. Is the mean missing?"
        if given.ndim == 0:
            return f"Your result has {shapes}: you have summed or averaged over everything."
        if given.ndim == wanted.ndim == 1:
            return f"Your result has {shapes}: {len(given)} entries in place of {len(wanted)}."
        return f"Your result has {shapes}. Along which dimension did you sum?"
    if not torch.isfinite(given).all():
        return "Some of your numbers are infinite or NaN."
    return None


def _slip(exercise: Exercise, results: list[tuple[Any, Any, Any, Any]]) -> str | None:
    """The words for the slip that gives the same results, if one does."""
    for words, slip in exercise.slips.items():
        slips = [_run(slip, case, exercise.learned) for case in exercise.cases]
        if all(
            _close(given, value) and (gradient is None or _close(gradient, of_slip))
            for (given, _, gradient, _), (value, of_slip) in zip(results, slips, strict=True)
        ):
            return words
    return None


def _compare(exercise: Exercise, results: list[tuple[Any, Any, Any, Any]]) -> Verdict:
    values = all(_close(given, wanted) for given, wanted, _, _ in results)
    gradients = all(_close(given, wanted) for _, _, given, wanted in results)
    if values and gradients:
        what = "results" if isinstance(results[0][1], (str, list)) else "numbers"
        return Verdict(True, f"Your {what} are those of the package.")
    if gradients and exercise.learned:
        return Verdict(
            True,
            "The value differs from the package's, but the gradient is the same, "
            "and an optimiser looks at nothing else.",
        )
    if values and all(given is None or not given.any() for _, _, given, _ in results):
        return Verdict(
            False,
            "The value is right, but no gradient reaches the policy. "
            "Did you detach its log-probabilities, or leave them out?",
        )
    if words := _slip(exercise, results):
        return Verdict(False, words)
    if values:
        return Verdict(
            False,
            "The value is right and the gradient is not. "
            "What is a mere number to the update (advantage, old policy) must be detached.",
        )
    given, wanted, _, _ = next(r for r in results if not _close(r[0], r[1]))
    if not isinstance(wanted, Tensor):
        return Verdict(False, f"You have {given!r}, and {wanted!r} is right.")
    if all(_close(given, -wanted) for given, wanted, _, _ in results):
        return Verdict(False, "The sign is turned: every number is minus what it should be.")
    factor = (given * wanted).sum() / (wanted * wanted).sum()
    if factor.abs() > 1e-6 and all(
        _close(given, factor * wanted) for given, wanted, _, _ in results
    ):
        return Verdict(False, f"All your numbers are {factor:.3g} times what they should be.")
    apart = ~torch.isclose(given.double(), wanted.double())  # a mask may be of booleans
    place = tuple(apart.nonzero()[0].tolist())
    where = f"At {list(place)} you have" if place else "You have"
    return Verdict(False, f"{where} {given[place]:.5g}, and {wanted[place]:.5g} is right.")


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, Real) and isinstance(b, Real):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)
