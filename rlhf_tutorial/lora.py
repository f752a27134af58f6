"""LoRA policies: a language model that stays as it is, and PEFT's adapter on it, which is trained.

What PEFT makes is used as it is. What is added here: the reference, which is the same model read
without its adapter, or with a frozen copy of it; folders; and what is refused, in one line.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import ModelError, reason
from .families import evaluating, probe
from .quiet import quiet_transformers
from .randomness import preserved_random_state, seeded

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
"""What tells an adapter's folder from a checkpoint's."""

SETTINGS = (
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
)
"""What of an adapter's config changes the numbers, beside the names and shapes of its weights."""


def is_peft_model(model: Any) -> bool:
    """Whether it is PEFT's wrapper around a model; PEFT is not imported to find out."""
    wrapper = getattr(sys.modules.get("peft"), "PeftModel", None)
    return wrapper is not None and isinstance(model, wrapper)


def is_quantised(model: nn.Module) -> bool:
    """Whether the language model's own weights are in 8 or 4 bit."""
    flags = ("is_loaded_in_8bit", "is_loaded_in_4bit", "is_quantized")
    return any(getattr(model, flag, False) is True for flag in flags)


def language_model(model: Any) -> Any:
    """The model of transformers' inside PEFT's wrapper, its layers with their adapters."""
    return model.get_base_model() if is_peft_model(model) else model


# Making one -------------------------------------------------------------------------------------


def all_linear(rank: int | None) -> LoraConfig | None:
    """The course's LoRA of that rank: on all linear layers but the head, alpha twice the rank."""
    if rank is None:
        return None
    return _peft().LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"
    )


def adapted(
    model: Any,
    peft_config: Any = None,
    merge: bool | None = False,
    base: Any = None,
) -> Any:
    """The model as asked for: with a new adapter, with its own one, or with that merged into it.

    A model that has an adapter keeps it, as with TRL, whatever `peft_config` says.

    Args:
        model: a language model, or PEFT's wrapper around one.
        peft_config: of the new adapter, drawn from a fixed seed; None for none.
        merge: put the adapter that the model has into its weights first.
        base: the hub id or folder that the language model came from, for whoever loads the adapter
            later.

    Raises:
        ModelError: if that cannot be, or is no LoRA.
    """
    if is_peft_model(model):
        _check(model)
    if merge and is_peft_model(model):
        if is_quantised(language_model(model)):
            raise ModelError(
                "merge=True needs the language model's own weights, and these are in 8 or 4 bit: "
                "load it without"
            )
        model = _put_into_weights(model, "leave merge out").requires_grad_(True)
        model.name_or_path = ""  # its weights are no longer what lies under that name
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "the model has an adapter that transformers' add_adapter or load_adapter put there: "
            "hand over its folder, or peft.get_peft_model(model, config), or a peft_config"
        )
    if peft_config is not None and is_peft_model(model):
        logger.warning(
            "peft_config is left out: the model has an adapter, and that is trained further; "
            "merge=True puts it into the weights, and a new one on them"
        )
    elif peft_config is not None:
        model = _with_new_adapter(model, peft_config, base)
    return model


def _with_new_adapter(model: PreTrainedModel, config: Any, base: Any) -> PeftModel:
    peft = _peft()
    if not isinstance(config, peft.PeftConfig):
        raise ModelError(f"peft_config is a {type(config).__name__}: give a peft.LoraConfig")
    _check_config(config)
    if is_quantised(model):
        # Freezes the model, and puts norms into float32. Its checkpointing would do nothing, since
        # PPO runs models in evaluation mode.
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    try:
        with seeded(0), preserved_random_state(), quiet_transformers():
            adapted = peft.get_peft_model(model, copy.deepcopy(config))
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"peft cannot put this adapter on a {type(model).__name__} "
            f"({type(error).__name__}: {reason(error)}): change peft_config"
        ) from error
    told = adapted.peft_config["default"]
    if isinstance(base, Path):
        told.base_model_name_or_path = str(base.expanduser().resolve())
    elif base is not None:  # of the hub, and not its folder in this machine's cache
        told.base_model_name_or_path, told.revision = base.repo_id, base.revision
    return adapted


def _check(model: PeftModel) -> None:
    for name in _active(model):
        _check_config(model.peft_config[name])
    if len(_active(model)) != 1:
        raise ModelError(
            f"the adapters {', '.join(_active(model))} are active together: PPO trains one, "
            "choose it with set_adapter"
        )
    if any(getattr(layer, "merged", False) for layer in _tuner_layers(model)):
        raise ModelError(
            "the adapter is merged into the weights at the moment: call unmerge_adapter()"
        )
    if any(layer.disable_adapters for layer in _tuner_layers(model)):
        raise ModelError(
            "the adapter is switched off at the moment, so that training it would change nothing: "
            "call base_model.enable_adapter_layers()"
        )


def _check_config(config: Any) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA" or getattr(config, "alora_invocation_tokens", None):
        name = "activated LoRA" if kind == "LORA" else kind
        raise ModelError(
            f"the adapter is of the kind {name}, and PPO here trains LoRA: use peft.LoraConfig"
        )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            f"LoRA policies need peft, which cannot be imported ({reason(error)}): pip install peft"
        ) from error
    return peft


def check_trained(model: Any) -> None:
    """Raise ModelError for a policy of which PPO would train nothing, or quantised weights."""
    if not is_peft_model(model):
        if is_quantised(model):
            raise ModelError(
                "the policy's weights are in 8 or 4 bit, and PPO's small updates vanish in them: "
                "train a LoRA adapter on them with peft_config, or load them as they are"
            )
        return
    _check(model)
    if not any(p.requires_grad for p in _read(model).values()):
        raise ModelError(
            "the policy's adapter is frozen, so that its value head alone would be trained: load "
            "it with is_trainable=True and without inference_mode in its config, and leave the "
            "flags of its reference alone, as both have the same weights"
        )


def quantisation(
    kwargs: dict[str, Any],
    has_adapter: bool,
    peft_config: Any = None,
    merge: bool | None = False,
) -> dict[str, Any]:
    """The arguments with TRL's `load_in_8bit` or `load_in_4bit` as transformers has them today.

    Args:
        has_adapter: whether the folder holds one; the rest is as in `adapted`.

    Raises:
        ModelError: for quantised weights that would be trained, or where nothing can load them.
    """
    kwargs = dict(kwargs)
    bits = [name for name in ("load_in_8bit", "load_in_4bit") if kwargs.pop(name, False)]
    given = kwargs.get("quantization_config")
    if type(given).__name__ == "BitsAndBytesConfig" and not bits:
        bits = ["quantization_config"]
    if not bits:
        return kwargs
    if merge or not (has_adapter or peft_config is not None):
        raise ModelError(
            f"{bits[0]} is for LoRA policies, PPO's small updates vanish in quantised weights: "
            "give a peft_config, or leave it out"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{bits[0]} needs bitsandbytes, which is not installed: install it")
    from transformers import BitsAndBytesConfig

    if given is None:
        kwargs["quantization_config"] = BitsAndBytesConfig(**dict.fromkeys(bits, True))
    return kwargs


# Folders ----------------------------------------------------------------------------------------


def base_of(folder: Path) -> tuple[str, str] | None:
    """Name and revision of the language model that an adapter's folder is for; None if it is none.

    Raises:
        ModelError: if the folder does not say.
    """
    if not (folder / CONFIG_FILE).is_file():
        return None
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        name = config.get("base_model_name_or_path")
        revision = config.get("revision") or "main"
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{folder / CONFIG_FILE} cannot be read ({reason(error)}): fetch it again"
        ) from error
    if not name:
        raise ModelError(
            f"the adapter in {folder} does not name the language model that it is for: {BY_HAND}"
        )
    beside = folder / name
    return (str(beside) if not Path(name).exists() and beside.is_dir() else name), revision


BY_HAND = (
    "load that, and hand over peft.PeftModel.from_pretrained(model, folder, is_trainable=True)"
)


def load(model: PreTrainedModel, folder: Path, is_trainable: bool = True) -> PeftModel:
    """The language model with the adapter of a folder, to be trained further unless told not to.

    Raises:
        ModelError: if it does not fit.
    """
    peft = _peft()
    if is_quantised(model):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    try:
        with preserved_random_state(), quiet_transformers():
            # Without its weights a layer's adapter would be a fresh one, which changes nothing.
            warnings.filterwarnings("error", "Found missing adapter keys")
            loaded = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    except Exception as error:  # peft, torch and safetensors have a dozen types
        raise ModelError(
            f"cannot put the adapter in {folder} on its language model "
            f"({type(error).__name__}: {reason(error)[:200]}): check that the two belong together"
        ) from error
    return loaded


def save(model: PeftModel, folder: Path, **kwargs: Any) -> None:
    """Leave the trained adapter in the folder, as peft saves one; `kwargs` are for it."""
    (name,) = _active(model)
    if not model.peft_config[name].base_model_name_or_path:
        logger.warning(
            "the adapter in %s names no language model, since it was put on one in memory, or on "
            "one with another adapter in its weights: save that as well, or save with merge=True",
            folder,
        )
    model.save_pretrained(str(folder), selected_adapters=[name], **kwargs)
    if name != "default":  # peft then makes a folder of that name, which nothing would look into
        for path in (folder / name).iterdir():
            path.replace(folder / path.name)
        (folder / name).rmdir()


def remove(folder: Path) -> None:
    """Delete the adapter that an earlier `save` left: a checkpoint beside it would not be read."""
    for name in (CONFIG_FILE, "adapter_model.safetensors", "adapter_model.bin"):
        (folder / name).unlink(missing_ok=True)


def merged(model: PeftModel) -> PreTrainedModel:
    """A language model of its own in float32, with the adapter in its weights.

    Raises:
        ModelError: if it would not say what the adapted one says.
    """
    if is_quantised(language_model(model)):
        raise ModelError(
            "merge=True needs the language model's own weights, and these are in 8 or 4 bit: save "
            "the adapter, and load that with merge=True"
        )
    return _put_into_weights(copy.deepcopy(model).float(), "save the adapter")


@torch.no_grad()
def _put_into_weights(model: PeftModel, advice: str) -> PreTrainedModel:
    """The adapter's own language model, with the adapter in its weights, which is checked."""
    inner = language_model(model)
    text = probe(inner)
    with evaluating(model):
        expected = inner(text, use_cache=False).logits.float()
    plain = model.merge_and_unload()
    with evaluating(plain):
        actual = plain(text, use_cache=False).logits.float()
    share = 1e-3 if inner.dtype == torch.float32 else 5e-2  # of the largest, for rounding
    if not torch.allclose(actual, expected, rtol=share, atol=share * expected.abs().max().item()):
        raise ModelError(
            f"this adapter cannot be merged into a {type(plain).__name__} without changing what "
            f"the policy says (one on a head that is also the embeddings?): {advice}"
        )
    return plain


# The reference ----------------------------------------------------------------------------------


class Switched(nn.Module):
    """A LoRA policy's language model as it was before training: the same weights, read otherwise.

    Attributes:
        model: the policy's own, shared with it.
        adapter: the name of the frozen copy it is read with; None for no adapter at all.
    """

    def __init__(self, model: PeftModel, adapter: str | None) -> None:
        super().__init__()
        self.model, self.adapter = model, adapter
        self.layers = tuple(_tuner_layers(model))  # registered as modules once, within the model

    @property
    def forward(self) -> Any:  # type: ignore[override]  # with the signature of the model's own
        inner = language_model(self.model)

        @functools.wraps(inner.forward)
        def read(*args: Any, **kwargs: Any) -> Any:
            with switched(self.layers, self.adapter):
                return inner(*args, **kwargs)

        return read

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        with switched(self.layers, self.adapter):
            return language_model(self.model).generate(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def as_it_is_now(model: PeftModel) -> Switched | None:
    """The model as it is before training, which adds no memory, or that of a second adapter.

    An adapter that changes nothing yet, B = 0, is switched off. Any other is copied, and the copy
    frozen. None if neither would do: where more than the adapter is trained (biases, or weights of
    the language model itself), only a copy of all is the model as it is now.
    """
    (name,) = _active(model)
    parameters = _read(model)
    own = {k: p for k, p in parameters.items() if name in k.split(".")}
    if any(p.requires_grad for k, p in parameters.items() if k not in own):
        return None
    if all(_changes_nothing(k, p) for k, p in own.items()):
        return Switched(model, None)
    return Switched(model, _frozen_copy(model, name))


def _changes_nothing(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is an A, whatever its numbers, or a B of zeros."""
    parts = name.split(".")
    if {"lora_A", "lora_embedding_A"} & set(parts):
        return True
    return bool({"lora_B", "lora_embedding_B"} & set(parts)) and not parameter.any()


def _frozen_copy(model: PeftModel, name: str) -> str:
    """A second adapter with the same weights, frozen; its name."""
    peft = _peft()
    copy_name = next(
        n for n in ("reference", *(f"reference_{i}" for i in range(2, 99)))
        if n not in model.peft_config
    )  # fmt: skip
    config = copy.deepcopy(model.peft_config[name])
    config.init_lora_weights = True  # others, PiSSA say, would change the language model again
    flags = {id(p): p.requires_grad for p in model.parameters()}
    with preserved_random_state(), quiet_transformers():
        model.add_adapter(copy_name, config)
    weights = {k: v.detach().clone() for k, v in _state(model, name).items()}
    peft.set_peft_model_state_dict(model, weights, adapter_name=copy_name)
    for parameter in model.parameters():
        parameter.requires_grad_(flags.get(id(parameter), False))
    here, there = _state(model, name), _state(model, copy_name)
    if here.keys() != there.keys() or not all(torch.equal(here[k], there[k]) for k in here):
        raise ModelError(
            "this adapter cannot be copied for the reference: pass a ref_model of your own"
        )
    return copy_name


def _state(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    return _peft().get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


@contextmanager
def switched(layers: Sequence[Any], adapter: str | None) -> Iterator[None]:
    """Within, the layers compute with this adapter, or with none.

    peft's public switches also decide what is trained, and take a tenth of a second for thirty
    layers. These are the two fields behind them; what peft says of itself is checked.
    """
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
            on = None if layer.disable_adapters else list(layer.active_adapters)
            if on != (adapter and [adapter]):
                raise ModelError(
                    f"this peft has no switch where it is looked for in a {type(layer).__name__}: "
                    "install one of the versions in constraints.txt"
                )
        yield
    finally:
        for layer, (disabled, active) in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = disabled, active


def _active(model: PeftModel) -> list[str]:
    return list(model.active_adapters)


def _read(model: PeftModel) -> dict[str, nn.Parameter]:
    """The weights that a pass reads, by name: all but those of adapters that are not active."""
    others = set(model.peft_config) - set(_active(model))
    return {k: p for k, p in model.named_parameters() if not others & set(k.split("."))}


def _tuner_layers(model: PeftModel) -> list[Any]:
    """The modules that an adapter can be switched in."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


# Telling runs apart -----------------------------------------------------------------------------


def settings(model: Any) -> dict[str, Any]:
    """What of the trained adapter's config tells one run from another; nothing without adapter."""
    if not is_peft_model(model):
        return {}
    (name,) = _active(model)
    config = model.peft_config[name].to_dict()
    return {f"adapter.{key}": config[key] for key in SETTINGS if key in config}
