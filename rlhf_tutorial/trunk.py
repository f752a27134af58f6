"""The frozen trunk: a language model split into the layers that stay and those that are trained.

With the lowest k layers frozen, policy and reference are one model up to there: the trunk's hidden
states of a batch serve both, and every pass over that batch.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import ModelError
from .families import (
    CacheKind,
    Halves,
    Reader,
    agree,
    cache_kind,
    evaluating,
    probe,
    read_on,
    text_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrunkStates:
    """A trunk's hidden states of a batch, and the tokens and weights that they came from."""

    input_ids: Tensor
    """(B, L)"""
    attention_mask: Tensor
    """(B, L), 1 at tokens that were read."""
    position_ids: Tensor
    """(B, L)"""
    hidden: Tensor
    """(B, L - 1, hidden) or more: the last token that was drawn need not have been read."""
    version: int
    """`trunk_version` of the weights."""

    def of(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, version: int
    ) -> Tensor | None:
        """The states of these tokens under these weights, (B, W, hidden); None if of others.

        Args:
            input_ids, attention_mask, position_ids: (B, W). What stands at padding is not compared.
        """
        width = input_ids.shape[1]
        if version != self.version or self.hidden.shape[1] < width:
            return None
        if self.input_ids[:, :width].shape != input_ids.shape:
            return None
        known = (self.input_ids, self.attention_mask, self.position_ids)
        asked = (input_ids, attention_mask, position_ids)
        same = torch.stack([a[:, :width] == b for a, b in zip(known, asked, strict=True)])
        if not (same.all(dim=0) | (attention_mask == 0)).all():
            return None
        return self.hidden[:, :width]


def trunk_version(trunk: nn.Module) -> int:
    """Changes whenever a frozen weight is written to, as by `load_state_dict`."""
    return sum(p._version for p in trunk.parameters() if not p.requires_grad)


def freeze_below(model: PreTrainedModel, k: int, samples: bool = True) -> Halves | None:
    """Freeze the embeddings and the lowest k layers in place, and split the model there.

    A tied output head is the embedding matrix, so it is frozen too. The upper layers, the final
    norm and an untied head stay trainable.

    Args:
        samples: whether the halves are to read on token by token, too.

    Returns:
        The two halves; None if the model cannot go on from states between two layers. Then the
        frozen layers are computed in every pass, with the same result.

    Raises:
        ModelError: if the model has not k layers, or its layers form no list.
    """
    stack = _Stack.of(model).checked(k)
    halves = _halves(model, stack, k, samples)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    trained = [stack.layers[k:], *(norm for norm in [stack.final_norm] if norm is not None)]
    if head.weight is not embeddings.weight:
        trained.append(head)
    trainable = {id(p) for module in trained for p in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trainable)
    return halves


def freeze_adapters_below(model: PreTrainedModel, k: int) -> None:
    """Freeze in place what adapters add to the embeddings and to the lowest k layers.

    The model is not split: its reference reads the same layers otherwise, above and below.

    Raises:
        ModelError: if the model has not k layers, or its layers form no list.
    """
    stack = _Stack.of(model).checked(k)
    above = [*stack.layers[k:], model.get_output_embeddings()]
    kept = {id(p) for module in above for p in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)


def layers_of_share(model: PreTrainedModel, share: float) -> int:
    """How many layers a share of them is, the nearest number that leaves one to train."""
    n = len(_Stack.of(model).layers)
    return max(1, min(round(share * n), n - 1))


def cast_frozen_matrices(*models: nn.Module) -> None:
    """Frozen matrices to bfloat16, in place: autocast would cast them again at every call."""
    for parameter in (p for model in models for p in model.parameters()):
        # Weights in 8 or 4 bit are integers.
        whole = parameter.ndim >= 2 and parameter.is_floating_point()
        if whole and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()


class _Stack(NamedTuple):
    """Where a model's transformer blocks are."""

    path: list[str]
    """The names that lead from the model to the module that holds the list."""
    holder: nn.Module
    name: str
    layers: nn.ModuleList
    final_norm: nn.Module | None
    """The norm after the last block; some families have none."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> _Stack:
        """The list with as many blocks as the config says, first looked for in the decoder.

        Raises:
            ModelError: if there is none.
        """
        names = {id(module): name for name, module in model.named_modules()}
        depth = text_config(model.config).num_hidden_layers
        for root in (model.get_decoder(), model.base_model):
            for holder in root.modules() if isinstance(root, nn.Module) else ():
                for name, child in holder.named_children():
                    if isinstance(child, nn.ModuleList) and len(child) == depth:
                        path = [part for part in names[id(holder)].split(".") if part]
                        return cls(path, holder, name, child, _final_norm(holder))
        raise ModelError(f"{type(model).__name__} has no list of layers to split: share none")

    def checked(self, k: int) -> _Stack:
        """The same; ModelError where k layers would be all or none of them."""
        n = len(self.layers)
        if not 0 < k < n:
            raise ModelError(
                f"num_shared_layers is {k}, but the model has {n} layers: use 1 to {n - 1}, a "
                "share such as 0.6, or None for a full copy"
            )
        return self


def _halves(model: PreTrainedModel, stack: _Stack, k: int, samples: bool) -> Halves | None:
    """The model's two halves, if they say what the model says, at once and token by token."""
    # Before the split: transformers marks a model when it puts hooks on its layers, once. Halves
    # of a model without the mark would put a second set on the same layers.
    kind = cache_kind(model) if samples else "generate"
    try:
        halves = _split(model, stack, k)
        with torch.no_grad(), evaluating(model, halves.trunk, halves.top):
            split = _is_split(model, halves, kind)
    except Exception:  # what a family's own forward does not understand
        split = False
    if split:
        return halves
    logger.info(
        "%s does not go on from states between its layers: the frozen ones are computed in every "
        "pass, with the same result in more time",
        type(model).__name__,
    )
    return None


def _split(model: PreTrainedModel, stack: _Stack, k: int) -> Halves:
    """The layers below k without the final norm, and those from k on.

    upper(inputs_embeds=lower(ids)) is to equal model(ids): see `_is_split`.
    """
    (lower, below), (upper, above) = (_shallow_along(model, stack.path) for _ in range(2))
    setattr(below, stack.name, stack.layers[:k])
    setattr(above, stack.name, stack.layers[k:])
    embeddings = model.get_input_embeddings()
    for name, child in stack.holder.named_children():
        if child is stack.final_norm:
            setattr(below, name, nn.Identity())
        elif _is_norm(child):  # of the embeddings
            setattr(above, name, nn.Identity())
        elif isinstance(child, nn.Embedding) and child is not embeddings:
            setattr(above, name, _NoPositions())
    if hasattr(above, "embedding_multiplier"):  # Granite's, which the trunk has applied
        vars(above)["embedding_multiplier"] = 1.0
    layer_types = getattr(model.config, "layer_types", None)
    if layer_types is not None:  # some models look up the kind of attention by layer number
        config = copy.deepcopy(model.config)
        config.layer_types = layer_types[k:]
        upper.config = config
        upper.base_model.config = config
    return Halves(lower, upper, k, model.dtype)


def _is_split(model: PreTrainedModel, halves: Halves, kind: CacheKind) -> bool:
    """Whether the halves are the model: on a short text, and read on with the model's cache."""
    text = probe(model)
    whole = model(input_ids=text, use_cache=False).logits[0]
    states = halves.trunk.base_model(text, use_cache=False)[0].to(halves.dtype)
    if not agree(halves.top(inputs_embeds=states, use_cache=False).logits[0], whole):
        return False
    if kind == "generate":  # which runs the whole model
        return True
    said = read_on(Reader(model, halves, kind), text)
    return agree(said, whole[-len(said) :])


def _shallow_along(model: PreTrainedModel, path: list[str]) -> tuple[PreTrainedModel, nn.Module]:
    """A copy of the model, and its module at the path, whose submodules can be replaced freely."""
    copied = module = _shallow(model)
    for name in path:
        child = _shallow(getattr(module, name))
        setattr(module, name, child)
        module = child
    return copied, module


def _shallow(module: nn.Module) -> nn.Module:
    """A copy with the same submodules and parameters whose submodules can be replaced freely."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _final_norm(holder: nn.Module) -> nn.Module | None:
    """The norm after the last block."""
    norms = [module for module in holder.children() if _is_norm(module)]
    return norms[-1] if norms else None


class _NoPositions(nn.Module):
    """Stands for a learned position embedding in the upper half, where it was added already."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        return torch.zeros((), device=given[0].device)
