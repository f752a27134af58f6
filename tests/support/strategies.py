"""What hypothesis draws: batches for a step, numbers per token, conversations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from .models import SMALL_VOCABULARY
from .tokenizers import EOS, PAD

KINDS = ("gpt2", "llama", "qwen2", "neox")
TWO_KINDS = ("gpt2", "llama")  # with learned and with rotary positions

# Derandomised, so that a run of the tests does not depend on luck.
MATH = settings(deadline=None, derandomize=True, max_examples=100)
MODEL = settings(deadline=None, derandomize=True, max_examples=6)
KIND = st.sampled_from(["gpt2", "gpt2", "llama", "llama", "qwen2", "neox"])


# Batches -------------------------------------------------------------------------------------


@dataclass
class Samples:
    """What `step` takes, as lists: that is how hypothesis prints it."""

    queries: list[list[int]]
    responses: list[list[int]]
    scores: list[float]
    masks: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def arguments(self) -> tuple:
        """For `step`."""
        columns = [tensors(self.queries), tensors(self.responses), self.scores]
        return (*columns, None if self.masks is None else tensors(self.masks))

    def reordered(self, order: list[int]) -> Samples:
        """The same samples, another one first."""
        columns = (self.queries, self.responses, self.scores, self.masks)
        return Samples(*(None if c is None else [c[i] for i in order] for c in columns))

    @property
    def kept(self) -> Tensor:
        """(B, T), True at the tokens to train on; laid out by hand."""
        masks = self.masks or [[1] * len(r) for r in self.responses]
        width = max(len(m) for m in masks)
        return torch.tensor([m + [0] * (width - len(m)) for m in masks]).bool()


def tensors(rows: list[list[int]]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


# Lengths are mixed, two responses have one token.
SIX = Samples(
    queries=[[3, 4, 5], [6, 7, 8, 9, 10, 11, 12], [13], [14, 15, 16, 17, 18], [19] * 4, [20, 21]],
    responses=[[9, 5, 7, 3], [13], [8, 8, 4, 22, 6, EOS], [23, 10], [EOS], [12, 3, 17, 5, 11]],
    scores=[1.0, -0.5, 2.0, 0.5, -1.5, 0.0],
)

# Any token may stand anywhere, padding's and EOS too.
TOKENS = st.lists(st.integers(0, SMALL_VOCABULARY - 1), min_size=1, max_size=6)


@st.composite
def sample_lists(draw: st.DrawFn, masked: bool = False, long_first: bool = False) -> Samples:
    """2 to 5 samples of mixed lengths, whose scores differ: advantages that are all the same have
    no variance to whiten by."""
    n = draw(st.integers(2, 5))
    queries = [draw(TOKENS) for _ in range(n)]
    responses = [draw(TOKENS) for _ in range(n)]
    if long_first and len(responses[0]) == 1:
        responses[0] = responses[0] * 3
    unique = st.lists(st.integers(-8, 8), min_size=n, max_size=n, unique=True)
    scores = [score / 2 for score in draw(unique)]
    if not (masked and draw(st.booleans())):
        return Samples(queries, responses, scores)
    kept = [draw(st.sets(st.integers(0, len(r) - 1), min_size=1)) for r in responses]
    masks = [[int(t in k) for t in range(len(r))] for r, k in zip(responses, kept, strict=True)]
    return Samples(queries, responses, scores, masks)


@st.composite
def reordered(draw: st.DrawFn) -> tuple[Samples, list[int]]:
    """Samples, and another order for them."""
    samples = draw(sample_lists(masked=True))
    return samples, list(draw(st.permutations(range(len(samples)))))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


# Numbers -------------------------------------------------------------------------------------


@st.composite
def per_token(draw: st.DrawFn, n: int, largest: float = 10.0, width: int = 64) -> tuple:
    """n arrays (B, T) of numbers, and a 0/1 array with a 1 in each row; all float64 tensors."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 7)))
    numbers = arrays(float, shape, elements=st.floats(-largest, largest, width=width))
    mask = draw(arrays(float, shape, elements=st.sampled_from([0.0, 1.0])))
    for row in range(shape[0]):
        mask[row, draw(st.integers(0, shape[1] - 1))] = 1.0
    return (*(torch.from_numpy(draw(numbers)) for _ in range(n)), torch.from_numpy(mask))


LOGITS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 8)).flatmap(
    lambda shape: st.tuples(
        *[arrays(np.float32, shape, elements=st.floats(-80, 80, width=32)) for _ in range(2)]
    )
)


# Conversations -------------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Queries, answers as a model would say them that EOS does not stop, and answers as expected.

    Queries hold the tokens 100 to 109, EOS and padding; answers the tokens 10 to 19, EOS and
    padding. Of answers some begin with EOS, some have it somewhere, some do not.
    """
    n, length = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    asked = st.integers(100, 109) | st.sampled_from([EOS, PAD])
    queries = [draw(st.lists(asked, min_size=1, max_size=6)) for _ in range(n)]
    answers, expected = [], []
    for _ in range(n):
        words = st.lists(st.integers(10, 19) | st.just(PAD), min_size=length, max_size=length)
        answer, end = draw(words), draw(st.just(0) | st.integers(0, length) | st.just(length))
        expected.append(answer[:end] + [EOS] if end < length else list(answer))
        if end < length:
            later = st.lists(st.integers(10, 19) | st.just(EOS), min_size=length, max_size=length)
            answer = (expected[-1] + draw(later))[:length]
        answers.append(answer)
    return queries, answers, expected
