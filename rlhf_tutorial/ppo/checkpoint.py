"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint folder holds the newest two, `step-00000040/` and so on, each of three files:
`tensors.safetensors` (trained weights, the optimizer's moments, the random state), `state.json`
(all other numbers), and `sha256.json` (the hashes of both). A checkpoint is written beside them
under another name, and renamed when it is complete, so that a crash leaves the earlier ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from .math import RunningMoments

if TYPE_CHECKING:
    from .trainer import PPOTrainer

logger = logging.getLogger(__name__)

KEPT = 2
TENSORS, STATE, HASHES = "tensors.safetensors", "state.json", "sha256.json"

# What may differ between the run that was interrupted and the one that goes on: names, trackers,
# and how a batch is spread over processes (its size is checked by `Batches.go_to`).
FREE = {"exp_name", "task_name", "model_name", "query_dataset", "reward_model", "steps"}
FREE |= {"log_with", "tracker_project_name", "tracker_kwargs", "project_kwargs"}
FREE |= {"accelerator_kwargs", "batch_size", "mini_batch_size"}


def save(trainer: PPOTrainer, folder: str | Path) -> Path:
    """Write a checkpoint of the trainer as it is between two steps; the path of it.

    With several processes all call this, and the first one writes: they hold the same state.

    Raises:
        CheckpointError: if it cannot be written; earlier ones are left as they are.
    """
    target = Path(folder) / f"step-{len(trainer.history):08d}"
    if trainer.accelerator.is_main_process:
        try:
            _write(target, *_state_of(trainer))
            _tidy(target.parent)
        except (OSError, TypeError, SafetensorError) as error:
            shutil.rmtree(_partial(target), ignore_errors=True)
            raise CheckpointError(
                f"cannot write the checkpoint {target}: {error}; the earlier ones are untouched"
            ) from error
    trainer.accelerator.wait_for_everyone()
    return target


def resume(trainer: PPOTrainer, folder: str | Path) -> int:
    """Put the trainer where the newest intact checkpoint of this run left off; the steps done.

    The trainer must have been made as the interrupted one was, from the policy before training.
    Without a checkpoint in the folder, nothing is done, and the result is 0.

    Raises:
        CheckpointError: if there are checkpoints, and none of them fits.
    """
    reasons = []
    for path in sorted(Path(folder).glob("step-????????"), reverse=True):
        try:
            tensors, state = _read(path)
            _check(trainer, tensors, state)
            _restore(trainer, tensors, state)
        except CheckpointError as error:
            reasons.append(f"{path} cannot be used: {error}")
            continue
        for reason in reasons:
            logger.warning("%s; going on from %s", reason, path.name)
        return len(trainer.history)
    if reasons:
        raise CheckpointError(f"{reasons[0]}; delete {folder} to start anew")
    return 0


# The files ------------------------------------------------------------------------------------


def _write(target: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    partial = _partial(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / TENSORS)
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    hashes = {name: _sha256(partial / name) for name in (TENSORS, STATE)}
    (partial / HASHES).write_text(json.dumps(hashes), encoding="utf-8")
    # On the disk before the name is: a power cut must not leave a complete name on empty files.
    for path in (*partial.iterdir(), partial):
        _flush(path)
    if target.exists():  # of this same step, from before an interruption
        shutil.rmtree(target)
    partial.rename(target)
    _flush(target.parent)


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tidy(folder: Path) -> None:
    """Delete all but the newest checkpoints, and what crashes left."""
    for path in sorted(folder.glob("step-????????"))[:-KEPT]:
        shutil.rmtree(path)
    for path in folder.glob("step-*.partial"):
        shutil.rmtree(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors and numbers, if its files are as they were written."""
    try:
        hashes = json.loads((path / HASHES).read_text(encoding="utf-8"))
        for name in (TENSORS, STATE):
            if _sha256(path / name) != hashes[name]:
                raise CheckpointError(f"{name} was cut short or altered")
        return load_file(path / TENSORS), json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"it is not complete ({type(error).__name__})") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What is in them ------------------------------------------------------------------------------


def _state_of(trainer: PPOTrainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {f"policy.{name}": p.detach() for name, p in _trained(trainer).items()}
    tensors["random"] = trainer.random.get_state()
    optimizer = trainer.optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, items in optimizer["state"].items():
        for name, item in items.items():
            if isinstance(item, Tensor):
                tensors[f"optimizer.{index}.{name}"] = item
            else:
                numbers.setdefault(str(index), {})[name] = item
    scheduler, loader = trainer.lr_scheduler, trainer.dataloader
    state = {
        "run": _identity(trainer),
        "kl_coef": trainer.kl_coef,
        "score_moments": asdict(trainer.score_moments),
        "logged": trainer.logged,
        "optimizer": {"numbers": numbers, "groups": optimizer["param_groups"]},
        "lr_scheduler": None if scheduler is None else scheduler.state_dict(),
        "position": None if loader is None else loader.position,
        "history": trainer.history,
    }
    # A copy of what shares memory (a tied matrix, say), which safetensors does not take.
    return {name: t.to("cpu", copy=True).contiguous() for name, t in tensors.items()}, state


def _restore(trainer: PPOTrainer, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    if trainer.dataloader is not None and state["position"] is not None:
        trainer.dataloader.go_to(*state["position"])
    with torch.no_grad():
        for name, parameter in _trained(trainer).items():
            parameter.copy_(tensors[f"policy.{name}"])
    moments: dict[int, dict[str, Any]] = {
        int(index): dict(items) for index, items in state["optimizer"]["numbers"].items()
    }
    for name, tensor in tensors.items():
        kind, *rest = name.split(".")
        if kind == "optimizer":
            moments.setdefault(int(rest[0]), {})[rest[1]] = tensor
    groups = state["optimizer"]["groups"]
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    if trainer.lr_scheduler is not None:
        trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    trainer.random.set_state(tensors["random"])
    trainer.kl_coef, trainer.logged = state["kl_coef"], state["logged"]
    trainer.score_moments = RunningMoments(**state["score_moments"])
    trainer.history = state["history"]


def _trained(trainer: PPOTrainer) -> dict[str, Tensor]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _identity(trainer: PPOTrainer) -> dict[str, Any]:
    """What tells one run from another: settings, data, and the model that it started from."""
    settings = {k: v for k, v in vars(trainer.config).items() if k not in FREE}
    return settings | {
        "format": 1,
        "precision": trainer.accelerator.mixed_precision,
        "rows": None if trainer.dataloader is None else len(trainer.dataloader.dataset),
        "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
        "scheduler": type(trainer.lr_scheduler).__name__,
        "model": trainer.origin,
    }


def fingerprint(model: torch.nn.Module) -> str:
    """The start of the sha256 of a model's weights."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        flat = parameter.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _check(trainer: PPOTrainer, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Raise CheckpointError unless the checkpoint is of a run like this one."""
    mine, its = _identity(trainer), state.get("run", {})
    for name in mine.keys() | its.keys():
        if mine.get(name) != its.get(name):
            raise CheckpointError(
                f"it is of another run: {name} is {its.get(name)!r} there, {mine.get(name)!r} here"
            )
    for name, parameter in _trained(trainer).items():
        saved = tensors.get(f"policy.{name}")
        if saved is None or saved.shape != parameter.shape:
            raise CheckpointError(f"it is of another model: {name} does not fit")
