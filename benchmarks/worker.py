"""What both workers of `ppo_step.py` share. Imports nothing that TRL's environment has not."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def model_config(shape: dict[str, Any]) -> Any:
    """A transformers config from {"model_type": ..., sizes}."""
    import transformers

    sizes = {k: v for k, v in shape.items() if k != "model_type"}
    return transformers.AutoConfig.for_model(shape["model_type"], **sizes)


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of a square matrix product, the best of ten."""
    size = 8192 if device.type == "cuda" else 2048  # a smaller one does not fill a GPU
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def arithmetic(step: Callable[[int], Any]) -> int:
    """Floating-point operations of the matrix products of one step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step(0)
    return counter.get_total_flops()


def serve(
    step: Callable[[int], dict[str, float]], at_the_end: Callable[[], dict[str, Any]] = dict
) -> None:
    """Take a step, and print its seconds, for each line on standard input; at its end the memory.

    Before the first step prints {"ready": ...}: loading is not timed.
    """
    cuda = torch.cuda.is_available()
    print(json.dumps({"ready": True, "cuda": torch.cuda.get_device_name() if cuda else None}))
    sys.stdout.flush()
    for i, _ in enumerate(sys.stdin):
        seconds = step(i)
        if cuda:
            torch.cuda.synchronize()
        print(json.dumps({**seconds, "total": sum(seconds.values())}), flush=True)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"peak_bytes": peak or resident, **at_the_end()}), flush=True)
