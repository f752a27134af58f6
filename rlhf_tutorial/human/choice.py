"""Which pair to ask about next: the one whose answer would teach the judge most.

There are two meanings of that. `expected_information` counts what is learned of the weights (BALD:
Houlsby et al. 2011, "Bayesian Active Learning for Classification and Preference Learning", arXiv
1112.5745). It likes odd pairs, which are far from all others and say little of them.
`expected_information_about` counts what is learned of the choices between other pairs (MacKay 1992,
"Information-Based Objective Functions for Active Data Selection", section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..run import Run
from .judge import BayesianJudge, Features, Posterior, kept_features, state_reader
from .labelling import Session
from .labels import Label, NextPair, Pair, labels_path, policy_name, untouched_pairs

TARGETS = 200
"""Pairs that stand for all, where information about them is counted."""


def expected_information(posterior: Posterior, differences: Tensor) -> Tensor:
    """BALD, in nats: H(E p) - E H(p), with p the probability that a is chosen.

    The expectation is over the posterior's Gaussian of the margin, by 21 Gauss-Hermite nodes.

    Args:
        differences: (N, K), features of a less those of b.

    Returns:
        (N,), each between 0 and log 2.
    """
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(21))
    means, deviations = differences @ posterior.mean, _variances(posterior, differences).sqrt()
    p = torch.sigmoid(means[:, None] + deviations[:, None] * nodes)
    weights = weights / math.sqrt(2 * math.pi)
    return _entropy(p @ weights) - _entropy(p) @ weights


def expected_information_about(
    posterior: Posterior, differences: Tensor, targets: Tensor
) -> Tensor:
    """MacKay's mean marginal information gain, in nats: about the margins of other pairs.

    With h the variance of the choice, its answer is about as good as one of the margin with noise
    of variance 1 / h. It then tells -log(1 - rho^2) / 2 of a target's margin, rho the correlation
    of the two.

    Args:
        differences: (N, K), of the pairs that can be asked about. targets: (M, K), of the others.

    Returns:
        (N,), means over the targets.
    """
    variances, about = _variances(posterior, differences), _variances(posterior, targets)
    # The mean of sigma over a Gaussian (MacKay 1992, equation 10 of "The Evidence Framework ...").
    p = torch.sigmoid(differences @ posterior.mean / (1 + math.pi * variances / 8).sqrt())
    noise = 1 / (p * (1 - p))
    covariances = differences @ posterior.covariance @ targets.T
    squares = covariances.square() / ((variances + noise)[:, None] * about)
    return -0.5 * torch.log1p(-squares).mean(dim=1)


def _variances(posterior: Posterior, differences: Tensor) -> Tensor:
    """Of the margins, (N,)."""
    each = ((differences @ posterior.covariance) * differences).sum(dim=1)
    return each.clamp_min(1e-12)  # of two equal answers it is 0


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p) - torch.xlogy(1 - p, 1 - p)


def random_choice(seed: int = 0) -> NextPair:
    """Any pair that has no label yet."""
    draw = np.random.default_rng(seed)

    def next_pair(labels: list[Label], pairs: list[Pair]) -> int:
        return int(draw.choice(_unlabelled(labels, pairs)))

    return next_pair


def active_choice(
    features: Features, about: Literal["weights", "pairs"] = "weights", seed: int = 0
) -> NextPair:
    """Of the pairs without a label the one that tells most, about the weights or other pairs."""
    draw = np.random.default_rng(seed)

    def next_pair(labels: list[Label], pairs: list[Pair]) -> int:
        free = _unlabelled(labels, pairs)
        differences = features.differences([pairs[i] for i in free])
        posterior = BayesianJudge.fit(features, labels, policy="").posterior
        if about == "weights":
            told = expected_information(posterior, differences)
        else:
            targets = differences[draw.permutation(len(free))[:TARGETS]]
            told = expected_information_about(posterior, differences, targets)
        return free[int(told.argmax())]

    return next_pair


def active_session(
    run: Run, n: int, rater: str = "you", progress: Callable[..., Any] | None = None
) -> Session:
    """To label n pairs of the untouched policy's answers: of twice as many those that tell most.

    The pairs, and what a judge sees of them, are kept in the run's folder: only the first time has
    the policy to answer, and the judge to read.

    Args:
        progress: as `tqdm`, to show how policy and judge get on; by default they are silent.

    Raises:
        DataError: as `untouched_pairs` and `Session`.
    """
    pairs = untouched_pairs(run, 2 * n, progress=progress)
    folder = run.folder / "human" / f"features-{2 * n}"
    features = kept_features(folder, state_reader(run, progress), pairs)
    return Session(
        pairs,
        labels_path(run),
        policy=policy_name(run),
        rater=rater,
        next_pair=active_choice(features),
        limit=n,
    )


def _unlabelled(labels: Sequence[Label], pairs: Sequence[Pair]) -> list[int]:
    """The places of the pairs without a label, or of all where each has one."""
    known = {label.pair.key for label in labels}
    free = [i for i, pair in enumerate(pairs) if pair.key not in known]
    return free or list(range(len(pairs)))
