"""Figures of notebook 10: how fast a judge learns from choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..errors import DataError
from .style import CHANCE, CYCLE, GREY, STYLE, new_figure

Curves = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]
"""By name, a curve a seed: rows of "labels" and "agreement"."""


@rc_context(STYLE)
def curves_of_tastes(panels: Mapping[str, Curves], note: str) -> Figure:
    """A panel a taste: mean agreement against labels, with the range of the seeds as a band.

    Args:
        panels: title to curves. note: who labelled, said under the figure.

    Raises:
        DataError: without a curve.
    """
    if not panels or not all(curves and all(curves.values()) for curves in panels.values()):
        raise DataError("there are no curves to draw: give a panel of at least one")
    fig = new_figure(4.2 * len(panels) + 0.4, 4.2)
    axes = np.atleast_1d(fig.subplots(1, len(panels), sharey=True))
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for colour, dashes, (name, seeds) in zip(
            CYCLE, ("-", "--", "-.", ":"), curves.items(), strict=False
        ):
            x = [row["labels"] for row in seeds[0]]
            y = np.array([[row["agreement"] for row in curve] for curve in seeds])
            ax.plot(x, y.mean(axis=0), dashes, color=colour, linewidth=2, label=name)
            ax.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        for share in (0.7, 0.75):
            ax.axhline(share, color=GREY, linewidth=0.9)
        ax.axhline(0.5, **CHANCE)
        ax.set(title=title, xlabel="labels")
    for share, name in ((0.5, "a coin"), (0.7, "70%"), (0.75, "75%")):
        axes[-1].annotate(
            name, (1, share), (4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", annotation_clip=False,
        )  # fmt: skip
    axes[0].set_ylabel("held-out pairs chosen alike")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    fig.suptitle(note, x=0.01, ha="left", fontsize=10, color=GREY, wrap=True)
    return fig


@rc_context(STYLE)
def agreement_curve(rows: Sequence[Mapping[str, float]], note: str) -> Figure:
    """How often a judge chose as its labels did, by the number of labels that it learned from.

    Args:
        rows: "labels", "share", "low" and "high", the ends of its interval. note: who labelled.

    Raises:
        DataError: without a row.
    """
    if not rows:
        raise DataError("there is no agreement to draw: give at least one row")
    fig = new_figure(6.4, 3.8)
    ax = fig.add_subplot()
    x, share, low, high = (
        np.array([float(row[key]) for row in rows]) for key in ("labels", "share", "low", "high")
    )
    errors = [share - low, high - share]
    ax.errorbar(x, share, yerr=errors, fmt="o-", color=CYCLE[0], capsize=3, linewidth=1.8)
    ax.axhline(0.5, **CHANCE)
    ax.annotate("a coin", (x[0], 0.5), (6, 4), textcoords="offset points")
    ax.set(xlabel="labels", ylabel="chosen alike", ylim=(0, 1), title=note)
    return fig
