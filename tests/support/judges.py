"""Tiny reward models, and what they are asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from rlhf_tutorial.reward import RewardModel
from rlhf_tutorial.reward.training import Pair
from rlhf_tutorial.scores import Reward

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


WORDS = [f"w{i}" for i in range(60)] + ["good", "bad"]


QUERIES = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w1", "w2 w2", "w10 w11 w12"]


RESPONSES = ["w20", "w21 w22 w23 w24 w25 w26 w27", "", "w30 w31", "w32 w33 w34 w35", "w36"]


def tiny_tokenizer(**settings) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    settings = {"model_max_length": 48} | settings
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=settings.pop(
            "model_input_names", ["input_ids", "token_type_ids", "attention_mask"]
        ),
        **settings,
    )


def tiny_config(**settings) -> BertConfig:
    return BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.3,  # large, so that scores differ clearly
        **settings,
    )


def load(folder: Path, **settings) -> RewardModel:
    return RewardModel.from_pretrained(folder, device="cpu", bf16=False, **settings)


def toy_pairs(n: int, seed: int) -> list[dict[str, str]]:
    """The chosen response holds the word "good" somewhere, the rejected one "bad"."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(n):
        prompt, *sides = (rng.choices(WORDS[:60], k=rng.randint(3, 12)) for _ in range(3))
        for side, word in zip(sides, ("good", "bad"), strict=True):
            side[rng.randrange(len(side))] = word
        texts = (" ".join(words) for words in (prompt, *sides))
        pairs.append(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)))
    return pairs


def accuracy(reward: Reward, pairs: Sequence[Pair]) -> float:
    """Share of pairs in which the reward puts the chosen response above the rejected one."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen = reward(prompts, [pair["chosen"] for pair in pairs])
    rejected = reward(prompts, [pair["rejected"] for pair in pairs])
    return sum(c > r for c, r in zip(chosen, rejected, strict=True)) / len(pairs)
