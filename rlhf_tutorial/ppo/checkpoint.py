"""Checkpoints: a nested state of tensors and numbers on the disk, whatever stops in between.

A checkpoint folder holds the newest two, `step-00000040/` and so on, each of three files:
`tensors.safetensors` (all tensors of the state), `state.json` (all the rest), and `sha256.json`
(the hashes of both). A checkpoint is written beside them under another name, and renamed when it is
complete, so that a crash leaves the earlier ones. `step-00000040.partial` and `.old` are what a
crash in the middle of that leaves.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError

logger = logging.getLogger(__name__)

FORMAT, KEPT = 2, 2
TENSORS, STATE, HASHES = "tensors.safetensors", "state.json", "sha256.json"


def save(folder: str | Path, step: int, state: dict[str, Any]) -> None:
    """Write the state as it is after a step.

    Args:
        state: dicts, lists and tuples of tensors and of what JSON holds.

    Raises:
        CheckpointError: if it cannot be written; earlier ones are left as they are.
    """
    target = Path(folder) / f"step-{step:08d}"
    try:
        _write(target, state)
    except (OSError, TypeError, SafetensorError) as error:
        shutil.rmtree(_beside(target, "partial"), ignore_errors=True)
        raise CheckpointError(
            f"cannot write the checkpoint {target}: {error}; the earlier ones are untouched: "
            "mend that and start again"
        ) from error
    _tidy(target)


def restore_newest(folder: str | Path, load: Callable[[dict[str, Any]], None]) -> bool:
    """Hand the newest intact state to `load`; whether there was one.

    Args:
        load: takes a state up, or raises CheckpointError and leaves everything as it was.

    Raises:
        CheckpointError: if there are checkpoints, and none of them is intact and taken.
    """
    reasons = []
    for path in _newest_first(Path(folder)):
        try:
            load(_read(path))
        except CheckpointError as error:
            reasons.append(f"{path} cannot be used: {error}")
            continue
        for reason in reasons:
            logger.warning("%s; going on from %s", reason, path.name)
        return True
    if reasons:
        raise CheckpointError(f"{reasons[0]}; delete {folder} to start anew")
    return False


# The files ------------------------------------------------------------------------------------


def _write(target: Path, state: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    packed = {"format": FORMAT, **_pack(state, "", tensors)}
    partial, old = _beside(target, "partial"), _beside(target, "old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / TENSORS)
    (partial / STATE).write_text(json.dumps(packed), encoding="utf-8")
    hashes = {name: _sha256(partial / name) for name in (TENSORS, STATE)}
    (partial / HASHES).write_text(json.dumps(hashes), encoding="utf-8")
    # Flushed before the rename: a power cut must not leave the final name on empty files.
    for path in (*partial.iterdir(), partial):
        _flush(path)
    if target.exists():  # a checkpoint of this same step; at every moment one of the two is there
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


def _read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, if its files are as they were written."""
    try:
        hashes = json.loads((path / HASHES).read_text(encoding="utf-8"))
        for name in (TENSORS, STATE):
            if _sha256(path / name) != hashes[name]:
                raise CheckpointError(f"{name} was cut short or altered")
        packed = json.loads((path / STATE).read_text(encoding="utf-8"))
        if not isinstance(packed, dict) or packed.get("format") != FORMAT:
            raise CheckpointError(f"it is not of the format that this version reads, {FORMAT}")
        return _unpack(packed, load_file(path / TENSORS))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"it is not complete ({type(error).__name__})") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The state as JSON, its tensors beside it -------------------------------------------------------

TENSOR, TUPLE, ITEMS, COUNTER = "__tensor__", "__tuple__", "__items__", "__counter__"


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value for JSON. Its tensors go into `tensors`, by where they stand in the state.

    What JSON does not tell apart (a tuple from a list, numbers from texts as keys) is marked.
    """
    if isinstance(value, Tensor):
        # A copy, since safetensors refuses tensors that share memory (a tied matrix, say).
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: name}
    if isinstance(value, dict):
        packed = {k: _pack(v, f"{name}.{k}".lstrip("."), tensors) for k, v in value.items()}
        if isinstance(value, Counter):
            return {COUNTER: list(packed.items())}
        plain = all(isinstance(key, str) for key in packed)
        return packed if plain else {ITEMS: list(packed.items())}
    if isinstance(value, (list, tuple)):
        items = [_pack(v, f"{name}.{i}".lstrip("."), tensors) for i, v in enumerate(value)]
        return {TUPLE: items} if isinstance(value, tuple) else items
    return value


def _unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_pack` was given."""
    if isinstance(packed, list):
        return [_unpack(v, tensors) for v in packed]
    if not isinstance(packed, dict):
        return packed
    if TENSOR in packed:
        # A copy, since safetensors maps the file into memory, and the file will be deleted.
        return tensors[packed[TENSOR]].clone()
    if TUPLE in packed:
        return tuple(_unpack(packed[TUPLE], tensors))
    if COUNTER in packed:
        return Counter({k: _unpack(v, tensors) for k, v in packed[COUNTER]})
    items = packed[ITEMS] if ITEMS in packed else packed.items()
    return {k: _unpack(v, tensors) for k, v in items}
