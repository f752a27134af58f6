"""Several processes as one: what each knows of its rows, put together for all."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..device import default_device
from ..errors import ModelError
from .config import PPOConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(config: PPOConfig) -> Accelerator:
    """Accelerate's handle on device, precision and processes, with the config's settings.

    Raises:
        ModelError: if an earlier trainer of this Python process computes on another device or in
            another precision: accelerate has one of each for all.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration

    # By default accelerate also updates on the last batch of a dataloader, however few gradients
    # have been accumulated by then.
    accumulation = GradientAccumulationPlugin(
        num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
    )
    # Left unset, the precision would be that of the trainer made before in this process.
    made_before = PartialState._shared_state  # by an Accelerator of the script's own, say
    defaults = {
        "cpu": made_before.get("_cpu", default_device().type == "cpu"),
        "mixed_precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
    }
    settings = defaults | config.accelerator_kwargs
    try:
        accelerator = Accelerator(
            gradient_accumulation_plugin=accumulation,
            log_with=config.log_with,
            project_config=ProjectConfiguration(**config.project_kwargs),
            **settings,
        )
    except ValueError as error:
        if "already been initialized" not in str(error):
            raise
        raise ModelError(
            f"this trainer asks accelerate for {settings}, and an earlier one in this process for "
            "something else: ask for the same, or start a new process"
        ) from error
    return accelerator


def prepare(accelerator: Accelerator, *objects: Any) -> tuple:
    """What accelerate makes of a model and its optimizer, on the device and in all processes."""
    model, *others = accelerator.prepare(*objects)
    # accelerate would convert all outputs to float32, and logits are tens of megabytes.
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return model, *others


def rows_of_all(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """(B, ...) of this process to (processes B, ...) of all, in the order of the processes.

    All give tensors of one shape. The rows of this process keep their gradient, so that a loss
    written over the rows of all has the right gradient on each process once those are added up:
    the sums and the counts in its masked means are global. A mean of local means would be another
    number where responses differ in length.
    """
    if accelerator.num_processes == 1:
        return rows
    parts = list(accelerator.gather(rows.detach().contiguous()).chunk(accelerator.num_processes))
    parts[accelerator.process_index] = rows
    return torch.cat(parts)


def indices_of_all(accelerator: Accelerator, indices: Tensor, batch_size: int) -> Tensor:
    """Where the rows that each process has chosen of its batch stand among the rows of all.

    The processes tell each other: they need not have chosen the same rows.

    Args:
        indices: (b,), of this process's batch.
    """
    return rows_of_all(accelerator, indices + accelerator.process_index * batch_size)


def any_process(accelerator: Accelerator, here: bool) -> bool:
    """Whether it is so in at least one of the processes."""
    if accelerator.num_processes == 1:
        return here
    return bool(accelerator.gather(torch.tensor([here], device=accelerator.device)).any())


def main_process_first() -> AbstractContextManager[None]:
    """Within, the first process goes ahead, and the others find what it made."""
    from accelerate import PartialState

    return PartialState(cpu=default_device().type == "cpu").main_process_first()
