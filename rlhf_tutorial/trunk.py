"""The frozen trunk: a language model split into the layers that stay and those that are trained.

With the lowest k layers frozen, policy and reference are one model up to there: the trunk's hidden
states of a batch serve both, and every pass over that batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import ModelError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


class Halves(NamedTuple):
    """Two views of one language model, which hold its own tensors."""

    trunk: PreTrainedModel
    """The embeddings and the lowest layers."""
    top: PreTrainedModel
    """The layers above, the final norm and the output head."""


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


def freeze_below(model: PreTrainedModel, k: int) -> Halves:
    """Freeze the embeddings and the lowest k layers in place, and split the model there.

    A tied output head is the embedding matrix, so it is frozen too. The upper layers, the final
    norm and an untied head stay trainable.

    Raises:
        ModelError: if the model has not k layers, or cannot be split.
    """
    halves = _split(model, k)
    trained = [_layers(halves.top.base_model)[1], _final_norm(halves.top.base_model)[1]]
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        trained.append(head)
    trainable = {id(p) for module in trained for p in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trainable)
    return halves


def cast_frozen_matrices(*models: nn.Module) -> None:
    """Frozen matrices to bfloat16, in place: autocast would cast them again at every call."""
    for parameter in (p for model in models for p in model.parameters()):
        # Weights in 8 or 4 bit are integers.
        whole = parameter.ndim >= 2 and parameter.is_floating_point()
        if whole and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()


def _split(model: PreTrainedModel, k: int) -> Halves:
    """The layers below k without the final norm, and those from k on.

    upper(inputs_embeds=lower(ids)) equals model(ids); that is checked here on a few tokens, so that
    an architecture for which it fails is refused.
    """
    name, layers = _layers(model.base_model)
    if not 0 < k < len(layers):
        raise ModelError(
            f"num_shared_layers is {k}, but the model has {len(layers)} layers: "
            f"use 1 to {len(layers) - 1}, or None for a full copy"
        )
    halves: list[PreTrainedModel] = []
    for part in (layers[:k], layers[k:]):
        half, base = _shallow(model), _shallow(model.base_model)
        setattr(base, name, part)
        setattr(half, model.base_model_prefix, base)
        halves.append(half)
    lower, upper = halves
    setattr(lower.base_model, _final_norm(model.base_model)[0], nn.Identity())
    embeddings = model.get_input_embeddings()
    for child_name, child in model.base_model.named_children():
        if isinstance(child, nn.Embedding) and child is not embeddings:
            setattr(upper.base_model, child_name, _NoPositions())
    layer_types = getattr(model.config, "layer_types", None)
    if layer_types is not None:  # some models look up the kind of attention by layer number
        config = copy.deepcopy(model.config)
        config.layer_types = layer_types[k:]
        upper.config = config
        upper.base_model.config = config
    _check_split(model, lower, upper)
    return Halves(lower, upper)


@torch.no_grad()
def _check_split(model: PreTrainedModel, lower: PreTrainedModel, upper: PreTrainedModel) -> None:
    was_training = model.training
    for module in (model, lower, upper):
        module.eval()  # dropout would make the two differ
    ids = torch.arange(4, device=model.device).unsqueeze(0) % model.config.vocab_size
    states = lower.base_model(ids, use_cache=False).last_hidden_state
    expected = model(ids, use_cache=False).logits
    actual = upper(inputs_embeds=states, use_cache=False).logits
    model.train(was_training)
    if not torch.allclose(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise ModelError(
            f"{type(model).__name__} cannot be split into a trunk and a top: "
            "use num_shared_layers=None"
        )


def _shallow(module: nn.Module) -> nn.Module:
    """A copy with the same submodules and parameters whose submodules can be replaced freely."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone


def _layers(base_model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of the transformer blocks."""
    for name, child in base_model.named_children():
        if isinstance(child, nn.ModuleList):
            return name, child
    raise ModelError(f"{type(base_model).__name__} has no list of layers to split: share none")


def _final_norm(base_model: nn.Module) -> tuple[str, nn.Module]:
    """The name of the norm after the last block, and the norm."""
    norms = [(n, m) for n, m in base_model.named_children() if type(m).__name__.endswith("Norm")]
    if not norms:
        raise ModelError(f"{type(base_model).__name__} has no final norm to split at: share none")
    return norms[-1]


class _NoPositions(nn.Module):
    """Stands for a learned position embedding in the upper half, where it was added already."""

    def forward(self, position_ids: Tensor) -> Tensor:
        return torch.zeros((), device=position_ids.device)


def upper_cache(offset: int) -> Cache:
    """A cache of keys and values for layers that are numbered from `offset` on."""
    from transformers import DynamicCache

    class UpperCache(DynamicCache):
        def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any) -> Any:
            return super().update(keys, values, layer_idx - offset, *args)

    return UpperCache()
