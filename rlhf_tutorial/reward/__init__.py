"""What scores an answer: judges, how one is trained, and rules that need no weights."""

from pathlib import Path

from ..scores import Reward
from .judge import RewardModel
from .rules import rule_of_variety, rule_reward
from .states import LINE_FILE, StateJudge, StateReader, fit_line
from .training import train_reward_model
from .tricks import tricks

__all__ = [
    "RewardModel",
    "StateJudge",
    "StateReader",
    "fit_line",
    "load_judge",
    "rule_of_variety",
    "rule_reward",
    "train_reward_model",
    "tricks",
]


def load_judge(model: Path, adapter: Path | None = None) -> Reward:
    """The judge of a checkpoint folder, or what an adapter folder makes of it.

    Args:
        adapter: a LoRA adapter with its head, or a line on the model's states; without one, the
            model must be a judge by itself.
    """
    if adapter is not None and (adapter / LINE_FILE).exists():
        return StateJudge.from_pretrained(model, adapter)
    return RewardModel.from_pretrained(model, adapter=adapter)
