"""Notebook 07: perplexity, of one text and of many, and which texts PPO makes likelier."""

from __future__ import annotations

import torch
from torch import Tensor

from .checking import Exercise
from .inputs import MASK, logprobs, normal


def _perplexity(logprobs: Tensor, mask: Tensor) -> Tensor:
    return torch.exp(-(logprobs * mask).sum(1) / mask.sum(1))


def _pooled(perplexities: Tensor, tokens: Tensor) -> Tensor:
    return torch.exp((tokens * perplexities.log()).sum() / tokens.sum())


def _bar(scores: Tensor, beta: float) -> Tensor:
    return beta * (torch.logsumexp(scores / beta, dim=0) - torch.tensor(len(scores)).log())


EXERCISES: dict[str, Exercise] = {
    "perplexity": Exercise(
        _perplexity,
        [(2 * logprobs(3, 4), MASK), (2 * logprobs(3, 4), MASK)],
        {
            "The mask is forgotten: padding counts as text.": (
                lambda p, m: _perplexity(p, torch.ones_like(m))
            ),
            "You divide by the width of the batch. A text has as many tokens as its mask ones.": (
                lambda p, m: torch.exp(-(p * m).mean(1))
            ),
            "That is its logarithm: exp is missing.": lambda p, m: _perplexity(p, m).log(),
            "The minus is missing: log-probabilities are negative, a perplexity is at least 1.": (
                lambda p, m: 1 / _perplexity(p, m)
            ),
            "You take the mean of 1 / p. First the mean of the logarithms, then exp.": (
                lambda p, m: (torch.exp(-p) * m).sum(1) / m.sum(1)
            ),
            "The sum isn't divided by the number of tokens: long texts would perplex more.": (
                lambda p, m: torch.exp(-(p * m).sum(1))
            ),
        },
    ),
    "pooled_perplexity": Exercise(
        _pooled,
        [
            (1 + 20 * normal(5).abs(), torch.tensor([40.0, 3.0, 12.0, 90.0, 7.0]).double()),
            (1 + 5 * normal(3).abs(), torch.tensor([2.0, 60.0, 11.0]).double()),
        ],
        {
            "That is the mean over texts: one of three tokens weighs as much as one of ninety.": (
                lambda x, t: x.mean()
            ),
            "You weigh by tokens, but after the exponential. The pool is of log-probabilities: "
            "take the logarithm first.": lambda x, t: (t * x).sum() / t.sum(),
            "That is the geometric mean: each text weighs the same. Weigh by tokens.": (
                lambda x, t: x.log().mean().exp()
            ),
            "exp is missing.": lambda x, t: _pooled(x, t).log(),
        },
    ),
    "bar": Exercise(
        _bar,
        [(normal(9) + 1, 0.5), (normal(6), 0.1)],
        {
            "Z is a mean over the reference's answers: divide the sum by how many there are.": (
                lambda s, b: b * torch.logsumexp(s / b, dim=0)
            ),
            "beta in front is missing: log Z has no unit, and the bar is a score.": (
                lambda s, b: _bar(s, b) / b
            ),
            "That is the mean score. It is so for a large beta only.": lambda s, b: s.mean(),
            "That is the best score. It is so for a beta of 0 only.": lambda s, b: s.max(),
            "That is Z itself: its logarithm is asked for, times beta.": lambda s, b: (
                (s / b).exp().mean()
            ),
            "You multiply the scores by beta. The smaller beta, the more a score counts: divide.": (
                lambda s, b: b * (torch.logsumexp(s * b, dim=0) - torch.tensor(len(s)).log())
            ),
        },
    ),
}
