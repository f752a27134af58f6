"""What differs on a GPU: recorded launches, sums in another order, float16, NCCL.

Float32 there has another rounding and no order of adding that is always the same, so what is equal
bit for bit on a CPU is held to a tolerance here: 1e-5 of a weight or a perplexity, 1e-4 of a number
that a step reports.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_cases import CASES
from support import ROOT, parity
from support.judges import QUERIES, RESPONSES, tiny_config, tiny_tokenizer
from support.models import language_model, lora_policy
from support.trainers import (
    assert_same_scalars,
    assert_same_weights,
    forget_accelerate,
    go_on,
    query_rows,
    weights_of,
)

from rlhf_tutorial import models, sampler
from rlhf_tutorial.evaluation.perplexity import score_texts
from rlhf_tutorial.reward import RewardModel

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


def test_weights_that_were_moved_are_recorded_anew(make_policy):
    policy = make_policy("llama").cuda()
    before, _ = answers(policy)
    writer = sampler._WRITERS[policy]
    policy.cpu().cuda()
    for p in policy.pretrained_model.parameters():
        p.data = p.data.clone()
    again, _ = answers(policy)
    assert torch.equal(before, again) and sampler._WRITERS[policy] not in (None, writer)


def test_shapes_that_made_room_are_recorded_anew(make_policy, monkeypatch):
    monkeypatch.setattr(sampler, "KEPT", 1)
    policy = make_policy("llama").cuda()
    first, second = answers(policy, new=8)[0], answers(policy, new=20)[0]
    assert torch.equal(first, answers(policy, new=8)[0])
    assert torch.equal(second, answers(policy, new=20)[0])
    writer = sampler._WRITERS[policy]
    assert writer is not None and len(writer.samplers) == 1


def test_a_look_in_another_precision_between_two_batches_changes_neither(make_policy):
    policy = make_policy("llama").cuda()
    plain, _ = answers(policy)
    with torch.autocast("cuda", torch.bfloat16):
        look, _ = answers(policy)
        again, _ = answers(policy)
    assert torch.equal(look, again) and torch.equal(plain, answers(policy)[0])
    assert sampler._WRITERS[policy] is not None


def wait_in(policy: Any) -> Any:
    """The policy, one layer of which has the processor wait for the GPU."""
    layer = policy.pretrained_model.model.layers[0]
    plain = layer.forward

    def waits(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        hidden.sum().item()
        return plain(hidden, *args, **kwargs)

    layer.forward = waits
    return policy


def test_a_policy_that_cannot_be_recorded_leaves_others_alone(make_policy, caplog):
    stream = torch.cuda.current_stream()
    expected, _ = answers(make_policy("llama").cuda())
    with caplog.at_level(logging.WARNING):
        waiting = wait_in(make_policy("llama").cuda())
        found = [answers(waiting)[0] for _ in range(2)]
    (said,) = [message for message in caplog.messages if "CUDA graphs" in message]
    assert "synchronizing" in said
    assert all(torch.equal(expected, answer) for answer in found)
    assert torch.cuda.current_stream() == stream and torch.cuda.get_sync_debug_mode() == 0
    other = make_policy("llama").cuda()
    assert torch.equal(expected, answers(other)[0]) and sampler._WRITERS[other] is not None


def test_a_step_that_cannot_be_recorded_is_the_same(make_trainer, samples, caplog):
    found = []
    for prepare in (lambda policy: policy, wait_in):
        trainer = make_trainer("llama", sgd=0.05)
        prepare(trainer.policy)
        with caplog.at_level(logging.WARNING):
            trainer.step(*samples)
        found.append((trainer.recorded[trainer.model].failed, weights_of(trainer)))
        forget_accelerate()
    assert [failed for failed, _ in found] == [False, True]
    assert "synchronizing" in caplog.text
    assert_same_weights(found[0][1], found[1][1], atol=1e-5)


FAILS_INSIDE = """
import torch
from ppo.test_on_a_gpu import answers, wait_in
from rlhf_tutorial import capture
from support.models import value_model

expected, _ = answers(value_model("llama").cuda())
capture._rehearse = lambda work: (work(), work())  # so that the wait is met in the recording
stream = torch.cuda.current_stream()
found, _ = answers(wait_in(value_model("llama").cuda()))
assert torch.equal(expected, found) and torch.cuda.current_stream() == stream
assert torch.rand(3, device="cuda").isfinite().all()
"""


def test_random_numbers_go_on_after_a_recording_that_failed_inside_cuda():
    """In a process of its own, as it leaves torch's allocator in a recording."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    paths += os.pathsep + str(ROOT / "scripts" / "parity")
    done = subprocess.run(
        [sys.executable, "-c", FAILS_INSIDE],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CUDA graphs" in done.stderr


def test_perplexities_are_those_of_the_cpu(tokenizer):
    texts = ["How do I bake bread?", "Hi", "Stir until smooth, then rest."]
    on_cpu = score_texts(texts, language_model("llama"), tokenizer)["perplexities"]
    on_gpu = score_texts(texts, language_model("llama").cuda(), tokenizer)["perplexities"]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-5)


def test_a_judges_scores_are_those_of_the_cpu():
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config(num_labels=1))
    found = [
        RewardModel(model, tiny_tokenizer(), device=device, bf16=False)(QUERIES, RESPONSES)
        for device in ("cpu", "cuda")
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-4)


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
    assert len(trainer.recorded) == 2, "it was recorded"
    assert not any(passes.failed for passes in trainer.recorded.values())
    assert sampler._WRITERS[trainer.policy] is not None
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
