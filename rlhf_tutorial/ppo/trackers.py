"""Trackers: where a run's stats are sent, by accelerate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ModelError
from .config import PPOConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def start_trackers(accelerator: Accelerator, config: PPOConfig) -> None:
    """Open what `config.log_with` names, with the settings of the run.

    Raises:
        ModelError: if the tracker's package is not installed; accelerate would pass over it.
    """
    if config.log_with is None:
        return
    if not accelerator.log_with:
        raise ModelError(f"PPOConfig.log_with is {config.log_with!r}, which is not installed")
    plain = {k: v for k, v in vars(config).items() if isinstance(v, (int, float, str))}
    accelerator.init_trackers(config.tracker_project_name, plain, config.tracker_kwargs)


def log_stats(
    accelerator: Accelerator,
    stats: dict[str, Any],
    batch: dict[str, Any],
    rewards: Sequence[float | Tensor],
    columns: Iterable[str],
    step: int,
) -> None:
    """Send stats to the tracker, with `env/reward_*` and, where it has tables, the batch's texts.

    Raises:
        ModelError: for a column that a table is to have and the batch has not.
    """
    columns = list(columns)
    with_tables = [t for t in accelerator.trackers if hasattr(t, "log_table")]
    if with_tables and (missing := [c for c in columns if c not in batch]):
        raise ModelError(
            f"log_stats cannot log {missing[0]!r}: the batch has {', '.join(batch)}; "
            "name others in columns_to_log"
        )
    scores = torch.tensor([float(r) for r in rewards], device=accelerator.device)
    scores = accelerator.gather(scores).cpu()
    logs = stats | {
        "env/reward_mean": scores.mean().item(),
        "env/reward_std": scores.std().item() if len(scores) > 1 else 0.0,
        "env/reward_dist": scores.numpy(),
    }
    # wandb counts steps by itself and drops what comes with a smaller number.
    step_kwargs = {} if any(t.name == "wandb" for t in accelerator.trackers) else {"step": step}
    accelerator.log(logs, **step_kwargs)
    for tracker in with_tables:
        rows = [list(row) for row in zip(*(batch[c] for c in columns), rewards, strict=True)]
        tracker.log_table("game_log", columns=[*columns, "reward"], data=rows, **step_kwargs)
