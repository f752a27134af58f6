"""Proximal policy optimisation for language models: generate, score, step."""

from .config import PPOConfig
from .trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
