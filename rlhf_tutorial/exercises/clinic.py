"""Notebook 05b: what goes into a step, and two tests that a sound one passes; and a diagnosis."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..assets import Bundled, resolve
from ..ppo.math import entropy_from_logits, logprobs_from_logits, masked_mean
from .checking import Exercise, Verdict
from .inputs import MASK, logprobs, normal

_random = torch.Generator().manual_seed(5)
_PROMPT = torch.tensor([1, 5, 2, 7])
"""With an end token, 2, in it: a chat template has one after each turn."""


def named(examine: Any) -> Verdict:
    """Whether a function names what is broken in each training of the clinic."""
    paths = sorted(resolve(Bundled("clinic")).glob("*.json"))
    for path in paths:
        stats = json.loads(path.read_text(encoding="utf-8"))["stats"]
        try:
            said = examine({key: np.array(column) for key, column in stats.items()})
        except NotImplementedError:
            return Verdict(False, "Nothing is written here yet: it is your turn.")
        except Exception as error:
            told = (str(error).splitlines() or [""])[0]
            return Verdict(False, f"Your function stops with {type(error).__name__}: {told}")
        if said != path.stem:
            return Verdict(False, f"Of {path.stem!r} it says {said!r}.")
    return Verdict(True, f"It names what is wrong in each of the {len(paths)} trainings.")


def _tokens(rows: int, columns: int, vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (rows, columns), generator=_random)


def _inspected(query: Tensor, response: Tensor, end: int) -> str:
    if torch.equal(response[: len(query)], query):
        return "prompt"
    return "padding" if (response[:-1] == end).any() else "fine"


EXERCISES: dict[str, Exercise] = {
    "inspected": Exercise(
        _inspected,
        [
            (_PROMPT, torch.tensor(response), 2)
            for response in (
                [5, 8, 2],
                [5, 8, 6, 4, 9],
                [1, 5, 2, 7, 8, 9],
                [5, 8, 2, 2, 2],
                [8, 2, 0, 0, 0],
                [1, 9, 2],
                [1, 5],
            )
        ],
        {
            "You look at the length. An answer may be longer than its prompt.": lambda q, r, end: (
                "prompt" if len(r) > len(q) else _inspected(q, r, end)
            ),
            "You compare the first token only. An answer may begin as its prompt does.": (
                lambda q, r, end: "prompt" if q[0] == r[0] else _inspected(q, r, end)
            ),
            "An answer that is the beginning of its prompt isn't the prompt: compare all of it.": (
                lambda q, r, end: (
                    "prompt" if (q[: len(r)] == r[: len(q)]).all() else _inspected(q, r, end)
                )
            ),
            "The end token of an answer is its own: padding is what comes after it.": (
                lambda q, r, end: (
                    "padding"
                    if _inspected(q, r, end) == "fine" and r[-1] == end
                    else _inspected(q, r, end)
                )
            ),
            "Padding needn't be the end token: whatever comes after the first end is padding.": (
                lambda q, r, end: (
                    "fine"
                    if r[-1] != end and _inspected(q, r, end) == "padding"
                    else _inspected(q, r, end)
                )
            ),
            "A chat template has end tokens inside the prompt: look for the prompt first.": (
                lambda q, r, end: "padding" if (r[:-1] == end).any() else _inspected(q, r, end)
            ),
            "An answer without an end token was cut off at the limit, and that's fine.": (
                lambda q, r, end: "padding" if not (r == end).any() else _inspected(q, r, end)
            ),
        },
    ),
    "first_ratio": Exercise(
        lambda logprobs, old_logprobs, mask: masked_mean(
            (torch.exp(logprobs - old_logprobs) - 1).abs(), mask
        ),
        [(old + 0.3 * normal(3, 4), old, MASK) for old in (logprobs(3, 4), logprobs(3, 4))],
        {
            "The mask is forgotten: padding counts in your mean.": (
                lambda p, o, m: (torch.exp(p - o) - 1).abs().mean()
            ),
            "Ratios above 1 and below cancel in your mean: take the absolute value first.": (
                lambda p, o, m: masked_mean(torch.exp(p - o) - 1, m)
            ),
            "That is the mean ratio. Its distance from 1 is asked for, token by token.": (
                lambda p, o, m: masked_mean(torch.exp(p - o), m)
            ),
            "The ratio is a difference of logarithms: exp is missing.": (
                lambda p, o, m: masked_mean((p - o).abs(), m)
            ),
            "The ratio is upside down: it is new over old.": (
                lambda p, o, m: masked_mean((torch.exp(o - p) - 1).abs(), m)
            ),
        },
    ),
    "surprise_gap": Exercise(
        lambda logits, tokens, mask: masked_mean(
            -logprobs_from_logits(logits, tokens) - entropy_from_logits(logits), mask
        ),
        [(normal(3, 4, 5), _tokens(3, 4, 5), MASK), (normal(3, 4, 6), _tokens(3, 4, 6), MASK)],
        {
            "The mask is forgotten: padding counts in your mean.": lambda z, t, m: (
                -logprobs_from_logits(z, t) - entropy_from_logits(z)
            ).mean(),
            "That is the surprise alone: subtract the entropy.": lambda z, t, m: masked_mean(
                -logprobs_from_logits(z, t), m
            ),
            "You take the entropy minus the surprise: the other way round.": lambda z, t, m: (
                masked_mean(logprobs_from_logits(z, t) + entropy_from_logits(z), m)
            ),
            "A surprise is minus the log-probability: the minus is missing.": lambda z, t, m: (
                masked_mean(logprobs_from_logits(z, t) - entropy_from_logits(z), m)
            ),
            "You take the logits for log-probabilities: log_softmax is missing.": lambda z, t, m: (
                masked_mean(-z.gather(-1, t[..., None])[..., 0] - (-(z.exp() * z).sum(-1)), m)
            ),
        },
    ),
}
