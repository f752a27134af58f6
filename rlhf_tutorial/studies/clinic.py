"""A clinic: trainings with one thing broken each, and what their numbers show of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..ppo import PPOTrainer
from ..ppo.checks import padding_of
from ..ppo.rollout import pad
from ..randomness import seeded
from ..run import Run
from ..scores import Reward
from ..training import batches_of, train
from .looks import look

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

EXAMPLES = 6
"""Held-out prompts whose answers are kept."""


class TopKSampling(PPOTrainer):
    """Draws from the 5 likeliest tokens; its log-probabilities are of all of them."""

    def generate(self, *args: Any, **settings: Any) -> Any:
        """Sample with a setting that a chat likes, and PPO does not."""
        return super().generate(*args, **settings, top_k=5)


class PromptInResponse(PPOTrainer):
    """Takes each prompt once more, as the beginning of its response."""

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: Sequence[float | Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """A step on what `generate` returns with return_prompt=True."""
        whole = [torch.cat(pair) for pair in zip(queries, responses, strict=True)]
        return super().step(queries, whole, scores)


class PaddingAsText(PPOTrainer):
    """Takes the padding behind a short response for a part of it."""

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: Sequence[float | Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """A step on the rectangle that transformers' generate returns, without a mask."""
        rectangle, _ = pad(responses, padding_of(self.tokenizer), side="right")
        return super().step(queries, list(rectangle), scores)


class DropoutOn(PPOTrainer):
    """Leaves the policy in training mode, and reads each batch twice before the first update.

    Without the second reading the first ratio is 1 whatever dropout does: the pass that tells
    log pi_old is the one that is trained.
    """

    def without_dropout(self) -> None:
        """Turn it on: a tenth of the attention, as in GPT-2 (SmolLM2 itself has none)."""
        self.model.train()
        for module in self.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.1

    def live_pass(self, batch: Any) -> None:
        """No pass, so that `evaluate` and the first update each make one of their own."""


def sign_turned(judge: Reward) -> Reward:
    """A judge that likes what the given one dislikes."""
    return lambda queries, responses: [-float(score) for score in judge(queries, responses)]


def as_it_is(judge: Reward) -> Reward:
    """The judge."""
    return judge


@dataclass(frozen=True)
class Patient:
    """A training of the preset's with one thing changed."""

    trainer: type[PPOTrainer] = PPOTrainer
    """Without an `__init__` of its own."""
    ppo: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `PPOConfig`."""
    reward: Callable[[Reward], Reward] = as_it_is


PATIENTS = {
    "healthy": Patient(),
    "top-k": Patient(trainer=TopKSampling),
    "learning-rate": Patient(ppo={"learning_rate": 1e-3}),
    "no-kl": Patient(ppo={"init_kl_coef": 0.0}),
    "dead-value-head": Patient(ppo={"vf_coef": 0.0}),
    "sign": Patient(reward=sign_turned),
    "prompt": Patient(trainer=PromptInResponse),
    "dropout": Patient(trainer=DropoutOn),
    "padding": Patient(trainer=PaddingAsText),
}
"""What is broken, by name. The rate is ten times the default preset's."""


def examined(
    run: Run,
    patient: Patient,
    judge: Reward,
    queries: Dataset,
    steps: int,
    progress: Callable[[int, dict[str, Any]], None] = lambda step, stats: None,
) -> dict[str, Any]:
    """One training, and all that can be seen of it from outside.

    Nothing is left in the run's folder but the prompts.

    Args:
        judge: as it should be; the patient may turn it.
        queries: held-out prompts, answered before and after.
        progress: is told of each step.

    Returns:
        Ready for JSON: "stats" (a column of numbers per key of `step`, one a step, without times
        and with "first_ratio", see `departure`), "first_step" and "last_step" (see `by_position`),
        "warnings" (what the trainer logged, once each), "queries", and "before" and "after"
        (`looks.look`).
    """
    trainer = run.make_trainer(steps=steps, **patient.ppo)
    trainer.__class__ = patient.trainer  # Run makes ordinary ones; all have the same __init__
    judges, columns, positions = {"judge": judge}, [], []
    before = look(trainer, run, judges, queries, EXAMPLES)
    training = train(
        trainer,
        patient.reward(judge),
        run.preset.template,
        epochs=-(-steps // len(batches_of(trainer))),
        max_new_tokens=run.preset.max_new_tokens,
    )
    with seeded(trainer.config.seed), warnings_of("rlhf_tutorial") as warnings:  # for dropout
        for step, stats in zip(range(1, steps + 1), training, strict=False):
            columns.append({**trainer.history[-1], "first_ratio": departure(stats)})
            positions.append(by_position(stats))
            progress(step, columns[-1])
    trainer.policy.eval()
    keys = [key for key in columns[0] if not key.startswith("time/")]
    return {
        "stats": {key: [_short(row[key]) for row in columns] for key in keys},
        "first_step": positions[0],
        "last_step": positions[-1],
        "warnings": warnings,
        "queries": queries["query"][:EXAMPLES],
        "before": before,
        "after": look(trainer, run, judges, queries, EXAMPLES),
    }


def departure(stats: Mapping[str, Any]) -> float:
    """How far the ratios of a step's first mini-batch are from 1: mean_t |ratio - 1|.

    Args:
        stats: of a step whose mini-batch is the batch. At padding its ratios are 1.
    """
    mask = np.asarray(stats["objective/mask"])
    first = np.asarray(stats["ppo/policy/ratio"])[: mask.size]
    return float(np.abs(first - 1).sum() / mask.sum())


def by_position(stats: Mapping[str, Any]) -> dict[str, list[float]]:
    """A step's responses, position by position, means over the responses that reach so far.

    Returns:
        "responses" (how many reach it), "surprise" (-log pi_old) and "kl" (the log-ratio of policy
        to reference), in nats; T numbers each.
    """
    mask, logprobs, reference = (
        np.asarray(stats[f"objective/{name}"]) for name in ("mask", "logprobs", "ref_logprobs")
    )
    counted = mask.sum(axis=0)
    found = {"surprise": -logprobs, "kl": logprobs - reference}
    means = {name: (mask * of).sum(axis=0) / counted for name, of in found.items()}
    return {
        name: [_short(value) for value in row]
        for name, row in {"responses": counted, **means}.items()
    }


def farthest(
    patient: pd.DataFrame, healthy: pd.DataFrame, panels: Mapping[str, str], number: int = 3
) -> str:
    """The panels in which a training's mean is farthest from the healthy one's, in words.

    Args:
        patient, healthy: a column per quantity, a row per step.
        panels: quantity to its title.
        number: how many are named; distance is counted in the healthy one's standard deviations.
    """
    own, other = patient[list(panels)], healthy[list(panels)]
    far = ((own.mean() - other.mean()) / other.std().clip(lower=1e-3)).abs()
    told = (
        f"{panels[key]}: {own[key].mean():.3g} (healthy: {other[key].mean():.3g})"
        for key in far.nlargest(number).index
    )
    return f"Farthest from the healthy run, in the mean of all steps: {'; '.join(told)}."


@contextmanager
def warnings_of(logger: str) -> Iterator[list[str]]:
    """What is logged as a warning in the meantime, each once, in a list that fills."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING and record.msg not in kinds:
                kinds.add(record.msg)
                found.append(record.getMessage())

    kinds: set[str] = set()
    listener = Listener()
    logging.getLogger(logger).addHandler(listener)
    try:
        yield found
    finally:
        logging.getLogger(logger).removeHandler(listener)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
