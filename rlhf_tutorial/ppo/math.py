"""The equations of PPO for language models, as pure functions of tensors.

Shapes: B is the batch size, T the number of response positions (responses are right-padded to the
longest), V the vocabulary size. A mask is 1.0 at response tokens and 0.0 at padding. Position t
belongs to the t-th response token: its log-probability was computed from the tokens before it.

Sources: Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (PPO); Schulman et al.
2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation" (GAE); Ziegler
et al. 2019, "Fine-Tuning Language Models from Human Preferences" (the KL penalty and its adaptive
coefficient). Where those leave a choice open, this is the choice TRL 0.11.4 made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

KL_KINDS = ("kl", "abs", "mse", "full")


def logprobs_from_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label: log softmax(logits)[label].

    Args:
        logits: (B, T, V), the prediction for each position.
        labels: (B, T), the token that stands there.

    Returns:
        (B, T), in nats.
    """
    return F.log_softmax(logits, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy of each predicted distribution, H = logsumexp(z) - sum_v softmax(z)_v z_v.

    Args:
        logits: (B, T, V).

    Returns:
        (B, T), in nats; between 0 (certain) and log V (uniform).
    """
    return torch.logsumexp(logits, dim=-1) - (F.softmax(logits, dim=-1) * logits).sum(dim=-1)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the positions where mask is 1 (over everything, or along `dim`)."""
    if dim is None:
        return (values * mask).sum() / mask.sum()
    return (values * mask).sum(dim) / mask.sum(dim)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance over the positions where mask is 1 (divides by n - 1).

    Raises:
        ValueError: if fewer than two positions are unmasked: the variance of one number is
            undefined.
    """
    n = mask.sum()
    if n < 2:
        raise ValueError(
            f"the variance needs at least 2 unmasked tokens, got {int(n)}: "
            "use a larger mini-batch or longer responses"
        )
    return masked_var_or_zero(values, mask)


def masked_var_or_zero(values: Tensor, mask: Tensor) -> Tensor:
    """`masked_var`, or 0 for a single token: nothing is raised, so a GPU is not waited for."""
    n = mask.sum()
    variance = masked_mean((values - masked_mean(values, mask)) ** 2, mask) * n / (n - 1)
    return torch.where(n > 1, variance, 0.0)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over the unmasked positions, and shift to mean 0 unless told not to.

    Args:
        values: (B, T). Masked positions are transformed too and mean nothing.
        mask: (B, T).
        shift_mean: if False the mean is put back, so that only the scale changes.
    """
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_var(values, mask) + 1e-8)
    return whitened if shift_mean else whitened + mean


def kl_per_token(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "kl") -> Tensor:
    """How far the policy is from the reference at each token, by one of four estimators.

    With x ~ policy and d = log pi(x) - log pi_ref(x):

    - "kl":   d, unbiased but noisy (k1 in Schulman 2020, "Approximating KL Divergence").
    - "abs":  |d|.
    - "mse":  d^2 / 2, of low variance but biased (k2 in the same note).
    - "full": sum_v pi(v) (log pi(v) - log pi_ref(v)), the exact KL of the two distributions.

    Args: logprobs, ref_logprobs: (B, T), or (B, T, V) over the vocabulary for "full".
    Returns: (B, T), in nats.
    """
    difference = logprobs - ref_logprobs
    if kind == "kl":
        return difference
    if kind == "abs":
        return difference.abs()
    if kind == "mse":
        return 0.5 * difference.square()
    if kind == "full":
        return (logprobs.exp() * difference).sum(dim=-1)
    raise ValueError(f"unknown kl_penalty {kind!r}: use one of {', '.join(KL_KINDS)}")


def rewards_per_token(
    scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float
) -> tuple[Tensor, Tensor]:
    """r_t = -beta KL_t, plus the score at the last response token (Ziegler et al. 2019, eq. 2).

    Args:
        scores: (B,), what the reward model says of each whole response.
        kl: (B, T). mask: (B, T), with at least one 1 in each row. kl_coef: beta.

    Returns:
        The rewards and their part without the score, both (B, T).
    """
    penalty = -kl_coef * kl
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * (positions + 1)).argmax(dim=1)  # the last 1 has the largest index + 1
    rewards = penalty.clone()
    rewards[torch.arange(len(last), device=last.device), last] += scores
    return rewards, penalty


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (GAE, eq. 11 to 16), computed from the last token back.

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},
    with V = A = 0 after the last position.

    Args:
        rewards, values: (B, T), both 0 at masked positions.

    Returns:
        The advantages, (B, T), not whitened.
    """
    advantages = torch.zeros_like(rewards)
    following_value = following_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        advantages[:, t] = delta + gamma * lam * following_advantage
        following_value, following_advantage = values[:, t], advantages[:, t]
    return advantages


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate (PPO, eq. 7), negated so that it is minimised.

    ratio_t = exp(log pi - log pi_old); L = mean_t max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)).

    Args:
        logprobs, old_logprobs, advantages, mask: (B, T). cliprange: eps.

    Returns:
        The loss (a scalar), the ratio (B, T), and the share of tokens where the clip was active.
    """
    ratio = torch.exp((logprobs - old_logprobs) * mask)  # no overflow at padding
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = masked_mean(torch.maximum(unclipped, clipped), mask)
    return loss, ratio, masked_mean((clipped > unclipped).float(), mask)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error to the returns, the value kept near its old one by a clip.

    L = 1/2 mean_t max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2). The clip is not in the
    paper; it comes from OpenAI's own PPO code (Engstrom et al. 2020, "Implementation Matters").

    Args:
        values, old_values, returns, mask: (B, T). cliprange_value: c.

    Returns:
        The loss (a scalar) and the share of tokens where the clip was active.
    """
    clipped_values = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    error, clipped_error = (values - returns).square(), (clipped_values - returns).square()
    loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), mask)
    return loss, masked_mean((clipped_error > error).float(), mask)


def language_model_loss(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of given replies: the PPO-ptx term, a scalar.

    Ouyang et al. 2022, "Training language models to follow instructions with human feedback", eq. 2
    subtracts ptx_coef times this from PPO's objective.

    Args: logprobs, mask: (B, T).
    """
    return -masked_mean(logprobs, mask)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, samples: int, horizon: int) -> float:
    """The adaptive KL coefficient (Ziegler et al. 2019, section 2.2) after one more step.

    beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) samples / horizon).

    Args:
        kl: the mean KL per response just measured, in nats. target: the KL wanted.
        samples: responses in the step, over all processes. horizon: how slowly beta moves.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * samples / horizon)


@dataclass(frozen=True)
class RunningMoments:
    """Mean and variance of all scores so far (Chan et al. 1979, the parallel update)."""

    mean: float = 0.0
    var: float = 1.0
    count: float = 1e-24

    @property
    def std(self) -> float:
        """The unbiased standard deviation; 1 as long as fewer than two scores are known."""
        if self.count < 2:
            return 1.0
        return (self.var * self.count / (self.count - 1)) ** 0.5

    def updated(self, scores: Tensor) -> RunningMoments:
        """The moments with a further batch of scores, (B,), taken in."""
        var, mean = (x.item() for x in torch.var_mean(scores.double(), correction=0))
        n, total = scores.numel(), self.count + scores.numel()
        delta = mean - self.mean
        between = delta**2 * self.count * n / total
        return RunningMoments(
            mean=self.mean + delta * n / total,
            var=(self.var * self.count + var * n + between) / total,
            count=total,
        )

    def scaled(self, scores: Tensor, shift_mean: bool) -> Tensor:
        """Scores, (B,), divided by the deviation of all so far, and first centred if told to."""
        mean = self.mean if shift_mean else 0.0
        return (scores - mean) / (self.std + torch.finfo(scores.dtype).eps)
