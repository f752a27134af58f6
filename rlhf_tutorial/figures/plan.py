"""The plan of the experiment: boxes and arrows, one turn of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    STYLE,
    VERMILLION,
    new_figure,
    written,
)

Look: TypeAlias = tuple[str, str, Any]
"""Edge colour, fill colour, line style."""
PLAIN: Look = (INK, "white", "-")
TRAINED: Look = (BLUE, "#E1EFF8", "-")
FROZEN: Look = (GREY, "#F1F1F1", (0, (4, 2)))
RESULT: Look = (GREEN, "#E0F3ED", "-")


@rc_context(STYLE)
def plan_diagram(path: str | Path | None = None) -> Figure:
    """The plan of the experiment, one turn of the loop.

    Args:
        path: a PNG to write as well, 1600 pixels wide.
    """
    fig = new_figure(16.0, 8.6, layout=None)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 160), ylim=(0, 86))
    ax.axis("off")

    plain, trained, frozen, result = PLAIN, TRAINED, FROZEN, RESULT
    prompts = _draw_box(
        ax, _Box(3, 35, 22, 20), "Prompts", "short requests\nin the policy's\ntemplate", plain
    )
    policy = _draw_box(ax, _Box(38, 40, 25, 15), "Policy", "the chat model", trained)
    value = _draw_box(ax, _Box(38, 28, 25, 12), "Value head", "predicts the reward", trained)
    both = _draw_box(
        ax, _Box(70, 35, 28, 20), "Prompt + answer", "one answer sampled\nto each prompt", plain
    )
    reference = _draw_box(
        ax, _Box(72.5, 61, 23, 13), "Reference", "the policy as it was\nbefore training", frozen
    )
    kl = _draw_box(ax, _Box(109, 63, 20, 19), "KL", "how far from\nthe reference?", result)
    judge = _draw_box(
        ax, _Box(109, 35, 20, 20), "Judge", "reads the prompt\nand the answer", frozen
    )
    reward = _draw_box(ax, _Box(139, 35, 18, 20), "Reward", "score minus\nKL penalty", result)
    update = _draw_box(
        ax,
        _Box(38, 4, 119, 13),
        "PPO update",
        "Tokens that earned more than the value head predicted become more probable.",
        result,
    )

    _arrow(ax, [prompts.right(47), policy.left(47)])
    _arrow(ax, [policy.right(47), both.left(47)])
    _arrow(ax, [both.right(), judge.left()])
    _arrow(ax, [both.top(), reference.bottom()])
    _arrow(ax, [judge.right(), reward.left()], "score", beside=(134, 47))
    _arrow(ax, [policy.top(59), (59, 78.5), kl.left(78.5)], r"$\log\,\pi$", beside=(68, 80.5))
    _arrow(
        ax, [reference.right(67), kl.left(67)], r"$\log\,\pi_{\mathrm{ref}}$", beside=(102, 69.5)
    )
    _arrow(ax, [kl.right(), (148, 72.5), reward.top()], "KL penalty", beside=(138.5, 75))
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
    _badge(ax, 110.8, 59, "2", "score")
    _badge(ax, 76.5, 21, "3", "step")
    key = ((81, trained, "trained"), (75.5, frozen, "frozen"), (70, result, "computed in call 3"))
    for y, look, text in key:
        _draw_box(ax, _Box(3, y - 1.6, 6, 3.2), "", "", look)
        ax.text(11, y, text, va="center", fontsize=14)
    return written(fig, path)


@rc_context(STYLE)
def policy_and_reference(
    shared: int, layers: int, memory: Mapping[str, Mapping[str, float]]
) -> Figure:
    """One trunk with two tops, and what each way to hold a reference takes of memory.

    Args:
        shared, layers: the frozen layers that both share, of so many.
        memory: by the name of a way, kind to megabytes; each way has the same kinds.
    """
    fig = new_figure(16.0, 7.0, layout=None)
    ax = fig.add_axes((0, 0, 0.57, 1))
    ax.set(xlim=(0, 91), ylim=(0, 70))
    ax.axis("off")
    trunk = _draw_box(
        ax,
        _Box(3, 10, 82, 14),
        "Trunk",
        f"embeddings and layers 1 to {shared}: one copy, computed once for both",
        FROZEN,
    )
    above = f"layers {shared + 1} to {layers}"
    top = _draw_box(ax, _Box(3, 33, 38, 14), "The policy's top", above, TRAINED)
    head = _draw_box(ax, _Box(16, 53, 25, 12), "Value head", "predicts the reward", TRAINED)
    other = _draw_box(
        ax, _Box(47, 33, 38, 14), "The reference's top", f"{above}, as they were", FROZEN
    )
    _arrow(ax, [(44, 3), (44, 10)], "tokens", beside=(50, 5.5))
    for box in (top, other):
        middle = box.x + box.width / 2
        _arrow(ax, [trunk.top(middle), box.bottom(middle)])
    _arrow(ax, [top.top(9.5), (9.5, 58)], r"$\pi$", beside=(9.5, 61))
    _arrow(ax, [top.top(28.5), head.bottom()])
    _arrow(ax, [head.right(), (46, 59)], "$V$", beside=(48, 59))
    _arrow(ax, [other.top(66), (66, 58)], r"$\pi_{\mathrm{ref}}$", beside=(66, 61))

    bars = fig.add_axes((0.655, 0.13, 0.335, 0.74))
    kinds = list(next(iter(memory.values())))
    colours = dict(zip(kinds, (SKY, GREY, ORANGE, VERMILLION), strict=True))
    for row, parts in enumerate(memory.values()):
        left = 0.0
        for kind, size in parts.items():
            bars.barh(row, size, 0.6, left, color=colours[kind], edgecolor="white", linewidth=1)
            if row == 0:  # the other bars have the same order
                words = kind.replace(" ", "\n")
                bars.text(left + size / 2, -0.36, words, ha="center", va="bottom", fontsize=12)
            left += size
        bars.text(left, row, f" {left:,.0f} MB", va="center", fontsize=14)
    bars.set_yticks(range(len(memory)), memory, fontsize=14)
    bars.invert_yaxis()
    bars.grid(False, axis="y")
    bars.tick_params(labelsize=13)
    bars.set_xlim(0, 1.28 * max(sum(parts.values()) for parts in memory.values()))
    bars.set_xlabel("memory (MB)", fontsize=14)
    return fig


@dataclass(frozen=True)
class _Box:
    """A box of the plan, and the points of its sides that arrows meet: by default the middle.

    Lengths are in the plan's own units, tenths of an inch, from the lower left corner.
    """

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


def _draw_box(ax: Axes, box: _Box, name: str, text: str, look: Look) -> _Box:
    """Draw a box with a bold name above a text, and return it."""
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
    """Draw a line through the points, an arrowhead at the last one, and a text around `beside`."""
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
    """Draw the number of a call in a disc, and its name to the right."""
    ax.plot(x, y, "o", markersize=27, color=VERMILLION, zorder=3)
    ax.text(x, y, number, ha="center", va="center_baseline", fontsize=17, weight="bold",
            color="white", zorder=4)  # fmt: skip
    ax.text(x + 2.6, y, text, va="center_baseline", fontsize=17, weight="bold", color=VERMILLION)
