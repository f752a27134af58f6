"""Notebooks 03b and 04: PPO's own formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..by_hand import k3
from ..ppo.math import gae, kl_per_token, masked_mean, policy_loss, rewards_per_token
from .checking import Exercise, Function
from .inputs import MASK, logprobs, normal


def _rewards(
    scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float, shift: int = 0, sign: int = -1
) -> Tensor:
    rewards = sign * kl_coef * kl
    last = (mask.sum(dim=1).long() - 1 + shift).clamp(0, mask.shape[1] - 1)
    rewards[torch.arange(len(last)), last] += scores
    return rewards


def _gae(
    rewards: Tensor, values: Tensor, gamma: float, lam: float, after: float = 0.0, own: float = 1.0
) -> Tensor:
    """With a value after the end, or without the value of the token itself."""
    advantages, following = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    value = after * values[:, -1]
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + gamma * value - own * values[:, t] + gamma * lam * following
        advantages[:, t], value = following, values[:, t]
    return advantages


def _clipped(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cliprange: float,
    choose: Function = torch.maximum,
) -> Tensor:
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return masked_mean(choose(-advantages * ratio, -advantages * clipped), mask)


EXERCISES: dict[str, Exercise] = {
    "full_kl": Exercise(
        lambda logprobs, ref_logprobs: kl_per_token(logprobs, ref_logprobs, "full"),
        [(normal(3, 4, 5).log_softmax(-1), normal(3, 4, 5).log_softmax(-1))],
        {
            "The weights are the reference's: answers come from pi, so pi weighs.": (
                lambda p, q: (q.exp() * (p - q)).sum(-1)
            ),
            "That is the other KL, of the reference from the policy.": (
                lambda p, q: (q.exp() * (q - p)).sum(-1)
            ),
            "The sign is turned: it is log pi - log pi_ref.": (
                lambda p, q: (p.exp() * (q - p)).sum(-1)
            ),
            "You weigh with log-probabilities: the weights are the probabilities themselves.": (
                lambda p, q: (p * (p - q)).sum(-1)
            ),
            "The weights are missing: likely tokens count for more.": lambda p, q: (p - q).sum(-1),
            "You have averaged over the vocabulary: the weights sum to 1, so sum.": (
                lambda p, q: (p.exp() * (p - q)).mean(-1)
            ),
        },
    ),
    "k3": Exercise(
        k3,
        [(logprobs(3, 4), logprobs(3, 4)), (logprobs(6), logprobs(6))],
        {
            "The ratio is upside down: the answers come from pi, so it is pi_ref / pi that has "
            "the mean 1.": lambda p, q: torch.exp(p - q) - 1 - (p - q),
            "The exponent has the wrong sign: e^-d is pi_ref / pi.": (
                lambda p, q: torch.exp(p - q) - 1 + (p - q)
            ),
            "The last term has the wrong sign: e^-d - 1 is near -d, and + d is to cancel it.": (
                lambda p, q: torch.exp(q - p) - 1 - (p - q)
            ),
            "The -1 is missing: two equal policies would have a KL of 1.": (
                lambda p, q: torch.exp(q - p) + (p - q)
            ),
            "That is k1, d itself.": lambda p, q: p - q,
            "That is k2, half the square.": lambda p, q: 0.5 * (p - q) ** 2,
        },
    ),
    "rewards_per_token": Exercise(
        lambda scores, kl, mask, kl_coef: rewards_per_token(scores, kl, mask, kl_coef)[0],
        [(normal(3) + 2, normal(3, 4) * MASK, MASK, 0.3)],
        {
            "The KL has the wrong sign: a token pays for its distance.": (
                lambda s, kl, m, b: _rewards(s, kl, m, b, sign=1)
            ),
            "The mask is forgotten: the score stands in the last column, which is padding in the "
            "short answers.": lambda s, kl, m, b: _rewards(s, kl, torch.ones_like(m), b),
            "One too early: the score belongs to the last token, not to the one before it.": (
                lambda s, kl, m, b: _rewards(s, kl, m, b, shift=-1)
            ),
            "One too late: the score stands behind the last token, where nothing counts.": (
                lambda s, kl, m, b: _rewards(s, kl, m, b, shift=1)
            ),
            "Every token gets the score. The answer has earned it once.": (
                lambda s, kl, m, b: s[:, None] - b * kl
            ),
            "beta is missing in the penalty.": lambda s, kl, m, b: _rewards(s, kl, m, 1.0),
            "The penalty is missing.": lambda s, kl, m, b: _rewards(s, kl, m, 0.0),
            "The score is missing.": lambda s, kl, m, b: -b * kl,
        },
    ),
    "gae": Exercise(
        gae,
        [
            (normal(3, 4) * MASK, normal(3, 4) * MASK, 1.0, 0.95),
            (normal(2, 5), normal(2, 5), 0.9, 0.5),
        ],
        {
            "lambda is missing: it fades the advantage that comes from the next token.": (
                lambda r, v, g, lam: gae(r, v, g, 1.0)
            ),
            "gamma is missing.": lambda r, v, g, lam: gae(r, v, 1.0, lam),
            "Those are the surprises delta_t alone. The advantages that follow are missing.": (
                lambda r, v, g, lam: gae(r, v, g, 0.0)
            ),
            "Behind the last token there is no value: it is 0 there, and you take the last one "
            "again.": lambda r, v, g, lam: _gae(r, v, g, lam, after=1.0),
            "V_t is missing in delta_t: it is what was expected before the token.": (
                lambda r, v, g, lam: _gae(r, v, g, lam, own=0.0)
            ),
            "These are the returns: take the values off.": lambda r, v, g, lam: (
                gae(r, v, g, lam) + v
            ),
            "You go from the first token on. Credit flows back: start at the last one.": (
                lambda r, v, g, lam: gae(r.flip(1), v.flip(1), g, lam).flip(1)
            ),
        },
    ),
    "policy_loss": Exercise(
        lambda logprobs, old_logprobs, advantages, mask, cliprange: policy_loss(
            logprobs, old_logprobs, advantages, mask, cliprange
        )[0],
        [
            (old + 0.5 * normal(3, 4), old, normal(3, 4), MASK, 0.2)
            for old in (logprobs(3, 4), logprobs(3, 4))
        ],
        {
            "The mask is forgotten: padding counts in your mean.": (
                lambda p, o, a, m, c: _clipped(p, o, a, torch.ones_like(m), c)
            ),
            "The sign is turned: a loss is minimised, so it is minus the advantage.": (
                lambda p, o, a, m, c: -_clipped(p, o, a, m, c)
            ),
            "You take the smaller of the two. Of two losses PPO takes the larger: the pessimist's "
            "choice.": lambda p, o, a, m, c: _clipped(p, o, a, m, c, torch.minimum),
            "The clip is missing.": lambda p, o, a, m, c: _clipped(p, o, a, m, 1e9),
            "Only the clipped loss: a token that went astray would not be pulled back.": (
                lambda p, o, a, m, c: _clipped(p, o, a, m, c, lambda plain, clipped: clipped)
            ),
            "The ratio is upside down: it is new over old.": (
                lambda p, o, a, m, c: _clipped(o, p, a, m, c)
            ),
            "The ratio is a difference of logarithms: exp is missing.": (
                lambda p, o, a, m, c: masked_mean(
                    torch.maximum(-a * (p - o), -a * (p - o).clamp(1 - c, 1 + c)), m
                )
            ),
        },
        learned=[0],
    ),
}
