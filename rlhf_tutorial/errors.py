"""Errors meant for the reader: one line that says what is wrong, where, and what to do about it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class TutorialError(Exception):
    """Base of every error this package raises on purpose."""


class AssetError(TutorialError):
    """Weights or data that are missing, cannot be fetched, or do not match their pinned hash."""


class DataError(TutorialError, ValueError):
    """Preference data that lacks a column, cannot be read, or yields no usable prompt."""


class ModelError(TutorialError, ValueError):
    """A model or tokenizer that does not fit its role, or inputs that do not fit the model."""


class RewardError(TutorialError, ValueError):
    """A reward that is not one finite number per response."""


class CheckpointError(TutorialError):
    """A checkpoint that cannot be written, is damaged, or is of another run."""


class NoAttribute(TutorialError, AttributeError):
    """A name that an object of TRL's had, and ours has not."""


class TrainingError(TutorialError):
    """An update that would not leave the policy with finite weights."""


def reason(error: BaseException) -> str:
    """The first sentence of another library's error, for a message of ours in one line."""
    if isinstance(error, OSError) and error.strerror:  # str(error) would say the path again
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].strip(" .:") if lines else type(error).__name__


@contextmanager
def loading(what: str | Path) -> Iterator[None]:
    """Say in one line that a checkpoint cannot be loaded: transformers raises a dozen types.

    Where the files in the folder tell why, that is said, and else that they may be damaged.
    """
    try:
        yield
    except TutorialError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {reason(error)}"
        if (cause := _cause(Path(what), str(error))) is not None:
            raise ModelError(f"cannot load {what} ({told}): {cause}") from error
        raise ModelError(
            f"cannot load {what} ({told}): fetch it again, as it may be damaged, or give another "
            "checkpoint"
        ) from error


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file is what `git clone` leaves of a large one without git-lfs."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs.github.com/spec")
    return False


def adapter_base(folder: Path) -> str | None:
    """What a folder with an adapter and no model of its own is an adapter of; None for others."""
    weights = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if weights or not (folder / "adapter_config.json").is_file():
        return None
    return str(_settings(folder / "adapter_config.json").get("base_model_name_or_path"))


def check_whole(folder: Path, instead: str = "merge it into its base first") -> None:
    """Raise ModelError where the folder holds an adapter alone: peft would look for its base."""
    if (base := adapter_base(folder)) is not None:
        raise ModelError(
            f"{folder} holds an adapter of {base!r} and no model of its own: {instead}"
        )


def _settings(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _cause(folder: Path, error: str) -> str | None:
    """Why a checkpoint that need not be damaged was not loaded, and what to do; None if unknown."""
    for path in sorted(folder.glob("*")):
        if is_lfs_pointer(path):
            return f"{path.name} is a git-lfs pointer, not the file: run `git lfs pull` there"
    if "unexpected keyword argument" in error:
        return "neither transformers nor the model takes that argument: leave it out"
    if "file named" in error and (base := adapter_base(folder)) is not None:
        return f"it holds an adapter of {base!r} and no model of its own: merge it into its base"
    config = _settings(folder / "config.json")
    kind = config.get("model_type")
    if "auto_map" in config and ("custom code" in error or "trust_remote_code" in error):
        return "its custom code is never run: give one whose architecture transformers has itself"
    if "does not recognize this architecture" in error:
        return (
            f"{kind!r} is newer than the transformers installed here, or misspelt in config.json: "
            "update transformers, or give another checkpoint"
        )
    if "Unrecognized configuration class" in error:
        return (
            f"transformers has no model of the kind that is needed for {kind!r}: a policy is a "
            "decoder-only language model, a judge a sequence classifier"
        )
    if "quantization_config" in config:
        method = (config["quantization_config"] or {}).get("quant_method", "unknown method")
        return (
            f"its weights are quantised ({method}), which cannot be trained and may need another "
            "package or a GPU: give the checkpoint that they were made from"
        )
    return None
