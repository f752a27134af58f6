"""LoRA policies: the same numbers as the full matrix's, a reference without memory, and folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.errors import one_line
from support.models import language_model, lora_config, lora_policy, move_adapter, value_model
from support.tokenizers import PadAndEnd
from support.trainers import assert_same_weights, forget_accelerate, go_on, query_rows, weights_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_tutorial import lora
from rlhf_tutorial.errors import AssetError, CheckpointError, ModelError
from rlhf_tutorial.models import (
    VALUE_HEAD_FILE,
    AutoModelForCausalLMWithValueHead,
    create_reference_model,
)
from rlhf_tutorial.ppo import PPOConfig, PPOTrainer
from rlhf_tutorial.trunk import cast_frozen_matrices

Policy = AutoModelForCausalLMWithValueHead
KINDS = ["llama", "gpt2", "qwen2", "neox"]
IDS = torch.arange(20, 44).view(2, 12)


def make_trainer(policy: Policy, **settings: Any) -> PPOTrainer:
    dataset, reference = settings.pop("dataset", None), settings.pop("reference", None)
    config = {"batch_size": 6, "mini_batch_size": 6, "learning_rate": 1e-2} | settings
    return PPOTrainer(PPOConfig(**config), policy, reference, PadAndEnd(), dataset)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Of a policy, a reference or a plain language model."""
    output = model(IDS)
    return output[0] if isinstance(output, tuple) else output.logits


def kl_at_first(trainer: PPOTrainer, samples: Any) -> dict[str, Any]:
    """A step's stats; its KL must be 0 and its first ratios 1 to the last bit."""
    stats = trainer.step(*samples)
    assert stats["objective/kl"] == 0
    assert (stats["objective/logprobs"] == stats["objective/ref_logprobs"]).all()
    first = stats["ppo/policy/ratio"].reshape(trainer.config.ppo_epochs, -1)[0]
    assert (first == 1).all()
    return stats


# Exactness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_the_kl_is_0_and_the_ratio_1_to_the_last_bit(kind, samples) -> None:
    policy, base = lora_policy(kind).train(), language_model(kind)  # all dropout on, if looked at
    assert policy.is_peft_model and torch.equal(logits(policy.eval()), logits(base))
    policy.train()
    trainer = make_trainer(policy)
    assert trainer.is_peft_model
    kl_at_first(trainer, samples)
    assert trainer.step(*samples)["objective/kl"] != 0, "the adapter learns"


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_base_to_the_last_bit_whatever_was_trained(kind, samples) -> None:
    policy, base = lora_policy(kind), value_model(kind)
    trainer = make_trainer(policy)
    for _ in range(3):
        stats = trainer.step(*samples)
    # What an ordinary trainer says of the base itself.
    expected = make_trainer(value_model(kind)).step(*samples)["objective/logprobs"]
    assert (stats["objective/ref_logprobs"] == expected).all()
    assert torch.equal(logits(trainer.ref_model), logits(base))
    assert (logits(policy) - logits(base)).abs().max() > 1e-2
    for name, parameter in base.pretrained_model.named_parameters():
        kept = dict(lora.language_model(policy.pretrained_model).named_parameters())
        wrapped = name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        assert torch.equal(kept[wrapped if wrapped in kept else name], parameter)


def test_with_a_the_identity_bs_first_gradient_is_the_full_matrixs(samples) -> None:
    """W + s B A with A = I and s = 1: whatever moves the loss moves it through B as through W."""
    name = "model.layers.1.self_attn.q_proj"
    full = value_model("llama")
    adapted = lora_policy(
        "llama", r=32, lora_alpha=32, lora_dropout=0.0, target_modules=["layers.1.self_attn.q_proj"]
    )
    layer = adapted.language_model.get_submodule(name)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.eye(32))
    seen = []
    for policy in (full, adapted):
        trainer = make_trainer(policy, ppo_epochs=1)
        trainer.optimizer.zero_grad = lambda *args, **kwargs: None  # keeps the gradients
        trainer.step(*samples)
        module = trainer.policy.language_model.get_submodule(name)
        weight = module.lora_B["default"].weight if policy is adapted else module.weight
        seen.append(weight.grad)
    assert seen[0].abs().max() > 1e-3
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-7)


def test_neither_sampling_nor_the_step_sees_dropout() -> None:
    policy = lora_policy("llama", trained=0.3, lora_dropout=0.9)
    trainer = make_trainer(policy)
    query = [torch.tensor([5, 6, 7])] * 6
    greedy = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": -1, "return_prompt": False}
    answers = trainer.generate(query, **greedy)
    assert len({tuple(a.tolist()) for a in answers}) == 1
    policy.train()
    answers = trainer.generate(query, **greedy)
    assert len({tuple(a.tolist()) for a in answers}) == 1, "whatever mode the model is in"
    policy.train()
    said = policy.language_model(torch.stack(query)).logits
    assert len({tuple(row.flatten().tolist()) for row in said}) > 1, "dropout would have shown"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_drawn_from_the_adapted_model_and_the_references_from_the_base(kind) -> None:
    policy, base = lora_policy(kind), value_model(kind)
    trainer = make_trainer(policy)
    move_adapter(policy, 0.3)
    query = [torch.tensor([5, 6, 7]), torch.tensor([9])]
    settings = {"max_new_tokens": 7, "eos_token_id": -1}
    own, reference = trainer.generate(query, generate_ref_response=True, **settings)
    # The same seeds in an ordinary trainer of the base: its second draw is its reference's.
    expected = make_trainer(base).generate(query, generate_ref_response=True, **settings)[1]
    assert all(torch.equal(a, b) for a, b in zip(reference, expected, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(own, reference, strict=True))
    greedy = {"do_sample": False, "max_new_tokens": 7, "eos_token_id": -1}
    own, reference = trainer.generate(query[0], generate_ref_response=True, **greedy)
    for model, answer in ((policy, own), (base, reference)):
        for end in range(3, 10):  # without a cache
            with torch.no_grad():
                assert model(answer[:, :end])[0][0, -1].argmax() == answer[0, end]


def test_the_adapter_of_a_policy_in_bfloat16_stays_in_float32(base_folder, samples) -> None:
    policy = Policy.from_pretrained(base_folder, dtype=torch.bfloat16, peft_config=lora_config())
    dtypes = {p.requires_grad: p.dtype for p in policy.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    trainer = make_trainer(policy)
    kl_at_first(trainer, samples)
    assert trainer.step(*samples)["objective/kl"] != 0


@pytest.mark.parametrize("trained", [0.0, 0.1])
def test_under_mixed_precision_the_frozen_matrices_alone_are_cast(trained, samples) -> None:
    policy = lora_policy("llama", trained=trained)
    bf16 = {"cpu": True, "mixed_precision": "bf16"}
    trainer = make_trainer(policy, accelerator_kwargs=bf16)
    kl_at_first(trainer, samples)
    assert trainer.step(*samples)["objective/kl"] != 0
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    layer = policy.language_model.model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.dtype == torch.bfloat16


# The reference -----------------------------------------------------------------------------------


def parameters(*models: torch.nn.Module) -> int:
    return sum({id(p): p.numel() for m in models for p in m.parameters()}.values())


def test_the_reference_takes_no_memory_and_half_of_that_of_two_models() -> None:
    policy, full = lora_policy("llama"), value_model("llama")
    alone, base = parameters(policy), parameters(full.pretrained_model)
    head = parameters(policy.v_head)
    assert parameters(policy, create_reference_model(policy)) == alone + head
    assert parameters(full, create_reference_model(full)) == 2 * (base + head)
    adapter = alone - base - head
    assert 0 < adapter < base
    # Where an adapter existed, a copy of it is all that is added.
    trained = lora_policy("llama", trained=0.1)
    assert parameters(trained, create_reference_model(trained)) == alone + adapter + head


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_where_an_adapter_existed_the_reference_is_a_copy_of_it(kind, samples, tmp_path) -> None:
    lora_policy(kind, trained=0.1).pretrained_model.save_pretrained(tmp_path)
    then = PeftModel.from_pretrained(language_model(kind), str(tmp_path)).eval()
    policy = Policy.from_pretrained(
        PeftModel.from_pretrained(language_model(kind), str(tmp_path), is_trainable=True)
    )
    trainer = make_trainer(policy)
    kl_at_first(trainer, samples)
    trainer.step(*samples)
    assert torch.equal(logits(trainer.ref_model), logits(then))
    assert (logits(then) - logits(language_model(kind))).abs().max() > 0.1, "not the base"
    assert (logits(then) - logits(policy)).abs().max() > 1e-2
    assert policy.pretrained_model.active_adapters == ["default"]


@pytest.mark.parametrize("trained", [0.0, 0.1])
def test_reading_the_reference_changes_nothing_of_the_policy(trained, samples) -> None:
    policy = lora_policy("llama", trained=trained)
    frozen = next(
        p for n, p in policy.named_parameters() if "layers.0.self_attn.q_proj.lora_A" in n
    )
    frozen.requires_grad_(False)  # by the reader
    flags = {n: p.requires_grad for n, p in policy.named_parameters()}
    reference = create_reference_model(policy)
    added = {n for n, _ in policy.named_parameters()} - flags.keys()
    assert bool(added) == bool(trained) and all("reference" in n for n in added)
    flags |= dict.fromkeys(added, False)
    move_adapter(policy, 0.1, seed=1)
    before = logits(policy)
    assert (before - logits(reference)).abs().max() > 0.1
    assert torch.equal(logits(policy), before)
    logits(reference)
    reference.generate(IDS, max_new_tokens=2, do_sample=False)
    with pytest.raises(TypeError):
        reference(IDS, attention_mask="not a mask", nonsense=1)
    with pytest.raises(Exception, match=r".+"):
        reference.pretrained_model(torch.tensor([[10**6]]))  # in the middle of a pass
    assert torch.equal(logits(policy), before)
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == flags
    assert reference.get_parameter("v_head.weight") is not policy.v_head.weight


def test_a_switch_that_peft_does_not_have_is_noticed() -> None:
    class Layer:
        disable_adapters, active_adapters = False, ("default",)
        _disable_adapters, _active_adapter = False, "default"

    for adapter in (None, "reference"):
        layer = Layer()
        with pytest.raises(ModelError, match="no switch") as error, lora.switched([layer], adapter):
            pass
        one_line(error)
        assert (layer._disable_adapters, layer._active_adapter) == (False, "default")


SETTINGS: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "PiSSA, which changes the base": {"init_lora_weights": "pissa"},
    "a module of its own": {"modules_to_save": ["lm_head"]},
    "biases": {"bias": "lora_only"},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "the output head": {"target_modules": ["lm_head", "v_proj"]},
    "upper layers": {"layers_to_transform": [2, 3], "target_modules": ["q_proj", "down_proj"]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_reference_of_any_lora_is_the_policy_as_it_was(name, samples, tmp_path) -> None:
    settings = {"attention_bias": True} if name == "biases" else {}
    base = language_model("llama", tie_word_embeddings=False, **settings)
    policy = Policy.from_pretrained(base, peft_config=lora_config(**SETTINGS[name]))
    start, trainer = logits(policy), make_trainer(policy, learning_rate=3e-2)
    kl_at_first(trainer, samples)
    for _ in range(2):
        trainer.step(*samples)
    assert torch.equal(logits(trainer.ref_model), start)
    assert (logits(policy) - start).abs().max() > 1e-2
    policy.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        language_model("llama", tie_word_embeddings=False, **settings), str(tmp_path / "adapter")
    ).eval()
    torch.testing.assert_close(logits(again), logits(policy), rtol=1e-4, atol=1e-4)
    if name == "biases":  # which switching the adapter off would leave as trained
        biases = [p for n, p in policy.named_parameters() if n.endswith("base_layer.bias")]
        assert any(p.requires_grad for p in biases)


# What goes in ------------------------------------------------------------------------------------


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    language_model("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter_folder(base_folder: Path, tmp_path: Path) -> Path:
    """An adapter as SFT with PEFT leaves it."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), lora_config())
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    model.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def plain(adapter_folder: Path, base_folder: Path) -> Any:
    """What PEFT alone makes of the folder."""
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    return PeftModel.from_pretrained(base, str(adapter_folder)).eval()


def trainable(policy: Policy) -> set[str]:
    return {
        n.split(".")[-3] for n, p in policy.named_parameters() if p.requires_grad and "lora" in n
    }


def test_a_name_with_a_config_is_a_policy_of_which_the_adapter_is_trained(
    base_folder, unchanged_random_state
) -> None:
    config = lora_config()
    policy, again = (Policy.from_pretrained(base_folder, peft_config=config) for _ in range(2))
    assert trainable(policy) == {"lora_A", "lora_B"}
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert all(".lora_" in n or n.startswith("v_head") for n in trained)
    assert_same_weights(policy.state_dict(), again.state_dict())
    head = Policy.from_pretrained(base_folder).v_head.state_dict()
    assert_same_weights(policy.v_head.state_dict(), head)
    assert not policy.training and config.base_model_name_or_path is None, "left as it was given"
    told = policy.pretrained_model.peft_config["default"]
    assert told.base_model_name_or_path == str(base_folder)
    assert not Policy.from_pretrained(base_folder, peft_config=None).is_peft_model


def test_the_hubs_name_is_what_an_adapter_remembers(monkeypatch, base_folder) -> None:
    monkeypatch.setattr("rlhf_tutorial.models.resolve", lambda source, **_: base_folder)
    policy = Policy.from_pretrained("org/name", "v1", peft_config=lora_config())
    told = policy.pretrained_model.peft_config["default"]
    assert (told.base_model_name_or_path, told.revision) == ("org/name", "v1")


def test_an_adapters_folder_is_trained_or_merged_and_never_frozen(
    adapter_folder, base_folder, samples
) -> None:
    expected = logits(plain(adapter_folder, base_folder))
    policy = Policy.from_pretrained(adapter_folder)
    assert trainable(policy) == {"lora_A", "lora_B"} and torch.equal(logits(policy), expected)
    trainer = make_trainer(policy)
    kl_at_first(trainer, samples)
    trainer.step(*samples)
    assert torch.equal(logits(trainer.ref_model), expected)
    assert not torch.equal(logits(policy), expected)
    merged = Policy.from_pretrained(adapter_folder, merge=True)
    assert not merged.is_peft_model and all(p.requires_grad for p in merged.parameters())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    frozen = Policy.from_pretrained(adapter_folder, is_trainable=False)  # for a reference
    assert trainable(frozen) == set() and torch.equal(logits(frozen), expected)
    kl_at_first(make_trainer(Policy.from_pretrained(adapter_folder), reference=frozen), samples)
    with pytest.raises(ModelError, match="adapter is frozen") as error:
        make_trainer(frozen)
    one_line(error)
    with_new = Policy.from_pretrained(adapter_folder, merge=True, peft_config=lora_config())
    assert trainable(with_new) == {"lora_A", "lora_B"}
    assert torch.equal(logits(with_new), logits(merged))


def test_a_base_beside_the_adapter_is_found(adapter_folder, base_folder, monkeypatch) -> None:
    path = adapter_folder / lora.CONFIG_FILE
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "../base"})
    )
    monkeypatch.chdir("/")
    assert Policy.from_pretrained(adapter_folder).is_peft_model


def test_pefts_model_in_memory_is_the_policy_itself(adapter_folder, base_folder) -> None:
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder), str(adapter_folder), is_trainable=True
    ).train()
    policy = Policy.from_pretrained(model)
    assert policy.pretrained_model is model and policy.is_peft_model and not model.training
    assert policy.language_model is model.get_base_model()
    assert torch.equal(logits(policy), logits(plain(adapter_folder, base_folder)))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no LoRA": (
        lambda: Policy.from_pretrained(
            language_model("llama"),
            peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        ),
        "of the kind PROMPT_TUNING",
    ),
    "no LoRA in memory": (
        lambda: Policy.from_pretrained(
            get_peft_model(
                language_model("llama"),
                PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            )
        ),
        "of the kind PROMPT_TUNING",
    ),
    "no config": (
        lambda: Policy.from_pretrained(language_model("llama"), peft_config={"r": 8}),
        "peft_config is a dict",
    ),
    "no such layers": (
        lambda: Policy.from_pretrained(
            language_model("llama"), peft_config=lora_config(target_modules=["c_attn"])
        ),
        "cannot put this adapter on a LlamaForCausalLM",
    ),
    "said to be none": (lambda: setattr(lora_policy(), "is_peft_model", False), "leave it out"),
    "the active one is frozen": (lambda: make_trainer(with_a_frozen_adapter()), "is frozen"),
    "merged on a head that is the embeddings": (
        lambda: Policy.from_pretrained(with_an_adapted_head(), merge=True),
        "cannot be merged into a LlamaForCausalLM without changing",
    ),
    "of transformers": (
        lambda: Policy.from_pretrained(with_transformers_adapter()),
        "transformers' add_adapter",
    ),
    "merged": (lambda: Policy.from_pretrained(merged_in_place()), "unmerge_adapter"),
    "all layers frozen": (
        lambda: create_reference_model(lora_policy("llama"), num_shared_layers=4),
        "the model has 4 layers: use 1 to 3",
    ),
    "frozen in memory": (
        lambda: make_trainer(lora_policy("llama", inference_mode=True)),
        "adapter is frozen",
    ),
    "8 bit, all of it": (
        lambda: Policy.from_pretrained("org/name", load_in_8bit=True),
        "is for LoRA policies",
    ),
    "8 bit in memory": (lambda: make_trainer(value_model_in_8_bit()), "in 8 or 4 bit"),
}


def with_transformers_adapter() -> Any:
    model = language_model("llama")
    model.add_adapter(lora_config())
    return model


def merged_in_place() -> Any:
    model = get_peft_model(language_model("llama"), lora_config())
    model.merge_adapter()
    return model


def with_a_frozen_adapter() -> Policy:
    """Another adapter could be trained, and nothing reads it."""
    model = get_peft_model(language_model("llama"), lora_config(inference_mode=True))
    model.add_adapter("other", lora_config())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("other" in name.split("."))
    return Policy.from_pretrained(model)


def with_an_adapted_head() -> Any:
    model = language_model("llama", tie_word_embeddings=True)
    adapted = get_peft_model(model, lora_config(target_modules=["lm_head"]))
    move_adapter(Policy.from_pretrained(adapted), 0.3)
    return adapted


def value_model_in_8_bit() -> Any:
    model = language_model("llama")
    model.is_loaded_in_8bit = True
    return Policy.from_pretrained(model)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name, monkeypatch, base_folder) -> None:
    monkeypatch.setattr("rlhf_tutorial.models.resolve", lambda source, **_: base_folder)
    call, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as error:
        call()
    one_line(error)


def test_an_adapter_without_its_base_says_what_to_do(adapter_folder) -> None:
    path = adapter_folder / lora.CONFIG_FILE
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": "/no/such/base"}))
    with pytest.raises(AssetError, match=r"for '/no/such/base', which is not found here") as error:
        Policy.from_pretrained(adapter_folder)
    assert "PeftModel.from_pretrained" in one_line(error)
    path.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="does not name the language model") as error:
        Policy.from_pretrained(adapter_folder)
    one_line(error)
    path.write_text("{")
    with pytest.raises(ModelError, match="cannot be read") as error:
        Policy.from_pretrained(adapter_folder)
    one_line(error)


def test_an_adapter_of_another_model_is_refused(adapter_folder, tmp_path) -> None:
    language_model("llama", hidden_size=16).save_pretrained(tmp_path / "smaller")
    path = adapter_folder / lora.CONFIG_FILE
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "smaller")}))
    with pytest.raises(ModelError, match="check that the two belong together") as error:
        Policy.from_pretrained(adapter_folder)
    one_line(error)


def test_without_peft_only_lora_is_an_error(monkeypatch, base_folder) -> None:
    config = lora_config()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="pip install peft") as error:
        Policy.from_pretrained(base_folder, peft_config=config)
    one_line(error)
    policy = Policy.from_pretrained(base_folder)
    assert not policy.is_peft_model
    make_trainer(policy)


# Weights in 8 or 4 bit ---------------------------------------------------------------------------


def in_8_bit() -> Any:
    """A stand-in: a language model that says so, with float16 norms as bitsandbytes leaves them."""
    model = language_model("llama")
    model.is_loaded_in_8bit = model.is_quantized = True
    model.model.norm.half()
    return model


def test_an_adapter_on_weights_in_8_bit_is_trained_and_saved(samples, tmp_path) -> None:
    policy = Policy.from_pretrained(in_8_bit(), peft_config=lora_config())
    assert trainable(policy) == {"lora_A", "lora_B"}
    assert policy.language_model.model.norm.weight.dtype == torch.float32
    base = {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
    trainer = make_trainer(policy)
    kl_at_first(trainer, samples)
    assert trainer.step(*samples)["objective/kl"] != 0
    assert all(torch.equal(policy.get_parameter(n), p) for n, p in base.items())
    policy.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    with pytest.raises(ModelError, match="in 8 or 4 bit: save the adapter") as error:
        policy.save_pretrained(tmp_path / "merged", merge=True)
    one_line(error)
    with pytest.raises(ModelError, match="merge=True needs") as error:
        Policy.from_pretrained(policy.pretrained_model, merge=True)
    one_line(error)


def test_trls_load_in_8bit_becomes_what_transformers_takes(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs bitsandbytes") as error:
        lora.quantisation({"load_in_8bit": True}, True)
    one_line(error)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("transformers.BitsAndBytesConfig", lambda **settings: settings)
    given = {"load_in_4bit": True, "load_in_8bit": False, "device_map": "auto"}
    made = lora.quantisation(given, False, peft_config=lora_config())
    assert made == {"device_map": "auto", "quantization_config": {"load_in_4bit": True}}
    assert lora.quantisation({"load_in_8bit": False}, False) == {}
    own = {"quantization_config": object()}
    asked = {"load_in_4bit": True, **own}
    assert lora.quantisation(asked, True) == own, "the script's own settings, not the default ones"
    with pytest.raises(ModelError, match="vanish in quantised weights"):
        lora.quantisation({"load_in_8bit": True}, True, merge=True)


def test_a_quantisation_without_its_package_is_named() -> None:
    from transformers import BitsAndBytesConfig

    for has_adapter, said in ((True, "needs bitsandbytes"), (False, "is for LoRA policies")):
        with pytest.raises(ModelError, match=f"quantization_config {said}") as error:
            lora.quantisation({"quantization_config": BitsAndBytesConfig()}, has_adapter)
        one_line(error)


def test_a_reference_that_would_learn_with_the_policy_is_refused() -> None:
    """get_peft_model changes its model in place: what a script calls the base is the policy."""
    base = language_model("llama")
    policy = Policy.from_pretrained(get_peft_model(base, lora_config()))
    for reference in (base, Policy.from_pretrained(base), policy):
        with pytest.raises(ModelError, match="would change with it") as error:
            PPOTrainer(PPOConfig(), policy, reference, PadAndEnd())
        one_line(error)
    PPOTrainer(PPOConfig(), policy, create_reference_model(policy), PadAndEnd())


def test_weights_that_are_whole_numbers_are_not_cast() -> None:
    policy = lora_policy("llama")
    layer = policy.language_model.model.layers[0].self_attn.q_proj.base_layer
    layer.weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    cast_frozen_matrices(policy)
    assert layer.weight.dtype == torch.int8
    assert policy.language_model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert policy.language_model.model.layers[0].self_attn.q_proj.lora_A[
        "default"
    ].weight.dtype == (torch.float32)


# What comes out ----------------------------------------------------------------------------------


def test_a_saved_policy_is_pefts_adapter_and_a_value_head(base_folder, samples, tmp_path) -> None:
    policy = Policy.from_pretrained(base_folder, peft_config=lora_config())
    trainer = make_trainer(policy)
    trainer.step(*samples)
    trainer.policy.save_pretrained(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", VALUE_HEAD_FILE}
    assert not any(name.startswith(("model", "pytorch")) or name == "config.json" for name in names)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {v.dtype for v in saved.values()} == {torch.float32}
    again = Policy.from_pretrained(tmp_path / "out")
    assert_same_weights(again.state_dict(), policy.state_dict())
    assert torch.equal(logits(again), logits(policy))
    assert torch.equal(again(IDS)[2], policy(IDS)[2])
    # As anyone else reads it.
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(policy)
    )


def test_the_references_adapter_is_not_saved_and_another_name_is(base_folder, tmp_path) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base_folder), lora_config(), adapter_name="mine"
    )
    policy = Policy.from_pretrained(model)
    move_adapter(policy, 0.1)
    create_reference_model(policy)
    assert set(model.peft_config) == {"mine", "reference"}
    policy.save_pretrained(tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    again = Policy.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(policy))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_policy_is_an_ordinary_checkpoint(kind, tied, tmp_path) -> None:
    base = language_model(kind, tie_word_embeddings=tied)
    policy = Policy.from_pretrained(base, peft_config=lora_config())
    create_reference_model(policy)
    move_adapter(policy, 0.1)
    before = weights_of(type("T", (), {"model": policy}))
    policy.save_pretrained(tmp_path, merge=True)
    assert_same_weights(policy.state_dict(), before)
    assert not (tmp_path / lora.CONFIG_FILE).exists()
    ordinary = Policy.from_pretrained(tmp_path)
    assert not ordinary.is_peft_model and all(p.requires_grad for p in ordinary.parameters())
    assert (logits(ordinary) - logits(language_model(kind))).abs().max() > 0.1
    torch.testing.assert_close(logits(ordinary), logits(policy), rtol=1e-4, atol=1e-4)
    assert_same_weights(ordinary.v_head.state_dict(), policy.v_head.state_dict())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(ordinary))


def test_merging_does_not_round_small_updates_into_bfloat16(tmp_path) -> None:
    policy = lora_policy("llama")
    cast_frozen_matrices(policy)  # as under mixed precision
    move_adapter(policy, 1e-3)
    policy.save_pretrained(tmp_path, merge=True)
    layer = policy.language_model.model.layers[0].self_attn.q_proj
    merged = load_file(tmp_path / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    expected = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    assert torch.equal(merged, expected)
    assert (expected.bfloat16().float() - expected).abs().max() > 1e-4, "rounding would show"


def test_an_adapter_that_cannot_be_merged_is_not(tmp_path) -> None:
    """On a head that is the embedding matrix too: merged, it would change both."""
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        policy = Policy.from_pretrained(
            language_model("llama", tie_word_embeddings=True),
            peft_config=lora_config(target_modules=["lm_head"]),
        )
    move_adapter(policy, 0.5)
    with pytest.raises(ModelError, match="without changing what the policy says") as error:
        policy.save_pretrained(tmp_path, merge=True)
    one_line(error)


def test_an_adapter_on_a_model_in_memory_says_what_is_missing(tmp_path, caplog) -> None:
    lora_policy("llama").save_pretrained(tmp_path)
    assert "names no language model" in caplog.text


def test_the_value_head_beside_trls_adapter_is_loaded(adapter_folder) -> None:
    """TRL leaves the head alone in pytorch_model.bin."""
    head = {"v_head.summary.weight": torch.full((1, 32), 0.5), "v_head.summary.bias": torch.ones(1)}
    torch.save(head, adapter_folder / "pytorch_model.bin")
    policy = Policy.from_pretrained(adapter_folder)
    assert torch.equal(policy.v_head.weight, head["v_head.summary.weight"])
    assert torch.equal(policy.v_head.bias, head["v_head.summary.bias"])


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"top_p": 0.5}, {"max_new_tokens": -1}])
def test_a_policy_is_saved_whatever_the_generation_config_holds(settings, tmp_path) -> None:
    policy = value_model("llama")
    sampling = policy.pretrained_model.generation_config
    sampling.do_sample = False
    for name, value in settings.items():
        setattr(sampling, name, value)
    policy.save_pretrained(tmp_path)
    assert torch.equal(logits(Policy.from_pretrained(tmp_path)), logits(policy))
    assert policy.pretrained_model.generation_config is sampling and sampling.do_sample is False
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings.items() <= written.items() or "max_new_tokens" in settings
    assert written["eos_token_id"] == 1 and written["pad_token_id"] == 0


def test_checkpointing_methods_are_passed_on_and_say_that_they_save_nothing(caplog) -> None:
    for policy in (value_model("llama"), lora_policy("llama")):
        caplog.clear()
        with caplog.at_level("INFO"):
            policy.gradient_checkpointing_enable()
        assert "saves nothing" in caplog.text and policy.language_model.is_gradient_checkpointing
        policy.gradient_checkpointing_disable()
        assert not policy.language_model.is_gradient_checkpointing
        policy.enable_input_require_grads()
        embedded = policy.language_model.get_input_embeddings()(torch.tensor([[5]]))
        assert embedded.requires_grad


# Checkpoints -------------------------------------------------------------------------------------


def trainer_of(kind: str, trained: float, **settings: Any) -> PPOTrainer:
    forget_accelerate()
    lora_settings = settings.pop("lora", {})
    policy = lora_policy(kind, trained=trained, **lora_settings)
    return make_trainer(
        policy, dataset=query_rows(), mini_batch_size=3, learning_rate=5e-3, **settings
    )


@pytest.mark.parametrize("trained", [0.0, 0.1], ids=["adapter off", "adapter copied"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_training_goes_on_bit_for_bit(kind, trained, tmp_path) -> None:
    whole = go_on(trainer_of(kind, trained), 4)
    first = go_on(trainer_of(kind, trained), 2)
    first.save_checkpoint(tmp_path)
    resumed = trainer_of(kind, trained)
    assert resumed.resume(tmp_path) == 2
    go_on(resumed, 4)
    assert_same_weights(weights_of(resumed), weights_of(whole))
    assert torch.equal(logits(resumed.ref_model), logits(whole.ref_model))
    for mine, its in zip(resumed.history, whole.history, strict=True):
        assert {k: v for k, v in mine.items() if "time/" not in k} == {
            k: v for k, v in its.items() if "time/" not in k
        }
    (checkpoint,) = [path for path in tmp_path.iterdir() if path.name == "step-00000002"]
    names = load_file(checkpoint / "tensors.safetensors")
    weights = {n for n in names if n.startswith("policy.")}
    assert weights and all(".lora_" in n or ".v_head" in n for n in weights), "the adapter alone"


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"trained": 0.0, "lora": {"lora_alpha": 16}}, "adapter.lora_alpha is 8 there, 16 here"),
        ({"trained": 0.0, "lora": {"r": 2}}, "adapter.r is 4 there, 2 here"),
        ({"trained": 0.1}, "model is .* there"),
    ],
)
def test_a_checkpoint_of_another_adapter_is_refused(start, message, tmp_path) -> None:
    saved = go_on(trainer_of("llama", 0.0), 1)
    saved.save_checkpoint(tmp_path)
    other = trainer_of("llama", **start)
    before = weights_of(other)
    with pytest.raises(CheckpointError, match=message):
        other.resume(tmp_path)
    assert_same_weights(weights_of(other), before)


def test_the_identity_does_not_move_with_training(samples) -> None:
    for trained in (0.0, 0.1):
        one, two = (make_trainer(lora_policy("llama", trained=trained)) for _ in range(2))
        one.step(*samples)
        assert one.identity() == two.identity()
    assert not [k for k in make_trainer(value_model("llama")).identity() if "adapter" in k]


# Wrong in silence once ---------------------------------------------------------------------------


def test_a_checkpoint_saved_where_an_adapter_lay_is_what_is_loaded(base_folder, tmp_path) -> None:
    policy = Policy.from_pretrained(base_folder, peft_config=lora_config())
    move_adapter(policy, 0.1)
    policy.save_pretrained(tmp_path)
    move_adapter(policy, 0.1, seed=1)
    policy.save_pretrained(tmp_path, merge=True)
    loaded = Policy.from_pretrained(tmp_path)
    assert not loaded.is_peft_model
    torch.testing.assert_close(logits(loaded), logits(policy), rtol=0, atol=1e-4)


def test_an_adapter_that_is_switched_off_is_refused_and_on_again_trains(samples) -> None:
    model = get_peft_model(language_model("llama"), lora_config())
    model.base_model.disable_adapter_layers()
    with pytest.raises(ModelError, match="switched off at the moment") as error:
        Policy.from_pretrained(model)
    one_line(error)
    model.base_model.enable_adapter_layers()
    trainer = make_trainer(Policy.from_pretrained(model))
    trainer.step(*samples)
    assert trainer.step(*samples)["objective/kl"] != 0


def test_an_adapter_without_the_weights_of_a_layer_is_refused(adapter_folder) -> None:
    """peft would put a fresh one there, and say so in a warning of a thousand names."""
    file = adapter_folder / "adapter_model.safetensors"
    weights = {k.replace(".layers.0.", ".layers.9."): v for k, v in load_file(file).items()}
    assert weights.keys() != load_file(file).keys()
    save_file(weights, file)
    with pytest.raises(ModelError, match="Found missing adapter keys .* belong together") as error:
        Policy.from_pretrained(adapter_folder)
    assert len(one_line(error)) < 600


def test_an_adapter_in_its_own_models_folder_says_what_to_do(base_folder) -> None:
    policy = Policy.from_pretrained(base_folder, peft_config=lora_config())
    policy.save_pretrained(base_folder)
    with pytest.raises(ModelError, match="beside its own language model") as error:
        Policy.from_pretrained(base_folder)
    assert lora.CONFIG_FILE in one_line(error)


def test_a_new_adapter_on_merged_weights_does_not_name_the_model_without(
    adapter_folder, tmp_path, caplog
) -> None:
    policy = Policy.from_pretrained(adapter_folder, merge=True, peft_config=lora_config())
    policy.save_pretrained(tmp_path)
    assert "names no language model" in caplog.text
    with pytest.raises(ModelError, match="does not name the language model"):
        Policy.from_pretrained(tmp_path)


def test_a_config_beside_an_adapter_is_left_out_as_with_trl(adapter_folder, caplog) -> None:
    alone = Policy.from_pretrained(adapter_folder)
    beside = Policy.from_pretrained(adapter_folder, peft_config=lora_config(r=2))
    assert "peft_config is left out" in caplog.text
    assert_same_weights(alone.state_dict(), beside.state_dict())
    model = get_peft_model(language_model("llama"), lora_config())
    policy = Policy.from_pretrained(model, peft_config=lora_config(r=2))
    assert policy.pretrained_model is model


def test_what_is_for_loading_is_said_to_be_left_out(caplog) -> None:
    policy = Policy.from_pretrained(language_model("llama"), torch_dtype=torch.bfloat16)
    assert policy.language_model.dtype == torch.float32
    assert "torch_dtype left out" in caplog.text


@pytest.mark.parametrize("trained", [0.0, 0.1])
def test_with_shared_layers_the_adapters_above_are_trained(trained, samples) -> None:
    policy = lora_policy("llama", trained=trained)
    policy.is_peft_model = True  # as scripts of TRL's do
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    reference = create_reference_model(policy, num_shared_layers=3)
    start = logits(policy)
    assert torch.equal(logits(reference), start)
    trainer = make_trainer(policy, reference=reference)
    kl_at_first(trainer, samples)
    moved = {n for n, p in policy.named_parameters() if n in before and not p.equal(before[n])}
    layers = {name.split(".layers.")[1].split(".")[0] for name in moved if ".layers." in name}
    assert layers == {"3"}
    assert torch.equal(logits(reference), start), "what the policy said before"
