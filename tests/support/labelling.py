"""Pairs to be labelled, and a session with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_tutorial.human.labelling import Session
from rlhf_tutorial.human.labels import Pair

PAIRS = [Pair(f"Prompt {i}?", f"Good answer {i}.", f"Bad answer {i}.") for i in range(24)]


def session(folder: Path, **settings: Any) -> Session:
    """A session with `PAIRS`, and labels in `folder/labels.jsonl`."""
    pairs = settings.pop("pairs", PAIRS)
    return Session(pairs, folder / "labels.jsonl", policy="tiny, untouched", **settings)


def good_side(session: Session) -> str:
    """Where the good answer stands."""
    assert session.current is not None
    return "left" if session.current.left.startswith("Good") else "right"
