"""Shared by the tests: one thread, no network, tiny models from configs, a tokenizer in memory."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import VOCABULARY, language_model, value_model
from support.random_state import random_state_unchanged
from support.tokenizers import byte_tokenizer
from support.wheels import FakePip
from torch import Tensor

torch.set_num_threads(1)

# Most tests compare with numbers of their own, on the CPU. So that they do so on every machine, a
# GPU is seen by those alone that are marked `cuda`.
_CUDA = {name: getattr(torch.cuda, name) for name in ("is_available", "device_count")}
HAS_GPU, _VISIBLE = torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")
if HAS_GPU:
    torch.cuda.is_available, torch.cuda.device_count = lambda: False, lambda: 0
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # to processes that tests start


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test that is marked `cuda` see the GPU, or leaves it out where there is none."""
    if request.node.get_closest_marker("cuda") is None:
        return
    if not HAS_GPU:
        pytest.skip("needs a CUDA GPU, and there is none here")
    for name, function in _CUDA.items():
        monkeypatch.setattr(torch.cuda, name, function)
    if _VISIBLE is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", _VISIBLE)


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps precision and accumulation in globals: each test starts without them."""
    yield
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """`byte_tokenizer`."""
    return byte_tokenizer()


@pytest.fixture
def make_language_model() -> Callable[..., Any]:
    """`language_model`."""
    return language_model


@pytest.fixture
def make_policy() -> Callable[..., Any]:
    """`value_model`."""
    return value_model


@pytest.fixture
def make_trainer(tokenizer: Any) -> Callable[..., Any]:
    """`make_trainer` of support.trainers, with the tokenizer."""
    from support.trainers import make_trainer

    return partial(make_trainer, tokenizer=tokenizer)


@pytest.fixture
def samples() -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Six queries, responses and scores; lengths are mixed, two responses have one token."""
    random = torch.Generator().manual_seed(5)

    def ids(lengths: tuple[int, ...]) -> list[Tensor]:
        return [torch.randint(3, VOCABULARY, (n,), generator=random) for n in lengths]

    return ids((3, 7, 1, 5, 4, 2)), ids((4, 1, 6, 2, 1, 5)), [1.0, -0.5, 2.0, 0.3, -1.5, 0.7]


@pytest.fixture
def make_hh_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder laid out as Anthropic/hh-rlhf: `<data_dir>/<split>.jsonl.gz`, or `.jsonl` plain."""

    def make(
        rows: list[dict[str, Any]],
        split: str = "train",
        data_dir: str = "helpful-base",
        compressed: bool = True,
    ) -> Path:
        folder = tmp_path / "hh-rlhf" / data_dir
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{split}.jsonl.gz" if compressed else f"{split}.jsonl"
        opened = gzip.open if compressed else open
        with opened(folder / name, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return tmp_path / "hh-rlhf"

    return make


@pytest.fixture
def unchanged_random_state() -> Iterator[None]:
    """Fails the test if it moves torch's, NumPy's or Python's random state."""
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    with random_state_unchanged():
        yield


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """`FakePip` in the place of pip, and a cache of its own."""
    fake = FakePip()
    monkeypatch.setenv("RLHF_TUTORIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rlhf_tutorial.assets.subprocess.run", fake)
    return fake


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache on disk that holds `org/name` at main, without weights; the network is off."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    repo = tmp_path / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot
