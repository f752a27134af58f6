"""A GPU's work recorded once and replayed, so that it does not wait for Python to launch it.

Before anything is recorded it is rehearsed, with an error for whatever makes the processor wait for
the GPU: no recording could hold that, and one that fails half-way leaves its mark on the process.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .families import agree

Work = Callable[[], None]
"""A piece of work that reads and writes the same tensors in place at every call."""
Recording = TypeVar("Recording")


def padded_length(length: int) -> int:
    """Up to the next of 16, 32, 48, 64, 96, 128, 192, 256, ...: batches are to share few shapes.

    From 16 on at most a third is padding.
    """
    step = 16
    while length > 4 * step:
        step *= 2
    return -(-length // step) * step


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision that autocast computes in at this place; None where it is off."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def kept(
    recordings: dict[Hashable, Recording], key: Hashable, make: Callable[[], Recording], most: int
) -> Recording:
    """The recording of that key, made if need be, of at `most` so many.

    That which was not used for longest makes room. It is collected at once: recordings are
    reference cycles that hold a GPU's memory.
    """
    if key in recordings:
        recordings[key] = recordings.pop(key)
    else:
        while len(recordings) >= most:
            del recordings[next(iter(recordings))]
            gc.collect()
        recordings[key] = make()
    return recordings[key]


def record(device: torch.device, works: tuple[Work, ...], written: Tensor) -> tuple[Work, ...]:
    """On a GPU the works as CUDA graphs, each launched as one; elsewhere the works as they are.

    They are run twice in order before they are recorded (libraries set themselves up at their first
    calls, and the second is the rehearsal) and once afterwards, when the replay has to say what the
    works said.

    Args:
        written: what the last of the works leaves behind, floating-point numbers of any shape.

    Raises:
        RuntimeError: if something in them cannot be recorded, as a decision that is taken on the
            processor, or if the replay says something else.
    """
    if device.type != "cuda":
        return works

    def all_of_them() -> None:
        for work in works:
            work()

    with _recording(device):
        _rehearse(all_of_them)
        said, graphs, pool = written.clone(), [], torch.cuda.graph_pool_handle()
        for work in works:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                work()
            graphs.append(graph)
        written.fill_(torch.nan)  # a replay that writes nothing is to be seen
        for graph in graphs:
            graph.replay()
        if not agree(written, said):
            raise RuntimeError("the replay says something else than what was recorded")
    return tuple(graph.replay for graph in graphs)


def record_module(module: nn.Module, inputs: tuple[Tensor, ...], pool: Any) -> Callable[..., Any]:
    """A module as CUDA graphs, forwards and backwards, for inputs of these shapes on their GPU.

    Nobody has tried yet whether it says what the module says.

    Args:
        inputs: where it will read, overwritten at every call.
        pool: of `torch.cuda.graph_pool_handle`, the memory that it shares with other recordings.

    Raises:
        RuntimeError: if something in the module cannot be recorded.
    """
    device, trained = inputs[0].device, [p for p in module.parameters() if p.requires_grad]
    dtype = autocast_dtype(device)

    def both_ways() -> None:
        said = [output for output in module(*inputs) if output.requires_grad]
        if said:
            outputs = [torch.zeros_like(output) for output in said]
            torch.autograd.grad(said, trained, outputs, allow_unused=True)

    # Without a cache: weights that autocast had cast before would be read where they were.
    uncached = torch.autocast(device.type, dtype, dtype is not None, cache_enabled=False)
    with _recording(device), uncached:
        _rehearse(both_ways)
        return torch.cuda.make_graphed_callables(
            module, inputs, num_warmup_iters=1, allow_unused_input=True, pool=pool
        )


@contextmanager
def _recording(device: torch.device) -> Iterator[None]:
    """On that GPU, and afterwards on the stream from before.

    torch leaves the stream of a recording that failed the current one. Older ones also take every
    later draw for a part of that recording: it goes on from a copy of the generator's state.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        try:
            yield
        except Exception:
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            if hasattr(generator, "graphsafe_set_state"):  # not before torch 2.4
                generator.graphsafe_set_state(generator.clone_state())
            raise
        finally:
            torch.cuda.set_stream(stream)


def _rehearse(work: Work) -> None:
    """Run it twice beside the current stream; what waits for the GPU the second time is an error.

    Raises:
        RuntimeError: if something does.
    """
    stream, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    mode = torch.cuda.get_sync_debug_mode()
    aside.wait_stream(stream)
    with torch.cuda.stream(aside), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*prototype")  # torch of its own debug mode
        work()
        try:
            torch.cuda.set_sync_debug_mode("error")
            work()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    stream.wait_stream(aside)
