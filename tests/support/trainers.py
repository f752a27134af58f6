"""Trainers of tiny models, and how two of them are compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead, create_reference_model
from rlhf_tutorial.ppo import PPOConfig, PPOTrainer
from rlhf_tutorial.ppo.stats import scalars

from .models import VOCABULARY, value_model
from .tokenizers import PadAndEnd

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
Scheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def make_trainer(
    kind: str = "llama",
    shared: int | None = None,
    *,
    layers: int = 4,
    weights: int = 0,
    freeze: bool = False,
    policy: AutoModelForCausalLMWithValueHead | None = None,
    reference: AutoModelForCausalLMWithValueHead | None = None,
    other: AutoModelForCausalLMWithValueHead | int | None = None,
    distance: float = 0.1,
    sgd: float | None = None,
    optimizer: Optimizer | None = None,
    scheduler: Scheduler | None = None,
    tokenizer: Any = None,
    dataset: Any = None,
    ptx_dataset: Any = (),
    **settings: Any,
) -> PPOTrainer:
    """A trainer of a policy of that kind, drawn with the seed `weights`, or of `policy`.

    The reference, unless given, is a copy above `shared` layers, or of all. With `other`, a model
    or the seed of one, it is moved by that share of the way to it, where policy and reference have
    no memory in common: the KL is not near 0 then. A tenth is a few nats; all of it would be tens
    of nats.
    `freeze` leaves the policy's embeddings as they are.

    The optimizer is the trainer's own, or plain gradient descent at the rate `sgd`, or what
    `optimizer` makes of the weights that are trained. `settings` are those of `PPOConfig`, by
    default six samples in one mini-batch.
    """
    policy = policy or value_model(kind, layers=layers, seed=weights)
    reference = reference or create_reference_model(policy, shared)
    if other is not None:
        if isinstance(other, int):
            other = value_model(kind, layers=layers, seed=other)
        common = {id(p) for p in policy.parameters()}
        with torch.no_grad():
            for p, q in zip(reference.parameters(), other.parameters(), strict=True):
                if id(p) not in common:
                    p.lerp_(q, distance)
    if freeze:
        policy.pretrained_model.get_input_embeddings().weight.requires_grad_(False)
    if sgd is not None:
        rate = sgd

        def optimizer(trained: list[Tensor]) -> torch.optim.Optimizer:
            return torch.optim.SGD(trained, lr=rate)

    made = optimizer and optimizer([p for p in policy.parameters() if p.requires_grad])
    return PPOTrainer(
        PPOConfig(**{"batch_size": 6, "mini_batch_size": 6, "learning_rate": 1e-3} | settings),
        policy,
        reference,
        tokenizer or PadAndEnd(),
        dataset,
        optimizer=made,
        lr_scheduler=scheduler and scheduler(made),
        ptx_dataset=ptx_dataset,
    )


def forget_accelerate() -> None:
    """Accelerate keeps precision and accumulation of the last trainer in globals.

    The processes stay connected.
    """
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()


def query_rows(n: int = 14) -> list[dict[str, Tensor]]:
    """Rows of a data set: queries of one to five tokens."""
    draw = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(3, VOCABULARY, (1 + i % 5,), generator=draw)} for i in range(n)
    ]


def go_on(trainer: PPOTrainer, until: int) -> PPOTrainer:
    """Train until so many steps are done, from wherever the trainer is."""
    trainer.dataloader.go_to(*trainer.dataloader.position)
    passes = itertools.chain.from_iterable(itertools.repeat(trainer.dataloader))
    while len(trainer.history) < until:
        queries = next(passes)["input_ids"]
        responses = trainer.generate(queries, return_prompt=False, max_new_tokens=5)
        scores = [response.float().mean() / 50 for response in responses]
        stats = trainer.step(queries, responses, scores)
        trainer.log_stats(stats, {"query": queries, "response": responses}, scores)
    return trainer


def next_order(trainer: PPOTrainer) -> Tensor:
    """The order in which the next epoch takes the samples."""
    generator = torch.Generator()
    generator.set_state(trainer.random.get_state())
    return torch.randperm(trainer.config.batch_size, generator=generator)


def weights_of(trainer: PPOTrainer) -> dict[str, Tensor]:
    """A copy of the policy's weights, by name, on the CPU."""
    return {k: v.detach().clone().cpu() for k, v in trainer.model.state_dict().items()}


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 0.0) -> None:
    """Every weight equal, up to `atol`."""
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_same_scalars(a: dict[str, Any], b: dict[str, Any], atol: float = 1e-5) -> None:
    """All numbers of two steps equal up to rounding, but for the times."""
    a, b = ({k: v for k, v in scalars(s).items() if "time/" not in k} for s in (a, b))
    assert a.keys() == b.keys()
    assert b == pytest.approx(a, rel=1e-4, abs=atol)
