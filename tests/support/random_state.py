"""The caller's random state, which nothing in the package may move."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def states() -> dict[str, object]:
    name, keys, *rest = np.random.get_state()
    numpys = (name, keys.tolist(), *rest)
    return {"torch": torch.get_rng_state().tolist(), "NumPy": numpys, "Python": random.getstate()}


@contextmanager
def random_state_unchanged() -> Iterator[None]:
    """The block must not move torch's, NumPy's or Python's random state."""
    before = states()
    yield
    for name, state in states().items():
        assert state == before[name], f"{name}'s random state was moved"
