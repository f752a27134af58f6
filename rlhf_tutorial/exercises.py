"""Exercises that check themselves: `check("gae", my_gae)` says in words what is wrong.

An exercise is one of the course's own functions, left for you to write. Your function gets a few
small inputs, and its results are held against the package's. Where they differ, they are compared
with what common slips would give: a sign, a mask forgotten, one position off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .by_hand import dpo_loss, exact_gradient, grpo_loss, k3, optimum, reinforce_loss, rloo_loss
from .errors import TutorialError
from .ppo.math import gae, kl_per_token, masked_mean, policy_loss, rewards_per_token
from .scores import Reward

Function = Callable[..., Any]


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what to say of it. A notebook shows the words."""

    right: bool
    words: str

    def __repr__(self) -> str:
        return ("Right. " if self.right else "Not yet. ") + self.words


@dataclass(frozen=True)
class Exercise:
    """A function to write, inputs to try it on, and the slips that many make."""

    solution: Function
    cases: Sequence[tuple[Any, ...]]
    slips: Mapping[str, Function]
    """What to say of a slip, to a function that makes it."""
    learned: Sequence[int] = field(default=())
    """Which arguments the gradient is for. It is compared too: it is what a loss is there for."""


def check(name: str, answer: Any, judge: Reward | None = None) -> Verdict:
    """Say whether an answer to an exercise is right and, where it is not, what is wrong.

    Args:
        name: one of `EXERCISES`, or "fool_the_judge".
        answer: a function with the arguments of the one that is asked for; to fool a judge, a text.
        judge: the judge to fool.

    Raises:
        TutorialError: for a name that is no exercise, or "fool_the_judge" without a judge.
    """
    if name == "fool_the_judge":
        if judge is None:
            raise TutorialError(
                "there is no judge to fool: check(name, text, judge=run.load_reward())"
            )
        return _fooled(judge, answer)
    if name not in EXERCISES:
        names = ", ".join([*EXERCISES, "fool_the_judge"])
        raise TutorialError(f"there is no exercise {name!r}: choose one of {names}")
    exercise = EXERCISES[name]
    results = []
    for case in exercise.cases:
        wanted, wanted_gradients = _run(exercise.solution, case, exercise.learned)
        try:
            given, gradients = _run(answer, case, exercise.learned)
        except NotImplementedError:
            return Verdict(False, "Nothing is written here yet: it is your turn.")
        except Exception as error:
            told = (str(error).splitlines() or [""])[0]
            return Verdict(False, f"Your function stops with {type(error).__name__}: {told}")
        if problem := _form(given, wanted):
            return Verdict(False, problem)
        results.append((given, wanted, gradients, wanted_gradients))
    return _compare(exercise, results)


def _run(function: Function, case: tuple[Any, ...], learned: Sequence[int]) -> tuple[Any, Any]:
    """What a function makes of a case, and the gradients for its learned arguments, or None."""
    arguments = [x.clone() if isinstance(x, Tensor) else x for x in case]
    leaves = [arguments[i].requires_grad_() for i in learned]
    value = function(*arguments)
    if not leaves or not isinstance(value, Tensor) or not value.requires_grad:
        return value, None
    gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    pairs = zip(gradients, leaves, strict=True)
    filled = [torch.zeros_like(x) if g is None else g for g, x in pairs]
    return value.detach(), torch.cat([g.flatten() for g in filled])


def _form(given: Any, wanted: Tensor) -> str | None:
    """What is wrong with the kind, the shape or the finiteness of a result, if anything is."""
    if given is None:
        return "Your function gives None: does it end with `return`?"
    if not isinstance(given, Tensor):
        return f"Your function gives a {type(given).__name__}, and a tensor is wanted."
    if given.shape != wanted.shape:
        shapes = f"the shape {tuple(given.shape)}, and {tuple(wanted.shape)} is wanted"
        if wanted.ndim == 0:
            return f"Your result has {shapes}: a loss is one number. Is the mean missing?"
        if given.ndim == 0:
            return f"Your result has {shapes}: you have summed or averaged over everything."
        return f"Your result has {shapes}. Along which dimension did you sum?"
    if not torch.isfinite(given).all():
        return "Some of your numbers are infinite or NaN."
    return None


def _compare(exercise: Exercise, results: list[tuple[Tensor, Tensor, Any, Any]]) -> Verdict:
    values = all(_close(given, wanted) for given, wanted, _, _ in results)
    gradients = all(_close(given, wanted) for _, _, given, wanted in results)
    if values and gradients:
        return Verdict(True, "Your numbers are those of the package.")
    if gradients and exercise.learned:
        return Verdict(
            True,
            "The value is another than the package's, but the gradient is the same, "
            "and an optimiser looks at nothing else.",
        )
    if values and all(given is None or not given.any() for _, _, given, _ in results):
        return Verdict(
            False,
            "The value is right, but no gradient reaches the policy. "
            "Did you detach its log-probabilities, or leave them out?",
        )
    for words, slip in exercise.slips.items():
        slips = [_run(slip, case, exercise.learned) for case in exercise.cases]
        if all(
            _close(given, value) and (gradient is None or _close(gradient, of_slip))
            for (given, _, gradient, _), (value, of_slip) in zip(results, slips, strict=True)
        ):
            return Verdict(False, words)
    if values:
        return Verdict(
            False,
            "The value is right and the gradient is not. "
            "What is a mere number to the update (advantage, old policy) must be detached.",
        )
    if all(_close(given, -wanted) for given, wanted, _, _ in results):
        return Verdict(False, "The sign is turned: every number is minus what it should be.")
    given, wanted, _, _ = next(r for r in results if not _close(r[0], r[1]))
    factor = (given * wanted).sum() / (wanted * wanted).sum()
    if factor.abs() > 1e-6 and all(
        _close(given, factor * wanted) for given, wanted, _, _ in results
    ):
        return Verdict(False, f"All your numbers are {factor:.3g} times what they should be.")
    place = tuple((~torch.isclose(given, wanted)).nonzero()[0].tolist())
    where = f"At {list(place)} you have" if place else "You have"
    return Verdict(False, f"{where} {given[place]:.4f}, and {wanted[place]:.4f} is right.")


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)


# No text can be a good answer to all of these.
QUESTIONS = (
    "How do I get candle wax out of a tablecloth?",
    "What should I pack for a weekend in the mountains?",
    "My neighbour plays loud music at night. What can I say to him?",
    "How many eggs do I need for an omelette for four?",
    "Can you explain to a child why the moon changes its shape?",
)
BAR = 2.0  # a grade that the judge gives to answers of some use


def _fooled(judge: Reward, answer: Any) -> Verdict:
    """Whether one text scores above the bar as the answer to every one of `QUESTIONS`."""
    if not isinstance(answer, str) or not answer.strip():
        return Verdict(False, "Give the text of one answer.")
    scores = judge(list(QUESTIONS), [answer] * len(QUESTIONS))
    lowest, question = min(zip(scores, QUESTIONS, strict=True))
    if lowest > BAR:
        return Verdict(
            True,
            f"The judge gives it {lowest:.2f} or more as an answer to {len(QUESTIONS)} questions "
            "that have nothing in common. It cannot help with all of them.",
        )
    return Verdict(
        False,
        f"To {question!r} the judge gives it {lowest:.2f}, and more than {BAR:g} is asked for, "
        "whatever the question.",
    )


# Inputs -----------------------------------------------------------------------------------------

_random = torch.Generator().manual_seed(19)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_random, dtype=torch.float64)


def _logprobs(*shape: int) -> Tensor:
    return -0.2 - _normal(*shape).abs()


_MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.float64)


# Slips that take more than a line -----------------------------------------------------------------


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


def _spread(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / (scores.std() + 1e-4)


def _grpo(logprobs: Tensor, advantages: Tensor, penalty: Tensor) -> Tensor:
    ratio = torch.exp(logprobs - logprobs.detach())
    return -(advantages[:, None] * ratio - penalty).mean()


EXERCISES: dict[str, Exercise] = {
    "exact_gradient": Exercise(
        exact_gradient,
        [(_normal(3), _normal(3)), (_normal(5), _normal(5) + 2)],
        {
            "The expected score is not taken off: then every good score pushes up, and the "
            "gradient does not sum to 0.": lambda z, s: z.softmax(-1) * s,
            "The probability in front is missing.": lambda z, s: s - z.softmax(-1) @ s,
            "You take off the plain mean of the scores. The expected score weighs each with its "
            "probability.": lambda z, s: z.softmax(-1) * (s - s.mean()),
        },
    ),
    "leave_one_out": Exercise(
        lambda rewards: (rewards.sum() - rewards) / (len(rewards) - 1),
        [(_normal(4),), (_normal(7),)],
        {
            "That is the mean of all: an answer's own reward must not be in its baseline, or the "
            "gradient is biased.": lambda r: r.mean().expand(len(r)),
            "The others are N - 1, and you have divided by N.": lambda r: (r.sum() - r) / len(r),
            "That is the sum of the others, not their mean.": lambda r: r.sum() - r,
        },
    ),
    "kl_per_token": Exercise(
        lambda logprobs, ref_logprobs: kl_per_token(logprobs, ref_logprobs),
        [(_logprobs(3, 4), _logprobs(3, 4))],
        {
            "The sign is turned: it is log pi - log pi_ref, since the answers come from pi.": (
                lambda p, q: q - p
            ),
            "You have taken the absolute value: a single token's KL may be negative.": (
                lambda p, q: (p - q).abs()
            ),
            "That is k2, half the square.": lambda p, q: 0.5 * (p - q) ** 2,
            "You have subtracted probabilities: the KL is about their logarithms.": (
                lambda p, q: p.exp() - q.exp()
            ),
        },
    ),
    "k3": Exercise(
        k3,
        [(_logprobs(3, 4), _logprobs(3, 4)), (_logprobs(6), _logprobs(6))],
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
        [(_normal(3) + 2, _normal(3, 4) * _MASK, _MASK, 0.3)],
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
            (_normal(3, 4) * _MASK, _normal(3, 4) * _MASK, 1.0, 0.95),
            (_normal(2, 5), _normal(2, 5), 0.9, 0.5),
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
            (old + 0.5 * _normal(3, 4), old, _normal(3, 4), _MASK, 0.2)
            for old in (_logprobs(3, 4), _logprobs(3, 4))
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
    "reinforce_loss": Exercise(
        reinforce_loss,
        [(_logprobs(5, 4), _normal(5) + 2, 1.7), (_logprobs(3, 1), _normal(3), -0.4)],
        {
            "The sign is turned: descending this loss makes good answers rarer.": (
                lambda p, r, b: -reinforce_loss(p, r, b)
            ),
            "The baseline is missing.": lambda p, r, b: reinforce_loss(p, r),
            "The baseline is added, and it should be taken off.": (
                lambda p, r, b: reinforce_loss(p, r, -b)
            ),
            "You take the mean over the tokens. The log-probability of an answer is their sum.": (
                lambda p, r, b: -((r - b) * p.mean(dim=1)).mean()
            ),
            "You use the probability. The trick is the gradient of its logarithm.": (
                lambda p, r, b: -((r - b) * p.sum(dim=1).exp()).mean()
            ),
            "That is the sum over the answers, not their mean.": (
                lambda p, r, b: -((r - b) * p.sum(dim=1)).sum()
            ),
        },
        learned=[0],
    ),
    "rloo_loss": Exercise(
        rloo_loss,
        [(_logprobs(4, 3), _normal(4) + 1), (_logprobs(6, 2), _normal(6))],
        {
            "The sign is turned: descending this loss makes good answers rarer.": (
                lambda p, r: -rloo_loss(p, r)
            ),
            "Each answer is in its own baseline: leave it out.": (
                lambda p, r: reinforce_loss(p, r, r.mean())
            ),
            "The others are N - 1, and you have divided by N.": (
                lambda p, r: reinforce_loss(p, r, (r.sum() - r) / len(r))
            ),
            "There is no baseline.": lambda p, r: reinforce_loss(p, r),
            "You take the mean over the tokens. The log-probability of an answer is their sum.": (
                lambda p, r: rloo_loss(p.mean(dim=1, keepdim=True), r)
            ),
        },
        learned=[0],
    ),
    "grpo_loss": Exercise(
        grpo_loss,
        [(_logprobs(5, 3), _logprobs(5, 3), _normal(5) + 1, 0.3)],
        {
            "The advantages are not divided by their spread.": (
                lambda p, q, s, b: _grpo(p, s - s.mean(), b * k3(p, q))
            ),
            "The mean of the group is not taken off.": (
                lambda p, q, s, b: _grpo(p, s / (s.std() + 1e-4), b * k3(p, q))
            ),
            "The KL is missing.": lambda p, q, s, b: _grpo(p, _spread(s), 0 * p),
            "The KL has the wrong sign: distance is to cost something.": (
                lambda p, q, s, b: _grpo(p, _spread(s), -b * k3(p, q))
            ),
            "The KL is k1. In the loss its gradient is 0 on average, so that it holds nothing: "
            "GRPO takes k3.": lambda p, q, s, b: _grpo(p, _spread(s), b * (p - q)),
            "The ratio in the KL is upside down: it is pi_ref / pi.": (
                lambda p, q, s, b: _grpo(p, _spread(s), b * k3(q, p))
            ),
            "beta is missing in front of the KL.": lambda p, q, s, b: _grpo(
                p, _spread(s), k3(p, q)
            ),
        },
        learned=[0],
    ),
    "dpo_loss": Exercise(
        dpo_loss,
        [(_normal(5), _normal(5), 0.4), (_normal(3), _normal(3), 1.5)],
        {
            "Chosen and rejected are swapped.": lambda c, r, b: dpo_loss(r, c, b),
            "The minus in front is missing: this makes the choices that were made improbable.": (
                lambda c, r, b: -dpo_loss(c, r, b)
            ),
            "beta is missing: it belongs inside the sigmoid.": (
                lambda c, r, b: dpo_loss(c, r, 1.0)
            ),
            "beta stands in front. It belongs inside the sigmoid.": (
                lambda c, r, b: b * dpo_loss(c, r, 1.0)
            ),
            "The logarithm is missing.": (lambda c, r, b: -torch.sigmoid(b * (c - r)).mean()),
            "Each answer has a sigmoid of its own. It is their difference that counts.": (
                lambda c, r, b: -(F.logsigmoid(b * c) + F.logsigmoid(-b * r)).mean()
            ),
        },
        learned=[0, 1],
    ),
    "optimum": Exercise(
        optimum,
        [
            (_normal(5).log_softmax(-1), _normal(5), 0.5),
            (_normal(3).log_softmax(-1), _normal(3), 2),
        ],
        {
            "The probabilities do not sum to 1: divide by Z, or use log_softmax.": (
                lambda q, s, b: q + s / b
            ),
            "You multiply by beta. A small beta is to tilt more, so the score is divided by it.": (
                lambda q, s, b: (q + s * b).log_softmax(-1)
            ),
            "The reference is missing: what it never says, pi* does not say either.": (
                lambda q, s, b: (s / b).log_softmax(-1) + 0 * q
            ),
            "Those are the probabilities, and their logarithms are asked for.": (
                lambda q, s, b: optimum(q, s, b).exp()
            ),
            "The score has the wrong sign: this is the policy that the judge likes least.": (
                lambda q, s, b: optimum(q, -s, b)
            ),
            "The logarithms of the reference are missing: it is multiplied by exp(score / beta).": (
                lambda q, s, b: (q.exp() + s / b).log_softmax(-1)
            ),
        },
    ),
}
