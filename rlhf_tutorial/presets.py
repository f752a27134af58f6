"""The experiments that the notebooks can run: what is trained, on what, judged by what, and how."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .assets import SMOLLM2, Bundled, Hub, Source, as_source
from .errors import TutorialError
from .template import BRIEF, CHAT, DLITE, PromptTemplate


@dataclass(frozen=True)
class Preset:
    """One experiment. Any source can be replaced by another hub id or local folder."""

    name: str
    policy: Source | None
    """The language model to train; None for a tiny one with random weights, made on the fly."""
    reward_model: Source | None
    """The judge; None for `reward.rule_reward`, which needs no weights."""
    data: Source
    """Preference dialogues with a "train" and a "test" split."""
    template: PromptTemplate
    reward_adapter: Source | None = None
    """What turns `reward_model` into the judge (see `reward.load_judge`); None if it is one."""
    second_judge: Source | None = None
    """Another judge, used only to evaluate; None for `reward.rule_of_variety`."""
    second_adapter: Source | None = None
    """What turns `second_judge` into a judge; None if it is one by itself."""
    data_dir: str | None = None
    """The subfolder of `data` that is read; None for all of it."""
    prompts: int | None = None
    """How many training prompts to keep; None for all."""
    max_new_tokens: int = 16
    """The longest answer, in tokens."""
    epochs: int = 1
    """How many times each training prompt is used."""
    num_shared_layers: int | float | None = None
    """Frozen layers shared with the reference, or their share of all layers, as 0.6; None trains
    every layer against a full copy."""
    lora_rank: int | None = None
    """Of an adapter on all linear layers that is trained in place of any layer (`lora`)."""
    value_head_learning_rate: float | None = None
    """The value head's own, as it starts untrained; None for that of the policy."""
    value_head_start: float | None = None
    """The value that every token has before training, the mean score of the untouched policy's
    answers; None for a head with random weights."""
    learning_rate_decays: bool = False
    """Whether the learning rates fall to 0, in a straight line over the run: the fourth of the "37
    Implementation Details of Proximal Policy Optimization" (Huang et al. 2022)."""
    ppo: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `PPOConfig`; a field not named here has the default of TRL 0.11.4."""
    comparison_prompts: int = 128
    """How many held-out prompts are answered before and after training."""
    perplexity_texts: int | None = None
    """How many held-out dialogues the perplexity is measured on; None for all."""


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="smollm2",
            policy=SMOLLM2,
            reward_model=SMOLLM2,
            reward_adapter=Bundled("judge"),
            second_judge=SMOLLM2,
            second_adapter=Bundled("evaluating_judge"),
            data=Bundled("preferences"),
            template=BRIEF,
            max_new_tokens=32,
            num_shared_layers=18,
            value_head_learning_rate=5e-4,
            value_head_start=1.25,
            learning_rate_decays=True,
            ppo={
                "batch_size": 16,
                "mini_batch_size": 16,
                "adap_kl_ctrl": False,
                "max_grad_norm": 1.0,
                "ppo_epochs": 2,
                "learning_rate": 1e-4,
                "init_kl_coef": 0.05,
                "temperature": 0.5,
            },
        ),
        Preset(
            name="dlite",
            policy=Hub("aisquared/dlite-v1-355m"),
            reward_model=Hub("OpenAssistant/reward-model-deberta-v3-large-v2"),
            second_judge=Hub(
                "OpenAssistant/reward-model-electra-large-discriminator",
                "12a77db0aab0056cde4dd8e37f529286ab48b9c1",
            ),
            data=Hub("Anthropic/hh-rlhf"),
            data_dir="helpful-base",
            template=DLITE,
            prompts=6_400,
            # The rate is TRL's default.
            ppo={"batch_size": 16, "mini_batch_size": 16, "learning_rate": 1.41e-5},
        ),
        Preset(
            name="tiny",
            policy=None,
            reward_model=None,
            data=Bundled("preferences"),
            template=CHAT,
            prompts=64,
            num_shared_layers=1,
            ppo={"batch_size": 16, "mini_batch_size": 16, "learning_rate": 1e-3},
            comparison_prompts=16,
            perplexity_texts=16,
        ),
    )
}

OVERRIDES = {
    "policy": "RLHF_POLICY",
    "reward_model": "RLHF_REWARD_MODEL",
    "second_judge": "RLHF_SECOND_JUDGE",
    "data": "RLHF_DATA",
}
"""Field of the preset to the environment variable that replaces it (see `load_preset`)."""

LORA = "RLHF_LORA"
"""The environment variable with the rank of a LoRA adapter (see `load_preset`)."""
LORA_RATE = 5
"""An adapter's learning rate is so many times the preset's: then the default run goes as far from
the reference as without one (docs/presets.md)."""


LAYERS = {"smollm2": 30, "tiny": 2}
"""Of the presets' own policies: in one of another depth the same share of them is frozen."""


def load_preset(name: str | None = None) -> Preset:
    """The preset of that name; without one, the preset that RLHF_PRESET names, else `smollm2`.

    RLHF_POLICY, RLHF_REWARD_MODEL, RLHF_SECOND_JUDGE and RLHF_DATA replace its policy, judges and
    data by a local folder, "org/name" or "org/name@revision". A judge given in this way is used as
    it is, without the preset's adapter. RLHF_LORA is the rank of an adapter that is trained in
    place of the policy's own layers, at `LORA_RATE` times the preset's learning rate.

    RLHF_SHARED_LAYERS replaces the number of frozen layers: a number, a share as 0.6, or 0 for
    none. Without it, another policy freezes the same share of its layers as the preset's own.

    Raises:
        TutorialError: for an unknown name, a number of layers that is none, or a rank that is none.
        AssetError: for a replacement that is neither an existing path nor a hub id.
    """
    name = name or os.environ.get("RLHF_PRESET") or "smollm2"
    if name not in PRESETS:
        raise TutorialError(f"there is no preset {name!r}: use one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    for field_name, variable in OVERRIDES.items():
        if value := os.environ.get(variable):
            changed: dict[str, Any] = {field_name: as_source(value)}
            preset = replace(preset, **changed)
            if field_name == "policy" and (k := preset.num_shared_layers) is not None:
                preset = replace(preset, num_shared_layers=round(k / LAYERS[name], 3))
            if field_name == "reward_model":
                preset = replace(preset, reward_adapter=None)
            if field_name == "second_judge":
                preset = replace(preset, second_adapter=None)
    if (shared := os.environ.get(SHARED_LAYERS)) is not None:
        preset = replace(preset, num_shared_layers=shared_layers(shared))
    if rank := os.environ.get(LORA):
        if not (rank.isdecimal() and int(rank)):
            raise TutorialError(
                f"{LORA} is {rank!r}: give the rank of the adapter, 16 for instance"
            )
        ppo = {**preset.ppo, "learning_rate": LORA_RATE * preset.ppo["learning_rate"]}
        preset = replace(preset, lora_rank=int(rank), num_shared_layers=None, ppo=ppo)
    return preset


SHARED_LAYERS = "RLHF_SHARED_LAYERS"


def shared_layers(text: str) -> int | float | None:
    """A number of frozen layers as a reader writes it: "10", "0.6", or "0" or "none" for none.

    Raises:
        TutorialError: for anything else.
    """
    try:
        number = 0.0 if text.lower() in ("", "none") else float(text)
    except ValueError:
        number = -1.0
    if number == 0:
        return None
    if 0 < number < 1:
        return number
    if number >= 1 and number.is_integer():
        return int(number)
    raise TutorialError(
        f"{SHARED_LAYERS} is {text!r}: use a number of layers, a share such as 0.6, or 0 for none"
    )
