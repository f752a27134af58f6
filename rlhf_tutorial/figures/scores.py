"""Scores, perplexities and lengths of prompts: how they are distributed, what training changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..errors import DataError
from .style import (
    BLUE,
    CHANCE,
    GREEN,
    GREY,
    INK,
    STYLE,
    VERMILLION,
    add_headroom,
    columns_of,
    finite_array,
    mark_of,
    new_figure,
    two_decimals,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from pandas import DataFrame


@rc_context(STYLE)
def before_after(table: DataFrame) -> Figure:
    """The scores before and after training, and the gain of each prompt, each of them sorted.

    Args:
        table: a row per prompt with "score_before" and "score_after" (see `evaluation.compare`).

    Raises:
        DataError: for a missing column, no rows, or scores that are not finite.
    """
    columns = columns_of(table, ("score_before", "score_after"), what="comparison table")
    before, after = (finite_array(columns[name], name) for name in ("score_before", "score_after"))
    gains = np.sort(after - before)
    fig = new_figure(11.0, 4.2)
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.1))

    places, middle = np.arange(1, len(gains) + 1), len(gains) // 2
    for name, values, colour, line, shift, ha, va in (
        ("before", before, GREY, "--", (8, -8), "left", "top"),
        ("after", after, BLUE, "-", (-8, 8), "right", "bottom"),
    ):
        ordered = np.sort(values)
        left.plot(places, ordered, color=colour, linewidth=2.5, linestyle=line)
        left.annotate(
            f"{name}: mean {two_decimals(values.mean())}", (places[middle], ordered[middle]), shift,
            textcoords="offset points", ha=ha, va=va, color=colour if name == "after" else INK,
        )  # fmt: skip
    left.set(xlabel="answers, sorted by score", ylabel="score (grades)", title="Scores")
    left.grid(axis="x", visible=False)

    colours = np.where(gains > 0, BLUE, np.where(gains < 0, VERMILLION, GREY))
    right.bar(places, gains, width=1.0 if len(gains) > 60 else 0.8,
              color=colours)  # fmt: skip
    right.axhline(0, color=INK, linewidth=0.8)
    right.axhline(gains.mean(), color=INK, linewidth=1.5, linestyle="--")
    right.annotate(
        f"mean gain {two_decimals(gains.mean())}", (places[0], gains.mean()), (0, 4),
        textcoords="offset points", va="bottom",
    )  # fmt: skip
    better, worse = (gains > 0).sum(), (gains < 0).sum()
    title = f"Gain of each prompt: {better} better, {worse} worse"
    if tied := len(gains) - better - worse:
        title += f", {tied} tied"
    right.set(xlabel="prompts, sorted by gain", ylabel="score after − before", title=title)
    right.grid(axis="x", visible=False)
    return fig


@rc_context(STYLE)
def score_histogram(
    groups: Mapping[str, ArrayLike], title: str, xlabel: str, sides: tuple[str, str]
) -> Figure:
    """One histogram per group of changes, on a common axis: how many fell, how many rose?

    Args:
        groups: name to changes, drawn from top to bottom. The heights of a group's bars are shares
            of that group; they add up to 1.
        title: above the first histogram.
        xlabel: what the changes are, below the last one.
        sides: what a change below 0 means, which is for the better, and one above it.

    Raises:
        DataError: for no groups, an empty group, or scores that are not finite.
    """
    if not groups:
        raise DataError("score_histogram got no groups: give at least one list of changes")
    scores = {name: finite_array(values, f"group {name!r}") for name, values in groups.items()}
    edges = _bin_edges(np.concatenate(list(scores.values())), bins=32)
    fig = new_figure(8.0, 0.9 + 0.95 * len(scores))
    axes = np.atleast_1d(fig.subplots(len(scores), 1, sharex=True, sharey=True))
    for ax, (name, values) in zip(axes, scores.items(), strict=True):
        shares = np.full(len(values), 1 / len(values))
        for bar in ax.hist(values, edges, weights=shares)[2]:
            bar.set_facecolor(BLUE if bar.get_x() < 0 else VERMILLION)
        ax.axvline(values.mean(), ymax=0.8, color=INK, linewidth=2.2)
        ax.axvline(0, color=INK, linewidth=1, linestyle=":", zorder=0.9)
        ax.set_ylabel(
            f"{name}\nn = {len(values)}", rotation=0, ha="right", va="center", parse_math=False
        )
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.annotate(
            f"mean {two_decimals(values.mean())}", (values.mean(), 0.76), (6, 0),
            xycoords=ax.get_xaxis_transform(), textcoords="offset points", va="top", fontsize=10,
        )  # fmt: skip
    add_headroom(axes[0], 1.45)
    low, high = axes[0].get_xlim()
    axes[0].set_xlim(min(low, -0.25 * high), max(high, -0.25 * low))  # the two names need room
    for text, side, shift, colour in zip(
        sides, ("right", "left"), (-6, 6), (BLUE, VERMILLION), strict=True
    ):
        axes[0].annotate(
            text, (0, 0.98), (shift, 0), xycoords=axes[0].get_xaxis_transform(), color=colour,
            textcoords="offset points", ha=side, va="top", fontsize=10,
        )  # fmt: skip
    axes[0].set_title(title)
    axes[-1].set_xlabel(f"{xlabel} (line: the group's mean)")
    return fig


@rc_context(STYLE)
def margins(groups: Mapping[str, ArrayLike]) -> Figure:
    """The margin of each pair, score of the better answer minus that of the other, sorted.

    A panel per group, all on one scale. Pairs in the wrong order have a margin below 0 and are
    hatched; how many of each hundred they are is said there.

    Args:
        groups: title of the panel to the margins of its pairs, (n,).

    Raises:
        DataError: for no groups, a group without pairs, or margins that are not finite.
    """
    if not groups:
        raise DataError("no groups given: there is nothing to plot")
    fig = new_figure(3.4 * len(groups) + 0.6, 3.6)
    axes = np.atleast_1d(fig.subplots(1, len(groups), sharey=True))
    for ax, (title, values) in zip(axes, groups.items(), strict=True):
        sizes = np.sort(finite_array(values, f"group {title!r}"))
        share = 100 * (np.arange(len(sizes)) + 0.5) / len(sizes)
        wrong = 100 * (np.mean(sizes < 0) + np.mean(sizes == 0) / 2)
        ax.fill_between(share, sizes.clip(min=0), color=BLUE, alpha=0.65, linewidth=0)
        ax.fill_between(
            share, sizes.clip(max=0), facecolor="white", edgecolor=VERMILLION, hatch="////",
            linewidth=1,
        )  # fmt: skip
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.set(xlim=(0, 100), xlabel=f"% of {len(sizes)} pairs, by margin", title=title)
        for x, y, text, colour in (
            (0.03, 0.73, f"{100 - wrong:.0f}% right:\nbetter answer\nscored higher", BLUE),
            (0.32, 0.06, f"{wrong:.0f}% wrong:\nworse answer\nscored higher", VERMILLION),
        ):
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            ax.text(x, y, text, transform=ax.transAxes, color=colour, fontsize=10, bbox=ground)
    axes[0].set_ylabel("score of the better answer\nminus score of the worse")
    return fig


@rc_context(STYLE)
def shares(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    xlabel: str,
    lines: Mapping[str, float],
) -> Figure:
    """A dot with its interval for each share, by name from top to bottom, in a panel or more.

    Args:
        panels: title to name to {"value"} and, where there is an interval, {"low", "high"}. The
            first panel has all names.
        xlabel: what the shares are.
        lines: what chance would give, by label; a vertical line in each panel.

    Raises:
        DataError: without a panel, or with one that has no share.
    """
    if not panels or not all(panels.values()):
        raise DataError("no shares given: there is nothing to plot")
    names = list(next(iter(panels.values())))
    fig = new_figure(3.2 + 3.6 * len(panels), 1.0 + 0.38 * len(names))
    axes = np.atleast_1d(fig.subplots(1, len(panels), sharex=True, sharey=True))
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        for label, share in lines.items():
            ax.axvline(100 * share, **CHANCE)
            ax.text(100 * share, -0.68, f" {label}", va="top")
        for y, name in enumerate(names):
            if name not in rows:
                continue
            value = 100 * rows[name]["value"]
            low, high = (100 * rows[name].get(end, rows[name]["value"]) for end in ("low", "high"))
            ax.plot([low, high], [y, y], color=BLUE, linewidth=1.6)
            ax.plot(value, y, "o", color=BLUE, markersize=6)
            ax.annotate(
                f"{value:.0f}%", (value, y), (0, 5), textcoords="offset points", ha="center",
                va="bottom", fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
        ax.set(title=title, xlabel=xlabel, xlim=(-7, 103), ylim=(len(names) - 0.4, -0.7))
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), names, parse_math=False)
    return fig


@rc_context(STYLE)
def bars_with_intervals(rows: Sequence[Mapping[str, Any]], xlabel: str) -> Figure:
    """Bars with intervals, one per row of a table.

    Args:
        rows: {"label", "value", "low", "high"} each, drawn from top to bottom; a line from "low"
            to "high" is the interval. Where "ppo" is true, the bar has the training's colour (see
            `style.MARKS`) or is blue, else it's grey.
        xlabel: what the values are.

    Raises:
        DataError: for no rows, a missing field, or an interval that does not hold its value.
    """
    if not rows:
        raise DataError(
            "bars_with_intervals got no rows: give at least one {label, value, low, high}"
        )
    for row in rows:
        if missing := [key for key in ("label", "value", "low", "high") if key not in row]:
            raise DataError(f"bars_with_intervals row {dict(row)} has no {missing[0]!r}")
        if not row["low"] <= row["value"] <= row["high"]:
            raise DataError(
                f"bars_with_intervals row {row['label']!r}: the interval {row['low']} to "
                f"{row['high']} does not hold the value {row['value']}"
            )
    values, low, high = (np.array([float(r[k]) for r in rows]) for k in ("value", "low", "high"))
    y = np.arange(len(rows))
    fig = new_figure(7.5, 0.9 + 0.5 * len(rows))
    ax = fig.add_subplot()
    blue = (BLUE, "o", BLUE)
    colours = [mark_of(str(r["label"]), blue)[0] if r.get("ppo") else "#BDBDBD" for r in rows]
    ax.barh(y, values, height=0.62, color=colours)
    ax.errorbar(
        values, y, xerr=(values - low, high - values), fmt="none", ecolor=INK, capsize=4, lw=1.4
    )
    for place, end, value in zip(y, high, values, strict=True):
        ax.annotate(f"{value:.2f}", (end, place), (7, 0), textcoords="offset points", va="center")
    ax.set_yticks(y, [str(row["label"]) for row in rows], parse_math=False)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, 1.12 * high.max())
    ax.set_xlabel(f"{xlabel}; lines: 95% intervals")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    return fig


@rc_context(STYLE)
def dots_with_intervals(
    rows: Sequence[Mapping[str, Any]],
    xlabel: str,
    *,
    even: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A dot with its interval for each row of a table; rows of one label share a line.

    Args:
        rows: {"label", "group", "value", "low", "high"} each; labels are drawn from top to bottom
            in the order in which they come first, and each group has a marker and a colour: see
            `style.MARKS`.
        xlabel: what the values are.
        even: where neither side is ahead: a vertical line.
        limits: ends of the axis; by default what the intervals need.

    Raises:
        DataError: for no rows, more than three groups, or an interval that does not hold its value.
    """
    if not rows:
        raise DataError("dots_with_intervals got no rows: give at least one")
    labels = list(dict.fromkeys(str(row["label"]) for row in rows))
    groups = list(dict.fromkeys(str(row["group"]) for row in rows))
    looks = ((INK, "s", "white"), (BLUE, "o", BLUE), (GREEN, "D", GREEN))
    if len(groups) > len(looks):
        raise DataError(f"dots_with_intervals got {len(groups)} groups: it has marks for three")
    marks = [mark_of(name, look) for name, look in zip(groups, looks, strict=False)]
    several = len(rows) > len(labels)
    fig = new_figure(7.5, 1.1 + (0.58 if several else 0.42) * len(labels))
    ax = fig.add_subplot()
    for name, (colour, marker, face) in zip(groups, marks, strict=True):
        for row in (row for row in rows if row["group"] == name):
            value, low, high = (float(row[key]) for key in ("value", "low", "high"))
            if not low <= value <= high:
                raise DataError(
                    f"dots_with_intervals row {row['label']!r}: the interval {low} to {high} does "
                    f"not hold the value {value}"
                )
            y = labels.index(str(row["label"])) + (several and 0.36 * groups.index(name) - 0.18)
            ax.plot([low, high], [y, y], color=colour, linewidth=1.6)
            ax.plot(
                value, y, marker, markersize=6, color=colour, markerfacecolor=face,
                markeredgewidth=1.8, label=name,
            )  # fmt: skip
            ax.annotate(
                row.get("text", two_decimals(value)), (high, y), (8, 0), va="center",
                textcoords="offset points", color=colour, fontsize=10,
            )  # fmt: skip
    if even is not None:
        ax.axvline(even, **CHANCE)
    ax.set_yticks(range(len(labels)), labels, parse_math=False)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    low, high = ax.get_xlim()
    ax.set_xlim(limits or (low, high + 0.1 * (high - low)))
    ax.set_xlabel(f"{xlabel}; lines: 95% intervals")
    if len(groups) > 1:
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        fig.legend(handles.values(), handles, loc="outside upper right", ncols=len(groups))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    return fig


@rc_context(STYLE)
def ended_and_cut(sides: Mapping[str, tuple[float, float, float]]) -> Figure:
    """A mean grade as an area: a block of answers that ended, and one of those that were cut off.

    Args:
        sides: title of a panel to the share of answers that ended, their mean grade, and that of
            the others. A block is as wide as its share and as high as its mean grade.

    Raises:
        DataError: without a panel, or for a share beyond 0 to 1.
    """
    if not sides:
        raise DataError("ended_and_cut got no panels: give at least one")
    fig = new_figure(4.0 * len(sides), 3.2)
    axes = np.atleast_1d(fig.subplots(1, len(sides), sharey=True))
    for ax, (title, (share, whole, cut)) in zip(axes, sides.items(), strict=True):
        if not 0 <= share <= 1:
            raise DataError(f"ended_and_cut, {title!r}: a share of {share}, where 0 to 1 is meant")
        for left, width, grade, colour, hatch, name in (
            (0.0, share, whole, BLUE, None, "ended"),
            (share, 1 - share, cut, GREY, "//", "cut off"),
        ):
            ax.bar(
                100 * left, grade, 100 * width, align="edge", color=colour, alpha=0.6,
                edgecolor="white", hatch=hatch,
            )  # fmt: skip
            narrow = width < 0.3  # than its label
            place = (100, grade / 2) if narrow else (100 * (left + width / 2), grade)
            ax.annotate(
                f"{name}:\n{two_decimals(grade)}" if narrow else f"{name}: {two_decimals(grade)}",
                place, (4, 0) if narrow else (0, 4), textcoords="offset points",
                ha="left" if narrow else "center", va="center" if narrow else "bottom",
            )  # fmt: skip
        mean = share * whole + (1 - share) * cut
        ax.set(
            title=f"{title}: mean {two_decimals(mean)}", xlabel="% of the answers", xlim=(0, 122)
        )
        ax.set_xticks(range(0, 101, 25))
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("mean grade")
    add_headroom(axes[0], 1.15)
    return fig


@rc_context(STYLE)
def length_histogram(
    lengths: ArrayLike,
    limit: int = 100,
    xlabel: str = "length of the prompt (characters)",
    ylabel: str = "prompts",
) -> Figure:
    """How long the prompts are, and how many are shorter than the limit and therefore kept.

    Args:
        lengths: one per prompt, before any is dropped. Those beyond five times the limit are
            counted below the axis, not drawn.
        limit: a prompt is kept if it is shorter than this, in the unit of the lengths.
        xlabel: what the lengths are.
        ylabel: what is counted.

    Raises:
        DataError: for no lengths, a length that is not finite, or a limit below 1.
    """
    if limit < 1:
        raise DataError(f"length_histogram got limit={limit}: use 1 or more")
    measured = finite_array(lengths, "lengths")
    width = max(1, limit // 20)
    top = np.clip(measured.max() + 1, 1.15 * limit, 5 * limit)
    # One edge is at the limit, so that no bar holds both kept and dropped prompts.
    first = limit % width - width
    edges = np.arange(first, top + width, width)
    bins = cast("Sequence[float]", edges)  # matplotlib's types know no array here
    beyond = int((measured >= edges[-1]).sum())
    kept = measured < limit
    fig = new_figure(8.0, 3.6)
    ax = fig.add_subplot()
    for values, colour, name in (
        (measured[kept], BLUE, f"kept: {kept.sum():,} shorter than {limit}"),
        (measured[~kept], GREY, f"dropped: {(~kept).sum():,}"),
    ):
        shown = values[values < edges[-1]]
        if len(values):
            ax.hist(shown, bins, color=colour, edgecolor="white", linewidth=0.5, label=name)
    ax.axvline(limit, color=VERMILLION, linewidth=2, linestyle="--", label=f"limit: {limit}")
    if beyond:
        xlabel += f"; {beyond:,} of {int(edges[-1])} or more not shown"
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, edges[-1]))
    add_headroom(ax, 1.35)
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right" if edges[-1] > 1.6 * limit else "upper left")
    return fig


def _bin_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Edges of some `bins` equally wide bins over all values; 0, where it is among them, is one."""
    low, high = values.min(), values.max()
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / bins
    return width * np.arange(np.floor(low / width), np.ceil(high / width) + 2)
