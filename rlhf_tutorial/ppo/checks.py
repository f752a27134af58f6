"""What the trainer cannot work with, refused in one line before anything changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, RewardError
from ..models import AutoModelForCausalLMWithValueHead


def check_arguments(
    model: Any, ref_model: Any, tokenizer: Any, num_shared_layers: Any, training_data_collator: Any
) -> None:
    """Raise ModelError for models or a tokenizer that PPO cannot use, and for what TRL took."""
    for name, given in {"model": model, "ref_model": ref_model or model}.items():
        if not isinstance(given, AutoModelForCausalLMWithValueHead):
            raise ModelError(
                f"{name} is a {type(given).__name__}: wrap it with "
                "AutoModelForCausalLMWithValueHead.from_pretrained"
            )
    if tokenizer is None or tokenizer.pad_token_id is None:
        raise ModelError(
            "PPOTrainer needs a tokenizer with a pad token: "
            "set tokenizer.pad_token = tokenizer.eos_token"
        )
    if ref_model is not None and num_shared_layers is not None:
        raise ModelError(
            "num_shared_layers is for the reference that the trainer makes: leave ref_model out, "
            "or make it with create_reference_model(model, num_shared_layers)"
        )
    if training_data_collator is not None:
        raise ModelError(
            "training_data_collator is not supported: a batch is laid out in one way, queries "
            "padded on the left and responses on the right"
        )


def check_sizes(batch_size: int, **lists: Sequence[Any]) -> None:
    """Raise ModelError, or RewardError for scores, unless each list has `batch_size` items."""
    for name, items in lists.items():
        if len(items) != batch_size:
            error = RewardError if name == "scores" else ModelError
            raise error(f"step got {len(items)} {name}, but batch_size is {batch_size}")


def scores_tensor(scores: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """The scores, (B,), from numbers or tensors of one element.

    Raises:
        RewardError: if one is not finite.
    """
    tensor = torch.tensor([float(s) for s in scores], device=device)
    if not tensor.isfinite().all():
        i = int((~tensor.isfinite()).nonzero()[0])
        raise RewardError(f"the score of response {i} is {tensor[i]}: the reward must be finite")
    return tensor
