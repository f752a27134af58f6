"""A model's passes over batches; on a GPU recorded once for each shape and replayed.

A pass over a few hundred tokens is thousands of kernels of a few microseconds, and the processor
takes longer to launch them than the GPU to work through them. `capture.record_module` records them,
forwards and backwards. Batches are padded to a few shapes for it, and what is said of
the padding is cut off again, so that nothing else of a step knows.
"""

from __future__ import annotations

import gc
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..capture import autocast_dtype, kept, padded_length, record_module
from ..errors import reason
from ..families import mask_of
from .rollout import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from ..models import AutoModelForCausalLMWithValueHead

logger = logging.getLogger(__name__)

KEPT = 4
"""Shapes whose recordings are kept, those last used: each has a gradient of every weight."""


def said_by(model: nn.Module, batch: Batch, states: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) and values (B, T) of a batch, of its tokens or of its trunk's states."""
    input_ids, attention_mask, position_ids = batch.read()
    read = {"input_ids": input_ids} if states is None else {"trunk_states": states}
    logits, _, values = model(
        attention_mask=attention_mask,
        position_ids=position_ids,
        logits_to_keep=batch.predicting,
        **read,
    )
    return logits, values


class RecordedPasses:
    """A model's passes over batches, each shape recorded at its first one.

    All recordings share their memory, so that one pass has to be done with before the next: until
    the gradient has come back, `__call__` says None.
    """

    def __init__(
        self,
        model: AutoModelForCausalLMWithValueHead,
        graphed: Callable[..., Any] | None = None,
    ) -> None:
        """
        Args:
            graphed: what makes a recorded module of a module and its arguments; that of CUDA if
                left out.
        """
        self.model = model
        self.graphed = graphed or partial(record_module, pool=torch.cuda.graph_pool_handle())
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.recorded: dict[Hashable, Callable[..., tuple[Tensor, Tensor]]] = {}
        self.waiting = self.failed = False

    def __call__(self, batch: Batch, from_states: bool) -> tuple[Tensor, Tensor] | None:
        """Logits (B, T, V) and values (B, T) of a batch; None where the model itself has to say it.

        That is so while a gradient is awaited, where gradients are accumulated (a recorded backward
        pass writes them in place), and once a recording has failed.

        Args:
            from_states: go on from the batch's `trunk_states`, in place of its tokens.
        """
        with_gradient = torch.is_grad_enabled() and bool(self.trained)
        accumulating = with_gradient and any(p.grad is not None for p in self.trained)
        if self.failed or self.waiting or accumulating:
            return None
        length = batch.responses.shape[1]
        inputs, answer = padded(batch, from_states, self.model.language_model.dtype)
        key = (with_gradient, from_states, answer, *inputs[0].shape)
        key += (autocast_dtype(batch.mask.device), *(p.data_ptr() for p in self.model.parameters()))
        make = partial(self._record, inputs, from_states, answer)
        try:
            logits, values = kept(self.recorded, key, make, KEPT)(*inputs)
        except Exception as error:  # what a family's own forward cannot do in a recording
            self.failed = True
            self.recorded.clear()
            logger.warning(
                "PPO goes on without CUDA graphs, in more time: a pass of a %s cannot be recorded "
                "(%s)",
                type(self.model.language_model).__name__,
                reason(error),
            )
        if self.failed:  # without the error, which holds what it came from
            gc.collect()
            return None
        # Copies: the next replay writes in the same memory.
        logits, values = logits[:, :length].clone(), values[:, :length].clone()
        if logits.requires_grad:
            self.waiting = True
            logits.register_hook(self._come_back)
        return logits, values

    def _come_back(self, _: Tensor) -> None:
        self.waiting = False

    def _record(
        self, inputs: tuple[Tensor, ...], from_states: bool, answer: int
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """A recorded pass that was tried: it says what the model says, with the same gradient."""
        # Recorded on zeros: a replay that does not read its inputs is to be seen.
        own = tuple(torch.zeros_like(tensor) for tensor in inputs)
        recorded = self.graphed(_Pass(self.model, from_states, answer), own)
        ours = self._tried(recorded, inputs)
        theirs = self._tried(_Pass(self.model, from_states, answer), inputs)
        if not all(same(a, b) for a, b in zip(ours, theirs, strict=True)):
            raise RuntimeError("the replay says something else than what was recorded")
        return recorded

    def _tried(self, read: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[list[Tensor]]:
        """Logits, values, and the gradients of their squares, small enough for float16.

        Those of a recording are where they were written: a copy would take a GPU's memory twice.
        """
        said = read(*inputs)
        gradients: tuple[Tensor | None, ...] = ()
        if said[0].requires_grad:
            outputs = [1e-3 * tensor.detach() for tensor in said]
            gradients = torch.autograd.grad(said, self.trained, outputs, allow_unused=True)
        found = [[tensor.detach()] for tensor in said]
        return [*found, [gradient for gradient in gradients if gradient is not None]]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two lists of tensors are the same, all of each together, but for rounding."""
    pairs = [(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True)]
    apart = sum((a - b).square().sum() for a, b in pairs)
    return bool(apart <= 1e-4 * sum(b.square().sum() for _, b in pairs))


class _Pass(nn.Module):
    """A model's pass with tensors alone as arguments."""

    def __init__(
        self, model: AutoModelForCausalLMWithValueHead, from_states: bool, answer: int
    ) -> None:
        super().__init__()
        self.model, self.answer = model, answer
        self.read = "trunk_states" if from_states else "input_ids"
        self.train(model.training)

    def forward(self, read: Tensor, mask: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and values (B, T) at the last T of L positions.

        Args:
            read: (B, L) token ids or (B, L, hidden) states. mask: (B, 1, L, L). position_ids:
                (B, L).
        """
        width = position_ids.shape[1]
        predicting = torch.arange(width - self.answer, width, device=mask.device)
        logits, _, values = self.model(
            attention_mask=mask,
            position_ids=position_ids,
            logits_to_keep=predicting,
            **{self.read: read},
        )
        return logits, values


def padded(
    batch: Batch, from_states: bool, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """What a model reads of a batch, padded on both sides to one of a few shapes.

    Returns:
        Token ids or states, the mask (B, 1, L, L) and the position ids; and T with its padding.
    """
    ids, mask, positions = batch.read()
    length = batch.responses.shape[1]
    answer, before = padded_length(length), ids.shape[1] - length
    sides = (padded_length(before) - before, answer - length)
    known = F.pad(mask.bool(), sides)
    columns = torch.arange(known.shape[1], device=known.device)
    # Padding looks at itself: a row that sees nothing would have no softmax.
    visible = (known[:, None] & (columns <= columns[:, None])) | (columns == columns[:, None])
    read = F.pad(ids, sides)
    if from_states and batch.trunk_states is not None:
        read = F.pad(batch.trunk_states, (0, 0, *sides))
    return (read, mask_of(visible, dtype), F.pad(positions, sides)), answer
