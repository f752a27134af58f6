"""Tiny language models with random weights."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

from .tokenizers import EOS, PAD

VOCABULARY = 264  # the 256 bytes and a few special tokens


def language_model(kind: str, layers: int = 4, seed: int = 0, **settings: Any) -> Any:
    """A tiny language model with random weights of one of four architectures.

    The weights are drawn wide, so that a wrong mask or position changes the logits plainly instead
    of drowning in the tolerance.
    """
    import transformers as hf

    settings = {"vocab_size": VOCABULARY, "initializer_range": 0.2} | settings
    settings |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    sizes = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 64}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 64}
        config, cls = hf.GPT2Config, hf.GPT2LMHeadModel
    elif kind == "llama":
        sizes |= {"num_key_value_heads": 2}
        config, cls = hf.LlamaConfig, hf.LlamaForCausalLM
    elif kind == "qwen2":
        sizes |= {"num_key_value_heads": 2}
        config, cls = hf.Qwen2Config, hf.Qwen2ForCausalLM
    else:
        config, cls = hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config(**{**sizes, **settings})).eval()


def value_model(kind: str = "llama", **settings: Any) -> Any:
    """A policy on a `language_model`: value_model("gpt2" | "llama" | "qwen2" | "neox", ...).

    Unlike a fresh value head's, the values are of the size of the scores.
    """
    return with_value_head(language_model(kind, **settings))


def with_value_head(model: Any) -> Any:
    """A policy on the model."""
    from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead

    return AutoModelForCausalLMWithValueHead.from_pretrained(model)


def lora_config(**settings: Any) -> Any:
    """LoRA of rank 4 on all linear layers, with dropout that nobody may see."""
    from peft import LoraConfig

    defaults = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.5}
    return LoraConfig(**defaults | {"target_modules": "all-linear"} | settings)


def lora_policy(kind: str = "llama", trained: float = 0.0, seed: int = 0, **settings: Any) -> Any:
    """A LoRA policy on a `language_model`; with `trained`, its B is not 0 but of that size."""
    from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead

    policy = AutoModelForCausalLMWithValueHead.from_pretrained(
        language_model(kind, seed=seed), peft_config=lora_config(**settings)
    )
    if trained:
        move_adapter(policy, trained)
    return policy


def move_adapter(policy: Any, size: float, seed: int = 0) -> None:
    """Add noise of that size to the weights that are trained, the value head's aside."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.pretrained_model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=random))


SMALL_VOCABULARY = 24


@cache
def _small_policy(kind: str, seed: int, layers: int) -> Any:
    model = language_model(kind, layers=layers, seed=seed, vocab_size=SMALL_VOCABULARY)
    # transformers zeroes the pad token's embedding. Where that token is said, the RMS norm of
    # nothing but zeros has a derivative of 1,000, and rounding would grow as much.
    embeddings = model.get_input_embeddings().weight.data
    embeddings[PAD] = embeddings[EOS].flip(0)
    return with_value_head(model)


def small_policy(kind: str, seed: int = 0, layers: int = 2) -> Any:
    """A policy of 24 tokens, for many examples."""
    return copy.deepcopy(_small_policy(kind, seed, layers))
