"""What scores an answer: judges, how one is trained, and rules that need no weights."""

from .judge import RewardModel
from .rules import rule_of_variety, rule_reward
from .states import StateJudge, StateReader, fit_line
from .training import cut_pair, train_reward_model

__all__ = [
    "RewardModel",
    "StateJudge",
    "StateReader",
    "cut_pair",
    "fit_line",
    "rule_of_variety",
    "rule_reward",
    "train_reward_model",
]
