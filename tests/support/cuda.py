"""`torch.cuda` as far as recordings use it, acted out on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")
"""Operations whose result, or its size, the processor reads."""


class Stream:
    """A stream; they are told apart by identity alone."""

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        """Nothing: work is done at once."""


class Generator:
    """A GPU's generator of torch 2.4 or later; `copies` counts the states that it went on from."""

    copies = 0

    def clone_state(self) -> str:
        return "a copy"

    def graphsafe_set_state(self, state: str) -> None:
        self.copies += state == "a copy"


class FakeCuda:
    """Put in the place of torch's functions. Works are run when they are recorded.

    Attributes:
        stream: the current one. mode: of the debugging of waits. begun: recordings so far.
        error: raised at the end of a recording, as CUDA does where one was invalidated.
        replay: what a recording does; nothing by default.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, generator: Any = None) -> None:
        self.stream, self.mode, self.begun = Stream(), 0, 0
        self.error: Exception | None = None
        self.replay: Callable[[], None] = lambda: None
        self.generator = generator or Generator()
        fake = self

        class CUDAGraph:
            def replay(self) -> None:
                fake.replay()

        replaced = {
            "CUDAGraph": CUDAGraph,
            "Stream": Stream,
            "current_device": lambda: 0,
            "current_stream": lambda *_: self.stream,
            "default_generators": [self.generator],
            "device": lambda _: nullcontext(),
            "get_sync_debug_mode": lambda: self.mode,
            "graph": self.recording,
            "graph_pool_handle": lambda: None,
            "make_graphed_callables": self.make_graphed_callables,
            "set_stream": lambda stream: setattr(self, "stream", stream),
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
            "stream": self.beside,
        }
        for name, function in replaced.items():
            monkeypatch.setattr(torch.cuda, name, function)

    @contextmanager
    def beside(self, stream: Stream) -> Iterator[None]:
        """`torch.cuda.stream`."""
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    @contextmanager
    def recording(self, graph: Any, pool: Any = None) -> Iterator[None]:
        """`torch.cuda.graph`: with an error its stream stays the current one, as torch's does."""
        before, self.stream = self.stream, Stream()
        self.begun += 1
        yield
        if self.error is not None:
            raise self.error
        self.stream = before

    def make_graphed_callables(self, module: Any, inputs: Any, **settings: Any) -> Any:
        """What was recorded, which is the module itself."""
        with self.recording(None):
            module(*inputs)
        return module
