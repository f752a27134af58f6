"""A GPU's work recorded once and replayed, so that it does not wait for Python to launch it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .families import agree

Work = Callable[[], None]
"""A piece of work that reads and writes the same tensors in place at every call."""


def padded_length(length: int) -> int:
    """Up to the next multiple of 16: a recording serves one shape, and batches are to share few."""
    return -(-length // 16) * 16


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision that autocast computes in at this place; None where it is off."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def record(device: torch.device, works: tuple[Work, ...], written: Tensor) -> tuple[Work, ...]:
    """On a GPU the works as CUDA graphs, each launched as one; elsewhere the works as they are.

    They are run twice in order before they are recorded (libraries set themselves up at their first
    calls) and once afterwards, when the replay has to say what the works said.

    Args:
        written: what the last of the works leaves behind.

    Raises:
        RuntimeError: if something in them cannot be recorded, as a decision that is taken on the
            processor, or if the replay says something else.
    """
    if device.type != "cuda":
        return works
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for work in works * 2:
            work()
    torch.cuda.current_stream(device).wait_stream(aside)
    said, graphs, pool = written.clone(), [], torch.cuda.graph_pool_handle()
    for work in works:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        graphs.append(graph)
    for graph in graphs:
        graph.replay()
    if not agree(written, said):
        raise RuntimeError("the replay says something else than what was recorded")
    return tuple(graph.replay for graph in graphs)
