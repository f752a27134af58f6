"""Pairs, labels of a simple taste, and a reader of four numbers, for tests of judges."""

from __future__ import annotations

import numpy as np
import torch

from rlhf_tutorial.human.labels import Label, Pair


def read(queries, responses):
    """A reader of four numbers: length, share of vowels, and twice the query's, as a topic."""
    return torch.tensor(
        [
            [len(r), sum(c in "aeiou" for c in r) / max(len(r), 1), len(q), len(q) % 3]
            for q, r in zip(queries, responses, strict=True)
        ],
        dtype=torch.float32,
    )


def pairs_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Pair(
            f"prompt {i}",
            *("ab cde " * int(k) + "x" * int(j) for k, j in rng.integers(1, 9, (2, 2))),
        )
        for i in range(n)
    ]


def label(pair, choice, **settings):
    values = {"left": "a", "seconds": 1.0, "time": "2026-11-29T10:00:00+00:00", "rater": "you",
              "policy": "p"}  # fmt: skip
    return Label(pair.prompt, pair.a, pair.b, choice=choice, **{**values, **settings})


def prefers_short(pair):
    a, b = len(pair.a), len(pair.b)
    return "tie" if a == b else "a" if a < b else "b"


def labelled(n, **settings):
    return [label(pair, prefers_short(pair), **settings) for pair in pairs_of(n)]
