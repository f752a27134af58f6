"""The figures of small policies show the numbers they were given."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import pytest
from support.errors import one_line

from rlhf_tutorial import figures
from rlhf_tutorial.errors import DataError
from rlhf_tutorial.notebook import reveal

# A missing glyph or a layout that does not fit is only a warning to matplotlib.
pytestmark = pytest.mark.filterwarnings("error::UserWarning:rlhf_tutorial.figures")

RANDOM = np.random.default_rng(0)


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_gradient_clouds_show_dots_their_mean_and_the_arrow():
    cloud = RANDOM.normal(size=(50, 2))
    fig = figures.gradient_clouds({"a": cloud, "b": 2 * cloud}, [0.5, -0.1], ("x", "y"))
    for ax, scale in zip(fig.axes, (1, 2), strict=True):
        dots, ring = ax.lines[-2:]
        np.testing.assert_allclose(np.transpose(dots.get_data()), scale * cloud)
        np.testing.assert_allclose(np.ravel(ring.get_data()), scale * cloud.mean(0))
        assert ax.texts[0].xy == (0.5, -0.1)
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()
    fig.canvas.draw()


def test_kl_estimates_are_multiples_of_the_exact_kl():
    values = [np.full(10, 0.2), np.arange(10.0)]
    fig = figures.kl_estimates([0.1, 2.0], {"k1": values})
    (ax,) = fig.axes
    means = ax.lines[0]
    np.testing.assert_allclose(means.get_ydata(), [2, 4.5 / 2])
    bars = ax.collections[-1].get_segments()
    np.testing.assert_allclose(bars[1][:, 1], np.quantile(np.arange(10) / 2, [0.05, 0.95]))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.10", "2.00"]


def test_credit_draws_a_bar_per_token_with_its_number():
    fig = figures.credit(["a", "$b"], {"λ = 0": [0.25, -1.0], "λ = 1": [1, 2]})
    first = fig.axes[0]
    assert [bar.get_height() for bar in first.patches] == [0.25, -1.0]
    assert texts(first) == ["0.25", "−1.00"]
    assert first.patches[0].get_facecolor() != first.patches[1].get_facecolor()
    fig.canvas.draw()


def test_tilting_stacks_shares_and_marks_the_top_of_each_mean():
    shares = {"one": [0.2, 0.5, 0.9], "other": [0.8, 0.5, 0.1]}
    means = {"judge": [1, 2, 3], "reader": [1, 2, 0.5]}
    fig = figures.tilting([2.0, 1.0, 0.5], shares, means)
    layers, lines = fig.axes
    assert [t.get_text() for t in layers.texts] == list(shares)
    assert [t.xy[0] for t in layers.texts] == [2.0, 2.0], "each is thick enough at its left end"
    assert [t.get_text() for t in lines.texts] == list(means)
    tops = [line.get_xydata()[0].tolist() for line in lines.lines[1::2]]
    assert tops == [[0.5, 3.0], [1.0, 2.0]]
    assert layers.get_xlim() == (2.0, 0.5), "beta falls to the right"
    fig.canvas.draw()


def test_a_race_shows_each_seed_and_the_mean_and_names_its_lines():
    curves = {"PPO": [[1, 0.1, 0.01], [1, 0.3, 0.03]], "DPO": [[1, 0.9, 0.0201]]}
    fig = figures.race_to_optimum(curves, answers_per_batch=16)
    (ax,) = fig.axes
    thick = [line for line in ax.lines if line.get_linewidth() > 2]
    np.testing.assert_allclose(thick[0].get_ydata(), [1, 0.2, 0.02])
    assert thick[0].get_xdata().tolist() == [0, 16, 32]
    assert len(ax.lines) == 5
    heights = {t.get_text(): np.log(t.xy[1]) for t in ax.texts}
    low, high = np.log(ax.get_ylim())
    assert abs(heights["PPO"] - heights["DPO"]) > 0.99 * (high - low) / 14


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.gradient_clouds({}, [0, 0], ("x", "y")),
        lambda: figures.gradient_clouds({"a": [[1, 2, 3]]}, [0, 0], ("x", "y")),
        lambda: figures.kl_estimates([1.0], {}),
        lambda: figures.kl_estimates([1.0], {"k1": []}),
        lambda: figures.credit(["a"], {}),
        lambda: figures.credit(["a"], {"row": [1, 2]}),
        lambda: figures.tilting([1.0, np.nan], {}, {}),
        lambda: figures.race_to_optimum({}, 16),
        lambda: figures.race_to_optimum({"PPO": [[1, np.inf]]}, 16),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(draw):
    with pytest.raises(DataError) as error:
        draw()
    one_line(error)


@pytest.mark.parametrize(
    ("guess", "answer", "told"),
    [
        (None, "k2", "Make a guess first"),
        ("k2", "k2", "You guessed k2, and the run agrees"),
        ("k1", "k2", "You guessed k1, and the run disagrees"),
        (3, 3.4, "and the run agrees"),
        (2, 3.4, "and the run disagrees"),
        ("<b>", "k2", "You guessed &lt;b&gt;"),
        ("no, IT isn't", "No, it isn't.", "and the run agrees"),
        (0.05, 0.0337, "and the run agrees"),
        (0.3, 0.25, "and the run agrees"),
        (0.2, 0.28, "and that is close"),
        (0.6, 0.28, "and the run disagrees"),
        (1, 1.27, "and that is close"),
        (6, 5, "and the run agrees"),
        (7, 5, "and that is close"),
        (1, 0, "and that is close"),
        (2, 0, "and the run disagrees"),
        (4, np.int64(4), "and the run agrees"),
        ("a half", 0.5, "and the run disagrees"),
    ],
)
def test_an_answer_is_folded_and_compared_with_the_guess(guess, answer, told):
    html = reveal(guess, answer, "Because.").data
    summary, folded = html.split("</summary>")
    assert told in summary
    assert html.startswith("<details><summary>") and html.endswith("</details>")
    shown = f"{answer:.3g}" if isinstance(answer, float) else str(answer).removesuffix(".")
    assert escape(shown) in folded and "Because." in folded


def test_a_notebook_may_say_how_near_is_near_and_fold_a_table_away():
    table = pd.DataFrame({"answers": [128]})
    html = reveal(5, 0, "Because.", within=5, then=table).data
    assert "and the run agrees" in html.split("</summary>")[0]
    assert "128" in html.split("</summary>")[1].split("</details>")[0]
    assert "and that is close" in reveal(9, 0, "Because.", within=5).data
