"""RLHF you can run and read: PPO on a chat model with a judge, from prompts to evaluation."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "1.0.0"

# Loaded when first used: importing the package stays quick, and each name costs only what it needs.
_HOME = {
    "AutoModelForCausalLMWithValueHead": "models",
    "create_reference_model": "models",
    "load_tokenizer": "models",
    "LengthSampler": "ppo",
    "PPOConfig": "ppo",
    "PPOTrainer": "ppo",
    "RewardModel": "reward",
    "PRESETS": "presets",
    "load_preset": "presets",
    "Run": "run",
    "train": "training",
    "load_preferences": "data",
    "prepare_queries": "data",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    # A name that is none of ours may be one of TRL's.
    home = _HOME.get(name, "trl_names")
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
