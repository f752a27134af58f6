"""Sampling responses in batches, and laying queries and responses out for the PPO step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..families import after_end, without_preferences
from ..models import AutoModelForCausalLMWithValueHead, position_ids_from
from ..trunk import TrunkStates
from .checks import check_room
from .generation import Stops, new_tokens, plain_settings

# PPO needs samples from the policy itself. Left unset, transformers would cut to the 50 likeliest
# tokens, and apply whatever temperature or repetition penalty the checkpoint's author preferred.
PURE_SAMPLING = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}


def pad(tensors: list[Tensor], value: int, side: str, width: int = 0) -> tuple[Tensor, Tensor]:
    """Stack 1-d tensors to (B, longest), padded on "left" or "right"; and the mask of real ones.

    They are padded to `width` where the longest is shorter.
    """
    longest = max(width, *(len(t) for t in tensors))
    stacked = tensors[0].new_full((len(tensors), longest), value)
    mask = torch.zeros_like(stacked, dtype=torch.long)
    for row, tensor in enumerate(tensors):
        where = slice(longest - len(tensor), None) if side == "left" else slice(len(tensor))
        stacked[row, where], mask[row, where] = tensor, 1
    return stacked, mask


def cut_at_eos(response: Tensor, eos_token_ids: Iterable[int]) -> Tensor:
    """The response up to and including its first end-of-sequence token; (T,) to at most (T,)."""
    is_eos = torch.isin(response, torch.tensor(list(eos_token_ids), device=response.device))
    if not is_eos.any():
        return response
    return response[: int(is_eos.nonzero()[0]) + 1]


class LengthSampler:
    """Draws the number of new tokens: min_value, ..., max_value - 1, all equally likely.

    An answer has a token at the least, so that 0 as min_value is taken as 1. TRL's draws from
    NumPy's global state; this one has a generator of its own.
    """

    def __init__(self, min_value: int, max_value: int, seed: int = 0) -> None:
        min_value = min_value or 1
        if not 0 < min_value < max_value:
            raise ModelError(
                f"LengthSampler({min_value}, {max_value}): use 0 < min_value < max_value"
            )
        self._low, self._high = min_value, max_value
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self) -> int:
        return int(torch.randint(self._low, self._high, (), generator=self._random))


@torch.no_grad()
def generate_responses(
    model: AutoModelForCausalLMWithValueHead,
    queries: list[Tensor],
    *,
    pad_token_id: int,
    eos_token_id: int | list[int] | None,
    batch_size: int | None = None,
    length_sampler: Callable[[], int] | None = None,
    **generation_kwargs: Any,
) -> tuple[list[Tensor], TrunkStates | None]:
    """Sample one response to each query, without the query's tokens.

    The queries of a batch are padded on the left, so that all responses start in the same column:
    slicing there never takes in prompt tokens, however early a response ends.

    Args:
        queries: 1-d tensors of token ids, of any lengths; on the CPU they are padded there and
            sent to the model together.
        batch_size: queries per call of `generate`; all at once by default.
        length_sampler: draws a `max_new_tokens` for each batch.
        generation_kwargs: for `transformers`' generate, over `PURE_SAMPLING`.

    Returns:
        One 1-d tensor per query, ended by its first end-of-sequence token where it has one. And
        what the policy's frozen trunk made of the batch, where there is a trunk and one batch.

    Raises:
        ModelError: if query and response do not fit in the model's context.
    """
    settings = {**PURE_SAMPLING, **plain_settings(generation_kwargs)}
    settings = {k: v for k, v in settings.items() if k not in ("eos_token_id", "pad_token_id")}
    eos_ids = eos_token_id if isinstance(eos_token_id, (list, tuple)) else [eos_token_id]
    eos_ids = [i for i in eos_ids if i is not None]
    batch_size = batch_size or len(queries)
    device = getattr(getattr(model, "language_model", model), "device", queries[0].device)
    responses, states = [], None
    for start in range(0, len(queries), batch_size):
        batch = queries[start : start + batch_size]
        if length_sampler is not None:
            settings["max_new_tokens"] = length_sampler()
        padded = pad(batch, pad_token_id, side="left")
        input_ids, attention_mask = (tensor.to(device, non_blocking=True) for tensor in padded)
        width, asked = input_ids.shape[1], dict(settings)
        longest = new_tokens(asked, width, model)
        check_room(getattr(model, "config", None), width + longest)
        if asked.pop("max_length", None) is not None:
            asked["max_new_tokens"] = longest
        stops = None
        if hasattr(model, "sample") and _is_pure(asked):
            sequences, states = model.sample(
                input_ids,
                attention_mask,
                max_new_tokens=asked["max_new_tokens"],
                eos_token_ids=eos_ids,
                pad_token_id=pad_token_id,
                temperature=asked["temperature"],
            )
        else:
            states, stops = None, Stops.of(asked)
            with without_preferences(getattr(model, "language_model", model)):
                sequences = model.generate(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    pad_token_id=pad_token_id,
                    eos_token_id=eos_ids or None,
                    **asked,
                )
        # What `cut_at_eos` does, for all rows at once: a GPU is waited for once.
        lengths = (~after_end(sequences[:, width:], eos_ids)).sum(dim=1).tolist()
        rows = list(sequences)
        if stops is not None:
            rows = [stops.cut(i, row) for i, row in enumerate(rows)]
        responses += [row[width : width + n] for row, n in zip(rows, lengths, strict=True)]
    return responses, states if len(queries) <= batch_size else None


def _is_pure(settings: dict[str, Any]) -> bool:
    """Whether generate would draw from the whole distribution, for a number of tokens.

    At any temperature that transformers takes: it refuses 0 and less in words of its own.
    """
    others = {k: v for k, v in settings.items() if PURE_SAMPLING.get(k, ...) != v}
    no_minimum = others.pop("min_length", 0) <= 0
    temperature = others.pop("temperature", 1.0)
    if not (isinstance(temperature, (int, float)) and temperature > 0):
        return False
    return no_minimum and others.keys() == {"max_new_tokens"}


@dataclass(frozen=True)
class Batch:
    """This process's queries and responses side by side, padded on the left and on the right.

    So every response starts in column Q, the longest query's length, and the logits that predict
    response tokens are one slice, Q - 1 to Q + T - 2.
    """

    input_ids: Tensor
    """(B, Q + T)"""
    attention_mask: Tensor
    """(B, Q + T), 1 at real tokens."""
    position_ids: Tensor
    """(B, Q + T), counting real tokens, so that padding shifts nothing."""
    responses: Tensor
    """(B, T)"""
    mask: Tensor
    """(B, T), 1.0 at the response tokens that count."""
    trunk_states: Tensor | None = None
    """(B, Q + T - 1, hidden), what the policy's frozen layers, if any, make of `read()`."""

    @property
    def predicting(self) -> Tensor:
        """(T,) the columns whose logits predict the response tokens."""
        length, width = self.responses.shape[1], self.input_ids.shape[1]
        return torch.arange(width - length - 1, width - 1, device=self.input_ids.device)

    @property
    def lengths(self) -> Tensor:
        """(B, 2), tokens of each query and of each response."""
        start = self.input_ids.shape[1] - self.responses.shape[1]
        mask = self.attention_mask
        return torch.stack([mask[:, :start].sum(dim=1), mask[:, start:].sum(dim=1)], dim=1)

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and position ids without the last column.

        No model needs to read the last response token: nothing is predicted from it.
        """
        return self.input_ids[:, :-1], self.attention_mask[:, :-1], self.position_ids[:, :-1]

    def to(self, device: torch.device) -> Batch:
        """The batch on that device."""
        parts = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return Batch(**{k: tensor.to(device, non_blocking=True) for k, tensor in parts.items()})

    def __getitem__(self, rows: Tensor) -> Batch:
        """The mini-batch of these rows."""
        parts = {name: tensor[rows] for name, tensor in vars(self).items() if tensor is not None}
        return Batch(**parts)


def collate(
    queries: list[Tensor],
    responses: list[Tensor],
    pad_token_id: int,
    response_masks: list[Tensor] | None = None,
    width: int = 0,
) -> Batch:
    """Lay a batch out for the model.

    Args:
        queries, responses: B 1-d tensors of token ids each, none empty.
        width: T at the least, if the longest response is shorter.
        response_masks: optionally one 0/1 tensor per response: tokens at 0 (a tool's output, say)
            are read but not trained on.

    Raises:
        ModelError: for a mask that does not fit its response, or a response of which no token
            counts.
    """
    if response_masks is not None:
        if len(response_masks) != len(responses):
            raise ModelError(
                f"{len(response_masks)} response masks for {len(responses)} responses: "
                "give one per response"
            )
        for i, (tokens, kept) in enumerate(zip(responses, response_masks, strict=True)):
            if tokens.shape != kept.shape:
                raise ModelError(
                    f"response_masks[{i}] has shape {tuple(kept.shape)}, its response "
                    f"{tuple(tokens.shape)}: give one 0 or 1 per token"
                )
    query_ids, query_mask = pad(queries, pad_token_id, side="left")
    response_ids, response_mask = pad(responses, pad_token_id, side="right", width=width)
    attention_mask = torch.cat([query_mask, response_mask], dim=1)
    mask = response_mask.float()
    if response_masks is not None:
        mask = mask * pad(response_masks, 0, side="right", width=width)[0].to(mask)
        if not mask.any(dim=1).all():
            empty = int((~mask.any(dim=1)).nonzero()[0])
            raise ModelError(f"response_masks[{empty}] masks the whole response: drop that sample")
    return Batch(
        input_ids=torch.cat([query_ids, response_ids], dim=1),
        attention_mask=attention_mask,
        position_ids=position_ids_from(attention_mask),
        responses=response_ids,
        mask=mask,
    )


@dataclass(frozen=True)
class ForwardPass:
    """What one pass of a model says of the responses of a `Batch`: this process's rows."""

    logits: Tensor | None
    """(B, T, V), z, in the precision of the pass; not kept in parts of it."""
    logprobs: Tensor
    """(B, T), of the response tokens."""
    entropy: Tensor
    """(B, T), of the predicted distributions."""
    values: Tensor
    """(B, T)"""
    temperature: float = 1.0
    """The model is softmax(z / temperature)."""

    def log_distribution(self) -> Tensor:
        """(B, T, V), log-probabilities of the whole vocabulary in float32."""
        if self.logits is None:
            raise ValueError("the logits of a part of a pass are not kept")
        return (self.logits.float() / self.temperature).log_softmax(-1)

    def __getitem__(self, rows: Tensor) -> ForwardPass:
        """That of the mini-batch of these rows."""
        parts = self.logprobs[rows], self.entropy[rows], self.values[rows]
        return ForwardPass(None, *parts, self.temperature)


@dataclass(frozen=True)
class Evaluation:
    """What the models say of the responses before the first update: the rows of all processes.

    (B, T) each, without gradient.
    """

    mask: Tensor
    logprobs: Tensor
    """Of the policy that sampled, log pi_old."""
    ref_logprobs: Tensor
    values: Tensor
    """0 at masked positions."""
    kl: Tensor


@dataclass(frozen=True)
class Experience:
    """All that the updates of a step learn from: the rows of all processes. (B, T) each.

    The first five fields are those of `Evaluation`.
    """

    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    kl: Tensor
    penalty: Tensor
    """-beta KL, the rewards without the score."""
    rewards: Tensor
    advantages: Tensor
    """Whitened."""
    returns: Tensor

    def __getitem__(self, rows: Tensor) -> Experience:
        """That of the mini-batch of these rows."""
        return Experience(**{name: tensor[rows] for name, tensor in vars(self).items()})
