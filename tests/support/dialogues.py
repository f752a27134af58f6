"""Rows as in hh-rlhf."""

from __future__ import annotations

import datasets

TURNS = (
    "\n\nHuman: How do I\nbake bread?  \n\nAssistant: With flour.\n\nIt takes an hour."
    "\n\nHuman: And then?\n\nAssistant: Eat it."
)


def dialogue(prompt: str, reply: str = "Yes.") -> str:
    return f"\n\nHuman: {prompt}\n\nAssistant: {reply}"


def dataset(*chosen: str | None) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"chosen": list(chosen), "rejected": ["-"] * len(chosen)})
