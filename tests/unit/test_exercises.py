"""Right answers pass, and a wrong one of each common kind is told what is wrong."""

from __future__ import annotations

import pytest
import torch
from support.errors import one_line

from rlhf_tutorial.errors import TutorialError
from rlhf_tutorial.exercises import BAR, EXERCISES, QUESTIONS, check

SLIPS = [(name, words) for name, exercise in EXERCISES.items() for words in exercise.slips]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_packages_own_function_is_right(name):
    assert check(name, EXERCISES[name].solution).right
    assert repr(check(name, EXERCISES[name].solution)).startswith("Right. ")


@pytest.mark.parametrize(("name", "words"), SLIPS)
def test_every_slip_is_named(name, words):
    """Each by its own words: no other slip looks the same on the cases."""
    verdict = check(name, EXERCISES[name].slips[words])
    assert not verdict.right
    assert verdict.words == words


# Written as a learner would, not taken from the module: (exercise, function, what is to be said).
def gae_forwards(rewards, values, gamma, lam):
    advantages = torch.zeros_like(rewards)
    before = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1]):
        previous = values[:, t - 1] if t > 0 else torch.zeros_like(before)
        before = rewards[:, t] + gamma * previous - values[:, t] + gamma * lam * before
        advantages[:, t] = before
    return advantages


def gae_without_lambda(rewards, values, gamma, lam):
    advantages, tail = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        tail = rewards[:, t] + gamma * tail
        advantages[:, t] = tail - values[:, t]
    return advantages


def last_column(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl
    rewards[:, -1] += scores
    return rewards


def plain_mean_policy_loss(logprobs, old_logprobs, advantages, mask, cliprange):
    ratio = (logprobs - old_logprobs).exp()
    clipped = torch.clip(ratio, 1 - cliprange, 1 + cliprange)
    return -torch.min(advantages * ratio, advantages * clipped).mean()


def positive_policy_loss(logprobs, old_logprobs, advantages, mask, cliprange):
    ratio = (logprobs - old_logprobs).exp()
    clipped = torch.clip(ratio, 1 - cliprange, 1 + cliprange)
    return (torch.min(advantages * ratio, advantages * clipped) * mask).sum() / mask.sum()


def grpo_with_numbers_only(logprobs, ref_logprobs, scores, beta):
    d = logprobs - ref_logprobs
    advantages = (scores - scores.mean()) / (scores.std() + 1e-4)
    return -(advantages[:, None] - beta * (torch.exp(-d) - 1 + d)).mean()


def grpo_by_log_pi(logprobs, ref_logprobs, scores, beta):
    d = logprobs - ref_logprobs
    advantages = (scores - scores.mean()) / (scores.std() + 1e-4)
    return (-advantages[:, None] * logprobs + beta * (torch.exp(-d) - 1 + d)).mean()


def penalised_in_the_mean(w, d, y, variance):
    p = 1 / (1 + torch.exp(-(d * w).sum(1)))
    return (y * p.log() + (1 - y) * (1 - p).log()).mean() - (w @ w) / 2 / variance


def entropy_of_the_mean(p):
    q = p.mean(0)
    return torch.distributions.Bernoulli(q).entropy()


@pytest.mark.parametrize(
    ("name", "answer", "told"),
    [
        ("gae", gae_forwards, "first token on"),
        ("gae", gae_without_lambda, "lambda is missing"),
        ("gae", lambda r, v, g, lam: r.sum(1), "Along which dimension"),
        ("rewards_per_token", last_column, "mask is forgotten"),
        ("policy_loss", plain_mean_policy_loss, "mask is forgotten"),
        ("policy_loss", positive_policy_loss, "sign is turned"),
        ("policy_loss", lambda p, o, a, m, c: -a * (p - o).exp(), "Is the mean missing?"),
        ("kl_per_token", lambda p, q: q - p, "sign is turned"),
        ("kl_per_token", lambda p, q: (p - q).mean(), "averaged over everything"),
        ("k3", lambda p, q: (p - q).exp() - 1 - (p - q), "upside down"),
        ("k3", lambda p, q: 3 * (torch.exp(q - p) - 1 + p - q), "3 times"),
        ("k3", lambda p, q: torch.exp(q - p) - 1 + p - q + (p < -1) * 0.1, "is right"),
        ("optimum", lambda q, s, b: q.exp() * (s / b).exp(), "At [0]"),
        ("reinforce_loss", lambda p, r, b: -(r * p.sum(1)).mean(), "baseline is missing"),
        ("reinforce_loss", lambda p, r, b: -((r - b) * p.detach().sum(1)).mean(), "no gradient"),
        ("rloo_loss", lambda p, r: -((r - r.mean()) * p.sum(1)).mean(), "own baseline"),
        ("grpo_loss", grpo_with_numbers_only, "gradient is not"),
        ("dpo_loss", lambda c, r, b: -torch.sigmoid(b * (c - r)).log().sum(), "You have"),
        ("dpo_loss", lambda c, r, b: -torch.sigmoid(b * (r - c)).log().mean(), "swapped"),
        ("exact_gradient", lambda z, s: z.softmax(-1) * s, "expected score is not taken off"),
        ("leave_one_out", lambda r: r.mean() + 0 * r, "own reward"),
        ("log_posterior", penalised_in_the_mean, "sum them"),
        ("log_posterior", lambda w, d, y, v: (d @ w).sigmoid(), "shape"),
        ("choice_information", lambda p: p.var(0), "At [0]"),
        ("choice_information", entropy_of_the_mean, "coin toss"),
        ("kept_prompts", lambda d, n: [t for t in d if len(t) < n], "is right"),
        ("kept_prompts", lambda d, n: d[0], "gives a str, and a list is wanted"),
        ("leaked", lambda train, test: set(train) & set(test), "gives a set, and a list is wanted"),
        ("leaked", lambda train, test: [p for p in test if p in train], "letter by letter"),
        ("chat_text", lambda s, r: f"<|im_start|>user\n{r}<|im_end|>\n", "is right"),
        ("training_steps", lambda n, b, e: "40", "gives a str, and a number is wanted"),
        ("training_steps", lambda n, b, e: n // b + e, "You have 41, and 40 is right"),
        ("training_bytes", lambda n, t: 8 * n + 12 * t, "shares what is frozen"),
        ("at_temperature", lambda z, t: z.softmax(-1).log() / t, "sum to 1"),
        ("positions", lambda m: m.cumsum(-1), "at 0, not at 1"),
        ("answer_tokens", lambda g, n, eos: g[n:][g[n:] != eos], "end token is missing"),
        ("answer_tokens", lambda g, n, eos: g[-3:], "3 entries in place of 1"),
        ("answer_tokens", lambda g, n, eos: g[n:].unsqueeze(0), "Along which dimension"),
        ("gae", lambda r, v, g, lam: None, "`return`"),
        ("gae", lambda r, v, g, lam: 1.0, "gives a float"),
        ("gae", lambda r, v: r, "stops with TypeError"),
        ("gae", lambda r, v, g, lam: r / 0, "infinite or NaN"),
    ],
)
def test_wrong_answers_are_told_why(name, answer, told):
    verdict = check(name, answer)
    assert not verdict.right
    assert told in verdict.words
    assert "\n" not in verdict.words


def test_nothing_written_yet():
    def blank(*_):
        raise NotImplementedError

    assert repr(check("gae", blank)).startswith("Not yet. Nothing is written here")


def test_a_loss_with_the_right_gradient_is_right():
    verdict = check("grpo_loss", grpo_by_log_pi)
    assert verdict.right
    assert "gradient is the same" in verdict.words


def test_the_callers_inputs_are_not_changed_by_an_answer():
    def careless(rewards, values, gamma, lam):
        rewards.zero_()
        return rewards

    check("gae", careless)
    assert check("gae", EXERCISES["gae"].solution).right
    assert EXERCISES["gae"].cases[0][0].any()


def test_to_fool_a_judge_takes_one_text_that_pleases_whatever_the_question():
    def likes_no(queries, responses):
        return [3.0 if r.startswith("No,") else 1.0 for r in responses]

    def reads_the_question(queries, responses):
        return [3.0 if "egg" in q else 1.0 for q in queries]

    assert check("fool_the_judge", "No, it isn't.", judge=likes_no).right
    told = check("fool_the_judge", "Four.", judge=reads_the_question)
    assert not told.right
    assert "1.00" in told.words
    assert not check("fool_the_judge", " ", judge=likes_no).right
    assert len(set(QUESTIONS)) == len(QUESTIONS) and BAR == 2


def test_an_unknown_name_is_refused_in_one_line():
    for name in ("gea", "fool_the_judge"):
        with pytest.raises(TutorialError) as error:
            check(name, "text")
        one_line(error)
