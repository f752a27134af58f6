"""Best-of-n in expectation, against drawing every n of N."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from support.errors import one_line

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.evaluation.optimising import expected_best_of_n, last_within
from rlhf_tutorial.studies.overoptimisation import best_of_n_curve


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_it_is_the_mean_over_every_draw_of_n(n):
    random = np.random.default_rng(n)
    proxy, gold = random.normal(size=(2, 3, 7))
    for i, found in enumerate(expected_best_of_n(proxy, gold, n)):
        draws = [list(draw) for draw in combinations(range(7), n)]
        chosen = [gold[i, draw[int(np.argmax(proxy[i, draw]))]] for draw in draws]
        assert found == pytest.approx(np.mean(chosen))


def test_a_proxy_that_knows_nothing_gains_nothing_and_the_gold_itself_the_most():
    random = np.random.default_rng(0)
    gold = random.normal(size=(2000, 16))
    noise = expected_best_of_n(random.normal(size=gold.shape), gold, 8).mean()
    assert abs(noise - gold.mean()) < 0.03
    best = expected_best_of_n(gold, gold, 8).mean()
    assert best == pytest.approx(1.4236, abs=0.03), "of eight normal draws the largest"


def test_a_curve_is_the_gain_over_one_answer_and_has_its_error():
    random = np.random.default_rng(1)
    proxy, gold = random.normal(size=(2, 50, 8)) + 3
    one, four = best_of_n_curve(proxy, gold, sizes=(1, 4))
    assert (one["kl"], one["proxy"], one["gold"]) == pytest.approx((0, 0, 0))
    assert four["kl"] == pytest.approx(np.log(4) - 3 / 4)
    gains = expected_best_of_n(proxy, gold, 4) - gold.mean(axis=1)
    assert four["gold"] == pytest.approx(gains.mean())
    assert four["gold_error"] == pytest.approx(gains.std(ddof=1) / 50**0.5)
    assert four["proxy"] == pytest.approx(
        (expected_best_of_n(proxy, proxy, 4) - proxy.mean(axis=1)).mean()
    )


@pytest.mark.parametrize(("n", "shape"), [(0, (2, 4)), (5, (2, 4)), (2, (3, 4))])
def test_what_cannot_be_drawn_is_refused(n, shape):
    with pytest.raises(DataError, match=f"best of {n} needs") as error:
        expected_best_of_n(np.zeros((2, 4)), np.zeros(shape), n)
    one_line(error)


def test_a_training_is_stopped_before_it_is_too_far_even_if_it_would_come_back():
    kls = [0.0, 3.0, 9.0, 19.0, 16.0]
    assert [last_within(kls, most) for most in (1, 3, 10, 17, 20)] == [0, 1, 2, 2, 4]
