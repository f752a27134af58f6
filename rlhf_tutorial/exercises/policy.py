"""Notebook 02: a policy's memory, its temperature, and the positions of its tokens."""

from __future__ import annotations

import torch

from ..families import position_ids_from
from .checking import Exercise
from .inputs import normal

LEFT_PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])


EXERCISES: dict[str, Exercise] = {
    "training_bytes": Exercise(
        lambda parameters, trained: 4 * parameters + 16 * trained,
        [(1000, 1000), (1000, 300), (640, 5)],
        {
            "Four bytes for each trained weight are missing. There are four kinds: the reference's "
            "own copy, the gradient, and Adam's two moments.": lambda n, t: 4 * n + 12 * t,
            "Only the policy and the reference: the gradients and Adam's moments are missing.": (
                lambda n, t: 4 * n + 4 * t
            ),
            "The policy itself is missing.": lambda n, t: 16 * t,
            "You keep the reference whole. It shares what is frozen.": lambda n, t: 8 * n + 12 * t,
            "You count as if every weight were trained: what is frozen has no gradient.": (
                lambda n, t: 20 * n
            ),
            "These are numbers. A float32 takes four bytes.": lambda n, t: n + 4 * t,
        },
    ),
    "at_temperature": Exercise(
        lambda logits, temperature: (logits / temperature).log_softmax(-1),
        [(2 * normal(2, 3, 5), 0.5), (2 * normal(4, 6), 1.5)],
        {
            "You multiply: a temperature of 0.5 makes the logits larger, so divide by it.": (
                lambda z, t: (z * t).log_softmax(-1)
            ),
            "The temperature is missing.": lambda z, t: z.log_softmax(-1),
            "You divide log-probabilities: they no longer belong to probabilities that sum to 1. "
            "Divide the logits.": lambda z, t: z.log_softmax(-1) / t,
            "These are probabilities: the logarithm is missing.": (
                lambda z, t: (z / t).softmax(-1)
            ),
            "The softmax goes along the wrong dimension: the vocabulary is the last one.": (
                lambda z, t: (z / t).log_softmax(0)
            ),
            "These are still logits: the softmax is missing.": lambda z, t: z / t,
        },
    ),
    "positions": Exercise(
        position_ids_from,
        [(LEFT_PADDED,)],
        {
            "You count columns, the padding as well.": (
                lambda mask: torch.arange(mask.shape[1]).expand_as(mask)
            ),
            "The first real token stands at 0, not at 1.": lambda mask: mask.cumsum(1),
            "The padding gets -1, for which there is no position: raise it to 0.": (
                lambda mask: mask.cumsum(1) - 1
            ),
            "You count from the right: the last token is not the first.": (
                lambda mask: (mask.flip(1).cumsum(1).flip(1) - 1).clamp(min=0)
            ),
            "You sum over the rows of the batch: count along the columns.": (
                lambda mask: (mask.cumsum(0) - 1).clamp(min=0)
            ),
        },
    ),
}
