"""One PPO step in detail: numbers of each token, the layout of a batch, the clipped objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon

from ..errors import DataError
from .style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    STYLE,
    VERMILLION,
    finite_array,
    new_figure,
    two_decimals,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

QUANTITIES = {"value": (BLUE, "-"), "return": (INK, "--"), "advantage": (GREEN, "-")}
"""Colour and dashes of a quantity that is drawn as a line."""
FURTHEST = 7.5
"""How many clip ranges from 1 the axis of a ratio ends."""


@rc_context(STYLE)
def token_heatmap(
    tokens: Sequence[str],
    rows: Mapping[str, Sequence[float] | np.ndarray],
    scale: float | None = None,
    tokens_per_line: int = 16,
) -> Figure:
    """The tokens of one response, and below each its numbers, printed on coloured cells.

    White is 0, blue above it, red below, where a corner of the cell is cut off as well.

    Args:
        tokens: T decoded tokens.
        rows: name of the quantity to its T values. NaN leaves a cell empty.
        scale: the size from which on the colour is at its strongest, for rows and figures that are
            to be compared; None for each row's own largest.
        tokens_per_line: a longer response is broken into several lines.

    Raises:
        DataError: for no tokens, no rows, rows of another length, or a scale that is not above 0.
    """
    if scale is not None and not scale > 0:
        raise DataError(f"token_heatmap got scale={scale}: use a number above 0")
    if not tokens or not rows:
        raise DataError("token_heatmap needs at least one token and one row of values")
    for name, row in rows.items():
        if len(row) != len(tokens):
            raise DataError(
                f"token_heatmap row {name!r} has {len(row)} values for {len(tokens)} tokens: "
                "give one value per token"
            )

    from matplotlib import colormaps

    cmap = colormaps["RdBu"]
    values = np.array([np.asarray(row, dtype=float) for row in rows.values()])
    largest = [np.abs(row[np.isfinite(row)]).max(initial=0.0) or 1.0 for row in values]
    spans = np.array([[scale or own] for own in largest])
    # 0.85: the ends of the colour map are too dark for the printed number.
    shades = 0.5 + 0.5 * 0.85 * (values / spans).clip(-1, 1)

    labels = [_printable(token) for token in tokens]
    steep = max(map(len, labels)) > 8
    lines = -(-len(tokens) // tokens_per_line)
    columns = min(len(tokens), tokens_per_line)
    height = lines * (0.42 * len(rows) + (0.95 if steep else 0.55)) + 0.1
    fig = new_figure(max(3.0, 0.72 * columns + 0.095 * max(map(len, rows)) + 0.3), height)
    for line, ax in enumerate(np.atleast_1d(fig.subplots(lines, 1))):
        here = range(line * tokens_per_line, min((line + 1) * tokens_per_line, len(tokens)))
        block = cmap(shades[:, here.start : here.stop])
        block[~np.isfinite(values[:, here.start : here.stop])] = 1.0
        ax.pcolormesh(block, edgecolors="white", linewidth=1.5)
        for y, x in np.argwhere(values[:, here.start : here.stop] < -0.005):  # printed as below 0
            # White is not seen on a pale cell: whose corner is missing is clearly below 0.
            corner = ((x, y + 1), (x + 0.3, y + 1), (x, y + 0.5))
            ax.add_patch(Polygon(corner, color="white", linewidth=0))
        for y, x in np.ndindex(len(rows), len(here)):
            value = values[y, here.start + x]
            dark = block[y, x, :3] @ (0.299, 0.587, 0.114) < 0.55
            ax.text(
                x + 0.5,
                y + 0.5,
                two_decimals(value) if np.isfinite(value) else "–",
                ha="center",
                va="center",
                fontsize=10,
                color="white" if dark else INK,
            )
        ax.set(xlim=(0, columns), ylim=(len(rows), 0))
        ax.xaxis.tick_top()
        turn: dict[str, Any] = (
            {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if steep else {}
        )
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
    tokens: Sequence[str], lines: Mapping[str, ArrayLike], ylabel: str | None = None
) -> Figure:
    """Quantities along one response, a line each, named at its end; the tokens on the x axis.

    The first word of a name chooses the colour: a value is blue in every picture, a return dark
    and dashed, an advantage green. A second line of the same quantity is thin and dotted.

    Args:
        tokens: T decoded tokens.
        lines: name of the quantity to its T values; the first is drawn thick.
        ylabel: what the quantities have in common, for instance their unit.

    Raises:
        DataError: for no tokens, no lines, lines of another length, or values that are not finite.
    """
    if not tokens or not lines:
        raise DataError("along_response needs at least one token and one line of values")
    fig = new_figure(max(5.0, 0.36 * len(tokens) + 1.8), 3.6)
    ax = fig.subplots()
    ax.axhline(0, color=GREY, linewidth=0.8)
    ends: list[tuple[float, str, str]] = []
    drawn: set[str] = set()
    for i, (name, values) in enumerate(lines.items()):
        quantity = name.split(" ")[0]
        colour, look = QUANTITIES.get(quantity, (CYCLE[i % len(CYCLE)], "-"))
        look = ":" if quantity in drawn else look
        drawn.add(quantity)
        numbers = finite_array(values, name)
        if len(numbers) != len(tokens):
            raise DataError(
                f"along_response line {name!r} has {len(numbers)} values for {len(tokens)} tokens: "
                "give one value per token"
            )
        ax.plot(
            numbers,
            look,
            color=colour,
            linewidth=2.4 if i == 0 else 1.6,
            marker="o",
            markersize=5 if i == 0 else 3.5,
        )
        ends.append((numbers[-1], name, colour))
    gap, below = (ax.get_ylim()[1] - ax.get_ylim()[0]) / 12, -np.inf
    for end, name, colour in sorted(ends):
        below = max(end, below + gap)
        ax.annotate(
            name,
            (len(tokens) - 1, below),
            (9, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )
    labels = [_printable(token) for token in tokens]
    turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(np.arange(len(tokens)), labels, parse_math=False, **turn)
    ax.set_xlim(-0.4, len(tokens) - 0.6)
    ax.set_ylabel(ylabel or "")
    return fig


@rc_context(STYLE)
def batch_layout(attention_mask: ArrayLike, mask: ArrayLike) -> Figure:
    """Where prompts, answers and padding are in a PPO batch (see `ppo.rollout.collate`).

    Args:
        attention_mask: (B, Q + T), 1 at real tokens: Q columns of queries, then T of responses.
        mask: (B, T), 1 at the response tokens that are trained on.

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

    colours = ("#ECECEC", SKY, BLUE, ORANGE)
    fig = new_figure(9.0, 1.2 + 0.2 * len(kinds))
    ax = fig.add_subplot()
    ax.pcolormesh(
        kinds, cmap=ListedColormap(colours), vmin=-0.5, vmax=3.5, edgecolors="white", linewidth=0.8
    )
    ax.axvline(start, color=VERMILLION, linewidth=2)
    ax.set(xlabel="column", ylabel="row", ylim=(len(kinds), 0))
    ax.set_yticks(np.arange(len(kinds))[::5] + 0.5, np.arange(len(kinds))[::5])
    ax.grid(False)
    for said, column, side in (
        ("padding", 0, "left"),
        ("prompts ", start, "right"),
        (" answers", start, "left"),
        ("padding", attention.shape[1], "right"),
    ):
        ax.annotate(
            said, (column, 0), (0, 4), textcoords="offset points", ha=side, va="bottom",
            annotation_clip=False,
        )  # fmt: skip
    if (kinds == 3).any():
        patch = Patch(facecolor=ORANGE, label="answer, read but not trained on")
        fig.legend(handles=[patch], loc="outside upper right")
    return fig


@rc_context(STYLE)
def clipped_objective(ratio: ArrayLike, advantages: ArrayLike, cliprange: float) -> Figure:
    """PPO's loss of one token against its probability ratio, and where a batch's tokens lie on it.

    One panel is for tokens of positive advantage, one for those of negative; the curves are for an
    advantage of size 1. Tokens where the clip acts are open circles: the curve is flat there, so
    that they have no gradient. Tokens that went further than `FURTHEST` clips are counted at the
    edge. Of those that left the band the wrong way, the one that went furthest is named.

    Args:
        ratio: (N,) new over old probability of each response token, padding left out.
        advantages: (N,) of the same tokens; only their signs are used.
        cliprange: the clip acts below 1 - cliprange or above 1 + cliprange (PPO's epsilon).

    Raises:
        DataError: for no tokens, lists of unequal length, or values that are not finite.
    """
    ratios = finite_array(ratio, "ratio")
    signs = np.sign(finite_array(advantages, "advantages"))
    if len(ratios) != len(signs):
        raise DataError(
            f"{len(ratios)} ratios but {len(signs)} advantages: give one of each per token"
        )
    reach = min(FURTHEST * cliprange, max(2 * cliprange, 1.05 * np.abs(ratios - 1).max()))
    low, high = max(0.0, 1 - reach), 1 + reach
    grid = np.linspace(low, high, 400)
    fig = new_figure(10.0, 4.0)
    panels = ((1, "advantage above 0: make likelier"), (-1, "advantage below 0: make less likely"))
    for ax, (sign, title) in zip(fig.subplots(1, 2), panels, strict=True):

        def loss(r: np.ndarray, sign: int = sign) -> np.ndarray:
            return np.maximum(-sign * r, -sign * r.clip(1 - cliprange, 1 + cliprange))

        here = ratios[signs == sign]
        flat = here > 1 + cliprange if sign > 0 else here < 1 - cliprange
        band = (1 - cliprange, 1 + cliprange)
        once = sign > 0  # what is the same in both panels is named in the first
        for thing, label in (
            (ax.axvspan(*band, color="#ECECEC", zorder=0), "inside the clip"),
            (*ax.plot(grid, -sign * grid, "--", color=GREY, linewidth=1.2), "no clip"),
            (*ax.plot(grid, loss(grid), color=INK, linewidth=1.8), "clipped"),
        ):
            thing.set_label(label if once else "")
        for dots, face, name in (
            (here[~flat], BLUE, "still pushed"),
            (here[flat], "white", "on the flat part: no push"),
        ):
            label = f"{len(dots)} token{'' if len(dots) == 1 else 's'} {name}"
            ax.plot(dots, loss(dots), "o", color=BLUE, markerfacecolor=face, markersize=6,
                    mew=1.1, label=label)  # fmt: skip
        if beyond := int((here > high).sum()):
            ax.annotate(
                f"{beyond} more, up to {here.max():.1f} →", (high, loss(np.array(high))), (-2, 9),
                textcoords="offset points", ha="right",
            )  # fmt: skip
        wrong = here[sign * (here - 1) < -cliprange]
        if len(wrong):
            furthest = wrong[np.abs(wrong - 1).argmax()]
            ax.annotate(
                "went the wrong way:\nis pulled back", (furthest, loss(furthest)),
                (0.62, 0.2) if sign < 0 else (0.5, 0.86), textcoords="axes fraction",
                va="center", arrowprops={"arrowstyle": "->", "color": INK, "shrinkB": 5},
            )  # fmt: skip
        ax.set(xlabel="ratio, new / old probability", title=title, xlim=(low, high))
        ax.legend(loc="lower left" if sign > 0 else "upper left", fontsize=9)
        if sign > 0:
            ax.set_ylabel("loss for an advantage of size 1")
    return fig


def _printable(token: str, longest: int = 14) -> str:
    """The token on one line, cut to `longest` characters, each with a glyph.

    Line breaks, tabs, an empty token and one of spaces alone get signs of their own; a character
    that the font lacks becomes a box.
    """
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    text = token.strip(" ") or "␣" * len(token) or "∅"
    text = text.replace("\n", "↵").replace("\t", "⇥")
    text = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "▯" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
