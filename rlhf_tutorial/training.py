"""The training loop: generate, score, step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import ModelError
from .ppo import PPOTrainer
from .ppo.batches import Batches
from .scores import Reward
from .template import PromptTemplate


def train(
    trainer: PPOTrainer,
    reward: Reward,
    template: PromptTemplate,
    *,
    epochs: int = 1,
    max_new_tokens: int = 16,
) -> Iterator[dict[str, Any]]:
    """Go through the trainer's dataset, and yield the stats of every step.

    It goes on from where the trainer is, after `trainer.resume` or an earlier `train`.

    Args:
        epochs: passes that are complete at the end, earlier ones included.
        trainer: with a dataset of `query` (text) and `input_ids`.
        reward: scores the answers' text; it sees the bare query, not the policy's template.
    """
    prompting, batches = template.bind(trainer.tokenizer), batches_of(trainer)
    for _ in range(batches.epoch, epochs):
        for batch in batches:
            # 1. The policy answers each query, sampling from its whole distribution.
            responses = trainer.generate(
                batch["input_ids"],
                return_prompt=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=trainer.end_token_ids(prompting.eos_token_ids),
            )
            # 2. The judge scores each answer.
            answers = prompting.decode(responses)
            scores = reward(batch["query"], answers)
            # 3. PPO makes answers that scored above expectation more likely.
            yield trainer.step(batch["input_ids"], responses, scores)


def batches_of(trainer: PPOTrainer) -> Batches:
    """The batches of the trainer's dataset, at least one to a pass.

    Raises:
        ModelError: where it was given no dataset. DataError: if it does not fill a batch.
    """
    if trainer.dataloader is None:
        raise ModelError("the trainer has no dataset: give PPOTrainer one of query and input_ids")
    trainer.dataloader.check()
    return trainer.dataloader
