"""The figures of judges that learn from choices show the numbers they were given."""

from __future__ import annotations

import numpy as np
import pytest
from support.errors import one_line

from rlhf_tutorial import figures
from rlhf_tutorial.errors import DataError

# A missing glyph or a layout that does not fit is only a warning to matplotlib.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def curve(*agreements: float) -> list[dict[str, float]]:
    return [{"labels": 10 * (i + 1), "agreement": a} for i, a in enumerate(agreements)]


def test_a_panel_a_taste_with_the_mean_of_the_seeds_and_their_range() -> None:
    ways = {
        "random": [curve(0.5, 0.6, 0.7), curve(0.6, 0.6, 0.9)],
        "active": [curve(0.7, 0.8, 0.8)],
    }
    fig = figures.curves_of_tastes({"warm": ways, "short": ways}, "labels: nobody's")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["warm", "short"]
    for ax in fig.axes:
        random, active = ax.lines[:2]
        np.testing.assert_allclose(random.get_data(), [[10, 20, 30], [0.55, 0.6, 0.8]])
        np.testing.assert_allclose(active.get_ydata(), [0.7, 0.8, 0.8])
        band = ax.collections[0].get_paths()[0].vertices
        at_the_end = band[band[:, 0] == 30][:, 1]
        assert (at_the_end.min(), at_the_end.max()) == (0.7, 0.9)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["random", "active"]
    assert fig.get_suptitle() == "labels: nobody's"
    fig.canvas.draw()


def test_agreement_with_its_interval_against_a_coin() -> None:
    rows = [
        {"labels": 20, "share": 0.55, "low": 0.3, "high": 0.8},
        {"labels": 30, "share": 0.7, "low": 0.5, "high": 0.85},
    ]
    fig = figures.agreement_curve(rows, "labels: yours")
    (ax,) = fig.axes
    line, _, (bars,) = ax.containers[0].lines
    np.testing.assert_allclose(line.get_data(), [[20, 30], [0.55, 0.7]])
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.3, 0.8], [0.5, 0.85]])
    assert ax.get_title(loc="left") == "labels: yours" and ax.get_ylim() == (0, 1)
    assert [text.get_text() for text in ax.texts] == ["a coin"]
    fig.canvas.draw()


@pytest.mark.parametrize("panels", [{}, {"warm": {}}, {"warm": {"random": []}}])
def test_without_curves_there_is_nothing_to_draw(panels: dict) -> None:
    with pytest.raises(DataError, match="no curves to draw") as raised:
        figures.curves_of_tastes(panels, "")
    one_line(raised)
    with pytest.raises(DataError, match="no agreement to draw"):
        figures.agreement_curve([], "")
