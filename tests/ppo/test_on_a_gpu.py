"""What differs on a GPU: recorded launches, sums in another order, float16, NCCL.

Float32 there has another rounding and no order of adding that is always the same, so what is equal
bit for bit on a CPU is held to a tolerance here: 1e-5 of a weight, 1e-4 of a reported number.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_cases import CASES
from support import parity
from support.models import lora_policy
from support.trainers import (
    assert_same_scalars,
    assert_same_weights,
    forget_accelerate,
    go_on,
    query_rows,
    weights_of,
)

from rlhf_tutorial import models, sampler

pytestmark = pytest.mark.cuda

PARITY = [name for name, case in CASES.items() if case.equal]


@pytest.mark.parametrize("name", PARITY)
def test_every_number_is_trls(name, tokenizer, caplog):
    assert parity.differences(parity.load(name), tokenizer) == []
    assert "CUDA graphs" not in caplog.text


def answers(policy: Any, new: int = 8) -> Any:
    """Drawn from one seed for four queries of mixed lengths."""
    random = torch.Generator().manual_seed(3)
    ids, mask = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=torch.long)
    for row, n in enumerate((3, 9, 1, 6)):
        ids[row, -n:] = torch.randint(3, 264, (n,), generator=random)
        mask[row, -n:] = 1
    torch.manual_seed(5)
    settings = {"max_new_tokens": new, "eos_token_ids": [1], "pad_token_id": 0}
    return policy.sample(ids.cuda(), mask.cuda(), **settings)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "neox"])
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_recorded_answers_are_those_of_the_loop(kind, k, precision, make_policy, monkeypatch):
    policy = make_policy(kind)
    if k is not None:
        policy.freeze_lowest_layers(k)
    policy.cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        recorded, states = answers(policy)
        again, _ = answers(policy)
        assert sampler._WRITERS[policy] is not None, "it was recorded"
        monkeypatch.setattr(models, "sample_recorded", lambda *_, **__: None)
        plain, plain_states = answers(policy)
    assert torch.equal(recorded, again)
    if precision == "no":  # in bfloat16 a near tie may fall the other way
        assert torch.equal(recorded, plain)
    if k is not None and precision == "no":
        real = plain_states.attention_mask[:, :-1].bool()
        ours, theirs = states.hidden[real], plain_states.hidden[real]
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_answers_follow_the_weights(make_policy, monkeypatch):
    policy = make_policy("llama").cuda()
    before, _ = answers(policy)
    with torch.no_grad():
        for p in policy.pretrained_model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    after, _ = answers(policy)
    monkeypatch.setattr(models, "sample_recorded", lambda *_, **__: None)
    assert torch.equal(after, answers(policy)[0]) and not torch.equal(before, after)


@pytest.mark.parametrize("shared", [None, 2])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "lora"])
def test_a_step_is_the_same_recorded_or_not(kind, shared, make_trainer, samples):
    found = []
    for recorded in (True, False):
        chosen = {"policy": lora_policy(trained=0.05)} if kind == "lora" else {"kind": kind}
        trainer = make_trainer(**chosen, shared=shared, sgd=0.05, ppo_epochs=2)
        assert len(trainer.recorded) == 2
        if not recorded:
            trainer.recorded = {}
        stats = [trainer.step(*samples) for _ in range(3)]
        assert not any(passes.failed for passes in trainer.recorded.values())
        found.append((stats, weights_of(trainer)))
        first = stats[0]["ppo/policy/ratio"]
        assert set(first[: len(first) // 2].tolist()) == {1.0}, "of the first update"
        forget_accelerate()
    for a, b in zip(found[0][0], found[1][0], strict=True):
        assert_same_scalars(a, b, atol=1e-4)
    assert_same_weights(found[0][1], found[1][1], atol=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, tmp_path: Path):
    def made() -> Any:
        forget_accelerate()
        # Adam would divide a gradient that is rounding noise by its own size.
        return make_trainer("llama", 2, dataset=query_rows(), sgd=0.01)

    whole = go_on(made(), until=4)
    stopped = go_on(made(), until=2)
    stopped.save_checkpoint(tmp_path)
    resumed = made()
    assert resumed.resume(tmp_path) == 2
    go_on(resumed, until=4)
    assert_same_weights(weights_of(whole), weights_of(resumed), atol=1e-5)


@pytest.mark.parametrize("shared", [None, 2])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(precision, shared, make_trainer, samples):
    """fp16 has a scaler of gradients, whose first steps are skipped until its scale fits."""
    trainer = make_trainer(
        "llama", shared, accelerator_kwargs={"mixed_precision": precision}, learning_rate=1e-4
    )
    assert (trainer.accelerator.scaler is not None) == (precision == "fp16")
    before = weights_of(trainer)
    for _ in range(8):
        responses = trainer.generate(samples[0], return_prompt=False, max_new_tokens=5)
        stats = trainer.step(samples[0], responses, samples[2])
        assert all(np.isfinite(v).all() for v in stats.values())
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    moved = {n for n, w in weights_of(trainer).items() if not torch.equal(w, before[n])}
    assert moved and moved <= trained


def test_one_process_of_nccl(make_trainer, samples, monkeypatch):
    """As `accelerate launch` starts one: the process group is there, and there is no other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in (alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items():
        monkeypatch.setitem(os.environ, name, value)
    try:
        trainer = make_trainer("llama", 2)
        assert torch.distributed.get_backend() == "nccl"
        responses = trainer.generate(samples[0], return_prompt=False, max_new_tokens=5)
        stats = trainer.step(samples[0], responses, samples[2])
        assert all(np.isfinite(v).all() for v in stats.values())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
