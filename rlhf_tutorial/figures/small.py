"""Policies small enough to be written out: gradients, KL estimators, credit, optimum, a race."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import DataError
from .style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILLION,
    finite_array,
    new_figure,
    two_decimals,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@rc_context(STYLE)
def gradient_clouds(
    clouds: Mapping[str, ArrayLike], exact: ArrayLike, labels: tuple[str, str]
) -> Figure:
    """Estimates of a gradient as dots, one panel per kind; the exact one is an arrow.

    A cross is the mean of the dots. Arrow and cross are named in the first panel.

    Args:
        clouds: title of the panel to (N, 2) estimates, two components of each.
        exact: (2,), the same components of the gradient itself.
        labels: what the two components are.

    Raises:
        DataError: for no clouds, one that is not (N, 2), or values that are not finite.
    """
    if not clouds:
        raise DataError("gradient_clouds needs at least one cloud of estimates")
    arrow = finite_array(exact, "exact")
    dots = {name: finite_array(estimates, name) for name, estimates in clouds.items()}
    for name, values in dots.items():
        if values.ndim != 2 or values.shape[1] != 2:
            raise DataError(f"gradient_clouds {name!r} has shape {values.shape}: give (N, 2)")
    every = np.vstack([*dots.values(), arrow, np.zeros(2)])
    low, high = every.min(axis=0), every.max(axis=0)
    margin = 0.06 * (high - low).max()
    fig = new_figure(3.6 * len(clouds), 3.7)
    axes = np.atleast_1d(fig.subplots(1, len(clouds), sharex=True, sharey=True))
    for ax, (name, values) in zip(axes, dots.items(), strict=True):
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.plot(*values.T, "o", color=SKY, markersize=5, alpha=0.35, mew=0)
        mean = values.mean(axis=0)
        ax.plot(*mean, "x", color=INK, markersize=11, mew=2.2, zorder=6)
        ax.annotate(
            "", xy=tuple(arrow), xytext=(0, 0), zorder=5,
            arrowprops={"arrowstyle": "-|>", "color": VERMILLION, "linewidth": 3.2,
                        "mutation_scale": 20, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        ax.set(title=name, xlabel=labels[0], aspect="equal")
        ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
        if ax is axes[0]:
            thin = {"arrowstyle": "-", "linewidth": 0.9, "shrinkB": 5}
            for said, place, at, side, colour in (
                ("mean of the dots", mean, (0.97, 0.75), "right", INK),
                ("exact gradient", arrow / 2, (0.03, 0.22), "left", VERMILLION),
            ):
                ax.annotate(
                    said, tuple(place), at, textcoords="axes fraction", color=colour,
                    ha=side, va="center", arrowprops={**thin, "color": colour},
                )  # fmt: skip
    axes[0].set_ylabel(labels[1])
    return fig


@rc_context(STYLE)
def kl_estimates(exact: ArrayLike, estimates: Mapping[str, Sequence[ArrayLike]]) -> Figure:
    """Distributions of estimates of the KL, one panel per estimator, against the exact KL.

    Each violin is one policy, named by its exact KL. What is drawn is the estimate as a multiple of
    it, so that 1 is right and below 0, shaded, is impossible. The dot is the mean of the estimates;
    the bar holds nine in ten.

    Args:
        exact: (n,), the KL of n policies, increasing and above 0.
        estimates: estimator to n arrays of estimates.

    Raises:
        DataError: for no estimator, another number of arrays than n, or values not finite.
    """
    places = finite_array(exact, "exact")
    if not estimates:
        raise DataError("kl_estimates needs at least one estimator")
    fig = new_figure(3.6 * len(estimates), 4.2)
    axes = np.atleast_1d(fig.subplots(1, len(estimates), sharey=True))
    x = np.arange(len(places))
    for ax, colour, (name, given) in zip(axes, CYCLE, estimates.items(), strict=False):
        if len(given) != len(places):
            raise DataError(
                f"kl_estimates {name!r} has {len(given)} arrays for {len(places)} policies: "
                "give one each"
            )
        numbers = [finite_array(v, name) / kl for v, kl in zip(given, places, strict=True)]
        low, high = np.array([np.quantile(values, (0.05, 0.95)) for values in numbers]).T
        # Without the last hundredth at each end, which can be a hundred times as far off.
        middles = [values.clip(*np.quantile(values, (0.01, 0.99))) for values in numbers]
        violins = ax.violinplot(middles, x, widths=0.8, showextrema=False)
        for body in violins["bodies"]:
            body.set(facecolor=colour, alpha=0.25)
        ax.vlines(x, low, high, color=colour, linewidth=2.5)
        ax.plot(x, [values.mean() for values in numbers], "o", color=colour, mec=INK, markersize=7)
        ax.axhline(1, color=INK, linewidth=1.4, linestyle="--")
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_xticks(x, [two_decimals(place) for place in places])
        ax.set(title=name, xlabel="exact KL (nats)")
    low, high = axes[0].get_ylim()  # of all panels
    for ax in axes:
        if low < 0:
            ax.axhspan(low, 0, color="#EFEFEF", zorder=0)
            ax.text(0.97, 0.03, "no KL is below 0", transform=ax.transAxes, ha="right",
                    color=GREY)  # fmt: skip
        ax.set_ylim(low, high)
    axes[0].set_ylabel("estimate from one batch / exact KL")
    return fig


@rc_context(STYLE)
def credit(tokens: Sequence[str], advantages: Mapping[str, ArrayLike]) -> Figure:
    """The advantage of each token of one answer, a row of bars for each way to compute it.

    Bars below 0 are hatched.

    Args:
        tokens: T tokens.
        advantages: title of the row to its T values.

    Raises:
        DataError: for no rows, or one that has not T values.
    """
    if not advantages:
        raise DataError("credit needs at least one row of advantages")
    fig = new_figure(1.6 * len(tokens) + 1.6, 1.5 * len(advantages) + 0.6)
    axes = np.atleast_1d(fig.subplots(len(advantages), 1, sharex=True, sharey=True))
    for ax, (name, given) in zip(axes, advantages.items(), strict=True):
        values = finite_array(given, name)
        if len(values) != len(tokens):
            raise DataError(f"credit row {name!r} has {len(values)} values, not {len(tokens)}")
        bars = ax.bar(np.arange(len(tokens)), values, 0.6, color=GREEN, edgecolor=GREEN)
        for bar, value in zip(bars, values, strict=True):
            if value < 0:
                bar.set(facecolor="white", hatch="///")
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.grid(False, axis="x")
        for i, value in enumerate(values):
            ax.annotate(
                two_decimals(value), (i, value), (0, 3 if value >= 0 else -3),
                textcoords="offset points", ha="center", va="bottom" if value >= 0 else "top",
            )  # fmt: skip
        ax.margins(y=0.3)
        ax.set_title(name)
    axes[-1].set_xticks(np.arange(len(tokens)), list(tokens), parse_math=False)
    fig.supylabel("advantage (points)", fontsize=11)
    return fig


def _label_ends(ax: Axes, x: float, ends: Mapping[str, tuple[float, str]]) -> None:
    """Name each curve of a log scale behind its end, names kept apart, a thin line to each."""
    low, high = np.log(ax.get_ylim())
    below = -np.inf
    for name, (y, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        below = max(np.log(y), below + (high - low) / 14)
        place = (x, float(np.exp(below)))
        ax.annotate(
            name, place, (20, 0), textcoords="offset points", va="center", color=colour,
            annotation_clip=False,
        )  # fmt: skip
        ax.annotate(
            "", (x, y), (1.02 * x, place[1]), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 0},
        )  # fmt: skip


@rc_context(STYLE)
def tilting(
    betas: ArrayLike, shares: Mapping[str, ArrayLike], means: Mapping[str, ArrayLike]
) -> Figure:
    """How the optimum changes as the weight of the KL falls, to the right.

    Args:
        betas: (n,), falling.
        shares: kind of answer to its (n,) probabilities; drawn as layers that add up, each named
            at its left end, or at its right one if it begins thin.
        means: quantity to its (n,) expectations, a line each in the second panel.

    Raises:
        DataError: for values that are not finite.
    """
    x = finite_array(betas, "betas")
    fig = new_figure(10.0, 3.9)
    layers, lines = fig.subplots(1, 2)
    colours = ("#D9D9D9", BLUE, GREEN, VERMILLION)
    heights = [finite_array(values, name) for name, values in shares.items()]
    layers.stackplot(x, heights, colors=colours, alpha=0.8, linewidth=0)
    layers.set(ylim=(0, 1), ylabel="probability under π*", title="what π* says")
    upper = np.cumsum(heights, axis=0)
    for n, (name, height) in enumerate(zip(shares, heights, strict=True)):
        at, side, inwards = (0, "left", 8) if height[0] > 0.1 else (-1, "right", -8)
        layers.annotate(  # a layer has more room below on the left, and above on the right
            name, (x[at], upper[n][at] - (0.7 if at == 0 else 0.25) * height[at]), (inwards, 0),
            textcoords="offset points", ha=side, va="center", color=INK,
        )  # fmt: skip
    for n, (name, values) in enumerate(means.items()):
        y, colour = finite_array(values, name), (VERMILLION, BLUE)[n % 2]
        lines.plot(x, y, color=colour, linewidth=2.2)
        top = int(y.argmax())
        lines.plot(x[top], y[top], "o", color=colour, markersize=8, mec=INK, clip_on=False)
        third = len(x) // 3
        lines.annotate(  # the first above its line, the next below its own
            name, (x[third], y[third]), (0, (14, -26)[n % 2]), textcoords="offset points",
            ha=("right", "center")[n % 2], color=colour,
        )  # fmt: skip
    lines.set(ylabel="expectation (points)", title="what it earns")
    for ax in (layers, lines):
        ax.set_xscale("log")
        ax.invert_xaxis()
        ticks = [t for t in (4, 2, 1, 0.5, 0.25, 0.1, 0.05) if x.min() <= t <= x.max()]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        ax.set_xlim(x.max(), x.min())
        ax.set_xlabel("β, falling")
    return fig


@rc_context(STYLE)
def race_to_optimum(distances: Mapping[str, Sequence[ArrayLike]], answers_per_batch: int) -> Figure:
    """The distance to the optimum against the answers drawn: a line per method, on a log scale.

    Args:
        distances: method to the curves of its seeds, each (n + 1,), at the start and after each of
            n batches, in nats. Each seed is drawn thin, their mean thick.
        answers_per_batch: how many answers one batch has.

    Raises:
        DataError: for no methods, or distances that are not finite.
    """
    if not distances:
        raise DataError("race_to_optimum needs at least one method")
    fig = new_figure(9.0, 4.8)
    ax = fig.subplots()
    ends: dict[str, tuple[float, str]] = {}
    x: np.ndarray = np.zeros(1)
    colours = (INK, BLUE, ORANGE, GREEN, PURPLE, VERMILLION)
    dashes = ("-", "-", "--", (0, (6, 2)), "-.", (0, (2, 1)))  # told apart in grey
    for colour, dash, (name, seeds) in zip(colours, dashes, distances.items(), strict=False):
        curves = np.array([finite_array(curve, name) for curve in seeds]).clip(1e-4)
        x = answers_per_batch * np.arange(curves.shape[1])
        ax.plot(x, curves.T, color=colour, linewidth=0.7, alpha=0.35)
        ax.plot(x, curves.mean(axis=0), color=colour, linewidth=2.2, linestyle=dash)
        ends[name] = float(curves[:, -1].mean()), colour
    ax.set_yscale("log")
    ax.set(xlabel="answers drawn", ylabel="KL(π ‖ π*), nats, log scale", xlim=(0, x[-1]))
    _label_ends(ax, float(x[-1]), ends)
    return fig
