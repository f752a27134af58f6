"""Proximal policy optimisation for language models: generate, score, step."""

from .config import PPOConfig
from .rollout import LengthSampler
from .trainer import PPOTrainer

__all__ = ["LengthSampler", "PPOConfig", "PPOTrainer"]
