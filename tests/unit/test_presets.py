"""The presets, and what replaces their sources."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_tutorial.assets import SMOLLM2, Bundled, Hub, Wheel
from rlhf_tutorial.errors import AssetError, TutorialError
from rlhf_tutorial.models import create_reference_model
from rlhf_tutorial.ppo import PPOConfig
from rlhf_tutorial.presets import (
    LAYERS,
    LORA,
    OVERRIDES,
    PRESETS,
    SHARED_LAYERS,
    load_preset,
)


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    for variable in ("RLHF_PRESET", LORA, SHARED_LAYERS, *OVERRIDES.values()):
        monkeypatch.delenv(variable, raising=False)


def test_there_are_three_presets_and_the_default_needs_no_hub(monkeypatch):
    assert set(PRESETS) == {"smollm2", "dlite", "tiny"}
    assert all(preset.name == name for name, preset in PRESETS.items())
    default = load_preset()
    assert default.name == "smollm2" and default.num_shared_layers == 18
    for source in (default.policy, default.reward_model, default.reward_adapter, default.data):
        assert isinstance(source, (Wheel, Bundled))
    monkeypatch.setenv("RLHF_PRESET", "tiny")
    assert load_preset().name == "tiny"
    assert load_preset("dlite").name == "dlite", "a name given goes before the environment"


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_settings_are_settings_of_ppo(name):
    PPOConfig(**PRESETS[name].ppo)


def test_dlite_is_the_original_experiment():
    preset = load_preset("dlite")
    assert preset.policy == Hub("aisquared/dlite-v1-355m")
    assert preset.reward_model == Hub("OpenAssistant/reward-model-deberta-v3-large-v2")
    assert (preset.data, preset.data_dir) == (Hub("Anthropic/hh-rlhf"), "helpful-base")
    assert preset.prompts == 6400 and preset.max_new_tokens == 16 and preset.epochs == 1
    assert preset.template.text == "\n### Instruction:\n{instruction}\n### Response:\n"
    assert preset.template.end == "### End"
    # All else TRL's defaults, and every layer trained against a full copy.
    assert PPOConfig(**preset.ppo) == PPOConfig(batch_size=16, mini_batch_size=16)
    assert preset.num_shared_layers is None and preset.value_head_learning_rate is None
    assert preset.perplexity_texts is None


def test_tiny_needs_no_weights_at_all():
    preset = load_preset("tiny")
    assert preset.policy is None and preset.reward_model is None
    assert isinstance(preset.data, Bundled)


def test_every_source_can_be_replaced_by_a_folder_or_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_POLICY", str(tmp_path))
    monkeypatch.setenv("RLHF_REWARD_MODEL", "some/judge")
    monkeypatch.setenv("RLHF_DATA", str(tmp_path))
    preset = load_preset("smollm2")
    assert preset.policy == preset.data == tmp_path
    assert preset.reward_model == Hub("some/judge")
    assert preset.reward_adapter is None, "the adapter belongs to the preset's own encoder"
    assert PRESETS["smollm2"].reward_adapter is not None, "the preset itself stays as it is"


def test_another_policy_freezes_the_presets_share_of_its_layers(monkeypatch, tmp_path, make_policy):
    monkeypatch.setenv("RLHF_POLICY", str(tmp_path))
    shares = {name: load_preset(name).num_shared_layers for name in PRESETS}
    assert shares == {"smollm2": 0.6, "dlite": None, "tiny": 0.5}
    for layers, frozen in ((30, 18), (16, 10), (2, 1)):
        policy = make_policy("llama", layers=layers)
        create_reference_model(policy, shares["smollm2"])
        assert policy.num_shared_layers == frozen


def test_the_depths_are_those_of_the_presets_own_policies():
    assert LAYERS.keys() == {n for n, p in PRESETS.items() if p.num_shared_layers is not None}
    assert LAYERS["smollm2"] == 30 and PRESETS["smollm2"].policy == SMOLLM2


@pytest.mark.parametrize(
    ("text", "number"), [("10", 10), ("0.25", 0.25), ("0", None), ("none", None), ("", None)]
)
def test_the_frozen_layers_can_be_set(monkeypatch, text, number):
    monkeypatch.setenv(SHARED_LAYERS, text)
    assert load_preset("smollm2").num_shared_layers == number


@pytest.mark.parametrize("text", ["-1", "1.5", "all", "nan"])
def test_a_number_of_layers_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(SHARED_LAYERS, text)
    with pytest.raises(TutorialError, match="RLHF_SHARED_LAYERS is .*: use a number") as error:
        load_preset()
    assert "\n" not in str(error.value)


def test_an_unknown_preset_or_override_is_named_in_one_line(monkeypatch):
    with pytest.raises(TutorialError, match="no preset 'smolm': use one of smollm2") as error:
        load_preset("smolm")
    assert "\n" not in str(error.value)
    monkeypatch.setenv("RLHF_POLICY", "/no/such/folder")
    with pytest.raises(AssetError, match="/no/such/folder") as error:
        load_preset("tiny")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", PRESETS)
def test_any_preset_trains_an_adapter_in_place_of_its_layers(name, monkeypatch):
    monkeypatch.setenv(LORA, "16")
    preset = load_preset(name)
    ppo = {**PRESETS[name].ppo, "learning_rate": 5 * PRESETS[name].ppo["learning_rate"]}
    assert preset == replace(PRESETS[name], lora_rank=16, num_shared_layers=None, ppo=ppo)
    monkeypatch.setenv(LORA, "")
    assert load_preset(name) == PRESETS[name] and PRESETS[name].lora_rank is None
    for wrong in ("0", "-1", "8.5", "yes"):
        monkeypatch.setenv(LORA, wrong)
        with pytest.raises(TutorialError, match=f"RLHF_LORA is '{wrong}': give the rank") as error:
            load_preset(name)
        assert "\n" not in str(error.value)
