"""Answers written without the processor watching: what sampling does on a GPU.

`models.sample` decides after every token whether to go on, and its cache grows. Here the cache has
its full size from the start, the random numbers are drawn beforehand, and every answer is written
to its full length; what follows an end is cut off afterwards. So each token is the same work, which
is recorded once (`capture.record`) in place of being launched kernel by kernel. The same random
numbers give the same tokens, but for rounding.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .capture import autocast_dtype, kept, padded_length, record
from .errors import reason
from .families import (
    Halves,
    Reader,
    after_end,
    agree,
    mask_of,
    position_ids_from,
    probe,
    text_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

KEPT = 8
"""Shapes whose recordings are kept, those last used; each has a cache of its own."""


def draw(logits: Tensor, u: Tensor | None = None) -> Tensor:
    """One token per row, (B,), from softmax(logits), (B, V): where the cumulated sum passes u.

    One random number u per row does; torch.multinomial draws one per token of the vocabulary.

    Args:
        u: (B, 1), from 0 to 1, in double precision; drawn here if left out.
    """
    cumulated = logits.float().softmax(dim=-1).cumsum(dim=-1, dtype=torch.double)
    if u is None:
        u = torch.rand_like(cumulated[:, :1])
    passed = torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True)
    return passed.squeeze(1).clamp(max=logits.shape[1] - 1)


class StaticSampler:
    """Writes answers to batches of one shape, always in the same memory.

    `prefill` reads the queries and draws the first token of each answer, `decode` reads the last
    token and draws the next.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        halves: Halves | None,
        rows: int,
        width: int,
        new: int,
        temperature: float,
    ) -> None:
        """
        Args:
            rows: B. width: tokens of a query, Q, padding included. new: tokens of an answer, T, at
                the most.
        """
        device = model.device
        self.width, self.temperature, self.dtype = width, temperature, model.dtype
        self.reader = Reader(model, halves, "plain", length=width + new)
        self.input_ids = torch.zeros(rows, width, dtype=torch.long, device=device)
        # Whatever is written is a token: only the queries have padding.
        self.attention_mask = torch.ones(rows, width + new, dtype=torch.long, device=device)
        self.uniforms = torch.zeros(new, rows, 1, dtype=torch.double, device=device)
        self.columns = torch.arange(width + new, device=device)
        self.written = torch.zeros(1, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(rows, new, dtype=torch.long, device=device)
        vocabulary, hidden = text_config(model.config).vocab_size, None
        self.logits = torch.zeros(rows, vocabulary, device=device)
        if halves is not None:
            size = (rows, width + new, text_config(model.config).hidden_size)
            hidden = torch.zeros(size, dtype=halves.dtype, device=device)
        self.hidden = hidden
        self.works = record(device, (self.prefill, self.decode), self.logits)

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens of the answers, (B, T); what the trunk, if any, made of (B, Q + T - 1).

        Args:
            input_ids, attention_mask: (B, up to `width`), padded on the left.
            uniforms: (T, B, 1), one random number for each token, T up to `new`.
        """
        left, new = self.width - input_ids.shape[1], len(uniforms)
        self.input_ids.copy_(F.pad(input_ids, (left, 0)))
        self.attention_mask[:, : self.width] = F.pad(attention_mask, (left, 0))
        self.uniforms[:new] = uniforms
        prefill, decode = self.works
        prefill()
        for _ in range(new - 1):
            decode()
        tokens = self.tokens[:, :new].clone()
        if self.hidden is None:
            return tokens, None
        return tokens, self.hidden[:, left : self.width + new - 1].clone()

    def prefill(self) -> None:
        """Read the queries, and draw the first token of each answer."""
        self.reader.forget()
        self.written.zero_()
        positions = position_ids_from(self.attention_mask[:, : self.width])
        self.positions.copy_(positions[:, -1:])
        rows, known = self.columns[: self.width, None], self.attention_mask.bool()[:, None]
        # A query's padding looks at itself: a row that sees nothing would have no softmax.
        visible = (known & (self.columns <= rows)) | (self.columns == rows)
        self._read(self.input_ids, visible, positions, self.columns[: self.width])

    def decode(self) -> None:
        """Read the last token of each answer, and draw the next."""
        last, column = self.written - 1, self.written + self.width - 1
        self.positions.add_(1)
        visible = self.attention_mask.bool() & (self.columns <= column)
        self._read(self.tokens.index_select(1, last), visible[:, None], self.positions, column)

    def _read(self, new: Tensor, visible: Tensor, positions: Tensor, columns: Tensor) -> None:
        logits = self.reader(new, mask_of(visible, self.dtype), positions)
        if self.hidden is not None:
            self.hidden.index_copy_(1, columns, self.reader.hidden.pop())
        self.logits.copy_(logits)
        u = self.uniforms.index_select(0, self.written)[0]
        tokens = draw(self.logits / self.temperature, u)
        self.tokens.index_copy_(1, self.written, tokens.unsqueeze(1))
        self.written.add_(1)


class Writer:
    """A policy's samplers, one for each shape, and the weights that they read.

    Under autocast they read a copy whose trained matrices are in its precision: autocast would cast
    them at every token. The copy is brought up to date before each batch. Where the embeddings are
    trained it has them, too, in that precision, and with them what layers add to: samples are of a
    policy that is rounded once more than the one whose log-probabilities are taken.
    """

    def __init__(self, model: PreTrainedModel, halves: Halves | None) -> None:
        self.origin = [*model.parameters()]
        self.memory = memory_of(model, halves)
        self.copies: list[Tensor] = []
        self.trained: list[Tensor] = []
        self.samplers: dict[Hashable, StaticSampler] = {}
        if (dtype := autocast_dtype(model.device)) is not None:
            frozen = {id(p): p for p in self.origin if not p.requires_grad}
            model, halves = copy.deepcopy((model, halves), frozen)
            for ours, theirs in zip(model.parameters(), self.origin, strict=True):
                if theirs.requires_grad:
                    whole = theirs.ndim >= 2 and theirs.is_floating_point()
                    ours.data = theirs.detach().to(dtype if whole else theirs.dtype, copy=True)
                    ours.requires_grad_(False)
                    self.copies.append(ours)
                    self.trained.append(theirs)
        self.model, self.halves = model, halves
        self._try()

    def _try(self) -> None:
        """Raise RuntimeError unless a sampler says of a text and a token what the model says."""
        text = probe(self.model)
        sampler = self.sampler(len(text), text.shape[1], 2, 1.0)
        uniforms = torch.full((2, 1, 1), 0.5, dtype=torch.double, device=text.device)
        tokens, _ = sampler(text, torch.ones_like(text), uniforms)
        whole = self.model(torch.cat([text, tokens[:, :1]], dim=1), use_cache=False).logits
        if not agree(sampler.logits, whole[:, -1]):
            raise RuntimeError("with a cache of fixed size it says something else")
        self.samplers.clear()

    def sampler(self, rows: int, width: int, new: int, temperature: float) -> StaticSampler:
        """That of a shape, recorded if need be."""
        asked = (rows, padded_length(width), padded_length(new), temperature)

        def make() -> StaticSampler:
            return StaticSampler(self.model, self.halves, *asked)

        return kept(self.samplers, asked, make, KEPT)

    def refresh(self) -> None:
        """Bring the copy up to date, in few launches."""
        if self.trained:
            torch._foreach_copy_(self.copies, self.trained)


def memory_of(model: PreTrainedModel, halves: Halves | None) -> tuple:
    """Where the weights are and how they are read: a recording knows them by their place."""
    places = (p.data_ptr() for p in model.parameters())
    return autocast_dtype(model.device), halves is None, *places


_WRITERS: WeakKeyDictionary[nn.Module, Writer | None] = WeakKeyDictionary()
"""By the policy; None for one that cannot be recorded."""


@torch.no_grad()
def sample_recorded(
    policy: nn.Module,
    model: PreTrainedModel,
    halves: Halves | None,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    eos_token_ids: Iterable[int],
    pad_token_id: int,
    temperature: float,
) -> tuple[Tensor, Tensor | None] | None:
    """The answers of the policy whose language model that is, drawn as `models.sample` draws them.

    Args:
        input_ids, attention_mask: (B, Q), padded on the left.

    Returns:
        (B, T) tokens, padding after the first end, T that of the longest; and what the trunk, if
        there is one, made of queries and answers, (B, Q + T - 1, hidden). None if it cannot be
        done in this way for this policy.
    """
    (rows, width), device = input_ids.shape, input_ids.device
    if not sees_all(model, padded_length(width) + padded_length(max_new_tokens)):
        return None
    writer = _WRITERS.get(policy)
    if policy in _WRITERS and writer is None:
        return None
    try:
        if writer is None or writer.memory != memory_of(model, halves):
            writer = _WRITERS[policy] = Writer(model, halves)
        writer.refresh()
        sampler = writer.sampler(rows, width, max_new_tokens, temperature)
        # Only now that nothing can fail: `models.sample` would go on from other random numbers.
        # One call for each token, as it draws: on a GPU one for all gives others.
        uniforms = torch.empty(max_new_tokens, rows, 1, dtype=torch.double, device=device)
        for u in uniforms:
            u.uniform_()
        tokens, hidden = sampler(input_ids, attention_mask, uniforms)
    except Exception as error:  # what a family's own forward cannot do in a recording
        _WRITERS[policy] = None
        logger.warning(
            "sampling goes on without CUDA graphs, in more time: a %s cannot be recorded (%s)",
            type(model).__name__,
            reason(error),
        )
        return None
    after = after_end(tokens, eos_token_ids)
    longest = int((~after).sum(dim=1).max())
    tokens = tokens.masked_fill(after, pad_token_id)[:, :longest]
    return tokens, None if hidden is None else hidden[:, : width + longest - 1]


def sees_all(model: PreTrainedModel, length: int) -> bool:
    """Whether every layer sees all of a text of that length, and not only its last tokens."""
    sizes = text_config(model.config)
    windows = (getattr(sizes, n, None) for n in ("sliding_window", "attention_chunk_size"))
    return all(window is None or length <= window for window in windows)
