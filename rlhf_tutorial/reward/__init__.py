"""What scores an answer: judges, how one is trained, and rules that need no weights."""

from .judge import RewardModel
from .rules import rule_of_variety, rule_reward
from .training import cut_pair, train_reward_model

__all__ = ["RewardModel", "cut_pair", "rule_of_variety", "rule_reward", "train_reward_model"]
