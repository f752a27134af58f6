"""Recorded passes, with the recording acted out on a CPU: a step is to be the same with them."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import pytest
import torch
from support.graphed import Graphed
from support.models import lora_policy
from support.trainers import assert_same_scalars, assert_same_weights, weights_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_tutorial.ppo.passes import RecordedPasses
from rlhf_tutorial.ppo.rollout import collate


def recorded(trainer: Any) -> Any:
    """The trainer, with the passes of a GPU."""
    models = trainer.model, trainer.ref_model
    trainer.recorded = {model: RecordedPasses(model, Graphed) for model in models}
    return trainer


def recordings(trainer: Any, of: str = "model") -> list[Graphed]:
    return [*trainer.recorded[getattr(trainer, of)].recorded.values()]


CASES: dict[str, dict[str, Any]] = {
    "one pass serves the first update": {},
    "mini-batches": {"mini_batch_size": 2},
    "accumulated gradients": {"mini_batch_size": 2, "gradient_accumulation_steps": 3},
    "the exact KL": {"kl_penalty": "full", "mini_batch_size": 3},
    "replies of PPO-ptx": {
        "ptx_coef": 0.5,
        "ptx_dataset": [(torch.arange(3, 6), torch.arange(5, 9))],
    },
    "a mini-batch that is skipped": {"ratio_threshold": 0.5},
    "bfloat16": {"accelerator_kwargs": {"mixed_precision": "bf16"}},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shared", [None, 2])
def test_steps_are_the_same(case, shared, make_trainer, samples):
    settings = {"other": 1, "sgd": 0.05, "ppo_epochs": 2} | CASES[case]
    precise = case != "bfloat16"
    found = []
    for prepare in (lambda trainer: trainer, recorded):
        trainer = prepare(make_trainer("llama", shared, **settings))
        stats = [trainer.step(*samples) for _ in range(2)]
        found.append((trainer, stats, weights_of(trainer)))
        from support.trainers import forget_accelerate

        forget_accelerate()
    (_, plain, weights), (trainer, stats, others) = found
    for a, b in zip(plain, stats, strict=True):
        if precise:
            assert_same_scalars(a, b)
        else:
            assert b["ppo/loss/value"] == pytest.approx(a["ppo/loss/value"], rel=0.05)
    assert_same_weights(weights, others, atol=1e-5 if precise else 5e-2)
    assert recordings(trainer) and recordings(trainer, "ref_model")
    assert not trainer.recorded[trainer.model].failed


def test_the_first_updates_ratio_is_1_to_the_last_bit(make_trainer, samples):
    trainer = recorded(make_trainer("llama", 2, ppo_epochs=1))
    stats = trainer.step(*samples)
    assert set(stats["ppo/policy/ratio"].tolist()) == {1.0}
    assert stats["ppo/policy/approxkl"] == 0.0


def test_batches_of_like_length_share_a_recording(make_trainer, samples):
    trainer = recorded(make_trainer("gpt2", ppo_epochs=1))
    queries, responses, scores = samples
    for extra in (0, 1, 3):
        longer = [torch.cat([query, query.new_full((extra,), 7)]) for query in queries]
        trainer.step(longer, responses, scores)
    (policy,) = recordings(trainer)
    assert policy.calls == 1 + 3, "one to try it, and three"
    ids, mask, positions = policy.inputs
    assert ids.shape == positions.shape == (6, 32)
    assert mask.shape == (6, 1, 32, 32)


def test_while_a_gradient_is_awaited_the_model_itself_reads(make_trainer, samples):
    trainer = recorded(make_trainer("llama"))
    batch = collate(*samples[:2], 0)
    first = trainer.forward(trainer.model, batch)
    (graph,) = recordings(trainer)
    calls = graph.calls
    second = trainer.forward(trainer.model, batch)
    with torch.no_grad():
        trainer.forward(trainer.model, batch)
    assert graph.calls == calls
    counts = batch.mask.bool()  # at padding, neither means anything
    torch.testing.assert_close(
        first.logprobs[counts], second.logprobs[counts], rtol=1e-4, atol=1e-5
    )
    first.logprobs.sum().backward()
    trainer.optimizer.zero_grad()
    trainer.forward(trainer.model, batch)
    assert graph.calls == calls + 1


def test_what_was_said_stays_when_another_batch_is_read(make_trainer, samples):
    trainer = recorded(make_trainer("llama"))
    queries, responses, _ = samples
    with torch.no_grad():
        first = trainer.forward(trainer.model, collate(queries, responses, 0))
        kept = first.logits.clone(), first.values.clone()
        trainer.forward(trainer.model, collate(responses, queries, 0))
    assert torch.equal(first.logits, kept[0]) and torch.equal(first.values, kept[1])


def test_a_lora_policy_and_its_reference_are_told_apart(make_trainer, samples):
    found = []
    for prepare in (lambda trainer: trainer, recorded):
        policy = lora_policy(trained=0.05, lora_dropout=0.0)
        trainer = prepare(make_trainer(policy=policy, sgd=0.05))
        found.append((trainer.step(*samples), weights_of(trainer)))
    assert_same_scalars(found[0][0], found[1][0])
    assert_same_weights(found[0][1], found[1][1], atol=1e-5)


@pytest.mark.parametrize("wrong", ["raises", "logits", "gradient", "reads nothing new"])
def test_a_recording_that_goes_wrong_is_left_with_one_line(wrong, make_trainer, samples, caplog):
    class Wrong(Graphed):
        def __call__(self, *inputs: Any) -> Any:
            if wrong == "raises":
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            if wrong == "reads nothing new":
                return super().__call__(*self.inputs)
            logits, values = super().__call__(*inputs)
            if wrong == "logits":
                return logits * 1.1, values
            logits.requires_grad and logits.register_hook(lambda g: g * 1.1)
            return logits, values

    trainer, plain = (make_trainer("llama", sgd=0.05) for _ in range(2))
    trainer.recorded = {trainer.model: RecordedPasses(trainer.model, Wrong)}
    with caplog.at_level(logging.WARNING):
        for either in (trainer, plain):
            either.step(*samples)
            either.step(*samples)
    (said,) = [m for m in caplog.messages if "CUDA graphs" in m]
    assert "LlamaForCausalLM" in said and "\n" not in said
    assert trainer.recorded[trainer.model].recorded == {}, "nobody will use them again"
    assert_same_weights(weights_of(trainer), weights_of(plain))


class Peak(TorchDispatchMode):
    """The most bytes of newly made tensors that were there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if is_tensor(t)}
        out = f(*args, **(kwargs or {}))
        for storage in {t.untyped_storage() for t in tree_leaves(out) if is_tensor(t)}:
            if id(storage) not in self.known | old:
                self.known.add(id(storage))
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, id(storage), storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def free(self, storage: int, size: int) -> None:
        self.known.remove(storage)
        self.now -= size


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def test_a_recording_is_tried_in_the_memory_of_two_gradients(make_policy):
    """Its own, which stays, and that of the model itself: they are compared without copies."""
    policy = make_policy("llama", hidden_size=256, num_attention_heads=4, intermediate_size=512)

    passes = RecordedPasses(policy, lambda module, _: module)
    batch = collate([torch.tensor([5, 6])], [torch.tensor([7, 8])], 0)
    with Peak() as peak:
        passes(batch, False)
    assert not passes.failed
    gradient = sum(p.numel() * p.element_size() for p in policy.parameters())
    assert gradient < peak.most < 2.5 * gradient, "some activations come on top"


def test_without_a_gpu_nothing_is_recorded(make_trainer):
    assert make_trainer("llama").recorded == {}
