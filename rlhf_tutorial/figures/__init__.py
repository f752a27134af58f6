"""The course's figures, each a function that returns a `matplotlib.figure.Figure`."""

from .plan import plan_diagram
from .scores import bars_with_intervals, before_after, length_histogram, score_histogram
from .step import along_response, batch_layout, clipped_objective, token_heatmap
from .studies import (
    against_kl,
    gains_of_seeds,
    methods_against_kl,
    over_steps,
    proxy_and_gold,
)
from .style import STYLE
from .training import LiveCurve, diagnostics, reward_curve

__all__ = [
    "STYLE",
    "LiveCurve",
    "against_kl",
    "along_response",
    "bars_with_intervals",
    "batch_layout",
    "before_after",
    "clipped_objective",
    "diagnostics",
    "gains_of_seeds",
    "length_histogram",
    "methods_against_kl",
    "over_steps",
    "plan_diagram",
    "proxy_and_gold",
    "reward_curve",
    "score_histogram",
    "token_heatmap",
]
