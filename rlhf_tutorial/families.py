"""What differs from family to family of language models: where sizes stand, how a text is read on.

Nothing here goes by a family's name. Which cache serves a model is found by trying: what it says of
a short text token by token must be what it says of the whole text at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .errors import ModelError, reason

if TYPE_CHECKING:
    from transformers import Cache, PretrainedConfig, PreTrainedModel

CacheKind = Literal["plain", "own", "generate"]
"""`DynamicCache()`; a `DynamicCache` made for the model's config, which knows layers that keep a
state instead of keys and values; whatever transformers' own generate makes for the model."""


class Halves(NamedTuple):
    """Two views of one language model, which hold its own tensors."""

    trunk: PreTrainedModel
    """The embeddings and the lowest layers."""
    top: PreTrainedModel
    """The layers above, the final norm and the output head."""
    first: int
    """The number of the top's lowest layer."""
    dtype: torch.dtype
    """In which the trunk hands its states to the top."""


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part that holds the language model's sizes: some models read images, too."""
    get = getattr(config, "get_text_config", None)
    return config if get is None else get(decoder=True)


def context_length(config: PretrainedConfig) -> int | None:
    """How many tokens the model can read; None where nothing limits it."""
    sizes = text_config(config)
    for name in ("max_position_embeddings", "max_seq_len"):
        if (length := getattr(sizes, name, None)) is not None:
            return int(length)
    return None


def position_ids_from(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that left padding changes nothing. (B, L) each."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def end_token_ids(model: PreTrainedModel, others: Iterable[int | None]) -> list[int]:
    """The tokens that end an answer: `others`, and those of the checkpoint's generation config.

    A chat model's turn often ends with another token than its tokenizer's end of sequence.
    """
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, (list, tuple)) else [ends]
    return list(dict.fromkeys(i for i in (*others, *listed) if i is not None))


def after_end(tokens: Tensor, ends: Iterable[int]) -> Tensor:
    """Which tokens come after the first end in their row: (B, T) of (B, T)."""
    is_end = torch.isin(tokens, torch.tensor(list(ends), device=tokens.device))
    return is_end.cumsum(dim=1) - is_end.long() > 0


@contextmanager
def without_preferences(model: Any) -> Iterator[None]:
    """Within, generate samples as it is told, and not as the checkpoint's author preferred.

    transformers fills in whatever it is not told (min_p, a ban of repeated words, beams) from the
    checkpoint's generation config. Of that the tokens and the lengths are left.
    """
    from transformers import GenerationConfig

    # Of PEFT's wrapper, and of a reference that is switched, it is the model within that generates.
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if (own := getattr(owner, "generation_config", None)) is None:
        yield
        return
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens")
    try:
        owner.generation_config = GenerationConfig(**{k: getattr(own, k, None) for k in kept})
        yield
    finally:
        owner.generation_config = own


def keeps_logits(model: nn.Module) -> bool:
    """Whether its forward knows `logits_to_keep`; some older families compute them all."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


class Reader:
    """Reads texts on from where it is: what was read before stays in a cache.

    Attributes:
        hidden: what the trunk, if there is one, made of each piece, (B, L, hidden) each.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        halves: Halves | None,
        kind: CacheKind,
        length: int | None = None,
    ) -> None:
        """
        Args:
            length: of a cache of fixed size, in tokens; None for one that grows. A fixed one is of
                the "plain" kind, and its masks have four dimensions: see `mask_of`.
        """
        self.halves, self.hidden = halves, list[Tensor]()
        self.top = model if halves is None else halves.top
        self.keep = {"logits_to_keep": 1} if keeps_logits(self.top) else {}
        self.lower = _cache(model.config if kind == "own" else None, length=length)
        self.cache = self.lower
        if halves is not None:
            config = self.top.config if kind == "own" else None
            self.cache = _cache(config, halves.first, length)

    def __call__(self, new: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """The logits of what comes next, (B, V).

        Args:
            new: (B, L) token ids, the next ones of each text.
            attention_mask: (B, all tokens so far and L). position_ids: (B, L).
        """
        inputs: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
        if self.halves is None:
            inputs["input_ids"] = new
        else:
            trunk = self.halves.trunk.base_model
            states = trunk(new, past_key_values=self.lower, use_cache=True, **inputs)[0]
            states = states.to(self.halves.dtype)
            self.hidden.append(states)
            inputs["inputs_embeds"] = states
        output = self.top(past_key_values=self.cache, use_cache=True, **self.keep, **inputs)
        return output.logits[:, -1]

    def forget(self) -> None:
        """Start anew, in the memory of a cache of fixed size."""
        self.hidden.clear()
        for cache in (self.lower, self.cache):
            cache.reset()


def mask_of(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What a cache of fixed size needs in place of an attention mask, (B, 1, L, its length).

    Args:
        visible: (B, L, length) or (1, L, length), whether each of L tokens may look at each place.
    """
    zeros = torch.zeros((), dtype=dtype, device=visible.device)
    return torch.where(visible, zeros, torch.finfo(dtype).min).unsqueeze(1)


_KNOWN: WeakKeyDictionary[nn.Module, CacheKind] = WeakKeyDictionary()


@torch.no_grad()
def cache_kind(model: PreTrainedModel) -> CacheKind:
    """The first kind of cache with which the model says the same as without one.

    Tried on six tokens behind padding, once for a model in memory; nothing is drawn.

    Raises:
        ModelError: if there is none, or if the model reads padding as text.
    """
    if model in _KNOWN:
        return _KNOWN[model]
    if model.device.type == "meta":  # weights that are not there
        return "plain"
    with evaluating(model):
        _KNOWN[model] = _find_cache_kind(model)
    return _KNOWN[model]


def _find_cache_kind(model: PreTrainedModel) -> CacheKind:
    name, text = type(model).__name__, probe(model)
    try:
        output = model(input_ids=text, use_cache=False, output_hidden_states=True)
    except Exception as error:
        raise ModelError(
            f"{name} cannot read a few tokens ({type(error).__name__}: {reason(error)}): PPO needs "
            "a language model that reads text alone"
        ) from error
    whole, hidden = output.logits[0], output.hidden_states[-1]
    if hidden.shape[:-1] != text.shape:
        raise ModelError(
            f"{name} has several hidden states to a token, and the value head reads one: use a "
            "model of another family"
        )
    kinds: tuple[CacheKind, ...] = ("plain", "own")
    for kind in kinds:
        try:
            if agree(read_on(Reader(model, None, kind), text), whole[_KNOWN_TOKENS - 1 :]):
                return kind
        except Exception:  # other families' layers ask a cache for what it does not have
            continue
    padded, mask = _padded(text)
    positions = position_ids_from(mask)
    inputs = {"attention_mask": mask, "position_ids": positions}
    if not agree(model(input_ids=padded, use_cache=False, **inputs).logits[0, _PADDING:], whole):
        raise ModelError(
            f"{name} would answer a prompt differently in a batch than alone, because it reads the "
            "padding: use a model of another family"
        )
    if not _generate_agrees(model, text):
        raise ModelError(
            f"{name} gives other logits token by token than for the whole text, with or without a "
            "cache: PPO needs samples of the policy, use a model of another family"
        )
    return "generate"


_KNOWN_TOKENS, _PADDING = 4, 2


def probe(model: PreTrainedModel) -> Tensor:
    """A text to try a model on, (1, 6): always the same tokens."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return (torch.arange(1, 7, device=model.device) * 5 % vocabulary).unsqueeze(0)


def read_on(reader: Reader, text: Tensor) -> Tensor:
    """What a reader says after each token of the text from the fourth on, (3, V).

    The first four are read at once behind padding, each of the others alone.
    """
    padded, mask = _padded(text)
    positions, said, start = position_ids_from(mask), [], 0
    for end in range(_PADDING + _KNOWN_TOKENS, padded.shape[1] + 1):
        piece = slice(start, end)
        said.append(reader(padded[:, piece], mask[:, :end], positions[:, piece]))
        start = end
    return torch.cat(said)


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether logits are the same but for rounding.

    A token read without its context is far off: by as much as the logits vary.
    """
    exact = b.dtype in (torch.float32, torch.float64)
    a, b = a.float(), b.float()
    return bool((a - b).norm() <= (1e-2 if exact else 0.5) * (b - b.mean()).norm())


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Without dropout; every module's mode is put back afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _padded(text: Tensor) -> tuple[Tensor, Tensor]:
    """The text behind padding, and the mask of its own tokens."""
    padded = nn.functional.pad(text, (_PADDING, 0))
    mask = torch.ones_like(padded)
    mask[:, :_PADDING] = 0
    return padded, mask


def _generate_agrees(model: PreTrainedModel, text: Tensor) -> bool:
    """Whether transformers' own loop says the same token by token as of the whole text."""
    padded, mask = _padded(text[:, :_KNOWN_TOKENS])
    n = text.shape[1] - _KNOWN_TOKENS
    try:
        output = model.generate(
            input_ids=padded,
            attention_mask=mask,
            max_new_tokens=n,
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    except Exception:
        return False
    whole = model(input_ids=output.sequences[:, _PADDING:], use_cache=False).logits[0]
    return agree(torch.cat(output.logits), whole[_KNOWN_TOKENS - 1 : -1])


def _cache(config: PretrainedConfig | None, first: int = 0, length: int | None = None) -> Cache:
    """A cache for layers that are numbered from `first` on; with a length, of fixed size."""
    from transformers import Cache, DynamicCache
    from transformers.cache_utils import StaticLayer

    base = DynamicCache if length is None else Cache

    class UpperCache(base):  # type: ignore[misc, valid-type]
        def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any) -> Any:
            return super().update(keys, values, layer_idx - first, *args)

    class FixedLayer(StaticLayer):
        values: Tensor

        def lazy_initialization(self, keys: Tensor, values: Tensor) -> None:
            super().lazy_initialization(keys, values)
            if values.dtype != keys.dtype:  # under autocast
                self.values = torch.zeros_like(self.values, dtype=values.dtype)

    kind = UpperCache if first else base
    if length is not None:
        return kind(layer_class_to_replicate=partial(FixedLayer, length))
    return kind() if config is None else kind(config=config)
