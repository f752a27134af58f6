"""Small policies against sums over every answer, finite differences and TRL's formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rlhf_tutorial.by_hand import (
    METHODS,
    Problem,
    SmallPolicy,
    by_exact_gradient,
    by_grpo,
    by_reinforce,
    credit_of_first_token,
    dpo_loss,
    exact_gradient,
    exact_kl,
    grpo_loss,
    k3,
    optimum,
    race,
    reinforce_loss,
    rloo_loss,
    sampled_gradient,
    true_values,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def small_problem(beta: float = 0.5) -> Problem:
    """Answers of two tokens out of three."""
    return Problem(SmallPolicy(normal(4, 3), length=2), normal(9, seed=1), beta)


def test_a_table_is_the_product_of_its_conditional_probabilities():
    logits = normal(13, 3)
    policy = SmallPolicy(logits, length=3)
    pairs = zip(policy.answers.tolist(), policy.log_probabilities().tolist(), strict=True)
    by_name = {tuple(answer): logprob for answer, logprob in pairs}
    assert len(by_name) == 27
    tables = logits.softmax(-1).tolist()
    for a, b, c in itertools.product(range(3), repeat=3):
        product = tables[0][a] * tables[1 + a][b] * tables[4 + 3 * a + b][c]
        assert math.exp(by_name[a, b, c]) == pytest.approx(product)


def test_samples_have_the_frequencies_of_the_policy():
    policy = small_problem().reference
    drawn = policy.sample(20_000, torch.Generator().manual_seed(0))
    shares = drawn.bincount(minlength=9) / 20_000
    torch.testing.assert_close(
        shares.double(), policy.log_probabilities().exp().detach(), atol=0.012, rtol=0
    )


def test_the_exact_gradient_is_that_of_finite_differences():
    logits, scores = normal(4), normal(4, seed=1)

    def expected(z: torch.Tensor) -> torch.Tensor:
        return z.softmax(-1) @ scores

    steps = 1e-6 * torch.eye(4, dtype=torch.float64)
    numeric = torch.stack([(expected(logits + h) - expected(logits - h)) / 2e-6 for h in steps])
    torch.testing.assert_close(exact_gradient(logits, scores), numeric, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("baseline", [0.0, 1.3, -50.0])
def test_the_sampled_gradient_is_right_on_average_with_any_baseline(baseline):
    logits, scores = normal(4), normal(4, seed=1)
    each = sampled_gradient(logits, torch.arange(4), scores, baseline)
    mean = logits.softmax(-1) @ each  # over every answer, as often as it is drawn
    torch.testing.assert_close(mean, exact_gradient(logits, scores))


def test_k3_has_the_exact_kl_as_its_mean_and_is_never_negative():
    log_p, log_q = (normal(6, seed=seed).log_softmax(-1) for seed in (0, 1))
    estimates = k3(log_p, log_q)
    assert estimates.min() >= 0
    kl = sum(math.exp(p) * (p - q) for p, q in zip(log_p.tolist(), log_q.tolist(), strict=True))
    assert (log_p.exp() @ estimates).item() == pytest.approx(kl)
    assert exact_kl(log_p, log_q).item() == pytest.approx(kl)


def test_only_k1_as_a_number_in_the_reward_pushes_along_the_gradient_of_the_kl():
    logits, log_q = normal(6), normal(6, seed=1).log_softmax(-1)
    z = logits.clone().requires_grad_()
    exact_kl(z.log_softmax(-1), log_q).backward()
    log_p = logits.log_softmax(-1)

    def pushed(penalties: torch.Tensor) -> torch.Tensor:
        return log_p.exp() @ sampled_gradient(logits, torch.arange(6), penalties)

    torch.testing.assert_close(pushed(log_p - log_q), z.grad)
    assert (pushed(k3(log_p, log_q)) - z.grad).abs().max() > 0.1 * z.grad.abs().max()


def test_true_values_are_means_over_the_answers_that_begin_with_the_prefix():
    policy, scores = SmallPolicy(normal(13, 3), length=3), normal(27, seed=1)
    weight = policy.log_probabilities().exp().tolist()
    values = true_values(policy, scores).tolist()
    prefixes = [(), *itertools.product(range(3)), *itertools.product(range(3), repeat=2)]
    for prefix, value in zip(prefixes, values, strict=True):
        of = [i for i, a in enumerate(policy.answers.tolist()) if tuple(a[: len(prefix)]) == prefix]
        mean = sum(weight[i] * scores[i].item() for i in of) / sum(weight[i] for i in of)
        assert value == pytest.approx(mean)


def test_credit_is_right_at_lambda_1_whatever_the_head_and_at_0_if_the_head_is():
    policy, scores = SmallPolicy(normal(13, 3), length=3), normal(27, seed=1)
    perfect = true_values(policy, scores)
    advantages = perfect[1:4] - perfect[0]
    mean, spread = credit_of_first_token(policy, scores, perfect, 0.0)
    torch.testing.assert_close(mean, advantages)
    torch.testing.assert_close(spread, torch.zeros_like(spread), atol=1e-7, rtol=0)
    wrong = normal(13, seed=2)
    mean, spread = credit_of_first_token(policy, scores, wrong, 1.0)
    torch.testing.assert_close(mean, perfect[1:4] - wrong[0])
    weight = policy.log_probabilities().exp().detach()[:9]  # the answers that begin with token 0
    expected = (weight @ (scores[:9] - perfect[1]).square() / weight.sum()).sqrt()
    torch.testing.assert_close(spread[0], expected)


def test_no_policy_earns_more_than_the_optimum_and_there_every_answer_earns_the_same():
    problem = small_problem()
    log_ref, best = problem.reference.log_probabilities().detach(), problem.optimum()

    def objective(log_pi: torch.Tensor) -> float:
        return (log_pi.exp() @ problem.scores - 0.5 * exact_kl(log_pi, log_ref)).item()

    others = [(best + 0.3 * normal(9, seed=s)).log_softmax(-1) for s in range(50)]
    for other in others:
        gap = objective(best) - objective(other)
        assert gap == pytest.approx(0.5 * exact_kl(other, best).item())
        assert gap > 0
    rewards = problem.scores - 0.5 * (best - log_ref)
    torch.testing.assert_close(rewards, rewards[:1].expand(9))
    assert rewards[0].item() == pytest.approx(objective(best))


def test_the_gradients_of_the_losses_are_those_of_their_papers():
    logprobs = normal(4, 3).requires_grad_()
    rewards = normal(4, seed=1) + 2
    for loss, advantages in (
        (reinforce_loss(logprobs, rewards, 1.5), rewards - 1.5),
        (
            rloo_loss(logprobs, rewards),
            torch.stack([r - (rewards.sum() - r) / 3 for r in rewards]),
        ),
        (
            grpo_loss(logprobs, normal(4, 3, seed=2), rewards, beta=0.0) * 3,  # a mean over tokens
            (rewards - rewards.mean()) / (rewards.std() + 1e-4),
        ),
    ):
        (gradient,) = torch.autograd.grad(loss, logprobs)
        torch.testing.assert_close(gradient, -advantages[:, None].expand(4, 3) / 4)
    # (pi_ref / pi - 1) grad log pi: the gradient of k3 (DeepSeekMath, eq. 21)
    ref = normal(4, 3, seed=2)
    loss = grpo_loss(logprobs, ref, torch.ones(4), beta=0.7)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, 0.7 * (1 - torch.exp(ref - logprobs)).detach() / 12)
    loss = dpo_loss(torch.tensor([1.0]), torch.tensor([0.5]), 2.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_the_exact_gradient_arrives_at_the_optimum_and_reinforce_near_it():
    problem = small_problem()
    start = exact_kl(problem.reference.log_probabilities(), problem.optimum()).item()
    for method, batches, share in ((by_exact_gradient, 150, 1e-3), (by_reinforce, 200, 0.1)):
        path = race(method, problem, batches=batches, learning_rate=0.1)
        assert len(path) == batches + 1
        assert exact_kl(path[-1], problem.optimum()).item() < share * start


@pytest.mark.parametrize("name", METHODS)
def test_every_method_comes_nearer_and_again_the_same_way(name):
    problem = small_problem()
    paths = [race(METHODS[name], problem, batches=20, learning_rate=0.1, seed=3) for _ in range(2)]
    assert torch.equal(paths[0][-1], paths[1][-1])
    best = problem.optimum()
    assert exact_kl(paths[0][-1], best) < exact_kl(paths[0][0], best)


def test_grpo_ends_elsewhere_by_its_own_equation():
    """Whole answers: pi (A - its mean) = beta (pi - pi_ref), with the scores over their spread."""
    problem = Problem(SmallPolicy(normal(1, 4)), normal(4, seed=1), 0.8)
    path = race(by_grpo, problem, batches=200, answers=2000, learning_rate=0.05)
    pi, ref = path[-1].exp(), path[0].exp()
    centred = problem.scores - pi @ problem.scores
    advantages = centred / (pi @ centred**2).sqrt()
    torch.testing.assert_close(pi * advantages, 0.8 * (pi - ref), atol=0.01, rtol=0)
    assert exact_kl(path[-1], problem.optimum()) > 0.01


def test_the_optimum_of_a_large_beta_is_the_reference():
    log_ref = normal(4).log_softmax(-1)
    torch.testing.assert_close(optimum(log_ref, normal(4, seed=1), 1e9), log_ref)
