"""What a run has left in its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def results(folder: Path) -> dict[str, Any]:
    """Of a finished run: the policy's bytes, and the log without times."""
    log = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return {
        "policy": contents(folder / "policy"),
        "log": [{k: v for k, v in step.items() if not k.startswith("time/")} for step in log],
    }


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file under a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
