"""Policies so small that nothing about them is left to chance: every answer can be written down.

There is one prompt. An answer has T tokens out of V, so that there are K = V**T answers; with T = 1
the policy is a bandit of K whole answers. On such a policy the gradient, the KL and the policy that
training aims at are sums of a few terms. What the methods estimate from samples can be held against
them.

The equations that PPO shares with large models are those of `ppo/math.py`. N is the number of
sampled answers; log-probabilities and KL are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ppo.math import (
    gae,
    kl_per_token,
    logprobs_from_logits,
    masked_whiten,
    policy_loss,
    rewards_per_token,
    value_loss,
)


class SmallPolicy(nn.Module):
    """A distribution over answers of T tokens, as a table: a row of logits for each prefix.

    Row 0 belongs to the empty prefix, and row V r + 1 + v to the prefix of row r with token v
    behind it. A second table holds a value for each prefix, for the methods that want one.

    Args:
        logits: (P, V) with P = 1 + V + ... + V**(T-1) prefixes.
        length: T.
    """

    answers: Tensor
    """(K, T), every answer that there is."""

    def __init__(self, logits: Tensor, length: int = 1) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.values = nn.Parameter(torch.zeros_like(logits[:, 0]))
        tokens = torch.arange(logits.shape[1])
        every = torch.cartesian_prod(*[tokens] * length).reshape(-1, length)
        self.register_buffer("answers", every)

    def prefixes(self, answers: Tensor) -> Tensor:
        """The row of the prefix before each token, (N, T)."""
        rows = [torch.zeros_like(answers[:, 0])]
        for token in answers.T[:-1]:
            rows.append(self.logits.shape[1] * rows[-1] + 1 + token)
        return torch.stack(rows, dim=1)

    def forward(self, answers: Tensor) -> Tensor:
        """The log-probability of each token, (N, T)."""
        return logprobs_from_logits(self.logits[self.prefixes(answers)], answers)

    def log_probabilities(self) -> Tensor:
        """The log-probability of every answer, (K,)."""
        return self(self.answers).sum(dim=1)

    @torch.no_grad()
    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """`count` answers, drawn token by token from the policy itself: which of all, (count,)."""
        row, drawn = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
        size = self.logits.shape[1]
        for _ in range(self.answers.shape[1]):
            probabilities = self.logits[row].softmax(-1)
            token = torch.multinomial(probabilities, 1, generator=random).squeeze(1)
            row, drawn = size * row + 1 + token, size * drawn + token
        return drawn


# What can be known exactly -----------------------------------------------------------------------


def exact_gradient(logits: Tensor, scores: Tensor) -> Tensor:
    """The gradient of the expected score of a bandit: pi(k) (score(k) - expected score).

    Args: logits, scores: (K,).
    Returns: (K,).
    """
    probabilities = logits.softmax(-1)
    return probabilities * (scores - probabilities @ scores)


def sampled_gradient(
    logits: Tensor, answers: Tensor, scores: Tensor, baseline: float = 0.0
) -> Tensor:
    """One answer's estimate of that gradient, for each: (score - baseline) grad log pi(answer).

    Of a softmax grad log pi(y) is 1 at y and 0 elsewhere, minus the probabilities. The mean over
    answers that were drawn from pi is right on average, whatever the baseline (Williams 1992,
    "Simple statistical gradient-following algorithms").

    Args: logits: (K,). answers: (N,), which were drawn. scores: (N,), of these.
    Returns: (N, K).
    """
    grad_log_pi = F.one_hot(answers, len(logits)) - logits.softmax(-1)
    return (scores - baseline)[:, None] * grad_log_pi


def exact_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of two distributions over the K answers: a scalar from two of (K,)."""
    return kl_per_token(log_p, log_q, "full")


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Schulman's third estimator of the KL: e^-d - 1 + d with d = log pi - log pi_ref.

    Right on average like d itself, since pi_ref / pi has the mean 1, and never negative. From
    Schulman 2020, "Approximating KL Divergence"; `kl_per_token` has k1 ("kl") and k2 ("mse").

    Args: logprobs, ref_logprobs: of the same answers or tokens, of any shape.
    """
    difference = logprobs - ref_logprobs
    return torch.exp(-difference) - 1 + difference


def optimum(ref_logprobs: Tensor, scores: Tensor, beta: float) -> Tensor:
    """The policy with the largest expected score - beta KL: pi* = pi_ref exp(score / beta) / Z.

    Args: ref_logprobs, scores: (K,). beta: above 0.
    Returns: (K,), log pi*.
    """
    return F.log_softmax(ref_logprobs + scores / beta, dim=-1)


def true_values(policy: SmallPolicy, scores: Tensor) -> Tensor:
    """The expected score of the answers that begin with each prefix: a perfect value head.

    Args: scores: (K,), one for every answer of the policy.
    Returns: (P,), in the order of the policy's table.
    """
    weight = policy.log_probabilities().exp().detach()
    through = F.one_hot(policy.prefixes(policy.answers), len(policy.logits)).sum(dim=1).to(weight)
    return (weight * scores) @ through / (weight @ through)


def credit_of_first_token(
    policy: SmallPolicy, scores: Tensor, values: Tensor, lam: float
) -> tuple[Tensor, Tensor]:
    """What GAE says of each first token: mean and deviation over the answers that begin with it.

    Args: scores: (K,), the reward of an answer, at its last token. values: (P,), the value head.
    Returns: two of (V,).
    """
    rewards = torch.zeros_like(policy.answers, dtype=scores.dtype)
    rewards[:, -1] = scores
    found = gae(rewards, values[policy.prefixes(policy.answers)], gamma=1.0, lam=lam)[:, 0]
    weight = policy.log_probabilities().exp().detach()
    begins = F.one_hot(policy.answers[:, 0]).to(weight) * weight[:, None]  # (K, V)
    share = begins / begins.sum(dim=0)
    mean = found @ share
    return mean, ((found[:, None] - mean).square() * share).sum(dim=0).sqrt()


# The rivals: each loss is to be minimised --------------------------------------------------------


def reinforce_loss(logprobs: Tensor, rewards: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
    """REINFORCE: -(reward - baseline) log pi(answer), the mean over the answers.

    Args: logprobs: (N, T). rewards: (N,). baseline: a number, or one per answer.
    """
    return -((rewards - baseline) * logprobs.sum(dim=1)).mean()


def rloo_loss(logprobs: Tensor, rewards: Tensor) -> Tensor:
    """REINFORCE with the mean reward of the other answers as the baseline of each.

    Ahmadian et al. 2024, "Back to Basics". Args: logprobs: (N, T). rewards: (N,).
    """
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    return reinforce_loss(logprobs, rewards, others)


def grpo_loss(logprobs: Tensor, ref_logprobs: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Scores minus their mean, over their spread; the KL is in the loss, k3 of each token.

    Shao et al. 2024, "DeepSeekMath", eq. 3, for the first update on a group: the ratio is 1 then.
    Args: logprobs, ref_logprobs: (N, T). scores: (N,).
    """
    advantages = (scores - scores.mean()) / (scores.std() + 1e-4)
    ratio = torch.exp(logprobs - logprobs.detach())  # 1, but it carries the gradient
    return -(advantages[:, None] * ratio - beta * k3(logprobs, ref_logprobs)).mean()


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (d chosen - d rejected)), with d = log pi - log pi_ref of whole answers.

    Rafailov et al. 2023, "Direct Preference Optimization", eq. 7. Args: chosen, rejected: d, (N,).
    """
    return -F.logsigmoid(beta * (chosen - rejected)).mean()


# A race ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One prompt with all its answers: what the reference writes, what the judge likes."""

    reference: SmallPolicy
    scores: Tensor
    """(K,), what the judge gives to each answer."""
    beta: float
    """The weight of the KL."""

    def optimum(self) -> Tensor:
        """log pi*, (K,)."""
        return optimum(self.reference.log_probabilities().detach(), self.scores, self.beta)


Losses = Iterator[Tensor]
Method = Callable[[Problem, SmallPolicy, int, torch.Generator], Losses]
"""Draws so many answers, and yields the losses of its updates, each after the one before it."""


def _sampled(
    problem: Problem, policy: SmallPolicy, count: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Answers of the policy (N, T), their log-probabilities, the reference's, and scores (N,)."""
    drawn = policy.sample(count, random)
    answers = policy.answers[drawn]
    with torch.no_grad():
        return answers, policy(answers), problem.reference(answers), problem.scores[drawn]


def by_exact_gradient(
    problem: Problem, policy: SmallPolicy, count: int, random: torch.Generator
) -> Losses:
    """The objective itself, summed over every answer: no method can know more."""
    log_pi = policy.log_probabilities()
    log_ref = problem.reference.log_probabilities().detach()
    yield problem.beta * exact_kl(log_pi, log_ref) - log_pi.exp() @ problem.scores


def by_reinforce(
    problem: Problem, policy: SmallPolicy, count: int, random: torch.Generator
) -> Losses:
    """The baseline is one number, the value of the empty prefix, fitted to the rewards."""
    answers, logprobs, ref_logprobs, scores = _sampled(problem, policy, count, random)
    rewards = scores - problem.beta * kl_per_token(logprobs, ref_logprobs).sum(dim=1)
    baseline = policy.values[0]
    fit = 0.5 * (rewards - baseline).square().mean()
    yield reinforce_loss(policy(answers), rewards, baseline.detach()) + fit


def by_rloo(problem: Problem, policy: SmallPolicy, count: int, random: torch.Generator) -> Losses:
    """The KL is a part of the reward, as in PPO."""
    answers, logprobs, ref_logprobs, scores = _sampled(problem, policy, count, random)
    rewards = scores - problem.beta * kl_per_token(logprobs, ref_logprobs).sum(dim=1)
    yield rloo_loss(policy(answers), rewards)


def by_grpo(problem: Problem, policy: SmallPolicy, count: int, random: torch.Generator) -> Losses:
    """The KL is in the loss, next to advantages that were scaled."""
    answers, _, ref_logprobs, scores = _sampled(problem, policy, count, random)
    yield grpo_loss(policy(answers), ref_logprobs, scores, problem.beta)


def by_ppo(
    problem: Problem,
    policy: SmallPolicy,
    count: int,
    random: torch.Generator,
    cliprange: float = 0.2,
    whiten: bool = True,
) -> Losses:
    """Four clipped passes over one batch, TRL's default; the course's preset takes two."""
    answers, logprobs, values, whitened, returns = ppo_batch(problem, policy, count, random)
    advantages = whitened if whiten else returns - values
    mask, rows = torch.ones_like(logprobs), policy.prefixes(answers)
    for _ in range(4):
        clipped, _, _ = policy_loss(policy(answers), logprobs, advantages, mask, cliprange)
        fit, _ = value_loss(policy.values[rows], values, returns, mask, cliprange_value=0.2)
        yield clipped + fit


def ppo_batch(
    problem: Problem, policy: SmallPolicy, count: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Notebook 04 up to its update: a reward and an advantage per token.

    Returns:
        The answers, and of each token log pi_old, the value, the whitened advantage and the return.
    """
    answers, logprobs, ref_logprobs, scores = _sampled(problem, policy, count, random)
    values = policy.values.detach()[policy.prefixes(answers)]
    kl, mask = kl_per_token(logprobs, ref_logprobs), torch.ones_like(logprobs)
    rewards, _ = rewards_per_token(scores, kl, mask, problem.beta)
    advantages = gae(rewards, values, gamma=1.0, lam=0.95)
    return answers, logprobs, values, masked_whiten(advantages, mask), advantages + values


def by_dpo(problem: Problem, policy: SmallPolicy, count: int, random: torch.Generator) -> Losses:
    """Fresh pairs of the reference's answers; the judge chooses as Bradley and Terry have it."""
    first, second = problem.reference.sample(2 * (count // 2), random).chunk(2)
    preferred = torch.sigmoid(problem.scores[first] - problem.scores[second])
    wins = torch.rand(len(first), generator=random, dtype=preferred.dtype) < preferred
    chosen, rejected = torch.where(wins, first, second), torch.where(wins, second, first)
    d = policy.log_probabilities() - problem.reference.log_probabilities().detach()
    yield dpo_loss(d[chosen], d[rejected], problem.beta)


METHODS: dict[str, Method] = {
    "exact gradient": by_exact_gradient,
    "PPO": by_ppo,
    "REINFORCE": by_reinforce,
    "RLOO": by_rloo,
    "GRPO": by_grpo,
    "DPO": by_dpo,
}


def race(
    method: Method,
    problem: Problem,
    *,
    batches: int = 200,
    answers: int = 16,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> list[Tensor]:
    """Train a copy of the reference by one method.

    The learning rate falls to 0 in a straight line; the value table has ten times the
    policy's.

    Args:
        batches: how many times answers are drawn. answers: how many each time.

    Returns:
        The log-probabilities of all answers, (K,), before the first batch and after each.
    """
    reference = problem.reference
    policy = SmallPolicy(reference.logits.detach(), reference.answers.shape[1])
    random = torch.Generator().manual_seed(seed)
    groups: list[dict[str, Any]] = [
        {"params": [policy.logits]},
        {"params": [policy.values], "lr": 10 * learning_rate},
    ]
    optimizer = torch.optim.Adam(groups, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / batches)
    path = [policy.log_probabilities().detach()]
    for _ in range(batches):
        for loss in method(problem, policy, answers, random):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        path.append(policy.log_probabilities().detach())
    return path
