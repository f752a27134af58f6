"""Errors meant for the reader: one line that says what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    """Say in one line that a checkpoint cannot be loaded: transformers raises a dozen types."""
    try:
        yield
    except TutorialError:
        raise
    except Exception as error:
        raise ModelError(
            f"cannot load {what} ({type(error).__name__}: {reason(error)}): fetch it again, as it "
            "may be damaged, or give another checkpoint"
        ) from error
