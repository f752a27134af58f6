"""Figures that compare trainings: what they gained, and how far from the reference they went."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MultipleLocator

from ..errors import DataError
from .style import (
    BLUE,
    CYCLE,
    GREY,
    INK,
    STYLE,
    VERMILLION,
    Mark,
    finite_array,
    mark_of,
    new_figure,
    written,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Points = Sequence[Mapping[str, Any]]
"""The points of a curve: quantities by name, for instance "kl"."""


def _check_points(curves: Mapping[str, Points], keys: Sequence[str]) -> None:
    """Raise DataError unless every curve has a point and every point has all the keys."""
    if not curves or not all(len(points) for points in curves.values()):
        raise DataError("there is nothing to draw: give at least one curve of at least one point")
    for name, points in curves.items():
        for point in points:
            if missing := [key for key in keys if key not in point]:
                raise DataError(f"a point of {name!r} has no {missing[0]!r}: it is needed here")


def _sqrt_axis(ax: Axes, largest: float) -> None:
    """Give the x axis a square-root scale from 0 to a little above the largest KL.

    Gao et al. (2022, "Scaling Laws for Reward Model Overoptimization") draw the distance from the
    reference in this way, as the square root of the KL.
    """
    ax.set_xscale(
        "function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), lambda x: np.square(x))
    )
    ax.set_xlim(0, 1.05 * max(largest, 1))
    ticks = [t for t in (0, 1, 2, 5, 10, 20, 40, 80, 160, 320) if t <= 1.05 * max(largest, 1)]
    ax.set_xticks(ticks, [str(t) for t in ticks])


@rc_context(STYLE)
def against_kl(curves: Mapping[str, Points], panels: Mapping[str, str]) -> Figure:
    """One panel per quantity and a curve for each of two trainings, against the KL.

    The first is grey, for the second, blue, is compared with it. Each has its name at its end.

    Args:
        curves: two by name, points with "kl" (nats per answer) and the panels' keys, in order.
        panels: key to title, from left to right. If the last point of a curve also has
            `<key>_error`, it gets an error bar of that length up and down.

    Raises:
        DataError: without a point, or for a point that lacks a key.
    """
    _check_points(curves, ["kl", *panels])
    fig = new_figure(4.6 * len(panels) + 0.4, 4.2)
    axes = np.atleast_1d(fig.subplots(1, len(panels)))
    largest = max(float(p["kl"]) for points in curves.values() for p in points)
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
        for colour, (name, points) in zip((GREY, BLUE), curves.items(), strict=True):
            x, y = ([float(p[k]) for p in points] for k in ("kl", key))
            ax.plot(x, y, "o-", color=colour, markersize=4.5, linewidth=1.8, label=name)
            if (error := points[-1].get(f"{key}_error")) is not None:
                ax.errorbar(x[-1], y[-1], yerr=error, color=colour, capsize=3, linewidth=1.2)
            ax.annotate(
                name, (x[-1], y[-1]), (8, -14),
                textcoords="offset points", va="center", color=colour, annotation_clip=False,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )  # fmt: skip
        _sqrt_axis(ax, largest * 1.3)  # room for the names
        ax.set(title=title, xlabel="KL from the reference (nats per answer, √ scale)")
    return fig


@rc_context(STYLE)
def methods_against_kl(
    methods: Mapping[str, Sequence[Points]],
    panels: Mapping[str, str],
    best_of: Points = (),
    ylabel: str = "Gain over the untouched policy",
    intervals: Mapping[str, Mapping[str, Points]] | None = None,
) -> Figure:
    """One panel per quantity and one line per method through its looks, against the KL.

    Args:
        methods: by name, a list of runs with equally many points with "kl" (nats per answer) and
            the panels' keys. The line goes through their means; several runs are drawn thin.
        panels: key to title, from left to right.
        best_of: points of best of n with the same keys and "n", which stands beside them; dashed.
        intervals: by panel and method, points with "kl", "gain" and the "low" and "high" end of a
            bar, which has the method's marker, hollow. Bars of one KL stand beside its dotted line.

    Raises:
        DataError: without a point, or for a point that lacks a key.
    """
    runs = {f"{name}, run {n}": run for name, of in methods.items() for n, run in enumerate(of)}
    runs |= {"best of n": best_of} if best_of else {}
    _check_points(runs, ["kl", *panels])
    fig = new_figure(4.9 * len(panels) + 0.4, 4.8)
    largest = max(float(p["kl"]) for run in runs.values() for p in run)
    axes = np.atleast_1d(fig.subplots(1, len(panels), sharey=True))
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
        for n, (name, of) in enumerate(methods.items()):
            paths = np.array([[(float(p["kl"]), float(p[key])) for p in run] for run in of])
            if len(of) > 1:
                for path in paths:
                    ax.plot(*path.T, color=CYCLE[n % 6], linewidth=1, alpha=0.4)
            ax.plot(
                *paths.mean(axis=0).T, color=CYCLE[n % 6], linewidth=2.2, marker="osD^vP"[n % 6],
                markersize=8, markeredgecolor="white", label=name, zorder=3,
            )  # fmt: skip
            for bar in (intervals or {}).get(key, {}).get(name, ()):
                root = np.sqrt(bar["kl"]) + 0.012 * np.sqrt(largest) * (n - (len(methods) - 1) / 2)
                ends = [float(bar["low"]), float(bar["high"])]
                ax.plot([root**2] * 2, ends, color=CYCLE[n % 6], linewidth=1.6)
                ax.plot(
                    root**2, float(bar["gain"]), "osD^vP"[n % 6], markersize=5,
                    color=CYCLE[n % 6], markerfacecolor="white",
                )  # fmt: skip
        for at in {
            float(bar["kl"]) for of in (intervals or {}).get(key, {}).values() for bar in of
        }:
            ax.axvline(at, color=GREY, linewidth=1, linestyle=":", zorder=0.5)
        if best_of:
            x, y = ([float(p[k]) for p in best_of] for k in ("kl", key))
            ax.plot(
                x, y, "--*", color=INK, markersize=9, linewidth=1.3,
                label="best of n, by its bound", zorder=2,
            )  # fmt: skip
            for p in best_of:
                ax.annotate(
                    f"{p['n']:g}", (float(p["kl"]), float(p[key])), (-5, 5),
                    textcoords="offset points", ha="right", fontsize=10,
                )  # fmt: skip
        ax.axhline(0, color=INK, linewidth=0.8)
        _sqrt_axis(ax, largest)
        ax.set(title=title, xlabel="KL from the reference (nats per answer, √ scale)")
    axes[0].set_ylabel(ylabel)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3)
    return fig


@rc_context(STYLE)
def proxy_and_gold(
    panels: Mapping[str, Sequence[Points]], ylabel: str, said: Mapping[str, str] | None = None
) -> Figure:
    """A small panel per judge: what the proxy promises is dashed, what the gold sees solid.

    Where the two end farthest apart, they have their names. More than four panels stand in rows of
    three.

    Args:
        panels: title to the runs, in the order of reading, each of points with "kl" (nats per
            answer), "proxy" and "gold".
        said: title to an answer of the policy in the end, its beginning printed below the curves.

    Raises:
        DataError: without a point, or for a point that lacks a key.
    """
    flat = {f"{name}, {n}": run for name, runs in panels.items() for n, run in enumerate(runs)}
    _check_points(flat, ["kl", "proxy", "gold"])
    columns = len(panels) if len(panels) <= 4 else 3
    rows = -(-len(panels) // columns)
    fig = new_figure(max(3.0 * columns, 6.0), (4.2 if said else 3.4) * (1 + 0.8 * (rows - 1)))
    grid = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for left_over in grid.flat[len(panels) :]:
        left_over.remove()
    axes = grid.flat[: len(panels)]
    apart = {}  # how far apart each run ends: its panel, and the places of its ends
    for ax, (title, runs) in zip(axes, panels.items(), strict=True):
        ax.axhline(0, color=INK, linewidth=0.8)
        for run in runs:
            kl, proxy, gold = ([float(p[k]) for p in run] for k in ("kl", "proxy", "gold"))
            ax.plot(kl, proxy, "--", color=VERMILLION, linewidth=1.6)
            ax.plot(kl, gold, "o-", color=BLUE, markersize=3.5, linewidth=1.8)
            ends = {"proxy": (kl[-1], proxy[-1]), "gold": (kl[-1], gold[-1])}
            apart[abs(proxy[-1] - gold[-1])] = ax, ends
        ax.set(title=title)
    largest = max(float(p["kl"]) for run in flat.values() for p in run)
    _sqrt_axis(axes[0], largest)  # which all share
    ticks = [0.0]
    for tick in axes[0].get_xticks():  # the panels are narrow
        if tick**0.5 - ticks[-1] ** 0.5 > 0.16 * largest**0.5:
            ticks.append(float(tick))
    axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax, places = apart[max(apart)]
    higher = max(places, key=lambda name: places[name][1])
    for name, place in places.items():
        inside = place[0] > largest / 2
        shift = (-4 if inside else 7, (12 if name == higher else -16) if inside else 0)
        ax.annotate(
            name, place, shift, textcoords="offset points", va="center",
            ha="right" if inside else "left", color=VERMILLION if name == "proxy" else BLUE,
        )  # fmt: skip
    for ax, title in zip(axes, panels, strict=True):
        if said and title in said:
            lines = textwrap.fill(textwrap.shorten(f"“{said[title]}”", 75, placeholder=" …”"), 30)
            ax.text(0.02, 0.02, lines, transform=ax.transAxes, va="bottom", style="italic")
    if said:  # the lowest point stays above three lines of text
        low, high = axes[0].get_ylim()
        axes[0].set_ylim(low - 0.3 * (high - low), high)
    for first in grid[:, 0]:
        first.set_ylabel(ylabel)
    fig.supxlabel("KL from the reference (nats per answer, √ scale)", fontsize=11)
    return fig


@rc_context(STYLE)
def over_looks(groups: Mapping[str, Sequence[Points]], panels: Mapping[str, str]) -> Figure:
    """One panel per quantity, one curve per training through its looks; groups have their names.

    Args:
        groups: name to its trainings, each of points with "step" and the panels' keys, in order.
            If a last point also has `<key>_error`, it gets an error bar of that length up and down.
        panels: key to title, from left to right.

    Raises:
        DataError: without a point, for a point that lacks a key, or for more groups than colours.
    """
    runs = {f"{name} {n}": run for name, of in groups.items() for n, run in enumerate(of)}
    _check_points(runs, ["step", *panels])
    if len(groups) > len(CYCLE):
        raise DataError(f"{len(groups)} groups and {len(CYCLE)} colours: draw fewer at a time")
    last_step = max(float(run[-1]["step"]) for run in runs.values())
    fig = new_figure(4.8 * len(panels) + 0.4, 4.0)
    axes = np.atleast_1d(fig.subplots(1, len(panels), sharey=True))
    ends: dict[str, tuple[float, Any]] = {}
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
        for new, shape, (name, of) in zip(CYCLE, "os^DvP", groups.items(), strict=False):
            colour, marker, _ = mark_of(name, (new, shape, new))
            for n, run in enumerate(of):
                steps, values = ([float(p[k]) for p in run] for k in ("step", key))
                ax.plot(steps, values, color=colour, marker=marker, markersize=5, linewidth=1.8)
                # One beside the other, so that no bar hides the next one.
                x = steps[-1] + 0.015 * last_step * (n + 1)
                if (error := run[-1].get(f"{key}_error")) is not None:
                    ax.errorbar(x, values[-1], yerr=error, color=colour, capsize=2, linewidth=1.2)
            if ax is axes[0]:
                ends[name] = float(np.mean([float(run[-1][key]) for run in of])), colour
        ax.set(title=title, xlabel="step")
        ticks: list[float] = []
        for step in sorted({float(p["step"]) for run in runs.values() for p in run}):
            if not ticks or step - ticks[-1] > 0.06 * last_step:  # or the numbers would touch
                ticks.append(step)
        ax.set_xticks(ticks)
    low, high = axes[0].get_ylim()
    below = -np.inf
    for name, (end, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        below = max(end, below + (high - low) / 8)  # names of two lines, kept apart
        axes[0].annotate(
            name, (last_step, below), (16, 0), textcoords="offset points", color=colour,
            va="center", annotation_clip=False,
        )  # fmt: skip
    return fig


@rc_context(STYLE)
def seeds_and_controls(
    seeds: Mapping[str, Sequence[Points]],
    grades: Sequence[Mapping[str, Any]],
    titles: tuple[str, str],
    path: str | Path | None = None,
) -> Figure:
    """Above, trainings as judges see them on the way; below, what a reader gives in the end.

    Args:
        seeds: judge to one curve a seed, each of points with "step" and "score". Those of the first
            judge are drawn thick.
        grades: a row each, from top to bottom: "label", "value" (a mean grade), and whether it
            "ppo" trained. The first is what the others are compared with; each of these has also
            "low" and "high", an interval, and may have "seeds", a grade for each.
        titles: what one is to see in the two panels.
        path: a PNG to write as well, 1600 pixels wide.

    Raises:
        DataError: for a curve without a point, or fewer than two rows.
    """
    _check_points(
        {f"{judge} {n}": run for judge, runs in seeds.items() for n, run in enumerate(runs)},
        ["step", "score"],
    )
    if len(grades) < 2:
        raise DataError(f"seeds_and_controls got {len(grades)} rows of grades: give two at least")
    fig = new_figure(6.6, 6.8)
    # Each with margins of its own: the rows' labels take a third of the width, the curves' none.
    parts = fig.subfigures(2, 1, height_ratios=(1, 1.25), hspace=0.04)
    upper, lower = cast(Sequence[SubFigure], parts)
    upper.suptitle(titles[0], x=0.01, ha="left", fontsize=14)
    lower.suptitle(titles[1], x=0.01, ha="left", fontsize=14)
    _judged(upper.add_subplot(), seeds)
    _graded(lower.add_subplot(), grades)
    for ax in fig.axes:
        ax.xaxis.label.set_fontsize(12)
        ax.yaxis.label.set_fontsize(12)
        ax.tick_params(labelsize=12)
    return written(fig, path)


def _judged(ax: Axes, seeds: Mapping[str, Sequence[Points]]) -> None:
    """A curve a seed, and at its end the judge's name."""
    for n, (judge, runs) in enumerate(seeds.items()):
        colour, width, line, marker = (GREY, 1.5, "--", "") if n else (BLUE, 2.4, "-", "o")
        for run in runs:
            steps, scores = ([float(p[key]) for p in run] for key in ("step", "score"))
            ax.plot(
                steps, scores, color=colour, linewidth=width, linestyle=line, marker=marker,
                markersize=6, zorder=2 - n,
            )  # fmt: skip
        last = [run[-1] for run in runs]
        ax.annotate(
            judge, (max(p["step"] for p in last), float(np.mean([p["score"] for p in last]))),
            (12, 0), textcoords="offset points", va="center", color=INK if n else BLUE, fontsize=12,
        )  # fmt: skip
    ax.set(xlabel="training steps (0: the untouched policy)", ylabel="mean score")
    ax.set_xticks(sorted({p["step"] for runs in seeds.values() for run in runs for p in run}))


def _look(row: Mapping[str, Any]) -> Mark:
    """That of the training which the label names, blue for another one, dark without PPO."""
    return mark_of(row["label"], (BLUE, "o", BLUE)) if row["ppo"] else (INK, "s", "white")


def _graded(ax: Axes, grades: Sequence[Mapping[str, Any]]) -> None:
    """A row each: its mean, its interval, below it a small dot a seed; dotted, the first row."""
    ax.axvline(grades[0]["value"], color=INK, linewidth=1.2, linestyle=":")
    for y, row in enumerate(grades):
        colour, marker, face = _look(row)
        if y:
            ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6)
        by_seed = row.get("seeds", [])
        ax.plot(by_seed, [y + 0.3] * len(by_seed), "o", color=colour, markersize=4.5)
        ax.plot(
            row["value"], y, marker, markersize=10, color=colour, markerfacecolor=face,
            markeredgewidth=1.8,
        )  # fmt: skip
        ax.annotate(
            f"{row['value']:.2f}", (row.get("high", row["value"]), y), (9, 0),
            textcoords="offset points", va="center", color=colour, fontsize=12,
        )  # fmt: skip
    ax.set_yticks(range(len(grades)), [row["label"] for row in grades], parse_math=False)
    for label, row in zip(ax.get_yticklabels(), grades, strict=True):
        label.set(color=_look(row)[0], fontweight="bold" if row["ppo"] else "normal")
    ax.set_ylim(len(grades) - 0.4, -0.6)
    ax.set_xlabel("mean grade, 0 to 5")
    ax.xaxis.set_major_locator(MultipleLocator(0.5))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


@rc_context(STYLE)
def beside_healthy(
    name: str,
    patient: Mapping[str, ArrayLike],
    healthy: Mapping[str, ArrayLike],
    panels: Mapping[str, str],
    xlabel: str = "step",
) -> Figure:
    """One small panel per quantity: a training in colour, and a healthy one in grey behind it.

    Args:
        name: of the training, in the legend.
        patient, healthy: quantity to its numbers from 1 on; they may differ in how many. Where both
            are 0 throughout, a panel says so.
        panels: key to title, three in a row.

    Raises:
        DataError: for no panel, a quantity that one of the two lacks, or values not finite.
    """
    if not panels:
        raise DataError("beside_healthy needs at least one panel")
    rows, columns = -(-len(panels) // 3), min(3, len(panels))
    fig = new_figure(3.3 * columns, 2.3 * rows + 0.2)
    axes = np.atleast_1d(fig.subplots(rows, columns, sharex=True)).ravel()
    for ax, (key, title) in zip(axes, panels.items(), strict=False):
        for whose, of, colour in (("healthy", healthy, GREY), (name, patient, VERMILLION)):
            if key not in of:
                raise DataError(f"beside_healthy: {whose!r} has no {key!r}")
            values = finite_array(of[key], f"{whose}, {key}")
            line = {"linewidth": 4, "alpha": 0.45} if of is healthy else {"linewidth": 2}
            ax.plot(np.arange(1, len(values) + 1), values, color=colour, label=whose, **line)
        ax.set_title(title)
        ax.margins(y=0.12)
        if not np.any(patient[key]) and not np.any(healthy[key]):
            ax.set_yticks([0])
            ax.text(0.5, 0.6, "0 in both", ha="center", color=VERMILLION, transform=ax.transAxes)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[max(len(panels) - columns, 0) : len(panels)]:
        ax.set_xlabel(xlabel)
        ax.tick_params(labelbottom=True)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=2, labelcolor="linecolor")
    return fig


@rc_context(STYLE)
def gains_of_seeds(judges: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One row per judge: a tick for the mean gain, its interval a bar, below it a dot a training.

    Args:
        judges: name to {"gain_by_seed", "mean_gain", "mean_gain_interval"}: the gain of each
            training, their mean, and its 95% interval (low, high).

    Raises:
        DataError: for no judge.
    """
    if not judges:
        raise DataError("gains_of_seeds got no judges: give at least one")
    fig = new_figure(7.5, 1.1 + 0.8 * len(judges))
    ax = fig.add_subplot()
    for y, (name, result) in enumerate(judges.items()):
        colour, marker, _ = mark_of(name, (BLUE, "o", BLUE))
        gains, (low, high) = result["gain_by_seed"], result["mean_gain_interval"]
        ax.plot([low, high], [y, y], color=GREY, linewidth=7, alpha=0.45, solid_capstyle="butt")
        ax.plot(result["mean_gain"], y, "|", color=INK, markersize=22, markeredgewidth=2.5)
        ax.plot(gains, np.full(len(gains), y + 0.3), marker, color=colour, markersize=5)
        ax.annotate(
            f"{result['mean_gain']:.2f} ({low:.2f} to {high:.2f})", (result["mean_gain"], y),
            (0, 14), textcoords="offset points", ha="center", fontsize=10,
        )  # fmt: skip
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(judges)), list(judges), parse_math=False)
    ax.set_ylim(len(judges) - 0.5, -0.6)
    ax.set_xlabel("mean gain (marks: single trainings; bar: 95% interval of all)")
    ax.grid(axis="y", visible=False)
    return fig
