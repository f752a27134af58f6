"""Answers of a policy to held-out prompts: the same ones for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..device import supports_bf16
from ..models import AutoModelForCausalLMWithValueHead
from ..ppo.rollout import generate_responses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sample_responses(
    model: AutoModelForCausalLMWithValueHead | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: list[Tensor],
    *,
    decode: Callable[[list[Tensor]], list[str]],
    batch_size: int = 32,
    seed: int = 0,
    eos_token_id: int | list[int] | None = None,
    bf16: bool | None = None,
    **generation_kwargs: Any,
) -> list[str]:
    """Sample one response to each query, the same ones for the same seed and batch size.

    Args:
        model: a policy, or any causal language model of transformers.
        tokenizer: gives the pad token, and the end-of-sequence token unless `eos_token_id` does.
        queries: 1-d tensors of token ids, of any lengths.
        decode: turns response tokens into text. Take the one that the training loop used: a judge
            should see the answers in the form that it scored in training.
        bf16: compute in bfloat16; by default where the device has it in hardware.
        generation_kwargs: for `transformers`' generate; unless they say otherwise, sampling is pure
            (temperature 1, no top-k, no top-p).

    Returns:
        One text per query, in the caller's order. The caller's random state is left as it was.
    """
    device = next(model.parameters()).device
    bf16 = supports_bf16(device) if bf16 is None else bf16
    was_training = model.training
    model.eval()  # dropout would change the policy that is sampled from
    if not isinstance(model, AutoModelForCausalLMWithValueHead):
        model = AutoModelForCausalLMWithValueHead.from_pretrained(model)  # the same sampling loop
    try:
        with (
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        ):
            torch.manual_seed(seed)
            responses = generate_responses(
                model,
                [query.to(device) for query in queries],
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id if eos_token_id is None else eos_token_id,
                batch_size=batch_size,
                **generation_kwargs,
            )
    finally:
        model.train(was_training)
    return decode(responses)
