"""The figures show the numbers they were given; the live curve draws in notebooks only."""

from __future__ import annotations

import base64
import io
import json
import runpy
import subprocess
import sys

import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from support import ROOT

from rlhf_tutorial import figures
from rlhf_tutorial.errors import DataError, TutorialError
from rlhf_tutorial.figures import style, training

# A missing glyph or a layout that does not fit is only a warning to matplotlib.
pytestmark = pytest.mark.filterwarnings("error::UserWarning:rlhf_tutorial.figures")

KEYS = [key for key, _ in training.DIAGNOSTICS]


def fake_stats(n: int) -> list[dict[str, float]]:
    random = np.random.default_rng(0)
    keys = [*KEYS[1:], "ppo/mean_scores", "ppo/std_scores", "objective/kl_coef"]
    return [dict(zip(keys, random.uniform(0.1, 0.9, len(keys)), strict=True)) for _ in range(n)]


def column(stats: list[dict[str, float]], key: str) -> list[float]:
    return [row[key] for row in stats]


def objective(stats: list[dict[str, float]]) -> list[float]:
    return [r["ppo/mean_scores"] - r["objective/kl_coef"] * r["objective/kl"] for r in stats]


def pandas_mean(values: list[float], window: int) -> np.ndarray:
    return pd.Series(values).rolling(window, min_periods=1).mean().to_numpy()


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image.convert("RGB")


# The reward curve and the diagnostics -------------------------------------------------------


def test_moving_mean_is_the_mean_of_the_last_batches():
    assert style.moving_mean([1, 2, 6, 10], 2).tolist() == [1, 1.5, 4, 8]
    values = np.random.default_rng(1).normal(size=50)
    np.testing.assert_allclose(style.moving_mean(values, 10), pandas_mean(values, 10))
    with pytest.raises(DataError, match="window=0"):
        style.moving_mean([1.0], 0)


@pytest.mark.parametrize("as_frame", [False, True])
def test_reward_curve_shows_every_batch_and_both_ends_with_their_errors(as_frame):
    stats = fake_stats(30)
    scores, stds = (np.array(column(stats, k)) for k in ("ppo/mean_scores", "ppo/std_scores"))
    fig = figures.reward_curve(pd.DataFrame(stats) if as_frame else stats, batch_size=16)
    (ax,) = fig.axes
    batch, first, last = ax.lines
    assert batch.get_xdata().tolist() == list(range(1, 31))
    np.testing.assert_allclose(batch.get_ydata(), scores)
    bars, *bands = ax.collections
    lengths = [high - low for (_, low), (_, high) in bars.get_segments()]
    np.testing.assert_allclose(lengths, 2 * stds / 4)  # sqrt(16) = 4
    for line, band, text, end in zip(
        (first, last), bands, ax.texts, (slice(0, 10), slice(-10, None)), strict=True
    ):
        mean, error = scores[end].mean(), np.sqrt((stds[end] ** 2 / 16).sum()) / 10
        np.testing.assert_allclose(line.get_ydata(), mean)
        y = band.get_paths()[0].vertices[:, 1]
        assert (y.min(), y.max()) == pytest.approx((mean - error, mean + error))
        assert text.get_text().endswith(f" 10: {mean:.2f} ± {error:.2f}")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "mean score by the training judge")


def test_reward_curve_without_batch_size_has_no_errors_and_needs_no_deviation():
    stats = [{"ppo/mean_scores": v} for v in (1.0, 2.0)]
    fig = figures.reward_curve(stats, window=2)
    assert not fig.axes[0].collections
    assert [line.get_ydata()[0] for line in fig.axes[0].lines[1:]] == [1.0, 2.0], "half at each end"


def test_one_step_is_visible():
    (ax,) = figures.reward_curve(fake_stats(1), batch_size=4).axes
    assert ax.lines[0].get_marker() == "o"
    assert all(
        ax.get_lines()[0].get_marker() == "o" for ax in figures.diagnostics(fake_stats(1)).axes
    )


def test_diagnostics_has_the_six_panels():
    stats = fake_stats(25)
    axes = figures.diagnostics(stats, window=5).axes
    assert len(axes) == 6
    for ax, key in zip(axes, KEYS, strict=True):
        shown = column(stats, key) if key != training.OBJECTIVE else objective(stats)
        np.testing.assert_allclose(ax.lines[0].get_ydata(), shown)
        np.testing.assert_allclose(ax.lines[1].get_ydata(), pandas_mean(shown, 5))
        assert ax.texts[0].get_text() == key
        assert ax.get_title(loc="left")
        bands = [(p.get_y(), p.get_y() + p.get_height()) for p in ax.patches]
        wanted = [training.HEALTHY[key]] if key in training.HEALTHY else []
        assert bands == wanted + [(low, 1) for low in [training.TOO_LARGE.get(key)] if low]


def test_diagnostics_draws_the_longest_answer_possible_if_it_is_told():
    index = KEYS.index("tokens/responses_len_mean")
    without, told = (figures.diagnostics(fake_stats(5), limit=n).axes[index] for n in (None, 32))
    assert len(told.lines) == len(without.lines) + 1
    assert set(told.lines[-1].get_ydata()) == {32} and told.texts[-1].get_text() == "limit: 32"


def test_explained_variance_far_below_zero_is_counted_not_drawn():
    stats = fake_stats(5)
    stats[0]["ppo/val/var_explained"] = -50.0
    ax = figures.diagnostics(stats).axes[KEYS.index("ppo/val/var_explained")]
    assert ax.get_ylim() == (-1.0, 1.0)
    assert ax.texts[1].get_text() == "1 step below −1"


@pytest.mark.parametrize("draw", [figures.reward_curve, figures.diagnostics])
def test_empty_or_foreign_stats_are_refused_in_words(draw):
    with pytest.raises(TutorialError, match="no rows in the stats"):
        draw([])
    with pytest.raises(TutorialError, match="no rows in the stats"):
        draw(pd.DataFrame())
    with pytest.raises(DataError, match="row 1 of the stats has no 'ppo/mean_scores'"):
        draw([fake_stats(1)[0], {"loss": 1.0}])
    with pytest.raises(DataError, match="the stats has no 'ppo/mean_scores'"):
        draw(pd.DataFrame({"loss": [1.0]}))


# The comparison ----------------------------------------------------------------------------


def test_before_after_shows_sorted_gains_and_their_mean():
    table = pd.DataFrame({"score_before": [0.0, 1.0, 2.0, 3.0], "score_after": [2, 0.5, 2, 4]})
    left, right = figures.before_after(table).axes
    assert [bar.get_height() for bar in right.patches] == [-0.5, 0.0, 1.0, 2.0]
    colours = [to_hex(bar.get_facecolor()).upper() for bar in right.patches]
    assert colours == [style.VERMILLION, style.GREY, style.BLUE, style.BLUE]
    assert right.lines[1].get_ydata()[0] == pytest.approx(0.625)
    assert right.get_title(loc="left") == "Gain of each prompt: 2 better, 1 worse, 1 tied"
    sorted_scores = [line.get_ydata().tolist() for line in left.lines]
    assert sorted_scores == [[0, 1, 2, 3], [0.5, 2, 2, 4]]
    assert [text.get_text() for text in left.texts] == ["before: mean 1.50", "after: mean 2.12"]
    assert [text.get_text() for text in right.texts] == ["mean gain 0.62"]


def test_before_after_refuses_what_it_cannot_show():
    good = pd.DataFrame({"score_before": [1.0], "score_after": [1.0]})
    assert len(figures.before_after(good).axes) == 2  # one row, no spread
    with pytest.raises(DataError, match="score_after"):
        figures.before_after(good.drop(columns="score_after"))
    with pytest.raises(DataError, match="no rows in the comparison table"):
        figures.before_after(good.head(0))
    with pytest.raises(DataError, match="score_before: value 0 is nan"):
        figures.before_after(good.assign(score_before=np.nan))


# Tokens, groups, perplexity, lengths -----------------------------------------------------------


def test_token_heatmap_prints_each_value_and_colours_around_0():
    fig = figures.token_heatmap(
        [" a", "b", "c"],
        {"KL": [0.5, 0.0, -0.25], "ratio − 1": [0.0, 0.2, float("nan")]},
    )
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["KL", "ratio − 1"]
    assert [t.get_text() for t in ax.texts] == ["0.50", "0.00", "−0.25", "0.00", "0.20", "–"]
    cells = ax.collections[0].get_array().reshape(2, 3, 4)
    white = matplotlib.colormaps["RdBu"](0.5)
    np.testing.assert_allclose(cells[0, 1], white)
    np.testing.assert_allclose(cells[1, 0], white)
    red, blue = cells[0, 2], cells[0, 0]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    corners = [corner.get_xy()[0].tolist() for corner in ax.patches]
    assert corners == [[2.0, 1.0]], "in grey, too, one sees which cells are below 0"
    # Each row has its own scale: its largest distance from 0 gets the same full colour.
    np.testing.assert_allclose(cells[1, 1], blue)
    assert cells[1, 2].tolist() == [1, 1, 1, 1]


def test_token_heatmaps_of_one_scale_have_one_colour_for_one_number():
    def cells(**rows):
        (ax,) = figures.token_heatmap(["a", "b"], rows, scale=2.0).axes
        return ax.collections[0].get_array().reshape(len(rows), 2, 4)

    together, alone = cells(KL=[0.5, 0.1], value=[5.0, 0.5]), cells(KL=[0.5, 2.0])
    np.testing.assert_allclose(together[0, 0], together[1, 1])
    np.testing.assert_allclose(together[0, 0], alone[0, 0])
    np.testing.assert_allclose(together[1, 0], alone[0, 1])  # beyond the scale: the full colour


def test_token_heatmap_survives_what_models_write():
    tokens = ["\n", "  ", "", "$x_{", "中", "🙂", "\x00", "a" * 40, " word"]
    fig = figures.token_heatmap(tokens, {"a $cost_{": [0.0] * len(tokens)})
    labels = [t.get_text() for t in fig.axes[0].get_xticklabels()]
    assert labels[:7] == ["↵", "␣␣", "∅", "$x_{", "▯", "▯", "▯"]
    assert labels[7:] == ["a" * 13 + "…", "word"]
    opened(fig._repr_png_()[0])  # a missing glyph would fail here


def test_a_long_response_is_broken_into_lines():
    fig = figures.token_heatmap(["t"] * 21, {"KL": range(21)}, tokens_per_line=16)
    assert [len(ax.texts) for ax in fig.axes] == [16, 5]
    assert fig.axes[1].texts[-1].get_text() == "20.00"


def test_token_heatmap_refuses_rows_of_another_length():
    with pytest.raises(DataError, match="'KL' has 2 values for 1 tokens"):
        figures.token_heatmap(["a"], {"KL": [1.0, 2.0]})
    with pytest.raises(DataError, match="scale=0"):
        figures.token_heatmap(["a"], {"KL": [1.0]}, scale=0)
    with pytest.raises(DataError, match="at least one token"):
        figures.token_heatmap([], {"KL": []})


def test_batch_layout_shows_padding_query_and_response():
    attention = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    mask = np.array([[1, 0, 1], [1, 1, 0]])
    fig = figures.batch_layout(attention, mask)
    (mesh,) = fig.axes[0].collections
    assert mesh.get_array().tolist() == [[0, 1, 2, 3, 2], [1, 1, 2, 2, 0]]
    assert fig.axes[0].lines[0].get_xdata()[0] == 2  # where the answers start
    zones = [(t.get_text().strip(), t.xy[0]) for t in fig.axes[0].texts]
    assert zones == [("padding", 0), ("prompts", 2), ("answers", 2), ("padding", 5)]
    (unused,) = fig.legends[0].get_texts()
    assert unused.get_text() == "answer, read but not trained on"
    with pytest.raises(DataError, match="shapes"):
        figures.batch_layout(attention, mask[:1])


def test_clipped_objective_puts_each_token_on_the_loss_that_training_uses():
    import torch

    from rlhf_tutorial.ppo.math import policy_loss

    ratio, advantages = [0.5, 0.9, 1.5, 0.6, 1.1, 1.4], [2.0, 1.0, 3.0, -1.0, -2.0, -1.0]
    fig = figures.clipped_objective(ratio, advantages, 0.2)
    for ax, sign in zip(fig.axes, (1, -1), strict=True):
        _, _, moving, stopped = ax.lines
        assert len(moving.get_xdata()) == 2 and len(stopped.get_xdata()) == 1
        for x, y in np.concatenate([moving.get_xydata(), stopped.get_xydata()]):
            one = torch.ones(1, 1)
            loss = policy_loss(one * float(np.log(x)), 0 * one, sign * one, one, 0.2)[0]
            assert y == pytest.approx(loss.item(), abs=1e-6)
    assert fig.axes[0].lines[3].get_xdata() == [1.5] and fig.axes[1].lines[3].get_xdata() == [0.6]
    assert [ax.texts[0].xy[0] for ax in fig.axes] == [0.5, 1.4], "those that went the wrong way"
    far = figures.clipped_objective([1.1, 8.0, 9.04, 0.7, 1.3], [1, 1, 1, 1, -1], 0.2)
    good, bad = far.axes
    assert good.get_xlim() == (0, 2.5)
    assert [t.get_text() for t in good.texts] == [
        "2 more, up to 9.0 →",
        "went the wrong way:\nis pulled back",
    ]
    assert [t.xy[0] for t in (*good.texts[1:], *bad.texts)] == [0.7, 1.3]
    with pytest.raises(DataError, match="6 ratios but 5"):
        figures.clipped_objective(ratio, advantages[:5], 0.2)


def test_quantities_along_a_response_stand_above_their_tokens():
    lines = {"value": [0.1, 0.2, 0.3], "return": [1.0, 1.1, 1.2]}
    (ax,) = figures.along_response(["To", "bake", "$"], lines).axes
    assert [line.get_ydata().tolist() for line in ax.lines[1:]] == list(lines.values())
    assert [t.get_text() for t in ax.get_xticklabels()] == ["To", "bake", "$"]
    names = {t.get_text(): t for t in ax.texts}
    for line, name in zip(ax.lines[1:], lines, strict=True):
        assert names[name].xy == (2, line.get_ydata()[-1])
        assert names[name].get_color() == line.get_color()
    value, returned = ax.lines[1:]
    again = {"value after": [0.1], "value before": [0.2], "advantage": [0.0], "return": [0.3]}
    (other,) = figures.along_response(["To"], again).axes
    after, before, advantage, same = other.lines[1:]
    assert value.get_color() == after.get_color() == before.get_color() != advantage.get_color()
    assert after.get_linestyle() != before.get_linestyle(), "told apart in grey"
    assert same.get_color() == returned.get_color() != value.get_color()
    (close,) = figures.along_response(["a"], {"one": [1.0], "two": [1.0], "far": [9.0]}).axes
    one, two, _ = sorted(t.xy[1] for t in close.texts)
    assert two - one > 0.5  # names of lines that end together stand apart
    with pytest.raises(DataError, match="'return' has 2 values for 3 tokens"):
        figures.along_response(["a", "b", "c"], {**lines, "return": [1.0, 2.0]})
    with pytest.raises(DataError, match="at least one token"):
        figures.along_response([], lines)


def test_score_histogram_has_a_strip_per_group():
    groups = {"good": [1.0, 2.0, 3.0], "bad": [-1.0, 0.0]}
    names = {"title": "Check", "xlabel": "change", "sides": ("worse", "better")}
    fig = figures.score_histogram(groups, **names)
    assert fig.axes[0].get_title(loc="left") == "Check"
    assert {text.get_text() for text in fig.axes[0].texts} >= {"worse", "better"}
    for ax, (name, scores) in zip(fig.axes, groups.items(), strict=True):
        assert ax.get_ylabel() == f"{name}\nn = {len(scores)}"
        assert ax.lines[0].get_xdata()[0] == pytest.approx(np.mean(scores))
        assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(1)
        filled = [bar for bar in ax.patches if bar.get_height()]
        sides = {to_hex(bar.get_facecolor()).upper(): bar.get_x() < 0 for bar in filled}
        assert sides == {
            style.BLUE if below else style.VERMILLION: below
            for below in {score < 0 for score in scores}
        }
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()
    with pytest.raises(DataError, match="no groups"):
        figures.score_histogram({}, **names)
    with pytest.raises(DataError, match="'bad'"):
        figures.score_histogram({"bad": []}, **names)


def test_margins_are_sorted_and_the_wrong_pairs_are_counted():
    groups = {"near": [0.5, -1.0, 0.25, 0.0], "far": [2.0, 1.0]}
    near, far = figures.margins(groups).axes
    shares = [[t.get_text().split(":")[0] for t in ax.texts] for ax in (near, far)]
    assert shares == [["62% right", "38% wrong"], ["100% right", "0% wrong"]]  # a tie counts half
    assert near.get_ylim() == far.get_ylim()
    above, below = (c.get_paths()[0].vertices[:, 1] for c in near.collections)
    assert (below.min(), below.max(), above.min(), above.max()) == (-1, 0, 0, 0.5)
    assert near.get_xlabel() == "% of 4 pairs, by margin"
    with pytest.raises(DataError, match="no groups"):
        figures.margins({})
    with pytest.raises(DataError, match="'empty'"):
        figures.margins({"empty": []})


def test_shares_have_a_row_each_and_a_panel_may_lack_one():
    whole = {"judge": {"value": 0.8, "low": 0.7, "high": 0.9}, "reading": {"value": 0.96}}
    fig = figures.shares({"all": whole, "some": {"judge": {"value": 0.6}}}, "right", {"coin": 0.5})
    everything, some = fig.axes
    assert [t.get_text() for t in everything.get_yticklabels()] == ["judge", "reading"]
    assert [t.get_text() for t in everything.texts] == [" coin", "80%", "96%"]
    assert [t.get_text() for t in some.texts] == [" coin", "60%"]
    coin, interval, dot, *_ = everything.lines
    assert coin.get_xdata()[0] == 50 and list(interval.get_xdata()) == [70, 90]
    assert dot.get_xdata()[0] == 80
    for panels in ({}, {"all": {}}):
        with pytest.raises(DataError, match="no shares"):
            figures.shares(panels, "right", {})


def test_bars_show_value_and_interval():
    rows = [
        {"label": "before", "value": 15.0, "low": 14.0, "high": 17.0},
        {"label": "after", "value": 18.0, "low": 16.5, "high": 19.0},
    ]
    (ax,) = figures.bars_with_intervals(rows, "perplexity").axes
    assert [bar.get_width() for bar in ax.patches] == [15.0, 18.0]
    (told,) = figures.bars_with_intervals([rows[0], {**rows[1], "ppo": True}], "grade").axes
    untrained, trained = (bar.get_facecolor() for bar in told.patches)
    assert to_hex(trained) == style.BLUE.lower() != to_hex(untrained)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["before", "after"]
    assert ax.yaxis_inverted()  # the first row on top
    segments = next(c for c in ax.collections if hasattr(c, "get_segments")).get_segments()
    assert [s[:, 0].tolist() for s in segments] == [[14, 17], [16.5, 19]]
    with pytest.raises(DataError, match="does not hold the value"):
        figures.bars_with_intervals([{**rows[0], "high": 14.5}], "perplexity")
    with pytest.raises(DataError, match="'low'"):
        figures.bars_with_intervals([{"label": "x", "value": 1.0}], "perplexity")
    with pytest.raises(DataError, match="no rows"):
        figures.bars_with_intervals([], "perplexity")


def test_dots_have_intervals_and_groups_share_a_line():
    def row(label, group, value, **more):
        return {"label": label, "group": group, "value": value, "low": 1, "high": 3, **more}

    rows = [row("a", "old", 2.0), row("b", "old", 1.5), row("a", "new", 2.5, text="so much")]
    fig = figures.dots_with_intervals(rows, "wins", even=2, limits=(0, 5))
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert {text.get_text() for text in ax.texts} == {"2.00", "1.50", "so much"}
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["old", "new"]
    values = {line.get_xdata()[0]: line.get_ydata()[0] for line in ax.lines if line.get_marker()
              in ("s", "o")}  # fmt: skip
    assert abs(values[2.0] - values[2.5]) < 0.5 < values[1.5] - values[2.0]
    assert ax.yaxis_inverted() and ax.get_xlim() == (0, 5)
    runs = [row("a", "default run, three seeds", 2.0), row("a", "long run, one seed", 2.5)]
    (told,) = figures.dots_with_intervals(runs, "wins").axes
    seen = [
        (line.get_marker(), line.get_color()) for line in told.lines if line.get_marker() in "oD"
    ]
    assert seen == [style.MARKS[name][1::-1] for name in ("default run", "long run")]
    (alone,) = figures.dots_with_intervals([rows[0]], "wins").axes
    assert not alone.figure.legends and alone.get_xlabel() == "wins; lines: 95% intervals"
    for bad, told in (
        ([], "no rows"),
        ([row("a", "x", 4.0)], "does not hold the value"),
        ([row("a", group, 2.0) for group in "wxyz"], "4 groups"),
    ):
        with pytest.raises(DataError, match=told):
            figures.dots_with_intervals(bad, "wins")


def test_blocks_are_as_wide_as_their_share_and_as_high_as_their_grade():
    fig = figures.ended_and_cut({"Before": (0.4, 2.0, 1.0), "After": (0.9, 2.5, 1.0)})
    before, after = fig.axes
    assert before.get_title(loc="left") == "Before: mean 1.40"
    assert [(p.get_width(), p.get_height()) for p in before.patches] == [(40, 2), (60, 1)]
    assert [text.get_text() for text in after.texts] == ["ended: 2.50", "cut off:\n1.00"]
    with pytest.raises(DataError, match="no panels"):
        figures.ended_and_cut({})
    with pytest.raises(DataError, match="a share of 40"):
        figures.ended_and_cut({"Before": (40, 2.0, 1.0)})


def test_length_histogram_splits_exactly_at_the_limit():
    lengths = [10, 99, 100, 101, 600]
    (ax,) = figures.length_histogram(lengths, limit=100).axes
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == ["kept: 2 shorter than 100", "dropped: 3", "limit: 100"]
    (none,) = figures.length_histogram([10, 99], limit=100).axes
    assert "dropped: 0" not in [t.get_text() for t in none.get_legend().get_texts()]
    bars = [bar for bar in ax.patches if bar.get_height()]
    assert sum(bar.get_height() for bar in bars) == 4
    below = [bar for bar in bars if bar.get_x() + bar.get_width() <= 100 + 1e-9]
    assert sum(bar.get_height() for bar in below) == 2
    assert "1 of 500 or more not shown" in ax.get_xlabel()
    assert figures.length_histogram([3], limit=7).axes[0].patches  # a limit no bin width divides
    with pytest.raises(DataError, match="empty"):
        figures.length_histogram([])


# Pictures -----------------------------------------------------------------------------------


def test_saved_files_are_pngs_1600_pixels_wide(tmp_path):
    figures.plan_diagram(tmp_path / "new" / "plan.png")
    DRAW["result"](tmp_path / "result.png")
    for path in (tmp_path / "new" / "plan.png", tmp_path / "result.png"):
        image = opened(path.read_bytes())
        assert image.width == 1600
        assert image.getpixel((2, 2)) == (255, 255, 255)
        assert path.stat().st_size < 200_000


def test_a_wide_figure_shows_itself_at_a_width_that_fits():
    fig = figures.plan_diagram()
    assert isinstance(fig, Figure)
    png, shown = fig._repr_png_()
    image = opened(png)
    assert shown == {"width": 1000}
    assert image.width == 2000  # shown 1000 wide


def test_the_plan_names_every_part_inside_the_picture():
    fig = figures.plan_diagram()
    fig.draw_without_rendering()
    (ax,) = fig.axes
    texts = {t.get_text() for t in ax.texts}
    assert {
        "Prompts",
        "Policy",
        "Value head",
        "Reference",
        "Prompt + answer",
        "KL",
        "Judge",
    } <= texts
    assert {"Reward", "PPO update", "generate", "score", "step", "1", "2", "3"} <= texts
    boxes = [t.get_window_extent() for t in ax.texts if t.get_text()]
    frame = fig.bbox
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 for b in boxes)
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert not overlaps


def test_prompts_reach_the_reference_and_the_judge():
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    (ax,) = figures.plan_diagram().axes
    frames = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]

    def at(x, y):
        """The name in the box that holds the point, its border included."""
        (box,) = (
            f for f in frames
            if f.get_x() <= x <= f.get_x() + f.get_width()
            and f.get_y() <= y <= f.get_y() + f.get_height()
        )  # fmt: skip
        inside = [t for t in ax.texts if box.get_path().get_extents().contains(*t.get_position())]
        return inside[0].get_text()

    ends = {
        (at(*line[0]), at(*line[-1]))
        for line in (
            p._path_original.vertices for p in ax.patches if isinstance(p, FancyArrowPatch)
        )
    }
    assert {("Prompt + answer", "Reference"), ("Prompt + answer", "Judge")} <= ends
    assert {("Prompts", "Policy"), ("Policy", "Prompt + answer")} <= ends


KINDS = {"policy": 4.0, "reference's own": 1.0, "gradients": 1.0, "Adam's two moments": 2.0}


def test_the_forms_of_a_reference_show_what_is_shared_and_add_up():
    whole = dict.fromkeys(KINDS, 4.0)
    fig = figures.policy_and_reference(18, 30, {"full copy": whole, "shared": KINDS})
    fig.draw_without_rendering()
    drawing, bars = fig.axes
    texts = {text.get_text() for text in drawing.texts}
    assert {"layers 19 to 30", "Trunk", "Value head", "$V$"} <= texts
    assert any("layers 1 to 18" in text for text in texts)
    said = [text.get_text().replace("\n", " ") for text in bars.texts]
    assert said == [*KINDS, " 16 MB", " 8 MB"], "the first bar's parts have their names"
    widths = [patch.get_width() for patch in bars.patches]
    assert widths == [*whole.values(), *KINDS.values()]


DRAW = {
    "forms": lambda: figures.policy_and_reference(1, 2, {"full copy": KINDS}),
    "curve": lambda: figures.reward_curve(fake_stats(9), batch_size=4),
    "diagnostics": lambda: figures.diagnostics(fake_stats(9)),
    "comparison": lambda: figures.before_after(
        pd.DataFrame({"score_before": [1.0, 2.0], "score_after": [2.0, 1.5]})
    ),
    "tokens": lambda: figures.token_heatmap(["a", "b"], {"KL": [1.0, 2.0]}),
    "layout": lambda: figures.batch_layout(np.ones((2, 5)), np.ones((2, 3))),
    "clip": lambda: figures.clipped_objective([0.9, 1.3], [1.0, -1.0], 0.2),
    "groups": lambda: figures.score_histogram(
        {"good": [1.0, 2.0], "bad": [0.0]}, "Changes", "nats", ("less", "more")
    ),
    "dots": lambda: figures.dots_with_intervals(
        [dict(label="a", group="b", value=2, low=1, high=3)], "x"
    ),
    "blocks": lambda: figures.ended_and_cut({"Before": (0.4, 2.0, 1.0)}),
    "shares": lambda: figures.shares({"all": {"a": {"value": 0.7}}}, "right", {"coin": 0.5}),
    "margins": lambda: figures.margins({"near": [1.0, -0.5], "far": [2.0]}),
    "perplexity": lambda: figures.bars_with_intervals(
        [dict(label="a", value=2, low=1, high=3)], "x"
    ),
    "lengths": lambda: figures.length_histogram([3, 120]),
    "along": lambda: figures.along_response(["a", "b"], {"value": [0.5, 1.0]}),
    "plan": figures.plan_diagram,
    "result": lambda path=None: figures.seeds_and_controls(
        {"judge": [[{"step": n, "score": n} for n in (0, 1)]]},
        [
            dict(label="a", value=1, ppo=False),
            dict(label="b", value=2, low=1, high=3, ppo=True, seeds=[1.5, 2.5]),
        ],
        ("above", "below"),
        path,
    ),
}


@pytest.mark.parametrize("name", DRAW)
def test_figures_ignore_the_readers_theme_and_leave_it_alone(name, monkeypatch):
    png_bytes = style.png_bytes
    # Coarse is enough, and quick.
    monkeypatch.setattr(style, "png_bytes", lambda fig, dpi: png_bytes(fig, dpi=40))
    light, _ = DRAW[name]()._repr_png_()
    with matplotlib.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        dark, _ = DRAW[name]()._repr_png_()
        assert dict(matplotlib.rcParams) == before
    assert dark == light
    assert opened(dark).getpixel((2, 2)) == (255, 255, 255)


def test_no_pyplot_figure_stays_open():
    code = (
        "import sys; from rlhf_tutorial.figures import plan_diagram;"
        "plan_diagram(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# The live curve --------------------------------------------------------------------------------


class FakeNotebook:
    """Stands for the notebook's display, and counts what reaches it; its clock is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.displayed, self.updated = 0.0, [], []
        monkeypatch.setattr(training, "_in_notebook", lambda: True)
        monkeypatch.setattr(training.time, "monotonic", lambda: self.now)
        monkeypatch.setattr("IPython.display.display", self.display)

    def display(self, image, display_id):
        assert display_id is True
        self.displayed.append(image)
        return self

    def update(self, image):
        self.updated.append(image)


def test_live_curve_outside_a_notebook_is_silent(capsys, monkeypatch):
    monkeypatch.setattr(training, "png_bytes", lambda *_, **__: pytest.fail("it drew"))
    with figures.LiveCurve(total_steps=3, min_seconds=0) as curve:
        for stats in fake_stats(3):
            curve.update(stats)
    assert capsys.readouterr() == ("", "")
    assert len(curve.scores) == len(curve.kls) == 3


def test_live_curve_updates_one_display_at_intervals_and_at_the_end(monkeypatch):
    notebook, stats = FakeNotebook(monkeypatch), fake_stats(10)
    with figures.LiveCurve(total_steps=10, min_seconds=2.0) as curve:
        for i, row in enumerate(stats):
            notebook.now = 0.5 * i
            curve.update(row)
    assert len(notebook.displayed) == 1
    assert len(notebook.updated) == 3  # at 2.0 and 4.0 seconds, and the end at 4.5
    assert "10 PPO steps" in notebook.updated[-1].metadata["alt"]
    opened(notebook.updated[-1].data)


def test_live_curve_does_not_draw_the_same_state_twice(monkeypatch):
    notebook = FakeNotebook(monkeypatch)
    with figures.LiveCurve() as curve:
        curve.update(fake_stats(1)[0])
    assert (len(notebook.displayed), len(notebook.updated)) == (1, 0)
    with figures.LiveCurve():
        pass
    assert len(notebook.displayed) == 1


def test_live_curve_draws_what_there_is_when_the_loop_fails(monkeypatch):
    notebook = FakeNotebook(monkeypatch)

    def stopped_after_two_steps():
        with figures.LiveCurve() as curve:
            for row in fake_stats(2):
                curve.update(row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_after_two_steps()
    assert "2 PPO steps" in notebook.updated[-1].metadata["alt"]


def test_live_curve_shows_scores_moving_mean_and_kl():
    stats = fake_stats(12)
    curve = figures.LiveCurve(total_steps=96, window=4)
    with pytest.raises(DataError, match="no step yet"):
        curve.figure()
    for row in stats:
        curve.update(row)
    top, bottom = curve.figure().axes
    scores = column(stats, "ppo/mean_scores")
    np.testing.assert_allclose(top.lines[0].get_ydata(), scores)
    np.testing.assert_allclose(top.lines[1].get_ydata(), pandas_mean(scores, 4))
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), column(stats, "objective/kl"))
    assert top.get_xlim()[1] == pytest.approx(96.5)
    assert top.get_title(loc="left") == "Step 12 of 96"
    curve.note = "labels: yours"
    assert curve.figure().axes[0].get_title(loc="left") == "Step 12 of 96; labels: yours"
    with pytest.raises(DataError, match="objective/kl"):
        curve.update({"ppo/mean_scores": 1.0})
    with pytest.raises(DataError, match="window"):
        figures.LiveCurve(window=0)


@pytest.mark.slow
def test_an_executed_notebook_holds_one_picture_per_figure():
    """Through a real kernel: the live curve, and a figure as the last line of a cell."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    live = (
        "from rlhf_tutorial.figures import LiveCurve, plan_diagram\n"
        "with LiveCurve(total_steps=4, min_seconds=0) as curve:\n"
        "    for i in range(4):\n"
        "        curve.update({'ppo/mean_scores': i, 'objective/kl': i})"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in (live, "plan_diagram()")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    for cell in notebook.cells:
        (output,) = cell.outputs
        opened(base64.b64decode(output["data"]["image/png"]))
    assert "4 PPO steps" in json.dumps(notebook.cells[0].outputs)
    assert "widgets" not in notebook.metadata


def test_seeds_and_controls_shows_every_seed_and_every_grade():
    runs = {
        judge: [
            [{"step": 0, "score": low}, {"step": 10, "score": low + seed}] for seed in range(1, 4)
        ]
        for judge, low in (("trains", 1.0), ("looks on", 0.5))
    }
    grades = [
        {"label": "untouched", "value": 1.0, "ppo": False},
        {"label": "cut", "value": 1.5, "low": 1.2, "high": 1.9, "ppo": False},
        {"label": "PPO", "value": 2.0, "low": 1.7, "high": 2.2, "ppo": True, "seeds": [1.8, 2.2]},
    ]
    above, below = figures.seeds_and_controls(runs, grades, ("up", "down")).axes
    drawn = [line.get_ydata().tolist() for line in above.lines]
    assert drawn == [[low, low + seed] for low in (1.0, 0.5) for seed in (1, 2, 3)]
    assert [text.get_text() for text in above.texts] == ["trains", "looks on"]
    assert [text.get_text() for text in below.texts] == ["1.00", "1.50", "2.00"]
    assert [t.get_text() for t in below.get_yticklabels()] == ["untouched", "cut", "PPO"]
    shown = [np.ravel(line.get_xdata()).tolist() for line in below.lines]
    for row in grades:
        assert [row["value"]] in shown and row.get("seeds", []) in shown
        assert "low" not in row or [row["low"], row["high"]] in shown
    with pytest.raises(DataError, match="1 rows of grades"):
        figures.seeds_and_controls(runs, grades[:1], ("up", "down"))
    with pytest.raises(DataError, match="no 'score'"):
        figures.seeds_and_controls({"judge": [[{"step": 0}]]}, grades, ("up", "down"))


# The script ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_committed_pictures_are_what_make_figures_draws(tmp_path, capsys):
    """If this fails: python scripts/make_figures.py, and look at them."""
    script = runpy.run_path(str(ROOT / "scripts" / "make_figures.py"))
    script["main"](["--output", str(tmp_path)])
    assert capsys.readouterr().out.count("wrote") == 2
    for name in ("rlhf-tutorial.png", "result.png"):
        drawn, committed = (
            np.asarray(opened((folder / name).read_bytes()), dtype=float)
            for folder in (tmp_path, ROOT / "images")
        )
        # Another version of matplotlib may place a letter elsewhere by a fraction of a pixel.
        assert drawn.shape == committed.shape and np.abs(drawn - committed).mean() < 1, name
