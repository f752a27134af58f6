"""The training loop: generate, score, step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .ppo import PPOTrainer
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
    end = template.eos_token_ids(trainer.tokenizer)
    for _ in range(trainer.dataloader.epoch, epochs):
        for batch in trainer.dataloader:
            # 1. The policy answers each query, sampling from its whole distribution.
            responses = trainer.generate(
                batch["input_ids"],
                return_prompt=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=end,
            )
            # 2. The judge scores each answer.
            answers = template.decode(trainer.tokenizer, responses)
            scores = reward(batch["query"], answers)
            # 3. PPO makes answers that scored above expectation more likely.
            yield trainer.step(batch["input_ids"], responses, scores)
