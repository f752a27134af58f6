"""What is recorded on a GPU: how it is recorded, acted out, and that it decides nothing on the way.

What a recording says is held against the plain passes in test_sampler.py and ppo/test_passes.py.
"""

from __future__ import annotations

import gc
import logging
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.cuda import WAITS, FakeCuda
from support.models import lora_policy, value_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_tutorial import sampler
from rlhf_tutorial.capture import kept, padded_length, record, record_module
from rlhf_tutorial.ppo.passes import _Pass
from rlhf_tutorial.sampler import StaticSampler, sample_recorded

CUDA = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def adding(written: Tensor) -> Any:
    """A work that writes 1, 2 and 3."""
    return lambda: written.copy_(torch.arange(1.0, 4.0))


def test_a_recording_says_what_was_recorded(cuda):
    written = torch.zeros(3)
    cuda.replay = adding(written)
    replay, *_ = record(CUDA, (adding(written),), written)
    written.zero_()
    replay()
    assert written.tolist() == [1, 2, 3] and cuda.begun == 1


def test_a_recording_that_recorded_nothing_is_refused(cuda):
    """As where the kernels went to another device than the current one."""
    written = torch.zeros(3)
    with pytest.raises(RuntimeError, match="the replay says something else"):
        record(CUDA, (adding(written),), written)


@pytest.mark.parametrize("older", [False, True])
def test_a_recording_that_fails_at_its_end_leaves_nothing_behind(older, monkeypatch):
    cuda = FakeCuda(monkeypatch, SimpleNamespace() if older else None)
    cuda.error = RuntimeError("operation failed due to a previous error during capture")
    before, written = cuda.stream, torch.zeros(3)
    for attempt in (
        lambda: record(CUDA, (adding(written),), written),
        lambda: record_module(nn.Linear(3, 1), (torch.zeros(2, 3),), pool=None),
    ):
        with pytest.raises(RuntimeError, match="previous error"):
            attempt()
        assert cuda.stream is before and cuda.mode == 0
    assert older or cuda.generator.copies == 2, "random numbers go on outside of the recording"


def test_what_waits_for_the_gpu_is_seen_before_anything_is_recorded(cuda):
    """At its second call: at the first, libraries set themselves up."""
    calls = []

    def waits() -> None:
        calls.append(cuda.mode)
        if cuda.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    class Waits(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            waits()
            return (super().forward(x),)

    before = cuda.stream
    for attempt in (
        lambda: record(CUDA, (waits,), torch.zeros(3)),
        lambda: record_module(Waits(3, 1), (torch.zeros(2, 3),), pool=None),
    ):
        with pytest.raises(RuntimeError, match="synchronizing"):
            attempt()
        assert calls == [0, "error"] and cuda.begun == 0
        assert cuda.stream is before and cuda.mode == 0
        calls.clear()


def test_the_backward_pass_is_rehearsed_too(cuda):
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            said = super().forward(x)
            if said.requires_grad:
                said.register_hook(lambda _: seen.append(cuda.mode))
            return said, x

    module, inputs = Watched(3, 1), (torch.zeros(2, 3),)
    assert record_module(module, inputs, pool=None) is module
    assert seen == [0, "error"]
    with torch.no_grad():
        record_module(module, inputs, pool=None)
    assert len(seen) == 2


def test_a_policy_whose_recording_fails_is_sampled_plainly_with_the_same_random_numbers(
    cuda, make_policy, monkeypatch, caplog
):
    monkeypatch.setattr(sampler, "record", lambda _, works, written: record(CUDA, works, written))
    policy, before = make_policy("llama"), cuda.stream
    cuda.error = RuntimeError("operation not permitted when stream is capturing")
    ids, generator = torch.arange(3, 21).reshape(2, 9), torch.get_rng_state()
    told: dict[str, Any] = {"eos_token_ids": [1], "pad_token_id": 0, "temperature": 1.0}
    models = policy.language_model, policy.halves
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            settings = told | {"max_new_tokens": 5}
            found = sample_recorded(policy, *models, ids, torch.ones_like(ids), **settings)
            assert found is None
    assert len(caplog.messages) == 1 and "not permitted" in caplog.text
    assert cuda.stream is before and cuda.mode == 0 and cuda.begun == 1
    assert torch.equal(torch.get_rng_state(), generator)


def test_lengths_share_few_shapes_of_which_a_third_is_padding_at_the_most():
    lengths = range(1, 2000)
    shapes = sorted({padded_length(n) for n in lengths})
    assert shapes[:10] == [16, 32, 48, 64, 96, 128, 192, 256, 384, 512] and len(shapes) == 14
    assert all(n <= padded_length(n) for n in lengths)
    assert all(padded_length(n) - n < padded_length(n) / 3 for n in lengths if n > 16 * 2)


def test_what_was_not_used_for_longest_makes_room_and_is_collected():
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    recordings: dict[Any, Cycle] = {}
    gone = weakref.ref(kept(recordings, "a", Cycle, 2))
    gc.disable()
    try:
        stays = kept(recordings, "b", Cycle, 2)
        assert kept(recordings, "a", Cycle, 2) is gone()
        kept(recordings, "c", Cycle, 2)
        assert [*recordings] == ["a", "c"]
        assert kept(recordings, "b", Cycle, 2) is not stays, "it is made anew"
        assert [*recordings] == ["c", "b"] and gone() is None
    finally:
        gc.enable()


# What is recorded, on torch's device without memory -----------------------------------------------


class Decisions(TorchDispatchMode):
    """Finds what a recording could not hold: what the processor reads, or has in its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.refused: set[str] = set()

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = f(*args, **(kwargs or {}))
        name = f.overloadpacket.__name__
        self.operations += 1
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        if name in WAITS or any(t.device.type == "cpu" for t in tensors):
            self.refused.add(name)
        return out


KINDS = ["llama", "gpt2", "qwen2", "neox", "lora"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_recorded_decides_nothing_and_has_nothing_on_the_processor(kind, k, attention):
    """A release of transformers that brings an `.any()` into a forward would be seen here."""
    policy = lora_policy(trained=0.05) if kind == "lora" else value_model(kind)
    if k is not None and kind != "lora":
        policy.freeze_lowest_layers(k)
    policy.language_model.set_attn_implementation(attention)
    policy.to("meta")
    from_states = policy.halves is not None
    with torch.no_grad():
        static = StaticSampler(policy.language_model, policy.halves, 4, 16, 16, 1.0)
        static.prefill()
        static.decode()  # libraries and caches set themselves up at the first call
        with Decisions() as sampling:
            static.prefill()
            static.decode()
    recorded = _Pass(policy, from_states, answer=16)
    ids, positions = (torch.zeros(4, 32, dtype=torch.long, device="meta") for _ in range(2))
    read = torch.zeros(4, 32, 32, device="meta") if from_states else ids
    inputs = read, torch.zeros(4, 1, 32, 32, device="meta"), positions
    recorded(*inputs)
    with Decisions() as reading:
        said = recorded(*inputs)
    trained = [p for p in policy.parameters() if p.requires_grad]
    with Decisions() as learning:
        outputs = [torch.empty_like(output) for output in said]
        torch.autograd.grad(said, trained, outputs, allow_unused=True)
    for part in (sampling, reading, learning):
        assert part.operations > 50 and part.refused == set()


def test_a_decision_would_be_seen():
    with Decisions() as watched:
        x = torch.zeros(3)
        bool((x > 0).any())
    assert {"_local_scalar_dense", "zeros"} <= watched.refused
