"""Notebook 05b: where a mask ends, and two tests that a sound step passes; and a diagnosis."""

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
_ENDED = torch.tensor([[5, 7, 2, 0, 0], [8, 2, 0, 0, 0], [4, 9, 6, 3, 5]])
"""Token 2 is the end and 0 the padding; the last one was cut off."""


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


def _mask_to_end(tokens: Tensor, end: int) -> Tensor:
    ended = (tokens == end).long()
    return (ended.cumsum(dim=1) - ended == 0).double()


EXERCISES: dict[str, Exercise] = {
    "mask_to_end": Exercise(
        _mask_to_end,
        [(_ENDED, 2), (_ENDED.masked_fill(_ENDED == 0, 2), 2)],
        {
            "The end itself is left out. The policy has chosen it, so it counts.": (
                lambda t, end: ((t == end).cumsum(1) == 0).double()
            ),
            "Only the end tokens are left out: what stands behind the first of them counts, and "
            "it does not.": lambda t, end: (t != end).double(),
            "Everything counts, the padding too.": lambda t, end: torch.ones(t.shape),
            "You go to the last end token. Where padding is the end token, that is all of it: "
            "stop at the first.": lambda t, end: (
                ((t == end).flip(1).cumsum(1).flip(1) > 0) | (t != end).all(1, keepdim=True)
            ).double(),
            "The mask is turned: 1 is for tokens that count.": (
                lambda t, end: 1 - _mask_to_end(t, end)
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
            "That is the surprise alone: the entropy is to be taken off.": lambda z, t, m: (
                masked_mean(-logprobs_from_logits(z, t), m)
            ),
            "You take the entropy less the surprise: the other way round.": lambda z, t, m: (
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
