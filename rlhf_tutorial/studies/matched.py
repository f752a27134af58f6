"""Trainings compared where they are equally far from the reference, not where each one stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from .overoptimisation import expected_best_of_n
from .rivals import best_of_n_kl


@dataclass(frozen=True)
class Track:
    """How far a method went and what it gained there, prompt by prompt: (seeds, looks, prompts).

    The first look is at the untouched policy.
    """

    kl: np.ndarray
    """Nats; of one answer each, so that only its mean is a KL."""
    gain: np.ndarray
    """Under one judge, over the untouched policy's answer to the same prompt."""


def track_of(trainings: Sequence[Mapping[str, Any]], judge: str) -> Track:
    """The track of one method's trainings, which differ in their seeds, under one of the judges.

    Args:
        trainings: each with "queries" and "looks", as `committed_methods` has them.

    Raises:
        DataError: for no training, or where two have other prompts or another number of looks.
    """
    forms = {(len(each["looks"]), *each["queries"]) for each in trainings}
    if len(forms) != 1:
        raise DataError(f"{len(trainings)} trainings: give some with the same prompts and looks")
    scores = np.array([[at["scores"][judge] for at in each["looks"]] for each in trainings])
    kl = np.array([[at["kl"] for at in each["looks"]] for each in trainings])
    return Track(kl, scores - scores[:, :1])


def track_by_rate(
    trials: Sequence[Mapping[str, Any]], judge: str, zero: Mapping[str, np.ndarray]
) -> Track:
    """One method's trainings at several rates as one track: the start, then the end of each.

    Args:
        trials: as `committed_methods` has them, from the smallest rate to the largest.
        zero: by judge, what the gain of each prompt is measured from.

    Raises:
        DataError: for no trial, or where one is no further away than the one of a smaller rate.
    """
    if not trials:
        raise DataError("a track by rate needs a trial: give at least one")
    ends = [trial["looks"][-1] for trial in trials]
    start = np.zeros(len(zero[judge]))
    track = Track(
        kl=np.array([[start, *(at["kl"] for at in ends)]]),
        gain=np.array([[start, *(np.subtract(at["scores"][judge], zero[judge]) for at in ends)]]),
    )
    if (np.diff(track.kl.mean(axis=(0, 2))) <= 0).any():
        raise DataError("a larger rate that went no further: these trials are no track")
    return track


def track_of_best_of_n(
    chooser: np.ndarray, judge: np.ndarray, sizes: Sequence[int] = (1, 2, 4, 8, 16)
) -> Track:
    """Best of n as if it were a training, with a look at each n: its KL is the bound on it.

    Args:
        chooser, judge: (prompts, N) scores of the untouched policy's answers, by the judge that
            chooses and by the one that looks on.
    """
    gain = [expected_best_of_n(chooser, judge, n) - np.mean(judge, axis=1) for n in sizes]
    kl = [np.full(len(judge), best_of_n_kl(n)) for n in sizes]
    return Track(np.array([kl]), np.array([gain]))


def gain_at_kl(kl: Sequence[float], gain: Sequence[float], at: float) -> float:
    """What a training had gained when it first was `at` nats from the reference.

    Between two looks nobody looked: there the gain is read off a straight line over the root of the
    KL, because that is about how a gain grows at first (Gao et al. 2022, "Scaling Laws for Reward
    Model Overoptimization"), and how the figures draw it.

    Args:
        kl, gain: (looks,) means in the order of the training. The KL may fall again.

    Returns:
        NaN for a training that never was so far away.
    """
    root = np.sqrt(np.maximum(kl, 0))
    beyond = np.flatnonzero(root >= np.sqrt(at))
    if not len(beyond):
        return float("nan")
    last = beyond[0]
    two = slice(max(last - 1, 0), last + 1)
    return float(np.interp(np.sqrt(at), root[two], np.asarray(gain)[two]))


def gains_at_kl(
    tracks: Mapping[str, Track], at: float, than: str, *, resamples: int = 2_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """The methods' gains at one distance, read off the mean track of each one's seeds.

    The intervals are 95% of a bootstrap that draws the prompts anew, the same for all methods, and
    of each method its seeds (Owen 2007, "The pigeonhole bootstrap"): with one seed it is the
    interval of this one training. A drawn track that ends short of `at` counts with its far end.

    Args:
        at: nats. than: the method that the others are compared with, on the same prompts.

    Returns:
        By method: "gain", "low", "high", and "more" (than `than`), "more_low", "more_high". All are
        NaN for a method that does not go so far, and of `more` where `than` does not.
    """
    sizes = {track.gain.shape[2] for track in tracks.values()}
    if len(sizes) != 1:
        raise DataError(f"the methods answered {sorted(sizes)} prompts: give tracks over the same")
    (size,), rng = sizes, np.random.default_rng(seed)
    prompts = rng.multinomial(size, np.full(size, 1 / size), size=resamples) / size  # their weights
    drawn = {}
    for name, track in tracks.items():
        n = len(track.gain)
        seeds = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
        kl, gain = (
            np.einsum("ds,dsl->dl", seeds, np.einsum("dp,slp->dsl", prompts, x, optimize=True))
            for x in (track.kl, track.gain)
        )
        drawn[name] = [
            gain_at_kl(*path, min(at, max(path[0].max(), 0))) for path in zip(kl, gain, strict=True)
        ]
    means = {
        name: gain_at_kl(track.kl.mean(axis=(0, 2)), track.gain.mean(axis=(0, 2)), at)
        for name, track in tracks.items()
    }
    found = {}
    for name, gain in means.items():
        more = gain - means[than]
        draws, others = np.array(drawn[name]), np.array(drawn[than])
        row = {"gain": gain, "more": more}
        for key, value, values in (("", gain, draws), ("more_", more, draws - others)):
            ends = np.quantile(values, [0.025, 0.975]) if np.isfinite(value) else [np.nan] * 2
            row |= {f"{key}low": float(ends[0]), f"{key}high": float(ends[1])}
        found[name] = row
    return found
