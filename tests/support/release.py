"""What is released, built as it is released."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from . import ROOT

NOT_SOURCE = shutil.ignore_patterns(
    ".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "wheels"
)


def build(folder: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it and not from this folder."""
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "out", "source"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (archive,), (wheel,) = (folder / "out").glob("*.tar.gz"), (folder / "out").glob("*.whl")
    return archive, wheel
