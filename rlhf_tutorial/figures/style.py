"""One look for all figures: colours, fonts, and the parts that several of them use.

Figures are made without pyplot: nothing global changes, no figure stays open, and the last line of
a notebook cell shows one. The background is opaque white, so that a figure reads the same in a
light and in a dark notebook. Colours are those of Okabe and Ito (2008, "Color Universal Design"),
which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from pandas import DataFrame


BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8A8A8A", "#222222"
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)

Mark: TypeAlias = tuple[str, str, str]
"""A colour, a marker, and the colour inside the marker."""
MARKS: dict[str, Mark] = {
    "without PPO": (INK, "s", "white"),
    "with PPO": (BLUE, "o", BLUE),
    "default run": (BLUE, "o", BLUE),
    "16 answers": (BLUE, "o", BLUE),  # a step: the default run
    "long run": (GREEN, "D", GREEN),
    "64 answers": (GREEN, "D", GREEN),  # a step: the long run
}
"""What has one look in every figure, by what is in its name: see `mark_of`.

The rest goes by meaning, too. Blue is what was trained, what is right, and a mean. Grey is what it
is compared with: the reference, the policy before, a healthy run, single batches. Vermillion is
what is wrong: worse, broken, misleading, beyond a limit. What chance would give is `CHANCE`.
"""
CHANCE: dict[str, Any] = {"color": INK, "linewidth": 1.2, "linestyle": ":"}

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
PIXELS_WIDE = 1600
"""Width of the pictures that are written to files."""

Stats: TypeAlias = "Sequence[Mapping[str, Any]] | DataFrame"
"""Rows of numbers by name, for instance what a training recorded at each step."""


class NotebookFigure(Figure):
    """A figure that notebooks display. They display matplotlib's own only if pyplot made them."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Drawn with twice the pixels of the width it is shown at, for high-resolution screens.
        inches = self.get_size_inches()[0]
        width = round(min(100 * inches, 1000))
        return png_bytes(self, dpi=2 * width / inches), {"width": width}


def mark_of(name: str, otherwise: Mark) -> Mark:
    """The look in `MARKS` whose words are in the name, or the other one."""
    return next((mark for words, mark in MARKS.items() if words in name), otherwise)


def moving_mean(values: ArrayLike, window: int) -> np.ndarray:
    """At each value, the mean of the last `window` values, or of all so far where these are fewer.

    Args:
        values: (n,) numbers.
        window: how many values are in a mean.

    Returns:
        (n,) means.

    Raises:
        DataError: if `window` is below 1.
    """
    if window < 1:
        raise DataError(f"the moving mean got window={window}: use 1 or more")
    numbers = np.asarray(values, dtype=float)
    return np.array([numbers[max(0, i + 1 - window) : i + 1].mean() for i in range(len(numbers))])


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> NotebookFigure:
    """An empty figure, width and height in inches."""
    return NotebookFigure(figsize=(width, height), layout=layout, facecolor="white")


def png_bytes(fig: Figure, dpi: float) -> bytes:
    """The figure as a PNG of at most 256 colours, `dpi` pixels per inch."""
    from PIL import Image

    drawn, buffer = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=dpi, facecolor="white")
    # 256 colours are enough for a chart and make a third of the size: notebooks hold the pictures.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        buffer, format="png", optimize=True
    )
    return buffer.getvalue()


def written(fig: Figure, path: str | Path | None) -> Figure:
    """The same figure; given a path, it is also written there as a PNG, `PIXELS_WIDE` wide."""
    if path is not None:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png_bytes(fig, dpi=PIXELS_WIDE / fig.get_size_inches()[0]))
    return fig


def columns_of(stats: Stats, keys: Sequence[str], what: str = "stats") -> dict[str, np.ndarray]:
    """Key to its numbers, one per row: (n,) each.

    Args:
        stats: n rows.
        keys: the columns wanted.
        what: what an error message calls `stats`.

    Raises:
        DataError: for no rows, or a row that lacks a key.
    """
    if len(stats) == 0:
        raise DataError(f"no rows in the {what}: there is nothing to plot yet")
    if hasattr(stats, "columns"):  # a DataFrame; isinstance would need pandas imported
        table = cast("DataFrame", stats)
        _check_keys(set(table.columns), keys, f"the {what}")
        return {key: table[key].to_numpy(dtype=float) for key in keys}
    for i, row in enumerate(stats):
        _check_keys(row.keys(), keys, f"row {i} of the {what}")
    return {key: np.array([float(row[key]) for row in stats]) for key in keys}


def _check_keys(present: Collection[str], keys: Sequence[str], where: str) -> None:
    if missing := [key for key in keys if key not in present]:
        raise DataError(f"{where} has no {missing[0]!r}: it is needed for this figure")


def finite_array(values: ArrayLike, name: str) -> np.ndarray:
    """The values as an array of floats.

    Raises:
        DataError: for no values, or one that is NaN or infinite; the message starts with `name`.
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.size == 0:
        raise DataError(f"{name}: nothing to plot, the list is empty")
    if not np.isfinite(numbers).all():
        i = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise DataError(
            f"{name}: value {i} is {numbers[i]}, which cannot be plotted; drop it first"
        )
    return numbers


def two_decimals(value: float) -> str:
    """The number as it is printed in a figure, with the minus sign that matplotlib's axes have."""
    text = f"{value:.2f}".replace("-", "−")
    return "0.00" if text == "−0.00" else text


def add_headroom(ax: Axes, factor: float) -> None:
    """Start the y axis at 0 and make its top `factor` times as high, for the legend to fit in."""
    ax.set_ylim(0, ax.get_ylim()[1] * factor)
