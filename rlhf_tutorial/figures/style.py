"""One look for all figures: colours, fonts, and the parts that several of them use.

Figures are made without pyplot: nothing global changes, no figure stays open, and the last line of
a notebook cell shows one. The background is opaque white, so that a figure reads the same in a
light and in a dark notebook. Colours are those of Okabe and Ito (2008, "Color Universal Design"),
which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import DataError

if TYPE_CHECKING:
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
PIXELS_WIDE = 1600
Stats: TypeAlias = "Sequence[Mapping[str, Any]] | DataFrame"


class NotebookFigure(Figure):
    """A figure that shows itself in a notebook; without pyplot, matplotlib's own do not."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Twice the resolution at which it is shown, for screens with fine pixels.
        inches = self.get_size_inches()[0]
        width = round(min(100 * inches, 1000))
        return png_bytes(self, dpi=2 * width / inches), {"width": width}


def moving_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of the last `window` values up to each one (of all so far at the start); (n,) to (n,).

    Raises:
        DataError: if `window` is below 1.
    """
    if window < 1:
        raise DataError(f"the moving mean got window={window}: use 1 or more")
    values = np.asarray(values, dtype=float)
    return np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])


def new_figure(width: float, height: float, layout: str | None = "constrained") -> NotebookFigure:
    return NotebookFigure(figsize=(width, height), layout=layout, facecolor="white")


def png_bytes(fig: Figure, dpi: float) -> bytes:
    from PIL import Image

    drawn, buffer = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=dpi, facecolor="white")
    # 256 colours are enough for a chart, and a third of the size: notebooks carry these pictures.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        buffer, format="png", optimize=True
    )
    return buffer.getvalue()


def finish(fig: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(fig, dpi=PIXELS_WIDE / fig.get_size_inches()[0]))
    return fig


def columns_of(stats: Stats, keys: Sequence[str], what: str = "stats") -> dict[str, np.ndarray]:
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


def finite(values: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise DataError(f"{name}: nothing to plot, the list is empty")
    if not np.isfinite(values).all():
        i = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"{name}: value {i} is {values[i]}, which cannot be plotted; drop it first")
    return values


def signed(value: float) -> str:
    text = f"{value:.2f}".replace("-", "−")  # the minus sign that matplotlib's axes use
    return "0.00" if text == "−0.00" else text


def headroom(ax: Axes, factor: float) -> None:
    ax.set_ylim(0, ax.get_ylim()[1] * factor)
