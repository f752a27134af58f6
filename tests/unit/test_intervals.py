"""Intervals: the bootstrap against plain loops, Wilson's against published values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.evaluation.intervals import (
    accuracy_interval,
    bootstrap_interval,
    paired_difference,
    two_way_interval,
)


def test_the_interval_of_a_mean_is_the_normal_one_on_normal_data():
    values = np.random.default_rng(5).normal(2.0, 3.0, size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)
    narrow = bootstrap_interval(values, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * half / 1.96, rel=0.05)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_the_interval_agrees_with_a_plain_loop_over_the_same_resamples(statistic):
    values = np.random.default_rng(6).exponential(size=3_000)  # long enough for several blocks
    rng = np.random.default_rng(11)
    loop = sorted(statistic(values[rng.integers(3_000, size=3_000)]) for _ in range(801))
    interval = bootstrap_interval(values, statistic=statistic, resamples=801, seed=11)
    assert interval == pytest.approx((loop[20], loop[780]), rel=1e-12)  # 2.5% and 97.5% of 0..800


def test_the_interval_follows_its_seed_and_leaves_the_global_one_alone():
    values = [0.0, 1.0, 5.0, 2.5]
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert np.random.get_state()[1].tolist() == before
    many = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(many, seed=3) != bootstrap_interval(many, seed=4)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_nothing_to_resample_is_an_error(values):
    with pytest.raises(DataError, match="at least one, in one dimension"):
        bootstrap_interval(values)


def test_seeds_that_differ_widen_the_interval_and_one_seed_leaves_the_prompts():
    values = np.random.default_rng(7).normal(size=(200, 1))
    over_prompts = bootstrap_interval(values[:, 0])
    assert two_way_interval(values) == pytest.approx(over_prompts, abs=0.01)
    alike, unlike = (values + np.array(seeds) for seeds in ([0, 0, 0], [-1, 0, 1]))
    narrow, wide = two_way_interval(alike), two_way_interval(unlike)
    assert narrow == pytest.approx(over_prompts, abs=0.01)
    assert wide[0] < narrow[0] - 0.5 and wide[1] > narrow[1] + 0.5


@pytest.mark.parametrize("values", [np.ones(3), np.ones((0, 2))])
def test_a_table_without_a_value_is_an_error(values):
    with pytest.raises(DataError, match="a table of at least one value"):
        two_way_interval(values)


def test_accuracy_interval_against_published_and_solved_values():
    # Newcombe (1998), table I, Wilson's method without continuity correction.
    assert accuracy_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert accuracy_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert accuracy_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert accuracy_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    for bound in accuracy_interval(60, 100):  # each bound p solves |0.6 - p| = z sqrt(p(1-p)/n)
        assert abs(0.6 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 100))
    with pytest.raises(DataError):
        accuracy_interval(5, 4)


def test_a_paired_difference_forgets_what_both_sides_share():
    random = np.random.default_rng(2)
    shared, noise = 10 * random.normal(size=200), random.normal(size=200)
    mean, error = paired_difference(shared + noise, shared)
    assert mean == pytest.approx(noise.mean())
    assert error == pytest.approx(noise.std(ddof=1) / 200**0.5)
