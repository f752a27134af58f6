"""What training a policy cannot use, checkpoints, tokenizers, folders, scores: one line each."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT
from support.damage import (
    Payload,
    cut_config,
    cut_weights,
    junk_weights,
    no_weights,
)
from support.errors import refused
from support.trainers import make_trainer

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.__main__ import main
from rlhf_tutorial.errors import ModelError, RewardError, TutorialError
from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead, load_tokenizer
from rlhf_tutorial.ppo import PPOConfig, PPOTrainer

load = AutoModelForCausalLMWithValueHead.from_pretrained
PACKAGE = ROOT / "rlhf_tutorial"


def test_the_package_loads_every_checkpoint_without_its_code() -> None:
    """`trust_remote_code=False` is written out: left unset, transformers would ask the reader."""
    calls = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and re.fullmatch(
                    r"Auto(Tokenizer|Config|ModelFor\w+)\.from_pretrained", ast.unparse(node.func)
                )
                and "WithValueHead" not in ast.unparse(node.func)
            ):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("trust_remote_code") == "False", (path.name, node.lineno)
                calls += 1
    assert calls >= 9


@pytest.fixture
def checkpoint(tmp_path: Path, make_policy: Callable[..., Any], tokenizer: Any) -> Path:
    folder = tmp_path / "policy"
    make_policy("llama", layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def junk_value_head(folder: Path) -> None:
    (folder / "value_head.safetensors").write_bytes(b"<html>")


@pytest.mark.parametrize(
    "damage",
    [cut_weights, junk_weights, no_weights, cut_config, junk_value_head],
)
def test_a_damaged_policy(checkpoint: Path, damage: Callable[[Path], None]) -> None:
    load(checkpoint)
    damage(checkpoint)
    with refused(ModelError, f"cannot load {checkpoint}", "fetch it again"):
        load(checkpoint)


def test_code_in_a_policys_pickle_does_not_run(checkpoint: Path, tmp_path: Path) -> None:
    no_weights(checkpoint)
    torch.save({"lm_head.weight": Payload(tmp_path / "ran")}, checkpoint / "pytorch_model.bin")
    with refused(ModelError, f"cannot load {checkpoint}", "Weights only load failed"):
        load(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_code_that_a_policy_brings_neither_runs_nor_is_asked_about(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the reader was asked"))
    (checkpoint / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    auto = {name: "code.C" for name in ("AutoConfig", "AutoModelForCausalLM")}
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    with refused(ModelError, f"cannot load {checkpoint}", "custom code"):
        load(checkpoint)
    with refused(ModelError, "trust_remote_code is not supported", "never run"):
        load(checkpoint, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_tokenizer_and_one_without_pad_and_eos(checkpoint: Path, tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.pad_token = bare.eos_token = None
    bare.save_pretrained(checkpoint)
    with refused(ModelError, "neither pad nor EOS token: set one"):
        load_tokenizer(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{")
    with refused(ModelError, f"cannot load {checkpoint}"):
        load_tokenizer(checkpoint)


def test_a_tokenizer_with_tokens_that_the_policy_does_not_know(
    make_policy: Callable[..., Any], tokenizer: Any
) -> None:
    import copy

    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"pad_token": "<added>"})
    pad = larger.pad_token_id
    small = make_policy("llama", layers=1, vocab_size=pad)
    config = PPOConfig(batch_size=2, mini_batch_size=2)
    with refused(ModelError, f"pads with token {pad}, but the model knows {pad}", "resize_token"):
        PPOTrainer(config, small, tokenizer=larger)
    # Other tokens beyond the model's vocabulary matter only where a text holds one.
    trainer = PPOTrainer(config, make_policy("llama", layers=1, vocab_size=100), None, tokenizer)
    queries = [torch.tensor([5, 6]), torch.tensor([100])]
    with refused(ModelError, "queries hold token ids from 5 to 100", "knows 0 to 99"):
        trainer.generate(queries, max_new_tokens=2)
    with refused(ModelError, "responses hold token ids from 5 to 100"):
        trainer.step([q.clamp(max=99) for q in queries], queries, [0.0, 1.0])


def test_queries_that_leave_no_room_in_the_context() -> None:
    trainer = make_trainer(layers=1, batch_size=2, mini_batch_size=2)  # of 64 positions
    queries = [torch.full((60,), 5), torch.tensor([7])]
    assert len(trainer.generate(queries, max_new_tokens=4, return_prompt=False)) == 2
    with refused(ModelError, "take 65 tokens together, but the policy reads 64", "max_new_tokens"):
        trainer.generate(queries, max_new_tokens=5)
    with refused(ModelError, "take 65 tokens together, but the policy reads 64"):
        trainer.step(queries, [torch.full((5,), 5), torch.tensor([7])], [0.0, 1.0])


@pytest.mark.parametrize(
    ("scores", "part"),
    [
        (None, "step got a NoneType as scores: give a list of 2"),
        (torch.tensor(1.0), "step got a Tensor as scores"),
        ([1.0], "step got 1 scores, but batch_size is 2"),
        ([1.0, None], "the score of response 1 is a NoneType"),
        (["1", "2"], "the score of response 0 is a str"),
        (torch.zeros(2, 2), "the score of response 0 is of shape (2,)"),
        ([0.0, float("nan")], "the score of response 1 is nan: the reward must be finite"),
        ([1e300, 0.0], "the score of response 0 is inf"),
    ],
)
def test_scores_that_step_cannot_use(scores: Any, part: str) -> None:
    trainer = make_trainer(layers=1, batch_size=2, mini_batch_size=2)
    before = [p.clone() for p in trainer.model.parameters()]
    queries = [torch.tensor([5, 6]), torch.tensor([7])]
    with refused(RewardError, part):
        trainer.step(queries, queries, scores)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["file/run", "x" * 300, "nul\0"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with refused(TutorialError, "cannot make the run's folder", "--output or RLHF_RUNS"):
        Run(load_preset("tiny"), tmp_path / name)


def test_a_full_disk_in_a_stage_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28), "runs/x")

    monkeypatch.setattr(Dataset, "save_to_disk", full)
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "--preset", "tiny", "--output", str(tmp_path / "run")])
    said = str(stopped.value)
    assert said.startswith("error: [Errno 28] No space left on device") and "--output" in said


def test_a_null_row_does_not_stop_the_tiny_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = json.dumps({"chosen": "\n\nHuman: a\n\nAssistant: b"})
    (tmp_path / "train.jsonl").write_text('{"chosen": null}\n' + row)
    monkeypatch.setenv("RLHF_DATA", str(tmp_path))
    assert len(Run(load_preset("tiny"), tmp_path / "run").queries()) == 1
