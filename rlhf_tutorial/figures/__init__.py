"""The course's figures, each a function that returns a `matplotlib.figure.Figure`."""

from .human import agreement_curve, curves_of_tastes
from .plan import plan_diagram, policy_and_reference
from .scores import (
    bars_with_intervals,
    before_after,
    dots_with_intervals,
    ended_and_cut,
    length_histogram,
    margins,
    score_histogram,
    shares,
)
from .small import credit, gradient_clouds, kl_estimates, race_to_optimum, tilting
from .step import along_response, batch_layout, clipped_objective, token_heatmap
from .studies import (
    against_kl,
    beside_healthy,
    gains_of_seeds,
    methods_against_kl,
    over_looks,
    proxy_and_gold,
    seeds_and_controls,
)
from .style import STYLE
from .training import LiveCurve, diagnostics, reward_curve

__all__ = [
    "STYLE",
    "LiveCurve",
    "against_kl",
    "agreement_curve",
    "along_response",
    "bars_with_intervals",
    "batch_layout",
    "before_after",
    "beside_healthy",
    "clipped_objective",
    "credit",
    "curves_of_tastes",
    "diagnostics",
    "dots_with_intervals",
    "ended_and_cut",
    "gains_of_seeds",
    "gradient_clouds",
    "kl_estimates",
    "length_histogram",
    "margins",
    "methods_against_kl",
    "over_looks",
    "plan_diagram",
    "policy_and_reference",
    "proxy_and_gold",
    "race_to_optimum",
    "reward_curve",
    "score_histogram",
    "seeds_and_controls",
    "shares",
    "tilting",
    "token_heatmap",
]
