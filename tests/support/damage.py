"""What may happen to the files of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def junk_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "be')


def unknown_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-model", "num_labels": 1}')


def cut_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "tru')


class Payload:
    """Runs a command where a pickle is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def cut(path: Path) -> None:
    """Only the first half of the file is left."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
