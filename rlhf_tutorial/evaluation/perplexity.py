"""Perplexity: how well a language model predicts a text, as an `evaluate` metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..assets import as_source, resolve
from ..device import default_device, device_or_default
from ..errors import DataError, ModelError, check_whole, loading
from ..models import load_tokenizer
from ..ppo.rollout import pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Logits are what fills the memory: 1,024 tokens by a vocabulary of 49,152 are 200 MB in float32.
TOKENS_PER_BATCH = 1024
TOKENS_PER_LOSS = 64

Context = str | Sequence[int] | Tensor


class Perplexity(evaluate.Metric):
    """`score_texts` with the interface of `evaluate`, for a model in memory or on disk.

        Perplexity().compute(predictions=texts, model=model, tokenizer=tokenizer)
        Perplexity().compute(predictions=texts, model_id="a/folder or hub id")

    With `model_id`, `device` says where the model is to run ("gpu" is "cuda", as in `evaluate`),
    and `revision`, `token` and `cache_dir` are for its download. The further keywords, the numbers
    returned and the errors are those of `score_texts`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Exponential of the mean negative log-likelihood per token.",
            citation="",
            inputs_description=score_texts.__doc__,
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://huggingface.co/docs/transformers/perplexity"],
        )

    def _compute(
        self,
        predictions: list[str],
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_id: str | Path | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        where = None if device is None else device_or_default("cuda" if device == "gpu" else device)
        if (model is None) == (model_id is None) or (model is None) != (tokenizer is None):
            raise ModelError("perplexity needs model= with its tokenizer=, or model_id= alone")
        if model_id is not None:
            download: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
            folder = resolve(as_source(model_id, revision or "main"), **download)
            model, tokenizer = _load(folder, where), load_tokenizer(folder)
        assert model is not None
        at = next(model.parameters()).device
        if where is not None and where.type != at.type:
            raise ModelError(
                f"the model is on {at}, and device is {device!r}: move it there with "
                "model.to(device) first, or leave device out"
            )
        return score_texts(predictions, model, tokenizer, **kwargs)


def score_texts(
    texts: Sequence[str] | str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    contexts: Sequence[Context] | None = None,
    add_start_token: bool = True,
    max_length: int | None = None,
    batch_size: int = 16,
    bf16: bool = False,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Perplexity of each text: exp of the mean negative log-likelihood of its tokens.

    This is Hugging Face's definition (https://huggingface.co/docs/transformers/perplexity), without
    its sliding window: a text longer than the model's context is cut, and counted in `truncated`.

    Args:
        texts: strings, or a single one; special tokens written out in them count as such.
        model: any causal language model of transformers, or a policy with its value head.
        contexts: optionally one per text, a string or token ids: read before the text, but not
            counted. They are taken as they are, already in the model's own template, and no start
            token is put before them; an empty one is as none. Too long together, the context loses
            tokens on its left; the text loses some on its right only if it alone does not fit.
        add_start_token: put the tokenizer's BOS token, where it has one, before each text, so that
            the first token is predicted from something. Without one, the first token is not
            counted.
        max_length: the most tokens the model reads of each text, its context and start token
            included; by default (and at most) the model's own limit.
        batch_size: the most texts at a time; long texts go fewer at a time, to bound the memory.
        bf16: compute in bfloat16 (the loss stays in float32): faster, a little less exact.
        temperature: the model is softmax(z / temperature). At 1 this is what a perplexity is taken
            to mean; at another, the perplexity of a policy that samples so.

    Returns:
        perplexities: one per text, in the caller's order.
        mean_perplexity: their mean, in which every text has the same weight.
        pooled_perplexity: exp of all the negative log-likelihood over all the tokens, in which
            every token has the same weight.
        tokens: how many tokens of each text were predicted.
        truncated: how many texts were cut, or their contexts.
        bos_token: what was put before the texts; None if nothing was.

    Raises:
        DataError: for no texts, a number of contexts that differs, or a text without a token that
            could be predicted.
        ModelError: for a temperature that is not a number above 0.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise DataError("no texts to compute the perplexity of: give at least one")
    if contexts is not None and len(contexts) != len(texts):
        raise DataError(f"{len(contexts)} contexts for {len(texts)} texts: give one per text")
    model = getattr(model, "pretrained_model", model)
    limit = _context_length(model, tokenizer)
    limit = limit if max_length is None else min(max_length, limit)

    start = [tokenizer.bos_token_id] if add_start_token and tokenizer.bos_token else []
    prefixes = [_ids(tokenizer, c) or start for c in contexts or [""] * len(texts)]
    sequences, first, truncated = [], [], 0
    for i, (prefix, text) in enumerate(zip(prefixes, texts, strict=True)):
        ids = _ids(tokenizer, text)
        truncated += len(prefix) + len(ids) > limit
        # At least one token of the prefix stays: the first token is predicted from it.
        ids = ids[: limit - 1] if prefix else ids[:limit]
        prefix = prefix[-(limit - len(ids)) :]
        sequences.append(prefix + ids)
        first.append(max(len(prefix), 1))
        if len(sequences[i]) <= first[i]:
            raise DataError(f"text {i} has no token to predict: {text[:40]!r}; drop it")

    nlls = token_nlls(model, sequences, first, batch_size, bf16, temperature)
    sums = torch.stack([nll.double().sum() for nll in nlls])
    tokens = torch.tensor([len(nll) for nll in nlls])
    perplexities = (sums / tokens).exp()
    return {
        "perplexities": perplexities.tolist(),
        "mean_perplexity": perplexities.mean().item(),
        "pooled_perplexity": (sums.sum() / tokens.sum()).exp().item(),
        "tokens": tokens.tolist(),
        "truncated": truncated,
        "bos_token": tokenizer.bos_token if start and start in prefixes else None,
    }


@torch.no_grad()
def token_nlls(
    model: PreTrainedModel,
    sequences: list[list[int]],
    first: list[int],
    batch_size: int = 16,
    bf16: bool = False,
    temperature: float = 1.0,
) -> list[Tensor]:
    """-log p of each token, in nats, given all tokens before it; p is softmax(z / temperature).

    Args:
        sequences: token ids, each list no longer than the model's context.
        first: for each sequence, where counting starts (1 at the least: nothing predicts token 0).

    Returns:
        A float32 tensor (len(sequence) - first,) on the CPU for each, in the caller's order.
    """
    if not 0 < temperature < float("inf"):
        raise ModelError(f"temperature is {temperature}: use a number above 0")
    nlls: list[Tensor] = [torch.empty(0)] * len(sequences)
    was_training = model.training
    model.eval()  # dropout would blur the predictions
    try:
        # One autocast block around all batches: within it each weight is cast only once.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            for rows in _batches([len(s) for s in sequences], batch_size):
                batch = [torch.tensor(sequences[i], device=model.device) for i in rows]
                results = _batch_nlls(model, batch, [first[i] for i in rows], temperature)
                for i, result in zip(rows, results, strict=True):
                    nlls[i] = result
    finally:
        model.train(was_training)
    return nlls


def _batch_nlls(
    model: PreTrainedModel, batch: list[Tensor], first: list[int], temperature: float
) -> list[Tensor]:
    """`token_nlls` of one batch. A function, so that its logits are freed before the next one's."""
    input_ids, attention_mask = pad(batch, 0, side="right")
    output = model(input_ids, attention_mask=attention_mask, use_cache=False)
    nlls = []
    for ids, start, logits in zip(batch, first, output.logits, strict=True):
        # Logits at t predict the token at t + 1. A few at a time go to float32, and are divided.
        predicting = logits[start - 1 : len(ids) - 1].split(TOKENS_PER_LOSS)
        targets = ids[start:].split(TOKENS_PER_LOSS)
        losses = [
            cross_entropy(chunk.float() / temperature, target, reduction="none")
            for chunk, target in zip(predicting, targets, strict=True)
        ]
        nlls.append(torch.cat(losses).cpu())
    return nlls


def _batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, each at most TOKENS_PER_BATCH when padded (or one row).

    The longest first: memory that they leave behind serves all later ones, and if it does not
    suffice, that shows at once.
    """
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        rows = len(batches[-1]) + 1 if batches else 1
        if batches and rows <= batch_size and rows * width <= TOKENS_PER_BATCH:
            batches[-1].append(i)
        else:
            batches.append([i])
            width = lengths[i]
    return batches


def _ids(tokenizer: PreTrainedTokenizerBase, text: Context) -> list[int]:
    """Token ids without any that the tokenizer would add of its own."""
    if isinstance(text, str):
        # verbose=False: that a text is longer than the model's context is counted, not warned of.
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.as_tensor(text, dtype=torch.long).tolist()


def _context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions or tokenizer.model_max_length


def _load(folder: Path, device: torch.device | None) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    check_whole(folder)
    with loading(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
    return model.to(device or default_device())
