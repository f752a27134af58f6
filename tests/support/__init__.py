"""What the tests share and is not itself a test."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
# For the processes that tests start: two of two threads each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""

FIXTURES = ROOT / "tests" / "fixtures"
