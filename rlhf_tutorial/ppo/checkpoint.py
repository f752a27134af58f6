"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint folder holds the newest two, `step-00000040/` and so on, each of three files:
`tensors.safetensors` (trained weights, the optimizer's moments, the random state), `state.json`
(all other numbers), and `sha256.json` (the hashes of both). A checkpoint is written beside them
under another name, and renamed when it is complete, so that a crash leaves the earlier ones.
`step-00000040.partial` and `.old` are what a crash in the middle of that leaves.
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

FORMAT, KEPT = 1, 2
TENSORS, STATE, HASHES = "tensors.safetensors", "state.json", "sha256.json"

# Settings that may differ between the run that was interrupted and the one that goes on: names and
# trackers. (Of what the accelerator is told, the precision counts, and that is compared.)
FREE = {"exp_name", "task_name", "model_name", "query_dataset", "reward_model", "steps"}
FREE |= {"log_with", "tracker_project_name", "tracker_kwargs", "project_kwargs"}
FREE |= {"accelerator_kwargs"}
# Settings of optimizers that say how it is computed, not what.
MEANS = {"foreach", "fused", "capturable", "differentiable"}


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
        except (OSError, TypeError, SafetensorError) as error:
            shutil.rmtree(_beside(target, "partial"), ignore_errors=True)
            raise CheckpointError(
                f"cannot write the checkpoint {target}: {error}; the earlier ones are untouched: "
                "mend that and start again"
            ) from error
        _tidy(target)
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
    for path in _newest_first(Path(folder)):
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
    partial, old = _beside(target, "partial"), _beside(target, "old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / TENSORS)
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    hashes = {name: _sha256(partial / name) for name in (TENSORS, STATE)}
    (partial / HASHES).write_text(json.dumps(hashes), encoding="utf-8")
    # On the disk before the name is: a power cut must not leave a complete name on empty files.
    for path in (*partial.iterdir(), partial):
        _flush(path)
    if target.exists():  # of this same step: there is one at every moment, under either name
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    partial.rename(target)
    _flush(target.parent)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.name}.{ending}")


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints; one that was just being replaced comes after the one in its place."""
    paths = (*folder.glob("step-????????"), *folder.glob("step-????????.old"))
    return sorted(paths, key=lambda path: (path.stem, not path.suffix), reverse=True)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tidy(target: Path) -> None:
    """Delete all but the newest checkpoints up to this one, and what crashes left.

    Those of later steps cannot be used, or are of another run: that is for the reader to decide.
    """
    known = [path for path in _newest_first(target.parent) if path.stem <= target.name]
    kept = [path for path in known if not path.suffix][:KEPT]
    for path in (*known, *target.parent.glob("step-*.partial")):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


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
    scaler = trainer.accelerator.scaler  # of float16
    state = {
        "format": FORMAT,
        "run": _identity(trainer),
        "kl_coef": trainer.kl_coef,
        "score_moments": asdict(trainer.score_moments),
        "logged": trainer.logged,
        "optimizer": {"numbers": numbers, "groups": optimizer["param_groups"]},
        "lr_scheduler": None if scheduler is None else scheduler.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "position": None if loader is None else loader.position,
        "history": trainer.history,
    }
    # A copy of what shares memory (a tied matrix, say), which safetensors does not take.
    return {name: t.to("cpu", copy=True).contiguous() for name, t in tensors.items()}, state


def _restore(trainer: PPOTrainer, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    if trainer.dataloader is not None and state["position"] is not None:
        trainer.dataloader.go_to(*state["position"])
    trainer.model.zero_grad()  # what a step that was torn apart has left
    trainer.accelerator.step = 0
    with torch.no_grad():
        for name, parameter in _trained(trainer).items():
            parameter.copy_(tensors[f"policy.{name}"])
    moments: dict[int, dict[str, Any]] = {
        int(index): dict(items) for index, items in state["optimizer"]["numbers"].items()
    }
    for name, tensor in tensors.items():
        kind, *rest = name.split(".")
        if kind == "optimizer":
            # A copy: what safetensors gives is the file itself, which will be deleted.
            moments.setdefault(int(rest[0]), {})[rest[1]] = tensor.clone()
    groups = _typed_as(trainer.optimizer.param_groups, state["optimizer"]["groups"])
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    if (scheduler := trainer.lr_scheduler) is not None:
        scheduler.load_state_dict(_typed_as(scheduler.state_dict(), state["lr_scheduler"]))
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.random.set_state(tensors["random"])
    trainer.kl_coef, trainer.logged = state["kl_coef"], state["logged"]
    trainer.score_moments = RunningMoments(**state["score_moments"])
    trainer.history = state["history"]


def _typed_as(mine: Any, its: Any) -> Any:
    """`its`, from JSON, with tuples and with numbers as keys where `mine` has them."""
    if isinstance(mine, dict) and isinstance(its, dict):
        numbers = bool(mine) and all(isinstance(key, int) for key in mine)
        items = ((int(key) if numbers else key, value) for key, value in its.items())
        return type(mine)({key: _typed_as(mine.get(key), value) for key, value in items})
    if isinstance(mine, (list, tuple)) and isinstance(its, list):
        same_length = mine if len(mine) == len(its) else [None] * len(its)
        return type(mine)(map(_typed_as, same_length, its))
    return its


def _trained(trainer: PPOTrainer) -> dict[str, Tensor]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _identity(trainer: PPOTrainer) -> dict[str, Any]:
    """What tells one run from another: settings, data, and the model that it started from."""
    config, processes = trainer.config, trainer.accelerator.num_processes
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    rates = {k: v for k, v in optimizer.defaults.items() if isinstance(v, (int, float, tuple))}
    identity = {k: v for k, v in vars(config).items() if k not in FREE} | {
        # Over all processes, however many they are.
        "batch_size": config.batch_size * processes,
        "mini_batch_size": config.mini_batch_size * processes,
        "precision": trainer.accelerator.mixed_precision,
        "num_shared_layers": trainer.accelerator.unwrap_model(trainer.model).num_shared_layers,
        "model": trainer.origin,
        "rows": None if trainer.dataloader is None else len(trainer.dataloader.dataset),
        "optimizer": type(optimizer).__name__,
        **{f"optimizer.{name}": rate for name, rate in rates.items() if name not in MEANS},
        "optimizer.groups": [len(group["params"]) for group in optimizer.param_groups],
        "scheduler": type(trainer.lr_scheduler).__name__,
    }
    return json.loads(json.dumps(identity))  # as it will be read


def fingerprint(reference: torch.nn.Module, policy: torch.nn.Module) -> str:
    """The start of the sha256 of the weights that training leaves as they are."""
    kept = {id(p): p for p in reference.parameters()}
    kept |= {id(p): p for p in policy.parameters() if not p.requires_grad}
    digest = hashlib.sha256()
    for parameter in kept.values():
        flat = parameter.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _check(trainer: PPOTrainer, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Raise CheckpointError unless the checkpoint is of a run like this one."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"it is not of the format that this version reads, {FORMAT}")
    mine, its = _identity(trainer), state["run"]
    for name in (*mine, *its):
        if mine.get(name) != its.get(name):
            raise CheckpointError(
                f"it is of another run: {name} is {its.get(name)!r} there, {mine.get(name)!r} here"
            )
    here = {f"policy.{name}": tuple(p.shape) for name, p in _trained(trainer).items()}
    there = {k: tuple(t.shape) for k, t in tensors.items() if k.startswith("policy.")}
    if differing := sorted(dict(here.items() ^ there.items())):
        raise CheckpointError(f"it is of another model: {differing[0]} does not fit")
