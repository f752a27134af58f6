"""What tells one run from another: a checkpoint fits only the run that it was written by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from .config import PPOConfig

# Settings that may differ between the interrupted run and the one that goes on: names, trackers,
# and what accelerate is told, of which only the precision matters; that is compared by itself.
FREE = {"exp_name", "task_name", "model_name", "query_dataset", "reward_model", "steps"}
FREE |= {"log_with", "tracker_project_name", "tracker_kwargs", "project_kwargs"}
FREE |= {"accelerator_kwargs"}
# Settings of optimizers that change how an update is computed, and not what it is.
IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}


def identity(
    config: PPOConfig,
    optimizer: Any,
    lr_scheduler: Any,
    *,
    processes: int,
    precision: str,
    num_shared_layers: int,
    model: str,
    rows: int | None,
    prompts: str | None,
    adapter: dict[str, Any],
) -> dict[str, Any]:
    """Settings, data, and the model that the run started from, ready for JSON.

    Args:
        optimizer: of torch, or what accelerate wraps around it.
        model: `fingerprint` of the reference and the frozen weights.
        rows: of the dataset, if there is one.
        prompts: `fingerprint_of_prompts` of it.
        adapter: `lora.settings` of the policy.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    rates = {k: v for k, v in optimizer.defaults.items() if isinstance(v, (int, float, tuple))}
    facts = {k: v for k, v in vars(config).items() if k not in FREE} | {
        # Over all processes, however many they are.
        "batch_size": config.batch_size * processes,
        "mini_batch_size": config.mini_batch_size * processes,
        "precision": precision,
        "num_shared_layers": num_shared_layers,
        "model": model,
        "rows": rows,
        "prompts": prompts,
        **adapter,
        "optimizer": type(optimizer).__name__,
        **{f"optimizer.{name}": v for name, v in rates.items() if name not in IMPLEMENTATION},
        "optimizer.groups": [len(group["params"]) for group in optimizer.param_groups],
        "scheduler": type(lr_scheduler).__name__,
    }
    return json.loads(json.dumps(facts))  # lists for tuples, as in a checkpoint


def difference(mine: dict[str, Any], its: dict[str, Any]) -> str | None:
    """The first thing in which another run differs from this one, in words; None if in nothing."""
    for name in (*mine, *its):
        if mine.get(name) != its.get(name):
            return f"{name} is {its.get(name)!r} there, {mine.get(name)!r} here"
    return None


def fingerprint(reference: torch.nn.Module, policy: torch.nn.Module) -> str:
    """The start of the sha256 of the weights that training leaves as they are."""
    trained = {id(p) for p in policy.parameters() if p.requires_grad}
    # The reference of a LoRA policy is the policy's own model, read without its adapter.
    both = (*reference.parameters(), *policy.parameters())
    kept = {id(p): p for p in both if id(p) not in trained}
    digest = hashlib.sha256()
    for parameter in kept.values():
        flat = parameter.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def fingerprint_of_prompts(dataset: Any) -> str | None:
    """The start of the sha256 of the first prompts' token ids; None for rows without "input_ids".

    Another template or system message shows in every prompt, so a thousand of them will do.
    """
    digest = hashlib.sha256()
    for row in (dataset[i] for i in range(min(len(dataset), 1000))):
        if not isinstance(row, Mapping) or "input_ids" not in row:
            return None
        digest.update(repr(torch.as_tensor(row["input_ids"]).tolist()).encode())
    return digest.hexdigest()[:16]
