"""Small helpers for the notebooks: quiet set-up, code on display, results in a sentence."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any


def setup() -> None:
    """Keep library progress bars out of the notebook: as widgets they leave only bulky state."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from datasets import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def show_source(function: Callable[..., Any]) -> Any:
    """The function's own source, highlighted: what is shown is what runs."""
    from IPython.display import Code

    return Code(inspect.getsource(function), language="python")


def headline(results: dict[str, Any]) -> str:
    """The numbers to remember: mean reward before and after, and what the other judge says."""
    if "comparison" not in results:
        return "No comparison yet: notebook 06 makes it."
    c = results["comparison"]
    gain, win = c["mean_gain_interval"], c["win_rate_interval"]
    second = c["second"]
    low, high = second["mean_gain_interval"]
    return (
        f"Mean reward on {c['n']} held-out prompts: {c['mean_before']:.2f} before, "
        f"{c['mean_after']:.2f} after; gain {c['mean_gain']:.2f} "
        f"(95% interval {gain[0]:.2f} to {gain[1]:.2f}).\n"
        f"Win rate of the trained policy: {c['win_rate']:.1%} "
        f"(95% interval {win[0]:.1%} to {win[1]:.1%}).\n"
        f"Under the second judge, which PPO does not see: gain {second['mean_gain']:.2f} "
        f"({low:.2f} to {high:.2f}), win rate {second['win_rate']:.1%}."
    )
