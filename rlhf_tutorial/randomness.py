"""Random draws that leave the caller's random state as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's generators, of all devices, start from `seed`, and are put back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        # manual_seed seeds every device, so every device is put back.
        torch.manual_seed(seed)
        yield


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put Python's, NumPy's and torch's random states back afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
