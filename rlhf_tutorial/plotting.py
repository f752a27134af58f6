"""The course's figures, and a reward curve that grows while the policy trains.

Every function returns a `matplotlib.figure.Figure` made without pyplot: nothing global changes, no
figure stays open, and the last line of a notebook cell shows it. The background is opaque white, so
that a figure reads the same in a light and in a dark notebook. Colours are those of Okabe and Ito
(2008, "Color Universal Design"), which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from pandas import DataFrame

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8A8A8A", "#222222"
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
    "font.size": 11,
    "text.color": INK,
    "axes.facecolor": "white",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
}

SCORE_KEY, STD_KEY, KL_KEY = "ppo/mean_scores", "ppo/std_scores", "objective/kl"
DIAGNOSTICS = (
    (SCORE_KEY, "Score by the reward model"),
    (KL_KEY, "KL from the reference (nats per response)"),
    ("ppo/policy/entropy", "Entropy of the policy (nats per token)"),
    ("ppo/policy/clipfrac", "Share of tokens where the clip acted"),
    ("ppo/val/var_explained", "Value head: share of variance explained"),
    ("tokens/responses_len_mean", "Response length (tokens)"),
)
PIXELS_WIDE = 1600

Stats: TypeAlias = "Sequence[Mapping[str, Any]] | DataFrame"


class NotebookFigure(Figure):
    """A figure that shows itself in a notebook; without pyplot, matplotlib's own do not."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Twice the resolution at which it is shown, for screens with fine pixels.
        inches = self.get_size_inches()[0]
        width = round(min(100 * inches, 1000))
        return _png(self, dpi=2 * width / inches), {"width": width}


def moving_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of the last `window` values up to each one (of all so far at the start); (n,) to (n,).

    Raises:
        DataError: if `window` is below 1.
    """
    if window < 1:
        raise DataError(f"the moving mean got window={window}: use 1 or more")
    values = np.asarray(values, dtype=float)
    return np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])


class LiveCurve:
    """A reward curve that grows in place below a notebook cell while the loop runs.

    It shows each batch's mean score (thin), the mean of the last `window` batches (thick), and the
    KL from the reference below. Outside a notebook it draws and prints nothing, so that the same
    loop runs in a script. The picture is replaced, not added to: a saved notebook holds one.

        with LiveCurve(total_steps=96) as curve:
            for batch in trainer.dataloader:
                ...
                curve.update(trainer.step(queries, responses, scores))
    """

    def __init__(
        self, total_steps: int | None = None, window: int = 10, min_seconds: float = 2.0
    ) -> None:
        """
        Args:
            total_steps: length of the step axis; without it the axis grows.
            window: batches in the moving mean.
            min_seconds: least time between two drawings. The last state is drawn in any case.
        """
        moving_mean([], window)  # refuse a wrong window before the training, not after
        self.total_steps, self.window, self.min_seconds = total_steps, window, min_seconds
        self.scores: list[float] = []
        self.kls: list[float] = []
        self._handle: Any = None
        self._drawn_at, self._drawn_steps = -float("inf"), 0

    def __enter__(self) -> LiveCurve:
        return self

    def update(self, stats: Mapping[str, Any]) -> None:
        """Take in one step's stats, and draw if the last drawing is old enough.

        Raises:
            DataError: if the stats lack the mean score or the KL.
        """
        columns = _columns([stats], (SCORE_KEY, KL_KEY))
        self.scores.append(columns[SCORE_KEY].item())
        self.kls.append(columns[KL_KEY].item())
        if time.monotonic() - self._drawn_at >= self.min_seconds:
            self._show()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._drawn_steps < len(self.scores):
            self._show()

    def figure(self) -> Figure:
        """The curve as it stands.

        Raises:
            DataError: before the first update.
        """
        if not self.scores:
            raise DataError("the live curve has no step yet: call update(stats) first")
        return _live_figure(self.scores, self.kls, self.total_steps, self.window)

    def _show(self) -> None:
        if not _in_notebook():
            return
        from IPython.display import Image, display

        width, height = 720, 400
        image = Image(
            _png(self.figure(), dpi=150),
            format="png",
            width=width,
            height=height,
            alt=f"Mean score and KL over {len(self.scores)} PPO steps",
        )
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)
        # Measured from the end of the drawing, so that drawing never takes most of the time.
        self._drawn_at, self._drawn_steps = time.monotonic(), len(self.scores)


@rc_context(STYLE)
def reward_curve(
    stats: Stats,
    window: int = 10,
    path: str | Path | None = None,
    batch_size: int | None = None,
) -> Figure:
    """Figure 2: the mean score of each batch and the mean over the last `window` batches.

    Args:
        stats: what `PPOTrainer.step` returned, one mapping a step, or a DataFrame of the same.
        path: a PNG to write as well, 1600 pixels wide.
        batch_size: responses per step. Given, each batch's mean gets a band of plus and minus one
            standard error, std / sqrt(batch_size): what a rise must be held against.

    Raises:
        DataError: for no steps, or steps without the scores.
    """
    keys = (SCORE_KEY,) if batch_size is None else (SCORE_KEY, STD_KEY)
    columns = _columns(stats, keys)
    scores = columns[SCORE_KEY]
    smooth = moving_mean(scores, window)
    steps = np.arange(1, len(scores) + 1)
    fig = _figure(8.0, 4.2)
    ax = fig.add_subplot()
    if batch_size is not None:
        if batch_size < 1:
            raise DataError(f"reward_curve got batch_size={batch_size}: use 1 or more")
        error = columns[STD_KEY] / np.sqrt(batch_size)
        ax.fill_between(
            steps,
            scores - error,
            scores + error,
            color=SKY,
            alpha=0.28,
            linewidth=0,
            label="± 1 standard error of the batch mean",
        )
    _score_lines(ax, steps, scores, smooth, window)
    ax.set(xlabel="step", ylabel="mean score by the reward model")
    _step_axis(ax, len(scores))
    ax.legend(loc="lower right")
    return _finish(fig, path)


@rc_context(STYLE)
def diagnostics(stats: Stats, window: int = 10) -> Figure:
    """Six panels that tell a healthy run from a sick one; the stats' keys are in small type.

    Args:
        stats: as in `reward_curve`.
        window: batches in the thick moving mean.

    Raises:
        DataError: for no steps, or steps without one of the six numbers.
    """
    columns = _columns(stats, [key for key, _ in DIAGNOSTICS])
    fig = _figure(12.0, 6.2)
    fig.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for ax, (key, title) in zip(fig.subplots(2, 3).flat, DIAGNOSTICS, strict=True):
        values = columns[key]
        steps = np.arange(1, len(values) + 1)
        marker = "o" if len(values) == 1 else None
        ax.plot(steps, values, color=GREY, linewidth=0.9, alpha=0.8, marker=marker)
        ax.plot(steps, moving_mean(values, window), color=BLUE, linewidth=2.2, marker=marker)
        ax.set_title(title, fontsize=10.5, pad=20)
        ax.text(0, 1.03, key, transform=ax.transAxes, fontsize=8.5, color=GREY, family="monospace")
        ax.set_xlabel("step")
        ax.ticklabel_format(axis="y", useOffset=False)  # it would be printed over the key
        _step_axis(ax, len(values))
        if key == "ppo/val/var_explained":
            _explained_axis(ax, values)
    return fig


@rc_context(STYLE)
def before_after(table: DataFrame) -> Figure:
    """The scores before and after training, and the gain of each prompt, sorted.

    Args:
        table: one row per prompt with "score_before" and "score_after" (see `compare`).

    Raises:
        DataError: for a missing column, no rows, or scores that are not finite.
    """
    columns = _columns(table, ("score_before", "score_after"), what="comparison table")
    before, after = (_finite(columns[name], name) for name in ("score_before", "score_after"))
    gains = np.sort(after - before)
    fig = _figure(11.0, 4.2)
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.1))

    edges = _bin_edges(np.concatenate([before, after]), bins=int(np.clip(len(gains) // 4, 8, 30)))
    for name, values, colour in (("before", before, GREY), ("after", after, BLUE)):
        label = f"{name}: mean {_signed(values.mean())}"
        left.hist(values, edges, color=colour, alpha=0.45, label=label)
        left.hist(values, edges, color=colour, histtype="step", linewidth=1.5)
        left.axvline(values.mean(), ymax=0.86, color=colour, linewidth=2, linestyle="--")
    left.set(xlabel="score by the reward model", ylabel="prompts", title="Scores")
    _headroom(left, 1.25)
    left.legend(loc="upper left", ncols=2)
    left.grid(axis="x", visible=False)

    colours = np.where(gains > 0, BLUE, np.where(gains < 0, VERMILLION, GREY))
    right.bar(np.arange(1, len(gains) + 1), gains, width=1.0 if len(gains) > 60 else 0.8,
              color=colours)  # fmt: skip
    right.axhline(0, color=INK, linewidth=0.8)
    right.axhline(gains.mean(), color=INK, linewidth=1.5, linestyle="--",
                  label=f"mean gain {_signed(gains.mean())}")  # fmt: skip
    better, worse = (gains > 0).sum(), (gains < 0).sum()
    title = f"Gain of each prompt: {better} better, {worse} worse"
    if tied := len(gains) - better - worse:
        title += f", {tied} tied"
    right.set(xlabel="prompts, sorted by gain", ylabel="score after − before", title=title)
    right.legend(loc="upper left")
    right.grid(axis="x", visible=False)
    return fig


@rc_context(STYLE)
def token_heatmap(
    tokens: Sequence[str],
    rows: Mapping[str, Sequence[float]],
    centers: Mapping[str, float] | None = None,
    tokens_per_line: int = 16,
) -> Figure:
    """The tokens of one response with one or more numbers each, coloured and printed.

    Each row has its own scale: white at its centre, blue above, red below, full colour at the
    largest distance from the centre in that row.

    Args:
        tokens: T decoded tokens.
        rows: name of the quantity to its T values. NaN leaves a cell empty.
        centers: name to the value that is white; 0 where not given.
        tokens_per_line: a longer response is broken into several lines.

    Raises:
        DataError: for no tokens, no rows, rows of another length, or an unknown name in `centers`.
    """
    centers = dict(centers or {})
    if not tokens or not rows:
        raise DataError("token_heatmap needs at least one token and one row of values")
    for name, values in rows.items():
        if len(values) != len(tokens):
            raise DataError(
                f"token_heatmap row {name!r} has {len(values)} values for {len(tokens)} tokens: "
                "give one value per token"
            )
    if unknown := sorted(centers.keys() - rows.keys()):
        raise DataError(f"token_heatmap centers name {unknown[0]!r}, which is not among the rows")

    from matplotlib import colormaps

    cmap = colormaps["RdBu"]
    values = np.array([np.asarray(row, dtype=float) for row in rows.values()])
    offsets = values - np.array([[centers.get(name, 0.0)] for name in rows])
    spans = np.array([np.abs(row[np.isfinite(row)]).max(initial=0.0) for row in offsets])
    # 0.85: the ends of the colour map are too dark for the printed number.
    shades = 0.5 + 0.5 * 0.85 * offsets / np.where(spans > 0, spans, 1.0)[:, None]

    labels = [_printable(token) for token in tokens]
    steep = max(map(len, labels)) > 8
    lines = -(-len(tokens) // tokens_per_line)
    columns = min(len(tokens), tokens_per_line)
    height = lines * (0.42 * len(rows) + (0.95 if steep else 0.55)) + 0.1
    fig = _figure(max(3.0, 0.72 * columns + 0.095 * max(map(len, rows)) + 0.3), height)
    for line, ax in enumerate(np.atleast_1d(fig.subplots(lines, 1))):
        here = range(line * tokens_per_line, min((line + 1) * tokens_per_line, len(tokens)))
        block = cmap(shades[:, here.start : here.stop])
        block[~np.isfinite(values[:, here.start : here.stop])] = 1.0
        ax.pcolormesh(block, edgecolors="white", linewidth=1.5)
        for y, x in np.ndindex(len(rows), len(here)):
            value = values[y, here.start + x]
            dark = block[y, x, :3] @ (0.299, 0.587, 0.114) < 0.55
            ax.text(
                x + 0.5,
                y + 0.5,
                _signed(value) if np.isfinite(value) else "–",
                ha="center",
                va="center",
                fontsize=10,
                color="white" if dark else INK,
            )
        ax.set(xlim=(0, columns), ylim=(len(rows), 0))
        ax.xaxis.tick_top()
        turn = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if steep else {}
        ax.set_xticks(
            np.arange(len(here)) + 0.5, [labels[i] for i in here], parse_math=False, **turn
        )
        ax.set_yticks(np.arange(len(rows)) + 0.5, list(rows), parse_math=False)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return fig


@rc_context(STYLE)
def along_response(
    tokens: Sequence[str], lines: Mapping[str, Sequence[float]], ylabel: str | None = None
) -> Figure:
    """Quantities along one response, a line each, with its tokens below.

    Args:
        tokens: T decoded tokens.
        lines: name of the quantity to its T values; the first is drawn thick.

    Raises:
        DataError: for no tokens, no lines, or lines of another length.
    """
    if not tokens or not lines:
        raise DataError("along_response needs at least one token and one line of values")
    fig = _figure(max(5.0, 0.62 * len(tokens) + 1.2), 3.4)
    ax = fig.subplots()
    ax.axhline(0, color=GREY, linewidth=0.8)
    looks = ("-", "--", "-", ":")
    for i, (name, values) in enumerate(lines.items()):
        values = _finite(values, name)
        if len(values) != len(tokens):
            raise DataError(
                f"along_response line {name!r} has {len(values)} values for {len(tokens)} tokens: "
                "give one value per token"
            )
        ax.plot(
            values,
            looks[i % len(looks)],
            color=CYCLE[i % len(CYCLE)],
            linewidth=2.4 if i == 0 else 1.6,
            marker="o",
            markersize=5 if i == 0 else 3.5,
            label=name,
        )
    labels = [_printable(token) for token in tokens]
    turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(np.arange(len(tokens)), labels, parse_math=False, **turn)
    ax.set_xlim(-0.4, len(tokens) - 0.6)
    ax.set_ylabel(ylabel or "")
    ax.legend(loc="best")
    return fig


@rc_context(STYLE)
def batch_layout(attention_mask: ArrayLike, mask: ArrayLike) -> Figure:
    """How queries and responses lie side by side in a PPO batch (see `ppo.rollout.collate`).

    Args:
        attention_mask: (B, Q + T), 1 at real tokens.
        mask: (B, T), 1 at the response tokens that count.

    Raises:
        DataError: if the shapes do not fit together.
    """
    attention, counts = np.asarray(attention_mask), np.asarray(mask)
    if attention.ndim != 2 or counts.ndim != 2 or len(attention) != len(counts):
        raise DataError(
            f"batch_layout got masks of shapes {attention.shape} and {counts.shape}: "
            "use the attention_mask and mask of one batch"
        )
    start = attention.shape[1] - counts.shape[1]
    kinds = np.where(attention > 0, 1, 0)
    kinds[:, start:] = np.where(counts > 0, 2, 3 * kinds[:, start:])

    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    names = ("padding", "query", "response, trained on", "response, read but not trained on")
    colours = ("#ECECEC", SKY, BLUE, ORANGE)
    present = [kind for kind in range(4) if (kinds == kind).any()]
    fig = _figure(9.0, 1.2 + 0.2 * len(kinds))
    ax = fig.add_subplot()
    ax.pcolormesh(
        kinds, cmap=ListedColormap(colours), vmin=-0.5, vmax=3.5, edgecolors="white", linewidth=0.8
    )
    ax.axvline(start, color=VERMILLION, linewidth=2)
    ax.set(xlabel="column", ylabel="row", ylim=(len(kinds), 0))
    ax.set_yticks(np.arange(len(kinds))[::5] + 0.5, np.arange(len(kinds))[::5])
    ax.grid(False)
    ax.legend(
        handles=[Patch(facecolor=colours[kind], label=names[kind]) for kind in present],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(present),
    )
    return fig


@rc_context(STYLE)
def clipped_objective(
    ratio: Sequence[float], advantages: Sequence[float], cliprange: float
) -> Figure:
    """PPO's loss of one token against its probability ratio, and where a batch's tokens lie on it.

    One panel for tokens of positive and one for tokens of negative advantage, both for an advantage
    of size 1. Orange dots lie where the clip acts: the curve is flat, the token pushes no further.

    Args:
        ratio, advantages: one per response token, padding left out.
        cliprange: eps.

    Raises:
        DataError: for no tokens, lists of unequal length, or values that are not finite.
    """
    ratio, advantages = _finite(ratio, "ratio"), _finite(advantages, "advantages")
    if len(ratio) != len(advantages):
        raise DataError(
            f"{len(ratio)} ratios but {len(advantages)} advantages: give one of each per token"
        )
    reach = max(2 * cliprange, 1.05 * np.abs(ratio - 1).max())
    low, high = max(0.0, 1 - reach), 1 + reach
    grid = np.linspace(low, high, 400)
    fig = _figure(10.0, 3.8)
    panels = ((1, "advantage above 0: make likelier"), (-1, "advantage below 0: make less likely"))
    for ax, (sign, title) in zip(fig.subplots(1, 2), panels, strict=True):

        def loss(r: np.ndarray, sign: int = sign) -> np.ndarray:
            return np.maximum(-sign * r, -sign * r.clip(1 - cliprange, 1 + cliprange))

        here = ratio[np.sign(advantages) == sign]
        flat = here > 1 + cliprange if sign > 0 else here < 1 - cliprange
        ax.axvspan(1 - cliprange, 1 + cliprange, color="#F4F4F4", zorder=0)
        ax.plot(grid, -sign * grid, color=GREY, linewidth=1.2, linestyle="--", label="no clip")
        ax.plot(grid, loss(grid), color=INK, linewidth=1.8, label="clipped")
        for dots, colour, name in ((here[~flat], BLUE, "moving"), (here[flat], ORANGE, "stopped")):
            label = f"{len(dots)} token{'' if len(dots) == 1 else 's'}, {name}"
            ax.plot(dots, loss(dots), "o", color=colour, markersize=6, alpha=0.6, mew=0,
                    label=label)  # fmt: skip
        ax.set(xlabel="ratio, new / old probability", title=title, xlim=(low, high))
        ax.legend(loc="best", fontsize=9)
        if sign > 0:
            ax.set_ylabel("loss for an advantage of size 1")
    return fig


@rc_context(STYLE)
def score_histogram(
    groups: Mapping[str, Sequence[float]],
    title: str = "Scores by the reward model",
    xlabel: str = "score",
) -> Figure:
    """One strip per group of answers on a common axis: do good answers score above bad ones?

    Args:
        groups: name to scores, drawn from top to bottom. Bars are shares of the group.

    Raises:
        DataError: for no groups, an empty group, or scores that are not finite.
    """
    if not groups:
        raise DataError("score_histogram got no groups: give at least one list of scores")
    scores = {name: _finite(values, f"group {name!r}") for name, values in groups.items()}
    edges = _bin_edges(np.concatenate(list(scores.values())), bins=32)
    fig = _figure(8.0, 0.9 + 0.95 * len(scores))
    axes = np.atleast_1d(fig.subplots(len(scores), 1, sharex=True, sharey=True))
    for i, (ax, (name, values)) in enumerate(zip(axes, scores.items(), strict=True)):
        colour = CYCLE[i % len(CYCLE)]
        shares = np.full(len(values), 1 / len(values))
        ax.hist(values, edges, weights=shares, color=colour, alpha=0.55)
        ax.axvline(values.mean(), color=colour, linewidth=2.2)
        ax.set_ylabel(
            f"{name}\nn = {len(values)}", rotation=0, ha="right", va="center", parse_math=False
        )
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.annotate(
            f"mean {_signed(values.mean())}",
            (1, 0.98),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=10,
        )
    _headroom(axes[0], 1.15)
    axes[0].set_title(title)
    axes[-1].set_xlabel(f"{xlabel} (line: the group's mean)")
    return fig


@rc_context(STYLE)
def perplexity_bars(
    rows: Sequence[Mapping[str, Any]], xlabel: str = "perplexity (lower: less surprised)"
) -> Figure:
    """Bars with intervals, one per row of the perplexity table.

    Args:
        rows: {"label", "value", "low", "high"} each, drawn from top to bottom.

    Raises:
        DataError: for no rows, a missing field, or an interval that does not hold its value.
    """
    if not rows:
        raise DataError("perplexity_bars got no rows: give at least one {label, value, low, high}")
    for row in rows:
        if missing := [key for key in ("label", "value", "low", "high") if key not in row]:
            raise DataError(f"perplexity_bars row {dict(row)} has no {missing[0]!r}")
        if not row["low"] <= row["value"] <= row["high"]:
            raise DataError(
                f"perplexity_bars row {row['label']!r}: the interval {row['low']} to {row['high']} "
                f"does not hold the value {row['value']}"
            )
    values, low, high = (np.array([float(r[k]) for r in rows]) for k in ("value", "low", "high"))
    y = np.arange(len(rows))
    fig = _figure(7.5, 0.9 + 0.5 * len(rows))
    ax = fig.add_subplot()
    ax.barh(y, values, height=0.62, color=SKY)
    ax.errorbar(
        values, y, xerr=(values - low, high - values), fmt="none", ecolor=INK, capsize=4, lw=1.4
    )
    for place, end, value in zip(y, high, values, strict=True):
        ax.annotate(f"{value:.2f}", (end, place), (7, 0), textcoords="offset points", va="center")
    ax.set_yticks(y, [str(row["label"]) for row in rows], parse_math=False)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, 1.12 * high.max())
    ax.set_xlabel(f"{xlabel}; lines: the interval")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    return fig


@rc_context(STYLE)
def length_histogram(
    lengths: Sequence[int],
    limit: int = 100,
    xlabel: str = "length of the prompt (characters)",
    ylabel: str = "prompts",
) -> Figure:
    """How long the prompts are, and how many are shorter than the limit and therefore kept.

    Args:
        lengths: one per prompt, before any is dropped. Beyond five times the limit they are only
            counted.

    Raises:
        DataError: for no lengths or a limit below 1.
    """
    if limit < 1:
        raise DataError(f"length_histogram got limit={limit}: use 1 or more")
    lengths = _finite(lengths, "lengths")
    width = max(1, limit // 20)
    top = np.clip(lengths.max() + 1, 1.15 * limit, 5 * limit)
    # The limit is the edge of a bar, so that no bar is half kept.
    first = limit % width - width
    edges = np.arange(first, top + width, width)
    beyond = int((lengths >= edges[-1]).sum())
    kept = lengths < limit
    fig = _figure(8.0, 3.6)
    ax = fig.add_subplot()
    for values, colour, name in (
        (lengths[kept], BLUE, f"kept: {kept.sum():,} shorter than {limit}"),
        (lengths[~kept], GREY, f"dropped: {(~kept).sum():,}"),
    ):
        shown = values[values < edges[-1]]
        ax.hist(shown, edges, color=colour, edgecolor="white", linewidth=0.5, label=name)
    ax.axvline(limit, color=VERMILLION, linewidth=2, linestyle="--", label=f"limit: {limit}")
    if beyond:
        xlabel += f"; {beyond:,} of {int(edges[-1])} or more not shown"
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, edges[-1]))
    _headroom(ax, 1.35)
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right" if edges[-1] > 1.6 * limit else "upper left")
    return fig


@rc_context(STYLE)
def plan_diagram(path: str | Path | None = None) -> Figure:
    """Figure 1: the plan of the experiment, one turn of the loop.

    Args:
        path: a PNG to write as well, 1600 pixels wide.
    """
    fig = _figure(16.0, 8.6, layout=None)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 160), ylim=(0, 86))
    ax.axis("off")

    plain: Look = (INK, "white", "-")
    trained: Look = (BLUE, "#E1EFF8", "-")
    frozen: Look = (GREY, "#F1F1F1", (0, (4, 2)))
    result: Look = (GREEN, "#E0F3ED", "-")
    prompts = _draw_box(
        ax, _Box(3, 35, 22, 20), "Prompts", "short requests\nin the policy's\ntemplate", plain
    )
    policy = _draw_box(ax, _Box(38, 40, 25, 15), "Policy", "the chat model", trained)
    value = _draw_box(ax, _Box(38, 28, 25, 12), "Value head", "the reward to expect", trained)
    reference = _draw_box(
        ax, _Box(38, 68, 25, 15), "Reference", "the policy as it was\nbefore training", frozen
    )
    responses = _draw_box(ax, _Box(75, 35, 21, 20), "Responses", "sampled from\nthe policy", plain)
    kl = _draw_box(ax, _Box(75, 68, 21, 15), "KL", "how far from\nthe reference?", result)
    judge = _draw_box(
        ax, _Box(106, 35, 22, 20), "Reward\nmodel", "reads the prompt\nand the response", frozen
    )
    reward = _draw_box(ax, _Box(139, 35, 18, 20), "Reward", "score − β KL", result)
    update = _draw_box(
        ax,
        _Box(38, 4, 119, 13),
        "PPO update",
        "Tokens that earned more than the value head expected become likelier, within the clip.",
        result,
    )

    _arrow(ax, [prompts.right(47), policy.left(47)])
    _arrow(ax, [policy.right(45), responses.left(45)])
    _arrow(ax, [responses.right(), judge.left()])
    _arrow(ax, [judge.right(), reward.left()], "score", beside=(133, 47))
    _arrow(ax, [policy.top(59), reference.bottom(59)], "copied\nonce", beside=(63.5, 61.5))
    _arrow(ax, [responses.top(), kl.bottom()], r"$\log\,\pi$", beside=(89, 61.5))
    _arrow(ax, [reference.right(), kl.left()], r"$\log\,\pi_{\mathrm{ref}}$", beside=(68.5, 78))
    _arrow(ax, [kl.right(), (148, 75.5), reward.top()], "KL penalty", beside=(121, 77.5))
    _arrow(ax, [reward.bottom(), update.top(148)])
    _arrow(ax, [value.bottom(), update.top(50.5)], "values", beside=(55, 22.5))
    _arrow(
        ax,
        [update.left(), (31, 10.5), (31, 42), policy.left(42)],
        "new\nweights",
        beside=(26, 22.5),
        colour=BLUE,
        width=3.5,
    )
    _badge(ax, 39.8, 59, "1", "generate")
    _badge(ax, 107.5, 59, "2", "score")
    _badge(ax, 76.5, 21, "3", "step")
    key = ((81, trained, "trained"), (75.5, frozen, "frozen"), (70, result, "computed in step 3"))
    for y, look, text in key:
        _draw_box(ax, _Box(3, y - 1.6, 6, 3.2), "", "", look)
        ax.text(11, y, text, va="center", fontsize=14)
    return _finish(fig, path)


# Parts ---------------------------------------------------------------------------------------


def _figure(width: float, height: float, layout: str | None = "constrained") -> NotebookFigure:
    return NotebookFigure(figsize=(width, height), layout=layout, facecolor="white")


def _png(fig: Figure, dpi: float) -> bytes:
    from PIL import Image

    drawn, buffer = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=dpi, facecolor="white")
    # 256 colours are enough for a chart, and a third of the size: notebooks carry these pictures.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        buffer, format="png", optimize=True
    )
    return buffer.getvalue()


def _finish(fig: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(fig, dpi=PIXELS_WIDE / fig.get_size_inches()[0]))
    return fig


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; a terminal, even IPython's, can show no picture."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _columns(stats: Stats, keys: Sequence[str], what: str = "stats") -> dict[str, np.ndarray]:
    """Each key's numbers over the rows, (n,) each."""
    if len(stats) == 0:
        raise DataError(f"no rows in the {what}: there is nothing to plot yet")
    if hasattr(stats, "columns"):
        rows, names = None, [set(stats.columns)]
    else:
        rows, names = stats, [row.keys() for row in stats]
    for i, present in enumerate(names):
        if missing := [key for key in keys if key not in present]:
            where = f"row {i} of the {what}" if rows is not None else f"the {what}"
            raise DataError(f"{where} has no {missing[0]!r}: it is needed for this figure")
    if rows is None:
        return {key: stats[key].to_numpy(dtype=float) for key in keys}
    return {key: np.array([float(row[key]) for row in rows]) for key in keys}


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise DataError(f"{name}: nothing to plot, the list is empty")
    if not np.isfinite(values).all():
        i = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"{name}: value {i} is {values[i]}, which cannot be plotted; drop it first")
    return values


def _bin_edges(values: np.ndarray, bins: int) -> np.ndarray:
    low, high = values.min(), values.max()
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _signed(value: float) -> str:
    text = f"{value:.2f}".replace("-", "−")  # the minus sign that matplotlib's axes use
    return "0.00" if text == "−0.00" else text


def _headroom(ax: Axes, factor: float) -> None:
    ax.set_ylim(0, ax.get_ylim()[1] * factor)


def _step_axis(ax: Axes, total: int) -> None:
    ax.set_xlim(0.5, max(total, 2) + 0.5)
    ax.xaxis.get_major_locator().set_params(integer=True)


def _score_lines(
    ax: Axes, steps: np.ndarray, scores: np.ndarray, smooth: np.ndarray, window: int
) -> None:
    marker = "o" if len(steps) == 1 else None  # a line through one point shows nothing
    ax.plot(steps, scores, color=SKY, linewidth=1.0, marker=marker, label="each batch")
    ax.plot(
        steps,
        smooth,
        color=BLUE,
        linewidth=2.6,
        marker=marker,
        label=f"mean of the last {window} batches (now {_signed(smooth[-1])})",
    )


@rc_context(STYLE)
def _live_figure(
    scores: list[float], kls: list[float], total_steps: int | None, window: int
) -> Figure:
    steps = np.arange(1, len(scores) + 1)
    fig = _figure(7.2, 4.0)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    _score_lines(top, steps, np.array(scores), moving_mean(scores, window), window)
    of_total = f" of {total_steps}" if total_steps else ""
    top.set(ylabel="mean score", title=f"Step {len(scores)}{of_total}")
    top.legend(loc="lower right", fontsize=9)
    bottom.plot(steps, kls, color=VERMILLION, marker="o" if len(kls) == 1 else None)
    bottom.set(ylabel="KL (nats per\nresponse)", xlabel="step")
    _step_axis(bottom, max(total_steps or 0, len(scores)))
    fig.align_ylabels()
    return fig


def _explained_axis(ax: Axes, values: np.ndarray) -> None:
    """From -1 to 1: an untrained value head can start at -50, which would flatten all the rest."""
    ax.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
    ax.set_ylim(max(-1.0, min(np.nanmin(values, initial=0.0) - 0.1, -0.1)), 1.0)
    if below := int((values < -1).sum()):
        text = f"{below} step{'s' if below > 1 else ''} below −1"
        ax.text(0.98, 0.04, text, transform=ax.transAxes, ha="right", fontsize=9, color=GREY)


def _printable(token: str, longest: int = 14) -> str:
    """The token on one line, white space and characters the font lacks made visible."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    text = token.strip(" ") or "␣" * len(token) or "∅"
    text = text.replace("\n", "↵").replace("\t", "⇥")
    text = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "▯" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


@dataclass(frozen=True)
class _Box:
    """A box of the plan, and where arrows meet its sides."""

    x: float
    y: float
    width: float
    height: float

    def left(self, y: float | None = None) -> tuple[float, float]:
        return self.x, self.y + self.height / 2 if y is None else y

    def right(self, y: float | None = None) -> tuple[float, float]:
        return self.x + self.width, self.y + self.height / 2 if y is None else y

    def bottom(self, x: float | None = None) -> tuple[float, float]:
        return self.x + self.width / 2 if x is None else x, self.y

    def top(self, x: float | None = None) -> tuple[float, float]:
        return self.x + self.width / 2 if x is None else x, self.y + self.height


Look = tuple[str, str, Any]  # edge colour, fill colour, line style


def _draw_box(ax: Axes, box: _Box, name: str, text: str, look: Look) -> _Box:
    from matplotlib.patches import FancyBboxPatch

    edge, fill, line = look
    ax.add_patch(
        FancyBboxPatch(
            (box.x, box.y),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=1.2",
            edgecolor=edge,
            facecolor=fill,
            linestyle=line,
            linewidth=2.2,
        )
    )
    x, y = box.x + box.width / 2, box.y + box.height / 2
    # The name and the text are centred together; 3.1 and 2.4 are the heights of their lines.
    names, lines = 3.1 * (1 + name.count("\n")), 2.4 * (1 + text.count("\n"))
    top = y + (names + lines) / 2
    ax.text(x, top - names / 2, name, ha="center", va="center", fontsize=18, weight="bold")
    ax.text(x, top - names - lines / 2, text, ha="center", va="center", fontsize=14)
    return box


def _arrow(
    ax: Axes,
    points: list[tuple[float, float]],
    text: str = "",
    *,
    beside: tuple[float, float] = (0, 0),
    colour: str = INK,
    width: float = 2.0,
) -> None:
    """A line through the points with a head at the last one; the text is centred at `beside`."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    ax.add_patch(
        FancyArrowPatch(
            path=Line(points),
            arrowstyle="-|>,head_length=8,head_width=5",
            color=colour,
            linewidth=width,
            joinstyle="miter",
            capstyle="butt",
            shrinkA=0,
            shrinkB=0,
        )
    )
    if text:
        ax.text(*beside, text, ha="center", va="center", fontsize=14)


def _badge(ax: Axes, x: float, y: float, number: str, text: str) -> None:
    """The number of a step in a disc, and its name."""
    ax.plot(x, y, "o", markersize=27, color=VERMILLION, zorder=3)
    ax.text(x, y, number, ha="center", va="center_baseline", fontsize=17, weight="bold",
            color="white", zorder=4)  # fmt: skip
    ax.text(x + 2.6, y, text, va="center_baseline", fontsize=17, weight="bold", color=VERMILLION)
