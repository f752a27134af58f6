"""Log-probabilities and entropies in one pass over the vocabulary, a few rows at a time.

`math.logprobs_from_logits` and `math.entropy_from_logits` each write several tensors of the size of
the logits: (B, T, V), tens of megabytes, through memory and back. Here a block of rows stays in
the cache until all that is wanted of it has been computed, and the backward pass recomputes the
softmax instead of storing it. The results are equal but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Float32 logits per block: about a processor core's cache, or enough to keep a GPU busy."""


def logprobs_and_entropy(
    logits: Tensor, labels: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log softmax(z)[label] and H = logsumexp(z) - sum_v softmax(z)_v z_v, in float32.

    z are the logits divided by the temperature.

    Args:
        logits: (B, T, V), in any floating dtype. labels: (B, T).

    Returns:
        Both (B, T), in nats. Only the log-probabilities have a gradient.
    """
    return _TokenStatistics.apply(logits, labels, temperature)


def _blocks(logits: Tensor) -> list[slice]:
    rows, vocabulary = logits.shape
    budget = BLOCK_BYTES.get(logits.device.type, 2**20)
    size = max(1, budget // (4 * vocabulary))
    return [slice(start, start + size) for start in range(0, rows, size)]


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        flat, targets = logits.flatten(0, -2), labels.flatten()
        logsumexp = torch.empty(len(flat), device=flat.device)
        logprobs, entropy = torch.empty_like(logsumexp), torch.empty_like(logsumexp)
        for rows in _blocks(flat):
            z = flat[rows].float() / temperature
            top = z.amax(dim=-1, keepdim=True)
            z = z - top  # so that exp does not overflow, and small differences keep their digits
            weights = z.exp()
            total = weights.sum(dim=-1)
            log_total = total.log()
            logsumexp[rows] = log_total + top.squeeze(-1)
            logprobs[rows] = z.gather(-1, targets[rows].unsqueeze(-1)).squeeze(-1) - log_total
            entropy[rows] = log_total - torch.linalg.vecdot(weights, z) / total
        ctx.save_for_backward(flat, targets, logsumexp)
        logprobs, entropy = logprobs.view_as(labels), entropy.view_as(labels)
        ctx.mark_non_differentiable(entropy)
        ctx.shape, ctx.temperature = logits.shape, temperature
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        flat, targets, logsumexp = ctx.saved_tensors
        gradient, result = gradient.flatten(), torch.empty_like(flat)
        for rows in _blocks(flat):
            # d log softmax(z)[label] / dz = onehot(label) - softmax(z)
            g = gradient[rows].unsqueeze(-1) / ctx.temperature
            p = (flat[rows].float() / ctx.temperature - logsumexp[rows].unsqueeze(-1)).exp_()
            p.mul_(-g).scatter_add_(-1, targets[rows].unsqueeze(-1), g)
            result[rows] = p
        return result.view(ctx.shape), None, None
