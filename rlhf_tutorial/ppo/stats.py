"""The numbers that a PPO step reports, under TRL 0.11.4's keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .math import entropy_from_logits, masked_mean, masked_var


@torch.no_grad()
def minibatch_stats(
    *,
    policy_loss: Tensor,
    value_loss: Tensor,
    total_loss: Tensor,
    policy_clipfrac: Tensor,
    value_clipfrac: Tensor,
    ratio: Tensor,
    logits: Tensor,
    logprobs: Tensor,
    old_logprobs: Tensor,
    values: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    mask: Tensor,
) -> dict[str, Tensor]:
    """What one backward pass reports. Tensors are (B, T), logits (B, T, V), losses scalars."""
    log_ratio = logprobs - old_logprobs
    return {
        "ppo/loss/policy": policy_loss,
        "ppo/loss/value": value_loss,
        "ppo/loss/total": total_loss,
        "ppo/policy/entropy": masked_mean(entropy_from_logits(logits), mask),
        "ppo/policy/approxkl": 0.5 * masked_mean(log_ratio.square(), mask),
        "ppo/policy/policykl": masked_mean(-log_ratio, mask),
        "ppo/policy/clipfrac": policy_clipfrac,
        "ppo/policy/advantages": advantages,
        "ppo/policy/advantages_mean": masked_mean(advantages, mask),
        "ppo/policy/ratio": ratio,
        "ppo/returns/mean": masked_mean(returns, mask),
        "ppo/returns/var": _variance(returns, mask),
        "ppo/val/vpred": masked_mean(values, mask),
        "ppo/val/error": masked_mean((values - returns).square(), mask),
        "ppo/val/clipfrac": value_clipfrac,
        "ppo/val/mean": masked_mean(old_values, mask),
        "ppo/val/var": _variance(old_values, mask),
    }


def step_stats(
    *,
    scores: Tensor,
    kl: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    penalty: Tensor,
    mask: Tensor,
    kl_coef: float,
    query_lengths: list[int],
    response_lengths: list[int],
    minibatches: list[dict[str, Tensor]],
) -> dict[str, Any]:
    """What one PPO step reports: floats, and numpy arrays for what is per token or per sample.

    Args:
        scores: (B,) after scaling and clipping. kl, logprobs, ref_logprobs, penalty, mask: (B, T).
        minibatches: from `minibatch_stats`, all of the step's in order.
    """
    kl_per_response = (kl * mask).sum(dim=1)
    stats: dict[str, Any] = {
        "objective/kl": kl_per_response.mean(),
        "objective/kl_dist": kl_per_response,
        "objective/logprobs": logprobs,
        "objective/ref_logprobs": ref_logprobs,
        "objective/mask": mask,
        "objective/kl_coef": kl_coef,
        "objective/entropy": (-logprobs * mask).sum(dim=1).mean(),
        "ppo/mean_non_score_reward": masked_mean(penalty, mask),
        "ppo/mean_scores": scores.mean(),
        "ppo/std_scores": scores.std() if len(scores) > 1 else torch.zeros(()),
    }
    for name, lengths in (("queries", query_lengths), ("responses", response_lengths)):
        n = torch.tensor(lengths, dtype=torch.float)
        stats[f"tokens/{name}_len_mean"] = n.mean()
        stats[f"tokens/{name}_len_std"] = n.std() if len(n) > 1 else torch.zeros(())
        stats[f"tokens/{name}_dist"] = n
    for key in minibatches[0]:
        values = [m[key] for m in minibatches]
        per_token = key in ("ppo/policy/advantages", "ppo/policy/ratio")
        stats[key] = (
            torch.cat([v.flatten() for v in values]) if per_token else torch.stack(values).mean()
        )
    stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]
    return {key: _to_numpy(value) for key, value in stats.items()}


def scalars(stats: dict[str, Any]) -> dict[str, float]:
    """Only the numbers, for a log line: arrays are left out."""
    return {k: float(v) for k, v in stats.items() if np.ndim(v) == 0}


def _variance(values: Tensor, mask: Tensor) -> Tensor:
    """`masked_var`, or 0 for a single token: a response that ends at once may stand alone."""
    return masked_var(values, mask) if mask.sum() > 1 else values.new_zeros(())


def _to_numpy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    array = value.detach().float().cpu().numpy()
    return array.item() if array.ndim == 0 else array
