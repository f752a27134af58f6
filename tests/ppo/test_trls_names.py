"""What scripts of TRL's world import, read, call and override."""

from __future__ import annotations

import importlib.util
import inspect
import json
import operator
import random
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.errors import one_line, refused
from support.tokenizers import PadAndEnd
from support.trainers import assert_same_scalars, assert_same_weights, weights_of
from support.trainers import make_trainer as plain_trainer
from torch import Tensor

import rlhf_tutorial
from rlhf_tutorial import trl_names
from rlhf_tutorial.errors import DataError, ModelError, TutorialError
from rlhf_tutorial.families import cache_kind
from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead, create_reference_model
from rlhf_tutorial.ppo import LengthSampler, PPOConfig, PPOTrainer
from rlhf_tutorial.ppo.checks import GONE, TRLS_METHODS
from rlhf_tutorial.ppo.config import READ_ONCE
from rlhf_tutorial.ppo.math import masked_mean

TRL_0_11_4 = set(
    """
AutoModelForCausalLMWithValueHead AutoModelForSeq2SeqLMWithValueHead PreTrainedModelWrapper
create_reference_model setup_chat_format SUPPORTED_ARCHITECTURES set_seed TextEnvironment
TextHistory BestOfNSampler PPOConfig PPOTrainer PPOv2Config PPOv2Trainer ModelConfig TrlParser
get_kbit_device_map get_peft_config get_quantization_config RewardConfig RewardTrainer SFTConfig
SFTTrainer DPOConfig DPOTrainer RLOOConfig RLOOTrainer DataCollatorForCompletionOnlyLM
LengthSampler respond_to_batch logprobs_from_logits entropy_from_logits masked_mean masked_var
masked_whiten whiten clip_by_value flatten_dict stack_dicts convert_to_scalar stats_to_np
PPODecorators randn_tensor top_k_top_p_filtering AdaptiveKLController FixedKLController
""".split()  # noqa: SIM905
)
"""Public names of `trl`, `trl.core` and `trl.trainer` that scripts of PPO import."""


@pytest.mark.parametrize("name", sorted(TRL_0_11_4))
def test_every_name_is_there_or_its_import_says_what_to_use(name: str) -> None:
    script = f"from rlhf_tutorial import {name}"
    if name not in {*trl_names.GONE, *trl_names.STILL_IN_TRL}:
        exec(script)
        return
    with pytest.raises(ImportError, match=f"^rlhf_tutorial has no {name}") as error:
        exec(script)
    one_line(error)
    assert isinstance(error.value, rlhf_tutorial.errors.TutorialError)


def test_names_that_trl_still_has_are_there() -> None:
    trl = pytest.importorskip("trl")
    for name in trl_names.STILL_IN_TRL:
        assert hasattr(trl, name), name


def test_the_name_for_encoder_decoders_can_be_imported_and_not_used() -> None:
    for use in (
        rlhf_tutorial.AutoModelForSeq2SeqLMWithValueHead,
        rlhf_tutorial.AutoModelForSeq2SeqLMWithValueHead.from_pretrained,
    ):
        with refused(ModelError, "encoder-decoders cannot be trained here"):
            use("t5-small")


def test_the_trainer_saves_with_the_arguments_of_the_policy(
    make_trainer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    sent = []
    monkeypatch.setattr("rlhf_tutorial.ppo.trainer.upload", lambda *told: sent.append(told))
    trainer = make_trainer()
    trainer.save_pretrained(tmp_path / "kept", push_to_hub=False, max_shard_size="1MB")
    assert (tmp_path / "kept" / "value_head.safetensors").exists() and not sent
    trainer.save_pretrained(tmp_path / "sent", push_to_hub=True, repo_id="me/policy")
    assert sent == [(tmp_path / "sent", "me/policy")]


def test_without_a_tracker_no_column_is_missed(make_trainer: Any, samples: Any) -> None:
    trainer, logged = make_trainer(), []
    trainer.accelerator.log = lambda values, **_: logged.append(values)
    trainer.log_stats(trainer.step(*samples), {"query": [""] * 6}, samples[2])
    assert logged[0]["env/reward_mean"] == pytest.approx(np.mean([float(s) for s in samples[2]]))


def test_an_argument_that_nobody_takes_is_not_called_damage(
    make_policy: Any, tmp_path: Path
) -> None:
    make_policy("llama").save_pretrained(tmp_path)
    AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, use_auth_token=True)
    with refused(ModelError, "no_such_argument", "leave it out"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, no_such_argument=1)


def test_set_seed_seeds_all_three_generators() -> None:
    with torch.random.fork_rng():
        states = random.getstate(), np.random.get_state()
        drawn = []
        for _ in range(2):
            rlhf_tutorial.set_seed(3)
            drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
        random.setstate(states[0])
        np.random.set_state(states[1])
    assert drawn[0] == drawn[1]


def test_respond_to_batch_continues_each_query(make_policy: Any) -> None:
    policy = make_policy("llama")
    queries = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert rlhf_tutorial.respond_to_batch(policy, queries, txt_len=4).shape == (2, 4)
        greedy = rlhf_tutorial.respond_to_batch(policy, queries, txt_len=1, top_k=1)
    with torch.no_grad():
        expected = policy(queries)[0][:, -1].argmax(-1)
    assert greedy.flatten().tolist() == expected.tolist()


# Attributes and methods ------------------------------------------------------------------------


def test_scripts_can_ask_what_is_installed() -> None:
    from rlhf_tutorial import import_utils

    assert import_utils.is_peft_available()
    assert not import_utils.is_npu_available()
    wandb = importlib.util.find_spec("wandb") is not None
    assert bool(import_utils.is_wandb_available()) == wandb
    script = "from rlhf_tutorial.import_utils import is_diffusers_available, is_pil_available"
    exec(script, names := {})
    assert names["is_pil_available"]() and not names["is_diffusers_available"]()
    with pytest.raises(ImportError, match="is_nothing"):
        exec("from rlhf_tutorial.import_utils import is_nothing")


def test_scripts_can_import_from_core() -> None:
    exec("from rlhf_tutorial.core import LengthSampler, respond_to_batch, masked_mean", names := {})
    assert names["LengthSampler"] is LengthSampler and names["masked_mean"] is masked_mean
    with pytest.raises(ImportError, match="^rlhf_tutorial has no PPODecorators: there is nothing"):
        exec("from rlhf_tutorial.core import PPODecorators")


def test_respond_to_batch_heeds_no_preference_of_the_checkpoints(make_policy: Any) -> None:
    model, queries = make_policy(), torch.arange(5, 9).repeat(16, 1)
    torch.manual_seed(0)
    expected = rlhf_tutorial.respond_to_batch(model, queries, 15)
    model.pretrained_model.generation_config.repetition_penalty = 1e6
    torch.manual_seed(0)
    assert torch.equal(rlhf_tutorial.respond_to_batch(model, queries, 15), expected)


def test_attributes_that_scripts_read(make_trainer: Any, samples: Any) -> None:
    trainer = make_trainer(init_kl_coef=0.3)
    assert trainer.current_device == trainer.device and trainer.is_distributed is False
    assert trainer.kl_ctl.value == trainer.kl_coef == 0.3
    trainer.kl_ctl.value = 0.1
    assert trainer.kl_coef == 0.1
    stats = trainer.step(*samples)
    for name, number in stats.items():
        if np.ndim(number) == 0:
            assert number.item() == number, name
    assert repr(stats["objective/kl_coef"]) == "0.1"
    assert json.loads(json.dumps({"kl": stats["objective/kl"]}))["kl"] == stats["objective/kl"]


def test_gradient_checkpointing_is_passed_on_and_changes_nothing(
    make_trainer: Any, samples: Any
) -> None:
    plain, checkpointed = make_trainer(), make_trainer()
    checkpointed.model.gradient_checkpointing_enable()
    checkpointed.model.enable_input_require_grads()
    assert checkpointed.model.pretrained_model.is_gradient_checkpointing
    assert checkpointed.step(*samples)["objective/kl"] == plain.step(*samples)["objective/kl"]
    for a, b in zip(plain.model.parameters(), checkpointed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    checkpointed.model.gradient_checkpointing_disable()
    assert not checkpointed.model.pretrained_model.is_gradient_checkpointing


def test_dropout_stays_off_whatever_mode_a_script_sets(make_trainer: Any, samples: Any) -> None:
    trainer = make_trainer("gpt2", learning_rate=0.0)  # GPT-2 has dropout of 0.1
    trainer.model.train()
    trainer.ref_model.train()
    stats = trainer.step(*samples)
    assert stats["objective/kl"] == 0 and abs(stats["ppo/policy/ratio"] - 1).max() < 1e-5
    trainer.model.train()
    trainer.generate(samples[0], max_new_tokens=2)
    assert not any(module.training for module in trainer.model.modules())


# Overriding -----------------------------------------------------------------------------------


def test_rewards_can_be_overridden(samples: Any, tokenizer: Any, make_policy: Any) -> None:
    """A reward for every token, on top of the score and the penalty."""

    class PerToken(PPOTrainer):
        def rewards(self, scores: Tensor, evaluation: Any) -> tuple[Tensor, Tensor]:
            rewards, penalty = super().rewards(scores, evaluation)
            return rewards + 2 * evaluation.mask, penalty

    config = PPOConfig(batch_size=6, mini_batch_size=6, gamma=1.0, lam=1.0)
    returns = [
        kind(config, make_policy("llama"), tokenizer=tokenizer).step(*samples)["ppo/returns/mean"]
        for kind in (PPOTrainer, PerToken)
    ]
    lengths = torch.tensor([len(response) for response in samples[1]]).float()
    # Without discount the return of a token is what comes from it on: 2 for each token left.
    more = (lengths * (lengths + 1)).sum() / lengths.sum()
    assert returns[1] - returns[0] == pytest.approx(more.item(), abs=1e-4)


def test_losses_can_be_overridden(samples: Any, tokenizer: Any, make_policy: Any) -> None:
    """A bonus for entropy."""

    class Curious(PPOTrainer):
        def losses(self, logprobs: Tensor, values: Tensor, entropy: Tensor, old: Any) -> Any:
            policy, value, measured = super().losses(logprobs, values, entropy, old)
            return policy - 0.1 * masked_mean(entropy, old.mask), value, measured

    config = PPOConfig(batch_size=6, mini_batch_size=6, ppo_epochs=1)
    plain, curious = (
        kind(config, make_policy("llama"), tokenizer=tokenizer).step(*samples)
        for kind in (PPOTrainer, Curious)
    )
    bonus = 0.1 * plain["ppo/policy/entropy"]
    difference = plain["ppo/loss/policy"] - curious["ppo/loss/policy"]
    assert difference == pytest.approx(bonus, rel=1e-4)


@pytest.mark.parametrize("name", TRLS_METHODS)
def test_a_method_of_trls_that_nothing_calls_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"^{name} is a method of TRL's") as error:
        type("Mine", (PPOTrainer,), {name: lambda self: None})
    one_line(error)


def test_another_of_trls_methods_is_said_not_to_be_called(caplog: Any) -> None:
    type("Mine", (PPOTrainer,), {"prepare_dataloader": lambda self: None, "dataset": ()})
    (message,) = caplog.messages
    assert message.startswith("prepare_dataloader is a method of TRL's that PPOTrainer does not")


OF_TRLS_TRAINER = """
prepare_dataloader _remove_unused_columns generate _generate_batched _step_safety_checker step
_early_stop gather_stats prepare_model_inputs batched_forward_pass train_minibatch compute_rewards
_kl_penalty compute_advantages loss record_step_stats log_stats create_model_card _save_pretrained
_show_tokens _prepare_deepspeed save_pretrained push_to_hub accelerator config current_device
current_step data_collator dataloader dataset highest_reward is_distributed is_encoder_decoder
is_peft_model kl_ctl lr_scheduler model model_params optimizer optional_peft_ctx ref_model running
tokenizer
"""
"""Methods and attributes of TRL 0.11.4's PPOTrainer."""


@pytest.mark.parametrize("name", OF_TRLS_TRAINER.split())
def test_what_a_script_asks_of_trls_trainer_is_there_or_says_what_to_use(
    name: str, make_trainer: Any, samples: Any
) -> None:
    trainer = make_trainer(dataset=[{"input_ids": ids} for ids in samples[0]])
    if hasattr(trainer, name):
        assert name not in {*TRLS_METHODS, *GONE}
        return
    with pytest.raises(AttributeError, match=f"^PPOTrainer has no {name}, which is TRL's: ") as e:
        getattr(trainer, name)
    assert isinstance(e.value, rlhf_tutorial.errors.TutorialError)
    # Whatever of ours it names is there, and takes what it says.
    for call, arguments in re.findall(r"use (\w+)\(([\w, ]*)", one_line(e)):
        known = inspect.signature(getattr(trainer, call)).parameters
        assert set(filter(None, arguments.split(", "))) <= set(known)
    for path in re.findall(r"trainer((?:\.\w+)+)", str(e.value)):
        assert operator.attrgetter(path.removeprefix("."))(trainer) is not None


def test_a_misspelt_name_is_no_attribute_as_ever(make_trainer: Any, make_policy: Any) -> None:
    with pytest.raises(AttributeError, match="^'PPOTrainer' object has no attribute 'stepp'$"):
        make_trainer().stepp  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'generat'"):
        make_policy().generat  # noqa: B018


def test_what_a_script_asks_of_trls_model(make_policy: Any) -> None:
    model = make_policy("llama")
    assert not hasattr(model, "compute_reward_score")
    with pytest.raises(
        AttributeError, match="no compute_reward_score, .* see RewardModel"
    ) as error:
        model.compute_reward_score(torch.ones(1, 3))
    one_line(error)


# Settings that change on the way ----------------------------------------------------------------

CHANGED: dict[str, Any] = {
    "exp_name": "other", "task_name": "other", "model_name": "other", "query_dataset": "other",
    "reward_model": "other", "steps": 7, "log_with": "tensorboard", "tracker_project_name": "other",
    "tracker_kwargs": {"a": {}}, "project_kwargs": {"logging_dir": "."}, "dataset_num_proc": 2,
    "remove_unused_columns": False, "seed": 3, "learning_rate": 1e-4, "mini_batch_size": 2,
    "gradient_accumulation_steps": 2, "ppo_epochs": 1, "init_kl_coef": 0.5, "adap_kl_ctrl": False,
    "target": 1.0, "horizon": 100, "kl_penalty": "abs", "gamma": 0.9, "lam": 0.5, "cliprange": 0.01,
    "cliprange_value": 0.01, "vf_coef": 0.5, "ptx_coef": 0.5, "ratio_threshold": 0.5,
    "max_grad_norm": 0.1, "temperature": 0.7, "early_stopping": True, "target_kl": 1e-9,
    "use_score_scaling": True, "use_score_norm": True, "score_clip": 0.1, "whiten_rewards": True,
    "accelerator_kwargs": {"mixed_precision": "no"},
}  # fmt: skip
BESIDE = {"target_kl": {"early_stopping": True}, "use_score_norm": {"use_score_scaling": True}}


@pytest.mark.parametrize("field", sorted({f.name for f in fields(PPOConfig)} - {"batch_size"}))
def test_a_setting_changed_on_the_way_has_effect_or_is_refused(
    field: str, make_trainer: Any, samples: Any, caplog: Any
) -> None:
    """The trainer whose setting changed takes the steps of one that was made with it."""
    replies = [(torch.tensor([5, 6]), torch.tensor([7, 8, 9]))]
    beside = {"other": 1, "mini_batch_size": 3, "ptx_dataset": replies} | BESIDE.get(field, {})
    late = make_trainer(**beside)
    assert getattr(late.config, field) != CHANGED[field]
    setattr(late.config, field, CHANGED[field])
    if field in READ_ONCE:
        before = weights_of(late)
        with refused(
            TutorialError, f"PPOConfig.{field} was", "now has no effect", READ_ONCE[field]
        ):
            late.step(*samples)
        assert_same_weights(weights_of(late), before)
        return
    early = make_trainer(**beside | {field: CHANGED[field]})
    for _ in range(2):
        assert_same_scalars(late.step(*samples), early.step(*samples), atol=0)
    assert_same_weights(weights_of(late), weights_of(early))


def test_a_dictionary_that_is_changed_in_place_is_noticed(make_trainer: Any, samples: Any) -> None:
    trainer = make_trainer()
    trainer.config.tracker_kwargs["wandb"] = {}
    with refused(TutorialError, "PPOConfig.tracker_kwargs was {} when the trainer was made"):
        trainer.step(*samples)


def test_a_last_batch_may_be_shorter_and_replies_need_some(make_trainer: Any, samples: Any) -> None:
    trainer = make_trainer()
    trainer.config.batch_size = 4
    stats = trainer.step(*(items[:4] for items in samples))
    assert stats["ppo/mean_scores"] == pytest.approx(np.mean(samples[2][:4]))
    trainer.config.ptx_coef = 0.5
    with refused(ModelError, "ptx_coef is 0.5, but there is no ptx_dataset"):
        trainer.step(*(items[:4] for items in samples))


# Models -----------------------------------------------------------------------------------------


def test_float16_weights_are_refused_and_bfloat16_with_shared_layers_train(
    make_language_model: Any, samples: Any
) -> None:
    load = AutoModelForCausalLMWithValueHead.from_pretrained
    half = load(make_language_model("llama").to(torch.float16))
    with refused(ModelError, "weights are float16", "dtype=torch.float32", "'fp16'"):
        plain_trainer(policy=half)
    policy = load(make_language_model("llama").to(torch.bfloat16))
    trainer = plain_trainer(policy=policy, shared=2)
    assert trainer.shares_trunk
    stats = trainer.step(*samples)
    assert stats["objective/kl"] == 0
    answers = trainer.generate(samples[0], return_prompt=False, max_new_tokens=3)
    assert trainer.sampled is not None and trainer.sampled.hidden.dtype == torch.bfloat16
    assert len(answers) == 6


def test_a_model_without_a_language_model_head_is_refused() -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    config = LlamaConfig(**sizes, num_attention_heads=2)
    for kind in (LlamaModel, LlamaForSequenceClassification):
        with refused(ModelError, f"{kind.__name__} has no language model head"):
            AutoModelForCausalLMWithValueHead.from_pretrained(kind(config))


def test_embeddings_resized_after_the_reference_was_made_are_refused(make_policy: Any) -> None:
    policy = make_policy("llama")
    reference = create_reference_model(policy)
    policy.pretrained_model.resize_token_embeddings(270)
    with refused(ModelError, "the policy knows 270 tokens, the reference 264"):
        PPOTrainer(PPOConfig(), policy, reference, PadAndEnd())


def test_the_check_of_a_models_cache_draws_nothing_and_leaves_its_mode(
    make_language_model: Any, unchanged_random_state: None
) -> None:
    model = make_language_model("gpt2")
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert cache_kind(model) == "plain"
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("file", ["value_head.safetensors", "value_head.bin"])
def test_llama_factorys_value_head_is_loaded(make_policy: Any, tmp_path: Path, file: str) -> None:
    make_policy("llama").save_pretrained(tmp_path)
    (tmp_path / "value_head.safetensors").unlink()
    head = {
        "v_head.summary.weight": torch.randn(1, 32, generator=torch.Generator().manual_seed(1)),
        "v_head.summary.bias": torch.tensor([0.25]),
    }
    save = save_file if file.endswith("safetensors") else torch.save
    save(head, tmp_path / file)
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert torch.equal(loaded.v_head.weight, head["v_head.summary.weight"])
    assert torch.equal(loaded.v_head.bias, head["v_head.summary.bias"])


@pytest.mark.parametrize(
    ("settings", "kept"), [({"temperature": 0.7}, True), ({"max_new_tokens": -1}, False)]
)
def test_weights_are_saved_whatever_the_generation_config_holds(
    make_policy: Any, tmp_path: Path, settings: dict[str, Any], kept: bool
) -> None:
    policy = make_policy("llama")
    for name, value in settings.items():
        setattr(policy.pretrained_model.generation_config, name, value)
    policy.save_pretrained(tmp_path, max_shard_size="1MB")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "value_head.safetensors"} <= names
    assert "generation_config.json" in names
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert torch.equal(again.v_head.weight, policy.v_head.weight)
    found = vars(again.pretrained_model.generation_config)
    (name,) = settings
    assert (found[name] == settings[name]) == kept, "what transformers refuses is left out"
    assert found["eos_token_id"] == policy.pretrained_model.generation_config.eos_token_id


def test_a_tokenizers_pad_token_may_be_set_later(make_policy: Any, samples: Any) -> None:
    class Late(PadAndEnd):
        pad_token_id = None

    config = PPOConfig(batch_size=6, mini_batch_size=6)
    late, usual = (
        PPOTrainer(config, make_policy("llama"), tokenizer=tokenizer)
        for tokenizer in (Late(), PadAndEnd())
    )
    late.generate(samples[0], max_new_tokens=2)
    assert late.step(*samples)["ppo/loss/value"] == pytest.approx(
        usual.step(*samples)["ppo/loss/value"], rel=1e-5
    )
    Late.eos_token_id = None
    with refused(ModelError, "needs a tokenizer with a pad token"):
        PPOTrainer(config, make_policy("llama"), tokenizer=Late())


def test_a_sampler_of_lengths_from_0_draws_1_at_the_least() -> None:
    sampler = LengthSampler(0, 3)
    assert {sampler() for _ in range(50)} == {1, 2}


def test_a_dataset_smaller_than_a_batch_is_refused_where_it_is_gone_through(
    make_trainer: Any,
) -> None:
    trainer = make_trainer(dataset=[{"input_ids": torch.tensor([5])}] * 3)
    with refused(DataError, "has 3 rows", "a step takes 6", "lower batch_size"):
        next(iter(trainer.dataloader))


def test_an_accelerator_of_the_scripts_own_may_be_made_before(make_trainer: Any) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator()
    assert make_trainer().device == accelerator.device
