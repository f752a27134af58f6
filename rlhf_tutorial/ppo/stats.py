"""The numbers that a PPO step reports, under TRL 0.11.4's keys."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .math import masked_mean, masked_var_or_zero
from .rollout import Experience

logger = logging.getLogger(__name__)


class Clock:
    """Seconds spent in each part of a step, and in all of it."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """End `part`, which began at the mark before."""
        now = time.perf_counter()
        self._parts[part], self._last = now - self._last, now

    def times(self) -> dict[str, float]:
        """Under TRL's keys, `time/ppo/<part>`."""
        parts = self._parts | {"total": self._last - self._start}
        return {f"time/ppo/{part}": seconds for part, seconds in parts.items()}


@torch.no_grad()
def minibatch_stats(
    *,
    policy_loss: Tensor,
    value_loss: Tensor,
    total_loss: Tensor,
    policy_clipfrac: Tensor,
    value_clipfrac: Tensor,
    ratio: Tensor,
    logprobs: Tensor,
    values: Tensor,
    entropy: Tensor,
    old: Experience,
) -> dict[str, Tensor]:
    """What one backward pass reports, of the rows of all processes.

    Args:
        policy_loss, value_loss, total_loss, policy_clipfrac, value_clipfrac: scalars.
        ratio, logprobs, values, entropy: (B, T), of the policy in this pass.
        old: the same rows before the first update.
    """
    log_ratio, mask = logprobs - old.logprobs, old.mask
    advantages, returns = old.advantages, old.returns
    return {
        "ppo/loss/policy": policy_loss,
        "ppo/loss/value": value_loss,
        "ppo/loss/total": total_loss,
        "ppo/policy/entropy": masked_mean(entropy, mask),
        "ppo/policy/approxkl": 0.5 * masked_mean(log_ratio.square(), mask),
        "ppo/policy/policykl": masked_mean(-log_ratio, mask),
        "ppo/policy/clipfrac": policy_clipfrac,
        "ppo/policy/advantages": advantages,
        "ppo/policy/advantages_mean": masked_mean(advantages, mask),
        "ppo/policy/ratio": ratio,
        "ppo/returns/mean": masked_mean(returns, mask),
        "ppo/returns/var": masked_var_or_zero(returns, mask),
        "ppo/val/vpred": masked_mean(values, mask),
        "ppo/val/error": masked_mean((values - returns).square(), mask),
        "ppo/val/clipfrac": value_clipfrac,
        "ppo/val/mean": masked_mean(old.values, mask),
        "ppo/val/var": masked_var_or_zero(old.values, mask),
    }


def step_stats(
    *,
    scores: Tensor,
    experience: Experience,
    kl_coef: float,
    query_lengths: Tensor,
    response_lengths: Tensor,
    minibatches: list[dict[str, Tensor]],
) -> dict[str, Any]:
    """What one PPO step reports: floats, and numpy arrays for what is per token or per sample.

    Args:
        scores: (B,) after scaling and clipping. query_lengths, response_lengths: (B,), in tokens.
        minibatches: from `minibatch_stats`, all of the step's in order.
    """
    logprobs, mask = experience.logprobs, experience.mask
    kl_per_response = (experience.kl * mask).sum(dim=1)
    stats: dict[str, Any] = {
        "objective/kl": kl_per_response.mean(),
        "objective/kl_dist": kl_per_response,
        "objective/logprobs": logprobs,
        "objective/ref_logprobs": experience.ref_logprobs,
        "objective/mask": mask,
        "objective/kl_coef": kl_coef,
        "objective/entropy": (-logprobs * mask).sum(dim=1).mean(),
        "ppo/mean_non_score_reward": masked_mean(experience.penalty, mask),
        "ppo/mean_scores": scores.mean(),
        "ppo/std_scores": scores.std() if len(scores) > 1 else scores.new_zeros(()),
    }
    for name, lengths in (("queries", query_lengths), ("responses", response_lengths)):
        n = lengths.float()
        stats[f"tokens/{name}_len_mean"] = n.mean()
        stats[f"tokens/{name}_len_std"] = n.std() if len(n) > 1 else n.new_zeros(())
        stats[f"tokens/{name}_dist"] = n
    for key in minibatches[0]:
        values = [m[key] for m in minibatches]
        per_token = key in ("ppo/policy/advantages", "ppo/policy/ratio")
        stats[key] = (
            torch.cat([v.flatten() for v in values]) if per_token else torch.stack(values).mean()
        )
    stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]
    stats = _to_numpy(stats)
    if stats["objective/kl"] < -1:
        logger.warning(
            "the KL is %.2f nats per response, and clearly negative: the responses do not seem to "
            "be samples of this policy; check the settings of generate (top_k, top_p, temperature)",
            stats["objective/kl"],
        )
    return stats


class Number(float):
    """A float that also has `item()`, as scripts ask of TRL's arrays of one element."""

    def item(self) -> float:
        """The plain float."""
        return float(self)


def with_items(stats: dict[str, Any]) -> dict[str, Any]:
    """The stats, their floats as `Number`."""
    return {k: Number(v) if isinstance(v, float) else v for k, v in stats.items()}


def scalars(stats: dict[str, Any]) -> dict[str, float]:
    """Only the numbers, for a log line: arrays are left out."""
    return {k: float(v) for k, v in stats.items() if np.ndim(v) == 0}


def _to_numpy(stats: dict[str, Any]) -> dict[str, Any]:
    """The tensors among the numbers as floats and arrays, fetched from a GPU all at once."""
    tensors = {k: v.detach().float() for k, v in stats.items() if isinstance(v, Tensor)}
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    arrays = {
        key: part.item() if not tensor.ndim else part.view(tensor.shape).numpy()
        for (key, tensor), part in zip(tensors.items(), parts, strict=True)
    }
    return stats | arrays
