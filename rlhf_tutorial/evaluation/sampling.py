"""Answers of a policy to held-out prompts: the same ones for the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..device import supports_bf16
from ..families import end_token_ids
from ..models import AutoModelForCausalLMWithValueHead
from ..ppo.rollout import generate_responses
from ..randomness import seeded
from ..template import BoundTemplate
from ..trunk import TrunkStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Answers:
    """One answer to each query, in the caller's order."""

    texts: list[str]
    """As a judge reads them."""
    responses: list[Tensor]
    """1-d tensors of token ids."""
    trunk_states: list[TrunkStates | None]
    """What a frozen trunk made of each batch on the way, an entry per `batch_size` queries."""


def sample_answers(
    model: AutoModelForCausalLMWithValueHead | PreTrainedModel,
    template: BoundTemplate,
    queries: list[Tensor],
    *,
    batch_size: int = 32,
    seed: int = 0,
    bf16: bool | None = None,
    **generation_kwargs: Any,
) -> Answers:
    """Sample one answer to each query, the same ones for the same seed and batch size.

    Args:
        model: a policy, or any causal language model of transformers.
        template: the one that the training loop used: a judge should see the answers in the form
            that it scored in training.
        queries: 1-d tensors of token ids, of any lengths.
        bf16: compute in bfloat16; by default where the device has it in hardware.
        generation_kwargs: for `transformers`' generate; unless they say otherwise, sampling is pure
            (temperature 1, no top-k, no top-p) and an answer ends as the template says.

    The caller's random state is left as it was.
    """
    device = next(model.parameters()).device
    bf16 = supports_bf16(device) if bf16 is None else bf16
    was_training = model.training
    model.eval()  # with dropout, the samples would come from another policy
    if not isinstance(model, AutoModelForCausalLMWithValueHead):
        # So that both kinds of model are sampled by the same loop.
        model = AutoModelForCausalLMWithValueHead.from_pretrained(model)
    ends = {
        "pad_token_id": template.tokenizer.pad_token_id,
        "eos_token_id": end_token_ids(model.pretrained_model, template.eos_token_ids),
    }
    responses: list[Tensor] = []
    trunk_states = []
    try:
        with seeded(seed), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for start in range(0, len(queries), batch_size):
                batch = list(queries[start : start + batch_size])
                drawn, states = generate_responses(model, batch, **{**ends, **generation_kwargs})
                responses += drawn
                trunk_states.append(states)
    finally:
        model.train(was_training)
    return Answers(template.decode(responses), responses, trunk_states)
