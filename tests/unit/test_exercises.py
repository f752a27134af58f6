"""Right answers pass, and a wrong one of each common kind is told what is wrong."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import pandas as pd
import pytest
import torch
from support.errors import one_line
from support.models import language_model
from support.tokenizers import byte_tokenizer

from rlhf_tutorial import exercises
from rlhf_tutorial.by_hand import optimum
from rlhf_tutorial.errors import TutorialError
from rlhf_tutorial.evaluation.compare import summarise
from rlhf_tutorial.evaluation.perplexity import score_texts
from rlhf_tutorial.evaluation.reading import gain_by_ending
from rlhf_tutorial.exercises import BAR, EXERCISES, QUESTIONS, check
from rlhf_tutorial.studies.matched import gain_at_kl

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


def test_a_mask_may_be_of_booleans():
    def right(tokens, end):
        seen = torch.zeros(len(tokens), dtype=torch.bool)
        columns = []
        for column in tokens.T:
            columns.append(~seen)
            seen = seen | (column == end)
        return torch.stack(columns, dim=1)

    assert check("response_mask", right).right
    wrong = check("response_mask", lambda tokens, end: tokens > 4)
    assert wrong.words == "At [0, 2] you have 0, and 1 is right."


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


def strict_pairs(grades, scores):
    right = count = 0
    for i in range(len(grades)):
        for j in range(len(grades)):
            if grades[i] > grades[j]:
                count += 1
                right += int(scores[i] > scores[j])
    return torch.tensor(right / count)


def ridge_by_rows(z, grades, strength):
    penalty = strength * len(z) * torch.eye(z.shape[1])
    return torch.inverse(z.T @ z + penalty) @ z.T @ (grades - grades.mean())


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


def mean_of_squares_over_the_spread(values, returns, mask):
    return 1 - ((returns - values) ** 2).mean() / returns.var()


def outside_the_band(logprobs, old_logprobs, advantages, mask, cliprange):
    ratio = (logprobs - old_logprobs).exp()
    outside = (ratio < 1 - cliprange) | (ratio > 1 + cliprange)
    return (outside * mask).sum() / mask.sum()


def normal_interval(means):
    return means.mean() - 1.96 * means.std(), means.mean() + 1.96 * means.std()


def kept_before(before, after):
    (p0, w0, c0), (p1, w1, c1) = before, after
    return (p1 - p0) * (w0 - c0), p1 * (w1 - w0) + (1 - p1) * (c1 - c0)


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
        ("full_kl", lambda p, q: (q.exp() * (p - q)).sum(-1), "pi weighs"),
        ("full_kl", lambda p, q: (p.exp() * (p - q)).mean(), "averaged over everything"),
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
        ("slip", lambda p: (1 - p) / 2, "Two slips agree, too"),
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
        ("ridge", lambda z, g, k: (z.T @ g)[:2], "2 entries in place of 3"),
        ("positions", lambda mask: mask.cumsum(1).T, "Along which dimension"),
        ("bradley_terry_loss", lambda c, r: -torch.sigmoid(r - c).log().mean(), "swapped"),
        ("bradley_terry_loss", lambda c, r: -torch.log(torch.sigmoid(c - r)), "mean missing"),
        ("bradley_terry_loss", lambda c, r: -torch.sigmoid(c - r).mean(), "logarithm is missing"),
        ("pair_accuracy", strict_pairs, "count as wrong"),
        ("pair_accuracy", lambda g, s: torch.corrcoef(torch.stack([g, s]))[0, 1], "You have"),
        ("ridge", lambda z, g, k: torch.linalg.lstsq(z, g).solution, "penalty is missing"),
        ("ridge", ridge_by_rows, "counts the answers"),
        ("response_mask", lambda r, e: (r != e).float(), "a choice of the policy"),
        ("response_mask", lambda r, e: r != e, "a choice of the policy"),
        ("masked_whiten", lambda v, m: (v - v.mean()) / v.std() * m, "mask is forgotten"),
        ("masked_whiten", lambda v, m: (v * m - (v * m).mean()) / (v * m).std() * m, "zeros"),
        ("value_loss", lambda v, o, r, m, c: 0.5 * ((v - r) ** 2 * m).sum() / m.sum(), "clip is"),
        ("value_loss", lambda v, o, r, m, c: ((v - r) ** 2).mean(), "You have"),
        ("gae", lambda r, v, g, lam: None, "`return`"),
        ("gae", lambda r, v, g, lam: 1.0, "gives a float"),
        ("done_after", lambda m, e: int(np.diff(m).argmax()), "You have"),
        ("done_after", lambda m, e: m.argmax(), "Its lead may be noise"),
        ("inspected", lambda q, r, end: "padding" if 0 in r else "fine", "'prompt' is right"),
        ("inspected", lambda q, r, end: end in r[:-1], "gives a bool"),
        ("error_of_mean", lambda s, n: np.mean(s) / n**0.5, "errors partly cancel"),
        ("explained_variance", mean_of_squares_over_the_spread, "mask is forgotten"),
        ("clip_fraction", outside_the_band, "pushes further out"),
        ("paired_interval", lambda b, a, d: normal_interval((a - b)[d].mean(1)), "is right"),
        (
            "split_gain",
            lambda b, a: (b[1] - b[2]) * (a[0] - b[0]),
            "a tensor or an array is wanted",
        ),
        ("split_gain", kept_before, "difference before"),
        ("perplexity", lambda p, m: torch.exp(-p.mean(1)), "mask is forgotten"),
        ("pooled_perplexity", lambda x, t: (x * t).sum() / t.sum(), "after the exponential"),
        ("bar", lambda s, b: b * (s / b).exp().sum().log(), "mean over the reference's"),
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
    assert "1.00, 1.00, 1.00, 3.00, 1.00: above 2 for 1 of them" in told.words
    assert not check("fool_the_judge", " ", judge=likes_no).right
    assert len(set(QUESTIONS)) == len(QUESTIONS) and BAR == 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "Nothing is written here"),
        (lambda: 1, "two lists with 5 gains"),
        ([[1, 2, 3, 4, 5]], "two lists with 5 gains"),
        ([[5, -1, -1, -1], [0.4] * 5], "two lists with 5 gains"),
        ([[1] * 5, [1] * 5], "first set is 100%"),
        ([[5, -1, -1, -1, 0], [1] * 5], "first set is 30%"),
        ([[5, -1, -1, -1, -1], [0, 1, 1, 1, 1]], "second set is 90%"),
        ([[5, -1, -1, -1, -1], [1] * 5], "0.2 and 1: make them equal"),
    ],
)
def test_two_sets_of_gains_are_told_what_they_lack(answer, told):
    verdict = check("same_mean", answer)
    assert not verdict.right and told in verdict.words and "\n" not in verdict.words


def test_a_mean_can_come_from_one_prompt_or_from_all():
    gains = np.array([9.0, -1, -1, -1, -1]), np.full(5, 1.0)
    assert "mean gain of 1." in check("same_mean", gains).words
    assert check("same_mean", [gains[0].tolist(), (1, 1, 1, 1, 1)]).right


def test_an_unknown_name_is_refused_in_one_line():
    for name in ("gea", "fool_the_judge"):
        with pytest.raises(TutorialError) as error:
            check(name, "text")
        one_line(error)


def test_numbers_may_come_in_a_list_a_tuple_or_an_array_in_any_order():
    def backwards(values, mask):
        return EXERCISES["masked_whiten"].solution(values, mask).flip(1).numpy()[:, ::-1]

    assert check("masked_whiten", backwards).right
    assert check("masked_whiten", lambda v, m: backwards(v, m).tolist()).right
    assert check("split_gain", lambda b, a: list(EXERCISES["split_gain"].solution(b, a))).right
    assert "gives a dict" in check("masked_whiten", lambda v, m: {"mean": 1.0}).words


def test_what_an_answer_does_to_an_array_stays_with_it():
    def careless(before, after, drawn):
        before *= 0
        return 0.5, 0.5

    check("paired_interval", careless)
    assert EXERCISES["paired_interval"].cases[0][0].any()


# The exercises of notebooks 06 and 07 have their answers written out: here against the package's.
def test_the_comparison_is_the_packages():
    before, after, _ = EXERCISES["paired_interval"].cases[0]
    table = pd.DataFrame({"query": [str(i) for i in range(len(before))]})
    table = table.assign(score_before=before, score_after=after)
    summary = summarise(table)
    assert summary["ties"] > 0
    n = len(before)
    drawn = np.random.default_rng(0).integers(n, size=(10_000, n))
    np.testing.assert_allclose(
        EXERCISES["paired_interval"].solution(before, after, drawn), summary["mean_gain_interval"]
    )


def test_the_split_is_the_packages():
    random = np.random.default_rng(1)
    rows = [
        {
            "prompt": str(i),
            "answers": [
                {"source": source, "grade": int(random.integers(6)), "ended": random.random() < p}
                for source, p in (("before", 0.4), ("after", 0.8))
            ],
        }
        for i in range(40)
    ]

    def side(source):
        answers = [a for row in rows for a in row["answers"] if a["source"] == source]
        whole = [a["grade"] for a in answers if a["ended"]]
        cut = [a["grade"] for a in answers if not a["ended"]]
        return len(whole) / len(answers), np.mean(whole), np.mean(cut)

    found = gain_by_ending(rows, "before", ["after"], resamples=1)
    by_ending, by_content = EXERCISES["split_gain"].solution(side("before"), side("after"))
    assert (by_ending, by_content) == pytest.approx((found["by_ending"], found["by_content"]))


def test_the_gain_at_a_kl_is_the_packages():
    for case in EXERCISES["gain_at_kl"].cases:
        assert EXERCISES["gain_at_kl"].solution(*case) == pytest.approx(gain_at_kl(*case))


def test_the_best_of_n_is_what_drawing_says():
    p, n = EXERCISES["best_of"].cases[0]
    drawn = np.random.default_rng(0).choice(len(p), size=(100_000, n), p=p).max(axis=1)
    shares = np.bincount(drawn, minlength=len(p)) / len(drawn)
    assert EXERCISES["best_of"].solution(p, n) == pytest.approx(shares, abs=0.006)


def test_the_perplexities_are_the_packages():
    model = language_model("llama", layers=1, seed=3, initializer_range=0.3).eval()
    tokenizer = byte_tokenizer()
    texts = ["How do I bake bread?", "Hi", "Tea."]
    perplexity, pooled_perplexity = (
        EXERCISES[name].solution for name in ("perplexity", "pooled_perplexity")
    )
    for temperature in (1.0, 0.5):
        found = score_texts(texts, model, tokenizer, temperature=temperature)
        tokens = torch.tensor(found["tokens"])
        logprobs, mask = torch.zeros(3, int(tokens.max())), torch.zeros(3, int(tokens.max()))
        for i, text in enumerate(texts):
            ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
            with torch.no_grad():
                at_1 = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            every = (at_1 / temperature).log_softmax(-1)
            logprobs[i, : len(ids) - 1] = every.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            mask[i, : len(ids) - 1] = 1
        each = perplexity(logprobs, mask)
        torch.testing.assert_close(each, torch.tensor(found["perplexities"]), rtol=1e-4, atol=0)
        pooled = pooled_perplexity(each, tokens)
        assert pooled.item() == pytest.approx(found["pooled_perplexity"], rel=1e-4)


def test_above_the_bar_the_optimum_is_likelier_than_the_reference():
    scores, beta = torch.tensor([0.2, 1.0, 1.3, 2.0, 2.1], dtype=torch.float64), 0.4
    log_ref = torch.full((5,), 0.2, dtype=torch.float64).log()
    likelier = optimum(log_ref, scores, beta) > log_ref
    assert 0 < likelier.sum() < 5
    assert torch.equal(likelier, scores > EXERCISES["bar"].solution(scores, beta))


def test_no_two_exercises_have_one_name() -> None:
    modules = [
        import_module(f"{exercises.__name__}.{m.name}") for m in iter_modules(exercises.__path__)
    ]
    names = [name for module in modules for name in getattr(module, "EXERCISES", {})]
    assert sorted(names) == sorted(EXERCISES)
