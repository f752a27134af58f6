"""The plan of the experiment: boxes and arrows, one turn of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import BLUE, GREEN, GREY, INK, STYLE, VERMILLION, new_figure, written


@rc_context(STYLE)
def plan_diagram(path: str | Path | None = None) -> Figure:
    """Figure 1: the plan of the experiment, one turn of the loop.

    Args:
        path: a PNG to write as well, 1600 pixels wide.
    """
    fig = new_figure(16.0, 8.6, layout=None)
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
    return written(fig, path)


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


Look = tuple[str, str, Any]  # edge colour, fill colour, line style


def _draw_box(ax: Axes, box: _Box, name: str, text: str, look: Look) -> _Box:
    from matplotlib.patches import FancyBboxPatch

    """Draw a box with a bold name above a text, and return it."""
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
    """Draw the number of a step in a disc, and the step's name to its right."""
    ax.plot(x, y, "o", markersize=27, color=VERMILLION, zorder=3)
    ax.text(x, y, number, ha="center", va="center_baseline", fontsize=17, weight="bold",
            color="white", zorder=4)  # fmt: skip
    ax.text(x + 2.6, y, text, va="center_baseline", fontsize=17, weight="bold", color=VERMILLION)
