"""TRL 0.11.4's public names: those that are kept for its scripts, and what to use for the rest.

Kept here are `set_seed`, `respond_to_batch`, `PreTrainedModelWrapper` and those of `MATH`, and to
be imported, since many scripts do it for nothing, `AutoModelForSeq2SeqLMWithValueHead`. What
scripts ask of TRL's objects is with ours: `PPOConfig.to_dict`, `PPOTrainer.kl_ctl`,
`PPOTrainer.current_device`, `PPOTrainer.is_distributed` and the like.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from .errors import ModelError, TutorialError

if TYPE_CHECKING:
    from torch import Tensor

    from .models import AutoModelForCausalLMWithValueHead


def set_seed(seed: int) -> None:
    """Seed Python's `random`, NumPy and torch, on all devices, as TRL's did.

    The trainer draws from a generator of its own: `PPOConfig.seed` is its seed.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def respond_to_batch(
    model: AutoModelForCausalLMWithValueHead,
    queries: Tensor,
    txt_len: int = 20,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Continue queries of one length, without padding, by `txt_len` tokens each; (B, txt_len).

    As TRL's, it draws from torch's global generator, and no token ends an answer.
    `PPOTrainer.generate` takes queries of any lengths and ends answers.

    Args:
        queries: (B, Q) token ids.
    """
    import torch

    from .families import without_preferences

    with without_preferences(model.language_model):
        sequences = model.generate(
            input_ids=queries,
            attention_mask=torch.ones_like(queries),
            max_new_tokens=txt_len,
            do_sample=True,
            temperature=1.0,
            top_k=top_k,
            top_p=top_p,
            eos_token_id=None,
            pad_token_id=0,
        )
    return sequences[:, queries.shape[1] :]


class AutoModelForSeq2SeqLMWithValueHead:
    """TRL's name for encoder-decoders. Scripts import it beside the other; to use it is refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ModelError(
            "encoder-decoders cannot be trained here: use a decoder-only model with "
            "AutoModelForCausalLMWithValueHead"
        )

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> None:
        """Raises ModelError."""
        cls()


GONE = {
    "TextEnvironment": "write the loop yourself; give step response_masks with 0 at tool output",
    "TextHistory": "write the loop yourself; give step response_masks with 0 at tool output",
    "BestOfNSampler": (
        "sample n answers with evaluation.sampling.sample_answers, and keep each query's best by "
        "the reward, as studies/rivals.py does"
    ),
    "SUPPORTED_ARCHITECTURES": "every decoder-only model can be tried: AutoModelForCausalLM"
    "WithValueHead.from_pretrained",
    "PPOv2Config": "it was TRL's other PPO: use PPOConfig",
    "PPOv2Trainer": "it was TRL's other PPO: use PPOTrainer",
    "AdaptiveKLController": "PPOConfig(adap_kl_ctrl=True, init_kl_coef, target, horizon) sets it",
    "FixedKLController": "PPOConfig(adap_kl_ctrl=False, init_kl_coef) sets it",
    "ValueHead": "the value head is model.v_head, a torch.nn.Linear",
    "PPODecorators": "there is nothing to empty: leave it out",
    "get_kbit_device_map": "give from_pretrained a device_map",
    "setup_chat_format": "set tokenizer.chat_template, and resize the embeddings for new tokens",
    "DataCollatorForCompletionOnlyLM": "TRL's SFTTrainer has completion_only_loss in its place",
    "WANDB_PADDING": "per-token arrays cover the responses, and objective/mask says which count",
    "stats_to_np": "step returns floats and numpy arrays",
    "convert_to_scalar": "step returns floats and numpy arrays",
    "average_torch_dicts": "step averages by itself",
    "stack_dicts": "step stacks by itself",
    "flatten_dict": "step returns a flat dict",
    "add_suffix": "write {f'{key}{suffix}': value for key, value in stats.items()}",
    "pad_to_size": "torch.nn.functional.pad does it",
    "clip_by_value": "torch.clamp does it",
    "top_k_top_p_filtering": "generate takes top_k and top_p",
    "randn_tensor": "torch.randn does it",
    "whiten": "rlhf_tutorial.ppo.math.masked_whiten(values, mask) does it",
}
"""Names of TRL 0.11.4's PPO, of its `trl` and `trl.core`, and what to use instead."""

MATH = ("logprobs_from_logits", "entropy_from_logits", "masked_mean", "masked_var", "masked_whiten")
"""Names of `trl.core` that are in `ppo.math`."""

STILL_IN_TRL = (
    *("ModelConfig", "TrlParser", "ScriptArguments"),
    *("get_peft_config", "get_quantization_config"),
    *("SFTTrainer", "SFTConfig", "DPOTrainer", "DPOConfig", "RewardTrainer", "RewardConfig"),
    *("RLOOTrainer", "RLOOConfig", "KTOTrainer", "KTOConfig"),
)
"""Names that scripts of PPO import beside it, and that TRL has today."""


class NameOfTRL(TutorialError, ImportError):
    """A name that TRL 0.11.4 had and this package has not."""


def __getattr__(name: str) -> Any:
    """What goes by TRL's name.

    Raises:
        NameOfTRL: for a name that TRL had and that is not kept, with what to use instead.
    """
    if name == "PreTrainedModelWrapper":  # TRL's base class: here there is one class
        from .models import AutoModelForCausalLMWithValueHead

        return AutoModelForCausalLMWithValueHead
    if name in MATH:
        from .ppo import math

        return getattr(math, name)
    if name in GONE:
        raise NameOfTRL(f"rlhf_tutorial has no {name}: {GONE[name]}")
    if name in STILL_IN_TRL:
        raise NameOfTRL(f"rlhf_tutorial has no {name}, which is TRL's own: from trl import {name}")
    raise AttributeError(f"module 'rlhf_tutorial' has no attribute {name!r}")
