"""The figures of several trainings show the numbers that they were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from rlhf_tutorial import figures
from rlhf_tutorial.errors import DataError
from rlhf_tutorial.figures.style import BLUE, GREY, MARKS

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

CURVES = {
    "β = 0": [{"kl": 0.0, "a": 0.0, "b": 1.0}, {"kl": 9.0, "a": 2.0, "b": 0.5, "a_error": 0.2}],
    "β = 1": [{"kl": 0.0, "a": 0.0, "b": 1.0}, {"kl": 4.0, "a": 1.0, "b": 1.5}],
}


def lines(figure: Figure) -> list[dict[str, tuple[list[float], list[float]]]]:
    figure.canvas.draw()
    return [
        {
            line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
            for line in ax.get_lines()
            if not line.get_label().startswith("_")
        }
        for ax in figure.axes
    ]


def test_curves_against_kl() -> None:
    figure = figures.against_kl(CURVES, {"a": "A", "b": "B"})
    left, right = lines(figure)
    assert left["β = 0"] == ([0.0, 9.0], [0.0, 2.0])
    assert right["β = 1"] == ([0.0, 4.0], [1.0, 1.5])
    ax = figure.axes[0]
    place = ax.transData.transform([(0, 0), (4, 0), (9, 0)])[:, 0]
    assert (place[2] - place[0]) / (place[1] - place[0]) == pytest.approx(3 / 2), "square roots"
    assert ax.containers, "the last point of the first curve has its error"
    assert not figure.axes[1].containers


def test_of_two_curves_against_kl_the_first_is_grey_and_both_are_named_at_their_ends() -> None:
    ax = figures.against_kl(CURVES, {"a": "A"}).axes[0]
    colours = {line.get_label(): line.get_color() for line in ax.get_lines()}
    assert [colours[name] for name in CURVES] == [GREY, BLUE]
    ends = [(points[-1]["kl"], points[-1]["a"]) for points in CURVES.values()]
    assert [(text.get_text(), text.xy) for text in ax.texts] == list(zip(CURVES, ends, strict=True))
    assert not ax.get_figure().legends


def test_methods_against_kl_are_lines_through_the_means_of_their_runs() -> None:
    far = [{"kl": 0.0, "a": 0.0}, {"kl": 9.0, "a": 2.0}]
    near = [{"kl": 0.0, "a": 0.0}, {"kl": 4.0, "a": 1.0}]
    best = [{"n": 2, "kl": 0.2, "a": 0.1}, {"n": 16, "kl": 1.8, "a": 3.0}]
    figure = figures.methods_against_kl({"PPO": [far, near], "DPO": [near]}, {"a": "A"}, best)
    (left,) = lines(figure)
    assert left["PPO"] == ([0.0, 6.5], [0.0, 1.5]) and left["DPO"] == ([0.0, 4.0], [0.0, 1.0])
    assert left["best of n, by its bound"] == ([0.2, 1.8], [0.1, 3.0])
    (ax,) = figure.axes
    thin = [line for line in ax.get_lines() if line.get_linewidth() == 1]
    assert [list(line.get_xdata()) for line in thin] == [[0.0, 9.0], [0.0, 4.0]]
    assert [text.get_text() for text in ax.texts] == ["2", "16"]
    assert ax.get_xlim()[1] > 9 and ax.get_ylabel()
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["PPO", "DPO", "best of n, by its bound"]
    bars = {"a": {"DPO": [{"kl": 4.0, "gain": 1.0, "low": 0.5, "high": 1.5}]}}
    (ax,) = figures.methods_against_kl({"DPO": [near]}, {"a": "A"}, intervals=bars).axes
    (bar,) = [line for line in ax.get_lines() if line.get_linewidth() == 1.6]
    assert list(bar.get_xdata()) == pytest.approx([4.0, 4.0])
    assert list(bar.get_ydata()) == [0.5, 1.5]
    (hollow,) = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white"]
    assert [*hollow.get_xdata(), *hollow.get_ydata()] == pytest.approx([4.0, 1.0])
    assert any(line.get_linestyle() == ":" and set(line.get_xdata()) == {4.0} for line in ax.lines)
    (alone,) = lines(figures.methods_against_kl({"DPO": [near]}, {"a": "A"}))
    assert list(alone) == ["DPO"]


def test_the_proxy_is_dashed_and_the_gold_solid_in_every_panel() -> None:
    def run(kl: float, proxy: float, gold: float) -> list[dict[str, float]]:
        return [{"kl": 0.0, "proxy": 0.0, "gold": 0.0}, {"kl": kl, "proxy": proxy, "gold": gold}]

    figure = figures.proxy_and_gold(
        {"50": [run(9, 3, 1), run(16, 4, -1)], "800": [run(2, 1, 0.9)]}, "gain"
    )
    left, right = figure.axes
    solid = [line for line in left.get_lines()[1:] if line.get_linestyle() == "-"]
    dashed = [line for line in left.get_lines() if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[0, 3], [0, 4]]
    assert [list(line.get_ydata()) for line in solid] == [[0, 1], [0, -1]]
    assert {line.get_color() for line in solid}.isdisjoint(line.get_color() for line in dashed)
    assert left.get_xlim() == right.get_xlim() and left.get_xlim()[1] > 16
    assert left.get_ylim() == right.get_ylim() and left.get_ylabel() == "gain"
    assert [text.get_text() for text in left.texts] == ["proxy", "gold"]
    assert [text.xy for text in left.texts] == [(16, 4), (16, -1)], "farthest apart"
    assert not right.texts
    with pytest.raises(DataError, match="'50, 0' has no 'gold'"):
        figures.proxy_and_gold({"50": [[{"kl": 0.0, "proxy": 0.0}]]}, "gain")


def test_the_default_run_and_the_long_one_look_the_same_in_every_figure() -> None:
    points = [{"step": n, "a": float(n)} for n in (0, 1, 2, 30, 40)]
    names = {"64 answers\nper step": "long run", "16 answers per\nstep, three seeds": "default run"}
    (ax,) = figures.over_looks({name: [points] for name in names}, {"a": "A"}).axes
    drawn = [(line.get_color(), line.get_marker()) for line in ax.get_lines()]
    assert drawn == [MARKS[name][:2] for name in names.values()]
    heights = [text.xy[1] for text in ax.texts]
    low, high = ax.get_ylim()
    assert abs(heights[0] - heights[1]) > 0.12 * (high - low), "their names do not touch"
    assert list(ax.get_xticks()) == [0, 30, 40], "nor do the steps"


def test_an_answer_is_printed_below_its_panel_and_cut_short() -> None:
    run = [[{"kl": 0.0, "proxy": 0.0, "gold": 0.0}, {"kl": 4.0, "proxy": 1.0, "gold": -1.0}]]
    said = {"a": "no", "b": "word " * 40}
    left, right = figures.proxy_and_gold({"a": run, "b": run}, "gain", said).axes
    assert "“no”" in [text.get_text() for text in left.texts]
    (cut,) = (text.get_text() for text in right.texts if "word" in text.get_text())
    assert cut.endswith("…”") and len(cut.splitlines()) <= 3


def test_six_panels_stand_in_rows_of_three_and_share_their_axes() -> None:
    run = [[{"kl": 0.0, "proxy": 0.0, "gold": 0.0}, {"kl": 4.0, "proxy": 1.0, "gold": -1.0}]]
    axes = figures.proxy_and_gold(dict.fromkeys("abcdef", run), "gain", {"f": "no"}).axes
    assert [ax.get_title(loc="left") for ax in axes] == list("abcdef")
    assert [ax.get_ylabel() for ax in axes] == ["gain", "", "", "gain", "", ""]
    assert len({ax.get_ylim() for ax in axes}) == len({ax.get_xlim() for ax in axes}) == 1
    assert len({round(ax.get_position().x0, 3) for ax in axes}) == 3
    assert len(figures.proxy_and_gold(dict.fromkeys("abcde", run), "gain").axes) == 5


def test_none_of_six_trainings_is_left_out() -> None:
    points = [{"step": 0, "a": 1.0}, {"step": 9, "a": 2.0}]
    (ax,) = figures.over_looks({name: [points] for name in "abcdef"}, {"a": "A"}).axes
    assert len({(line.get_color(), line.get_marker()) for line in ax.get_lines()}) == 6
    with pytest.raises(DataError, match="7 groups and 6 colours"):
        figures.over_looks({name: [points] for name in "abcdefg"}, {"a": "A"})


def test_looks_are_drawn_for_every_training_and_named_once() -> None:
    points = [{"step": 0, "a": 1.0, "b": 3.0}, {"step": 9, "a": 2.0, "b": 5.0, "a_error": 0.5}]
    groups = {"long": [points], "short": [points, points[:1]]}
    left, right = figures.over_looks(groups, {"a": "A", "b": "B"}).axes
    drawn = [list(np.asarray(line.get_ydata())) for line in left.get_lines()]
    assert drawn.count([1.0, 2.0]) == 2 and drawn.count([1.0]) == 1
    assert len(left.containers) == 2 and not right.containers, "errors where they are known"
    assert {text.get_text() for text in left.texts} == {"long", "short"} and not right.texts
    with pytest.raises(DataError, match="has no 'c'"):
        figures.over_looks(groups, {"c": "C"})


def test_a_patient_stands_before_the_healthy_one_in_every_panel() -> None:
    healthy = {"kl": [0.0, 1.0, 2.0], "score": [1.0, 1.1, 1.2]}
    patient = {"kl": [0.0, 9.0], "score": [1.0, 0.2], "other": [5.0]}
    figure = figures.beside_healthy("patient A", patient, healthy, {"score": "Score", "kl": "KL"})
    (left, right) = lines(figure)
    assert left == {"healthy": ([1, 2, 3], [1.0, 1.1, 1.2]), "patient A": ([1, 2], [1.0, 0.2])}
    assert right["patient A"] == ([1, 2], [0.0, 9.0])
    behind, before = figure.axes[0].get_lines()
    assert behind.get_color() != before.get_color() and behind.get_linewidth() > 2
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Score", "KL"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["healthy", "patient A"]
    nothing = {"off": [0.0, 0.0]}
    assert [
        t.get_text()
        for t in figures.beside_healthy("A", nothing, nothing, {"off": ""}).axes[0].texts
    ] == ["0 in both"]
    four = {key: key for key in "abcd"}
    many = {key: [1.0, 2.0] for key in four}
    shown = [ax.get_visible() for ax in figures.beside_healthy("A", many, many, four).axes]
    assert shown == [True] * 4 + [False] * 2
    with pytest.raises(DataError, match="'healthy' has no 'other'"):
        figures.beside_healthy("A", patient, healthy, {"other": "Other"})
    with pytest.raises(DataError, match="at least one panel"):
        figures.beside_healthy("A", patient, healthy, {})


def test_gains_of_seeds_show_every_training_and_the_interval() -> None:
    judge = {"gain_by_seed": [1.0, 1.5], "mean_gain": 1.25, "mean_gain_interval": [0.9, 1.6]}
    figure = figures.gains_of_seeds({"first": judge, "second": judge})
    drawn: list[Any] = [list(np.asarray(line.get_xdata())) for line in figure.axes[0].get_lines()]
    assert drawn.count([1.0, 1.5]) == 2 and drawn.count([0.9, 1.6]) == 2
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["first", "second"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.against_kl({}, {"a": "A"}), "nothing to draw"),
        (lambda: figures.against_kl({"x": []}, {"a": "A"}), "nothing to draw"),
        (lambda: figures.against_kl({"x": [{"kl": 1.0}]}, {"a": "A"}), "'x' has no 'a'"),
        (lambda: figures.methods_against_kl({}, {"a": "A"}), "nothing to draw"),
        (lambda: figures.methods_against_kl({"x": [[{"kl": 1.0}]]}, {"a": "A"}), "has no 'a'"),
        (lambda: figures.gains_of_seeds({}), "no judges"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(draw: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw()
