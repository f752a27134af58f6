"""How a training goes: the reward curve, six diagnostics, and a curve drawn during training."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from ..errors import DataError
from .style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    STYLE,
    VERMILLION,
    Stats,
    columns_of,
    moving_mean,
    new_figure,
    png_bytes,
    two_decimals,
)

SCORE_KEY, STD_KEY, KL_KEY = "ppo/mean_scores", "ppo/std_scores", "objective/kl"
LENGTH_KEY = "tokens/responses_len_mean"

KL_COEF_KEY = "objective/kl_coef"
OBJECTIVE = "mean_scores − kl_coef × kl"

DIAGNOSTICS = (
    (OBJECTIVE, "What PPO maximises: score − β KL"),
    (KL_KEY, "KL from the reference (nats per answer)"),
    ("ppo/policy/entropy", "Entropy of the policy (nats per token)"),
    ("ppo/policy/clipfrac", "Share of tokens where the clip acted"),
    ("ppo/val/var_explained", "Value head: share of variance explained"),
    (LENGTH_KEY, "Answer length (tokens)"),
)
"""Keys of the stats and their titles: the panels of `diagnostics`. The first is of three keys."""

HEALTHY = {
    KL_KEY: (0.0, 10.0),
    "ppo/policy/clipfrac": (0.0, 0.2),
    "ppo/val/var_explained": (0.0, 1.0),
}
"""Where a rule of thumb has a sound run (docs/metrics.md): the shaded bands of `diagnostics`.

That of the KL is for answers of a sentence or so.
"""

TOO_LARGE = {"ppo/policy/clipfrac": 1 / 3}
"""From where on the same page calls a number too large: the hatched zones."""


class LiveCurve:
    """A reward curve below a notebook cell, drawn anew again and again while the loop runs.

    It shows each batch's mean score (thin), the mean of the last `window` batches (thick), and the
    KL from the reference below. Outside a notebook it draws and prints nothing, so that the same
    loop runs in a script. Each picture replaces the one before: a saved notebook holds only one.

        with LiveCurve(total_steps=96) as curve:
            for batch in trainer.dataloader:
                ...
                curve.update(trainer.step(queries, responses, scores))
    """

    def __init__(
        self,
        total_steps: int | None = None,
        window: int = 10,
        min_seconds: float = 2.0,
        note: str = "",
    ) -> None:
        """
        Args:
            total_steps: where the axis of steps ends; without it the axis grows.
            window: batches in the moving mean.
            min_seconds: the least time between two drawings. The end is drawn in any case.
            note: stands behind the number of the step, as who labelled.

        Raises:
            DataError: if `window` is below 1.
        """
        moving_mean([], window)  # raises for a wrong window now, before the training
        self.total_steps, self.window, self.min_seconds = total_steps, window, min_seconds
        self.note = note
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
        columns = columns_of([stats], (SCORE_KEY, KL_KEY))
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
        """The curve of all steps so far.

        Raises:
            DataError: before the first update.
        """
        if not self.scores:
            raise DataError("the live curve has no step yet: call update(stats) first")
        return _live_figure(self.scores, self.kls, self.total_steps, self.window, self.note)

    def _show(self) -> None:
        if not _in_notebook():
            return
        from IPython.display import Image, display

        width, height = 720, 400
        image = Image(
            png_bytes(self.figure(), dpi=150),
            format="png",
            width=width,
            height=height,
            # Not as `alt`, which Colab's IPython 7 does not know.
            metadata={"alt": f"Mean score and KL over {len(self.scores)} PPO steps"},
        )
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)
        # The time after the drawing, so that slow drawings do not take up most of the training.
        self._drawn_at, self._drawn_steps = time.monotonic(), len(self.scores)


@rc_context(STYLE)
def reward_curve(
    stats: Stats,
    window: int = 10,
    batch_size: int | None = None,
) -> Figure:
    """Each batch's mean score, and the mean of the first and of the last `window` batches.

    Args:
        stats: what `PPOTrainer.step` returned, a mapping per step, or a DataFrame of the same.
        window: batches at each end; half of them, if there are fewer than twice as many.
        batch_size: answers per step. If given, every mean has its standard error: a bar for a
            batch, std / sqrt(batch_size), and a band for the two ends.

    Raises:
        DataError: for no steps, steps without the scores (or, with `batch_size`, without their
            standard deviation), or a window or batch size below 1.
    """
    if window < 1:
        raise DataError(f"reward_curve got window={window}: use 1 or more")
    if batch_size is not None and batch_size < 1:
        raise DataError(f"reward_curve got batch_size={batch_size}: use 1 or more")
    keys = (SCORE_KEY,) if batch_size is None else (SCORE_KEY, STD_KEY)
    columns = columns_of(stats, keys)
    scores = columns[SCORE_KEY]
    steps = np.arange(1, len(scores) + 1)
    errors = columns[STD_KEY] / np.sqrt(batch_size) if batch_size else np.zeros(len(scores))
    fig = new_figure(8.0, 4.2)
    ax = fig.add_subplot()
    ax.plot(steps, scores, "o", color=GREY, markersize=5)
    if batch_size:
        ax.vlines(steps, scores - errors, scores + errors, color=GREY, linewidth=1.2)
    size = min(window, max(1, len(scores) // 2))
    for which, end, ha in (
        ("first", slice(0, size), "left"),
        ("last", slice(-size, None), "right"),
    ):
        mean, error = scores[end].mean(), np.sqrt((errors[end] ** 2).sum()) / size
        x = steps[end][0] - 0.4, steps[end][-1] + 0.4
        ax.plot(x, (mean, mean), color=BLUE, linewidth=2.8)
        label = f"{which} {size}: {two_decimals(mean)}"
        if batch_size:
            ax.fill_between(x, mean - error, mean + error, color=BLUE, alpha=0.25, linewidth=0)
            label += f" ± {two_decimals(error)}"
        # At the height that no batch reaches, so that no dot is under the words.
        at = x[0] if ha == "left" else x[1]
        top = ax.get_xaxis_transform()
        ax.text(at, 0.97, label, color=BLUE, ha=ha, va="top", fontsize=12, transform=top)
    low, high = (scores - errors).min(), (scores + errors).max()
    ax.set_ylim(low - 0.05 * (high - low + 0.1), high + 0.15 * (high - low + 0.1))
    ax.set(xlabel="step", ylabel="mean score by the training judge")
    _step_axis(ax, len(scores))
    return fig


@rc_context(STYLE)
def diagnostics(stats: Stats, window: int = 10, limit: int | None = None) -> Figure:
    """Six panels by which to tell a good run from a failing one, each with its key in `stats`.

    A green band is `HEALTHY`, a hatched zone `TOO_LARGE`.

    Args:
        stats: as in `reward_curve`.
        window: batches in the moving mean, drawn thick.
        limit: the most tokens that an answer may have, drawn as a line.

    Raises:
        DataError: for no steps, a step that lacks one of the numbers, or a window below 1.
    """
    read = [key for key, _ in DIAGNOSTICS if key != OBJECTIVE]
    columns = columns_of(stats, [SCORE_KEY, KL_COEF_KEY, *read])
    columns[OBJECTIVE] = columns[SCORE_KEY] - columns[KL_COEF_KEY] * columns[KL_KEY]
    fig = new_figure(12.0, 6.2)
    layout = cast(ConstrainedLayoutEngine, fig.get_layout_engine())
    layout.set(w_pad=0.12, h_pad=0.12)  # inches
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
        if key in HEALTHY:
            ax.axhspan(*HEALTHY[key], color=GREEN, alpha=0.12, linewidth=0)
        if key in TOO_LARGE:
            low = TOO_LARGE[key]
            ax.set_ylim(None, max(1.2 * low, ax.get_ylim()[1]))
            ax.axhspan(
                low, 1, facecolor="none", edgecolor=VERMILLION, hatch="////", alpha=0.5, linewidth=0
            )
            ax.text(1, low, "too large", fontsize=9, color=VERMILLION, va="top")
        if key == LENGTH_KEY and limit is not None:
            ax.axhline(limit, color=INK, linewidth=1.2, linestyle="--")
            ax.annotate(
                f"limit: {limit}", (len(values), limit), (0, -3), textcoords="offset points",
                ha="right", va="top", fontsize=9,
            )  # fmt: skip
    return fig


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code; a terminal, even IPython's, shows no pictures."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _step_axis(ax: Axes, total: int) -> None:
    """Make the x axis hold the steps 1 to `total`, with ticks at whole steps only."""
    ax.set_xlim(0.5, max(total, 2) + 0.5)
    locator = cast(MaxNLocator, ax.xaxis.get_major_locator())
    locator.set_params(integer=True)


def _score_lines(
    ax: Axes, steps: np.ndarray, scores: np.ndarray, smooth: np.ndarray, window: int
) -> None:
    """Draw the scores and their moving mean `smooth` against the steps; (n,) each."""
    marker = "o" if len(steps) == 1 else None  # a line through one point shows nothing
    ax.plot(steps, scores, color=GREY, linewidth=1.0, marker=marker, label="each batch")
    ax.plot(
        steps,
        smooth,
        color=BLUE,
        linewidth=2.6,
        marker=marker,
        label=f"mean of the last {window} batches (now {two_decimals(smooth[-1])})",
    )


@rc_context(STYLE)
def _live_figure(
    scores: list[float], kls: list[float], total_steps: int | None, window: int, note: str
) -> Figure:
    steps = np.arange(1, len(scores) + 1)
    fig = new_figure(7.2, 4.0)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    _score_lines(top, steps, np.array(scores), moving_mean(scores, window), window)
    of_total = f" of {total_steps}" if total_steps else ""
    title = "; ".join(filter(None, [f"Step {len(scores)}{of_total}", note]))
    top.set(ylabel="mean score", title=title)
    top.legend(loc="lower right", fontsize=9)
    bottom.plot(steps, kls, color=BLUE, marker="o" if len(kls) == 1 else None)
    bottom.set(ylabel="KL (nats per\nanswer)", xlabel="step")
    _step_axis(bottom, max(total_steps or 0, len(scores)))
    fig.align_ylabels()
    return fig


def _explained_axis(ax: Axes, values: np.ndarray) -> None:
    """Make the y axis end at 1 and reach down to -1 at most; say how many values are below.

    An untrained value head can start at -50, and on an axis down to there the rest would be flat.
    """
    ax.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
    ax.set_ylim(max(-1.0, min(np.nanmin(values, initial=0.0) - 0.1, -0.1)), 1.0)
    if below := int((values < -1).sum()):
        text = f"{below} step{'s' if below > 1 else ''} below −1"
        ax.text(0.98, 0.04, text, transform=ax.transAxes, ha="right", fontsize=9, color=GREY)
