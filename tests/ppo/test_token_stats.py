"""The pass over the vocabulary in blocks against the plain formulas in float64."""

from __future__ import annotations

import pytest
import torch

from rlhf_tutorial.ppo import token_stats as fused
from rlhf_tutorial.ppo.token_stats import logprobs_and_entropy


def case(dtype: torch.dtype, vocabulary: int = 5000) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 7, vocabulary, generator=random)
    logits[0, 0] += 200  # would overflow a plain exp
    labels = torch.randint(vocabulary, (3, 7), generator=random)
    return logits.to(dtype).requires_grad_(), labels, torch.randn(3, 7, generator=random)


def expected(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By torch's own distribution, in float64."""
    distribution = torch.distributions.Categorical(logits=logits.double())
    return distribution.log_prob(labels), distribution.entropy()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("block_rows", [1, 2, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradient_are_those_of_the_formulas(block_rows, dtype, temperature, monkeypatch):
    monkeypatch.setitem(fused.BLOCK_BYTES, "cpu", 4 * 5000 * block_rows)
    logits, labels, upstream = case(dtype)
    logprobs, entropy = logprobs_and_entropy(logits, labels, temperature)
    assert logprobs.dtype == entropy.dtype == torch.float32 and not entropy.requires_grad
    right_logprobs, right_entropy = expected(logits.double() / temperature, labels)
    torch.testing.assert_close(logprobs.double(), right_logprobs, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy.double(), right_entropy, rtol=1e-6, atol=1e-5)
    (gradient,) = torch.autograd.grad(logprobs, logits, upstream)
    (right,) = torch.autograd.grad(right_logprobs, logits, upstream.double())
    assert gradient.dtype == dtype
    # bfloat16 keeps 8 bits of the gradient; float32 keeps 24 of the 667 that 200 becomes at 0.3.
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6 if temperature == 1 else 1e-4
    torch.testing.assert_close(gradient.double(), right.double(), rtol=tolerance, atol=1e-6)


def test_the_blocks_cover_every_row_once():
    rows = torch.zeros(23, 50_000)
    covered = torch.cat([torch.arange(23)[block] for block in fused._blocks(rows)])
    assert covered.tolist() == list(range(23)) and len(fused._blocks(rows)) > 3
