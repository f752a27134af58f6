"""Gains at matched KL: read off lines over its root, with intervals that cover the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.studies.matched import (
    Track,
    gain_at_kl,
    gains_at_kl,
    track_by_rate,
    track_of,
    track_of_best_of_n,
)


def test_a_gain_is_read_where_the_training_first_came_so_far() -> None:
    kl, gain = [0.0, 4.0, 9.0, 6.0], [0.0, 0.4, 0.9, 5.0]
    assert gain_at_kl(kl, gain, 4) == pytest.approx(0.4)
    assert gain_at_kl(kl, gain, 1) == pytest.approx(0.2), "half-way in the root of the KL"
    assert gain_at_kl(kl, gain, 6.25) == pytest.approx(0.65), "on the way out, not on the way back"
    assert gain_at_kl(kl, gain, 0) == 0
    assert np.isnan(gain_at_kl(kl, gain, 9.1))
    assert gain_at_kl([-1e-3, 1.0], [0.0, 1.0], 0.25) == pytest.approx(0.5), "noise below 0"


def training(seed: int, far: float, gain: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    start = rng.normal(size=40)
    looks = [
        {
            "scores": {"first": list(start + gain * share), "second": list(start)},
            "kl": list(np.full(40, far * share**2)),
        }
        for share in (0, 0.5, 1)
    ]
    return {"queries": [f"q{i}" for i in range(40)], "looks": looks}


def test_a_track_is_what_was_gained_since_the_first_look() -> None:
    track = track_of([training(0, 4, 1), training(1, 8, 1)], "first")
    assert track.gain.shape == track.kl.shape == (2, 3, 40)
    assert track.gain.mean(axis=(0, 2)) == pytest.approx([0, 0.5, 1])
    assert track.kl.mean(axis=(0, 2)) == pytest.approx([0, 1.5, 6])
    assert not track_of([training(0, 4, 1)], "second").gain.any()
    other = training(0, 4, 1) | {"queries": ["other"] * 40}
    for trainings in ([], [training(0, 4, 1), other]):
        with pytest.raises(DataError, match="the same prompts and looks"):
            track_of(trainings, "first")


def test_trials_of_growing_rates_are_one_track_from_a_common_zero() -> None:
    trials, zero = [training(0, 4, 1), training(1, 8, 2)], {"first": np.full(40, 0.25)}
    track = track_by_rate(trials, "first", zero)
    assert track.gain.shape == track.kl.shape == (1, 3, 40)
    assert not track.gain[0, 0].any() and not track.kl[0, 0].any()
    for end, trial in zip(track.gain[0, 1:], trials, strict=True):
        assert end == pytest.approx(np.array(trial["looks"][-1]["scores"]["first"]) - 0.25)
    assert track.kl.mean(axis=(0, 2)) == pytest.approx([0, 4, 8])
    with pytest.raises(DataError, match="at least one"):
        track_by_rate([], "first", zero)
    with pytest.raises(DataError, match="went no further"):
        track_by_rate(trials[::-1], "first", zero)


def test_best_of_n_is_a_track_to_its_bound() -> None:
    rng = np.random.default_rng(0)
    chooser = rng.normal(size=(50, 16))
    track = track_of_best_of_n(chooser, chooser, sizes=(1, 4, 16))
    assert track.gain.shape == (1, 3, 50)
    assert track.gain[0, 0] == pytest.approx(np.zeros(50))
    assert track.gain[0, 2] == pytest.approx(chooser.max(axis=1) - chooser.mean(axis=1))
    assert track.kl[0, :, 0] == pytest.approx([0, np.log(4) - 3 / 4, np.log(16) - 15 / 16])


def noisy(seed: int, slope: float, seeds: int = 1, prompts: int = 100) -> Track:
    """Gains that grow with the root of the KL, and are noisy prompt by prompt."""
    rng = np.random.default_rng(seed)
    roots = np.array([0.0, 1, 2, 3])[None, :, None] * np.ones((seeds, 1, prompts))
    noise = rng.normal(size=roots.shape) * (roots > 0)
    return Track(roots**2 + noise, slope * roots + noise)


def test_the_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered, clear = [], []
    for seed in range(60):
        tracks = {"a": noisy(seed, 0.1), "b": noisy(1000 + seed, 0.4, seeds=2)}
        found = gains_at_kl(tracks, 4, "a", resamples=300)
        covered.append(found["b"]["low"] < 0.8 < found["b"]["high"])
        clear.append(found["b"]["more_low"] > 0)
        assert (found["a"]["more"], found["a"]["more_low"], found["a"]["more_high"]) == (0, 0, 0)
        assert found["b"]["more"] == pytest.approx(found["b"]["gain"] - found["a"]["gain"])
    assert 0.85 <= np.mean(covered) <= 1 and np.mean(clear) > 0.9


def test_prompts_are_shared_and_so_their_difficulty_cancels() -> None:
    hard = np.random.default_rng(0).normal(size=(1, 1, 80)) * np.array([0, 1, 1])[None, :, None]
    kl = np.array([0.0, 1, 4])[None, :, None] * np.ones((1, 1, 80))
    tracks = {"a": Track(kl, hard), "b": Track(kl, hard + 0.1 * (kl > 0))}
    b = gains_at_kl(tracks, 4, "a", resamples=200)["b"]
    assert b["high"] - b["low"] > 0.3
    assert (b["more_low"], b["more_high"]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_what_does_not_go_so_far_is_not_compared() -> None:
    near = Track(np.array([[[0.0] * 5, [1.0] * 5]]), np.array([[[0.0] * 5, [0.3] * 5]]))
    far = Track(near.kl * 9, near.gain)
    found = gains_at_kl({"near": near, "far": far}, 4, "near", resamples=50)
    assert np.isnan(list(found["near"].values())).all()
    assert found["far"]["gain"] == pytest.approx(0.2)
    assert np.isnan([found["far"][key] for key in ("more", "more_low", "more_high")]).all()
    assert found["far"]["low"] == pytest.approx(0.2)
    other = Track(np.zeros((1, 2, 4)), np.zeros((1, 2, 4)))
    with pytest.raises(DataError, match=r"\[4, 5\] prompts"):
        gains_at_kl({"near": near, "other": other}, 4, "near")
