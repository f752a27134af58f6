"""Shared by the tests: one thread, no network, tiny models from configs, a tokenizer in memory."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub

import numpy as np
import pytest
import torch
from torch import Tensor

VOCABULARY = 264  # the 256 bytes and a few special tokens

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps precision and accumulation in globals: each test starts without them."""
    yield
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer built in memory: `<pad>` is 0, `<eos>` 1, `<bos>` 2, then bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


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


@pytest.fixture
def make_language_model() -> Callable[..., Any]:
    """`language_model`."""
    return language_model


@pytest.fixture
def make_policy() -> Callable[..., Any]:
    """A policy on a `language_model`: make_policy("gpt2" | "llama" | "qwen2" | "neox", ...).

    Unlike a fresh value head's, the values are of the size of the scores.
    """
    from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead

    def make(kind: str = "llama", **settings: Any) -> AutoModelForCausalLMWithValueHead:
        return AutoModelForCausalLMWithValueHead.from_pretrained(language_model(kind, **settings))

    return make


@pytest.fixture
def samples() -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Six queries, responses and scores; lengths are mixed, two responses have one token."""
    random = torch.Generator().manual_seed(5)

    def ids(lengths: tuple[int, ...]) -> list[Tensor]:
        return [torch.randint(3, VOCABULARY, (n,), generator=random) for n in lengths]

    return ids((3, 7, 1, 5, 4, 2)), ids((4, 1, 6, 2, 1, 5)), [1.0, -0.5, 2.0, 0.3, -1.5, 0.7]


def preference_row(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    """A row as in hh-rlhf, of one turn."""
    start = f"\n\nHuman: {prompt}\n\nAssistant: "
    return {"chosen": start + chosen, "rejected": start + rejected}


@pytest.fixture
def make_hh_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder laid out as Anthropic/hh-rlhf: `<data_dir>/<split>.jsonl.gz`, or `.jsonl` plain."""

    def make(
        rows: list[dict[str, Any]],
        split: str = "train",
        data_dir: str = "helpful-base",
        compressed: bool = True,
    ) -> Path:
        folder = tmp_path / "hh-rlhf" / data_dir
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{split}.jsonl.gz" if compressed else f"{split}.jsonl"
        opened = gzip.open if compressed else open
        with opened(folder / name, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return tmp_path / "hh-rlhf"

    return make


@pytest.fixture
def unchanged_random_state() -> Iterator[None]:
    """Fails the test if it moves torch's, NumPy's or Python's random state."""
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    yield
    assert torch.equal(before[0], torch.get_rng_state()), "torch's random state was moved"
    assert (before[1] == np.random.get_state()[1]).all(), "NumPy's random state was moved"
    assert before[2] == random.getstate(), "Python's random state was moved"
