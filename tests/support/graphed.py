"""CUDA's recording of a module, acted out on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Graphed:
    """What `torch.cuda.make_graphed_callables` makes: every call reads and writes the same memory.

    Inputs are copied to where they were recorded. Logits, values and gradients come in tensors that
    the next call overwrites.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.module, self.inputs, self.calls = module, inputs, 0
        self.parameters = tuple(module.parameters())
        self.outputs = self._run()
        self.said = tuple(output.detach().clone() for output in self.outputs)
        self.gradients = tuple(torch.zeros_like(p) for p in self.parameters)

    def _run(self) -> tuple[Tensor, ...]:
        return self.module(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        graph = self
        self.calls += 1

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
                for own, new in zip(graph.inputs, given, strict=False):
                    own.copy_(new)
                with torch.enable_grad():
                    graph.outputs = graph._run()
                for own, new in zip(graph.said, graph.outputs, strict=True):
                    own.copy_(new.detach())
                return tuple(said.detach() for said in graph.said)

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> Any:
                trained = [p for p in graph.parameters if p.requires_grad]
                with torch.enable_grad():
                    found = torch.autograd.grad(
                        graph.outputs, trained, gradients, allow_unused=True, retain_graph=True
                    )
                unused = [None] * len(graph.inputs)
                by_id = dict(zip(map(id, trained), found, strict=True))
                for own, p in zip(graph.gradients, graph.parameters, strict=True):
                    if by_id.get(id(p)) is not None:
                        own.copy_(by_id[id(p)])
                return *unused, *(
                    own.detach() if by_id.get(id(p)) is not None else None
                    for own, p in zip(graph.gradients, graph.parameters, strict=True)
                )

        return Replay.apply(*inputs, *self.parameters)
