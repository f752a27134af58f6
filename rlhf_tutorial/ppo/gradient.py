"""The last check before an update: the gradient's norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checks import update_refused

if TYPE_CHECKING:
    from .trainer import PPOTrainer


def clip_gradient(trainer: PPOTrainer, loss: Tensor) -> None:
    """Clip to `config.max_grad_norm`, if any.

    Raises TrainingError where the norm is not finite, before any weight has changed.
    """
    trainer.accelerator.unscale_gradients()
    parameters = [p for p in trainer.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if not norm.isfinite() and trainer.accelerator.scaler is None:  # float16's skips those
        trainer.optimizer.zero_grad()
        raise update_refused(loss, norm, step=len(trainer.history) + 1)
    if (largest := trainer.config.max_grad_norm) is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
