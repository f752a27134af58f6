"""Tokenizers in memory: one token per byte, and what the trainer asks of a tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS = 0, 1, 2


class PadAndEnd:
    """What the trainer asks of a tokenizer, and no more."""

    pad_token_id, eos_token_id = PAD, EOS

    def save_pretrained(self, folder: Path) -> None:
        """Leaves nothing."""


def byte_tokenizer(bos_token: str | None = "<bos>", wraps: bool = False) -> PreTrainedTokenizerFast:
    """`<pad>` is 0, `<eos>` 1, `<bos>` 2, then one token per byte.

    With `wraps` it puts BOS before a text and EOS behind it, unless told not to.
    """
    pieces = ["<pad>", "<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    if wraps:
        bpe.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>", bos_token=bos_token
    )


def with_chat_template(tokenizer: Any, template: str) -> Any:
    """A copy of the tokenizer with this chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer
