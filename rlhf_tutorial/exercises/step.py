"""Notebook 04: what a real step has beyond the formulas of 03b."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ppo.math import masked_mean, masked_var, masked_whiten, value_loss
from .checking import Exercise, Function
from .inputs import MASK, normal

END = 2
# The end token is also the padding, as in many tokenizers; the second answer never ends.
RESPONSES = torch.tensor([[7, 5, END, END], [4, 9, 8, 6], [END, END, END, END], [3, 1, 6, END]])


def _counted(responses: Tensor, end_id: int, ends_seen: int = 0) -> Tensor:
    """1 at each token before which no more ends have been seen than that."""
    is_end = (responses == end_id).long()
    return (is_end.cumsum(dim=1) - is_end <= ends_seen).double()


def _whitened(values: Tensor, mask: Tensor, over: Tensor) -> Tensor:
    """By the mean and deviation over other positions."""
    deviation = masked_var(values, over).sqrt()
    return (values - masked_mean(values, over)) / deviation * mask


def _value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    reach: float,
    choose: Function = torch.maximum,
) -> Tensor:
    clipped = values.clamp(old_values - reach, old_values + reach)
    return 0.5 * masked_mean(choose((values - returns) ** 2, (clipped - returns) ** 2), mask)


EXERCISES: dict[str, Exercise] = {
    "response_mask": Exercise(
        _counted,
        [(RESPONSES, END)],
        {
            "The end token itself has 0. To stop was a choice of the policy: it counts.": (
                lambda tokens, end_id: (tokens != end_id).double()
            ),
            "Padding counts: everything is 1.": (
                lambda tokens, end_id: torch.ones(tokens.shape, dtype=torch.float64)
            ),
            "Turned round: that is 1 at padding.": (
                lambda tokens, end_id: 1 - _counted(tokens, end_id)
            ),
            "One too many: the token after the end counts as well.": (
                lambda tokens, end_id: _counted(tokens, end_id, ends_seen=1)
            ),
        },
    ),
    "masked_whiten": Exercise(
        lambda values, mask: masked_whiten(values, mask) * mask,
        [(normal(3, 4) + 1, MASK), (5 * normal(3, 4), MASK)],
        {
            "The mask is forgotten: padding is in your mean and in your variance.": (
                lambda v, m: _whitened(v, m, torch.ones_like(m))
            ),
            "At padding you have something other than 0: multiply by the mask at the end.": (
                masked_whiten
            ),
            "Padding is set to 0 first, and then counts as so many zeros.": (
                lambda v, m: _whitened(v * m, m, torch.ones_like(m))
            ),
            "You divide by n. The variance here is the unbiased one: by n - 1.": (
                lambda v, m: masked_whiten(v, m) * m * (m.sum() / (m.sum() - 1)).sqrt()
            ),
            "You divide by the variance. It is its square root.": (
                lambda v, m: masked_whiten(v, m) * m / masked_var(v, m).sqrt()
            ),
            "The mean is not taken off.": lambda v, m: v / masked_var(v, m).sqrt() * m,
            "The mean is off, and nothing is divided by the standard deviation.": (
                lambda v, m: (v - masked_mean(v, m)) * m
            ),
            "Each answer for itself: mean and variance are over the tokens of the whole batch.": (
                lambda v, m: torch.stack(
                    [
                        masked_whiten(row, kept) * kept if kept.sum() > 1 else 0 * row
                        for row, kept in zip(v, m, strict=True)
                    ]
                )
            ),
        },
    ),
    "value_loss": Exercise(
        lambda values, old_values, returns, mask, reach: value_loss(
            values, old_values, returns, mask, reach
        )[0],
        [
            (old + 0.4 * normal(3, 4), old, old + normal(3, 4), MASK, 0.2)
            for old in (normal(3, 4), normal(3, 4))
        ],
        {
            "The mask is forgotten: padding counts in your mean.": (
                lambda v, o, r, m, c: _value_loss(v, o, r, torch.ones_like(m), c)
            ),
            "The half is missing.": lambda v, o, r, m, c: 2 * _value_loss(v, o, r, m, c),
            "The clip is missing.": lambda v, o, r, m, c: _value_loss(v, o, r, m, 1e9),
            "You take the smaller of the two errors. It is the larger: the pessimist's choice.": (
                lambda v, o, r, m, c: _value_loss(v, o, r, m, c, torch.minimum)
            ),
            "Only the clipped error: a value that went astray would not be pulled back.": (
                lambda v, o, r, m, c: _value_loss(v, o, r, m, c, lambda plain, clipped: clipped)
            ),
            "That is the error to the old values. The target is the return.": (
                lambda v, o, r, m, c: _value_loss(v, o, o, m, c)
            ),
        },
        learned=[0],
    ),
}
