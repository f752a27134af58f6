"""Checkpoints that are not damaged and still cannot be loaded: each says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.damage import no_weights, unknown_config
from support.errors import refused
from support.judges import load as load_judge
from support.judges import tiny_config, tiny_tokenizer, toy_pairs
from support.models import language_model
from transformers import BertForSequenceClassification

from rlhf_tutorial.errors import ModelError
from rlhf_tutorial.evaluation.perplexity import Perplexity
from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead
from rlhf_tutorial.reward import StateReader, train_reward_model

load_policy = AutoModelForCausalLMWithValueHead.from_pretrained


def configure(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | settings), encoding="utf-8")


def own_code(folder: Path) -> None:
    code = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    configure(folder, model_type="baichuan", auto_map=code)


def quantised(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n"
    (folder / "model.safetensors").write_text(pointer)


def adapter_alone(folder: Path) -> None:
    no_weights(folder)
    settings = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    (folder / "adapter_config.json").write_text(settings)


KINDS = [
    (own_code, "custom code is never run"),
    (unknown_config, "'no-such-model' is newer than the transformers"),
    (quantised, "its weights are quantised (bitsandbytes), which cannot be trained"),
    (lfs_pointer, "model.safetensors is a git-lfs pointer, not the file: run `git lfs pull`"),
]


@pytest.fixture(params=["policy", "judge"])
def checkpoint(request: Any, tmp_path: Path, tokenizer: Any) -> tuple[Path, Callable[..., Any]]:
    """A folder, and what loads it."""
    if request.param == "policy":
        language_model("llama", layers=1).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path, load_policy
    torch.manual_seed(0)
    BertForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path, load_judge


@pytest.mark.parametrize(("change", "said"), KINDS)
def test_what_is_not_damaged_is_called_what_it_is(
    change: Callable[[Path], None], said: str, checkpoint: tuple[Path, Callable[..., Any]]
) -> None:
    folder, load = checkpoint
    load(folder)
    change(folder)
    with refused(ModelError, str(folder), said):
        load(folder)


def test_a_model_of_another_kind_is_named(tmp_path: Path, tokenizer: Any) -> None:
    language_model("llama", layers=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    configure(tmp_path, model_type="vit")
    with refused(ModelError, "no model of the kind that is needed for 'vit'", "decoder-only"):
        load_policy(tmp_path)


def test_an_adapter_is_no_judge_by_itself(tmp_path: Path) -> None:
    """peft would look for its base, and transformers would give that a head of random weights."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    adapter_alone(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    said = ("an adapter of 'org/base' and no model of its own",)
    with refused(ModelError, *said, "this folder as adapter="):
        load_judge(folder)
    for load in (
        lambda folder: train_reward_model(toy_pairs(1, 0), folder),
        lambda folder: Perplexity().compute(predictions=["a"], model_id=folder),
        StateReader.from_pretrained,
    ):
        with refused(ModelError, *said, "merge it into its base first"):
            load(folder)


def test_a_checkpoint_without_weights_may_still_be_damaged(
    checkpoint: tuple[Path, Callable[..., Any]],
) -> None:
    folder, load = checkpoint
    no_weights(folder)
    with refused(ModelError, f"cannot load {folder}", "fetch it again, as it may be damaged"):
        load(folder)
