"""The equations of PPO against plain loops, NumPy and torch's own distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.strategies import LOGITS, MATH, per_token
from torch import Tensor

from rlhf_tutorial.ppo.math import (
    KL_KINDS,
    RunningMoments,
    adapted_kl_coef,
    entropy_from_logits,
    gae,
    kl_per_token,
    logprobs_from_logits,
    masked_mean,
    masked_var,
    masked_whiten,
    policy_loss,
    rewards_per_token,
    value_loss,
)

B, T, V = 4, 7, 11
# Mixed lengths, a response of one token, and a hole as a response mask makes it.
MASK = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
    ],
    dtype=torch.float,
)
KEPT = MASK.bool()


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def junk_under_mask(values: Tensor) -> Tensor:
    """The same values with nonsense wherever the mask is 0."""
    return torch.where(KEPT, values, torch.full_like(values, 1e4))


# Log-probabilities, entropy ------------------------------------------------------------------


def test_logprobs_are_the_logarithm_of_the_softmax_in_float64():
    logits, labels = noise(B, T, V, scale=5.0), torch.arange(B * T).reshape(B, T) % V
    z = logits.double().numpy()
    probabilities = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    expected = np.log(np.take_along_axis(probabilities, labels.numpy()[..., None], -1)[..., 0])
    actual = logprobs_from_logits(logits, labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_logprobs_stand_logits_that_overflow_a_plain_softmax():
    logits = torch.tensor([[[1000.0, 0.0], [-1000.0, 0.0]]])
    expected = torch.tensor([[0.0, -1000.0]])
    torch.testing.assert_close(logprobs_from_logits(logits, torch.tensor([[0, 0]])), expected)


def test_entropy_is_that_of_the_categorical_distribution():
    logits = noise(B, T, V, scale=3.0)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy_from_logits(logits), expected)
    uniform = entropy_from_logits(torch.full((1, 1, V), 7.0))
    torch.testing.assert_close(uniform, torch.full((1, 1), math.log(V)))


# Masked statistics ---------------------------------------------------------------------------


def test_masked_statistics_are_numpys_over_the_unmasked():
    values = noise(B, T) + 3
    kept = values[KEPT].double().numpy()
    hidden = junk_under_mask(values)
    assert masked_mean(hidden, MASK).item() == pytest.approx(kept.mean(), rel=1e-6)
    assert masked_var(hidden, MASK).item() == pytest.approx(kept.var(ddof=1), rel=1e-5)
    rows = [v[m].mean().item() for v, m in zip(values, KEPT, strict=True)]
    np.testing.assert_allclose(masked_mean(hidden, MASK, dim=1), rows, rtol=1e-6)


def test_whitening_is_numpys_with_the_unbiased_variance():
    values = noise(B, T, scale=4.0) + 3
    kept = values[KEPT].double().numpy()
    expected = (kept - kept.mean()) / kept.std(ddof=1)
    whitened = masked_whiten(junk_under_mask(values), MASK)[KEPT]
    np.testing.assert_allclose(whitened, expected, rtol=1e-4, atol=1e-5)
    unshifted = masked_whiten(junk_under_mask(values), MASK, shift_mean=False)[KEPT]
    np.testing.assert_allclose(unshifted, expected + kept.mean(), rtol=1e-4, atol=1e-5)


def test_the_variance_of_a_single_token_is_refused():
    with pytest.raises(ValueError, match="at least 2 unmasked tokens, got 1"):
        masked_var(torch.ones(1, 3), torch.tensor([[0.0, 1.0, 0.0]]))


# KL ------------------------------------------------------------------------------------------


def distributions() -> tuple[Tensor, Tensor]:
    return noise(B, T, V, scale=2.0).log_softmax(-1), noise(B, T, V, seed=1).log_softmax(-1)


def test_full_kl_is_torchs_kl_of_policy_to_reference():
    policy, reference = distributions()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=policy),
        torch.distributions.Categorical(logits=reference),
    )
    actual = kl_per_token(policy, reference, "full")
    torch.testing.assert_close(actual, expected)
    # kl_div's input is the distribution that the KL is measured *to*.
    other = F.kl_div(reference, policy, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(actual, other)
    assert (actual > 0).all()


def test_estimators_on_a_sampled_token_are_their_formulas():
    lp, ref = noise(B, T), noise(B, T, seed=1)
    for i in range(B):
        for t in range(T):
            d = lp[i, t].item() - ref[i, t].item()
            for kind, expected in (("kl", d), ("abs", abs(d)), ("mse", d * d / 2)):
                assert kl_per_token(lp, ref, kind)[i, t].item() == pytest.approx(expected, abs=1e-6)


def test_the_plain_estimator_is_unbiased_under_the_policy():
    policy, reference = distributions()
    every_token = kl_per_token(policy, reference, "kl")  # as if each token had been the sample
    expectation = (policy.exp() * every_token).sum(-1)
    torch.testing.assert_close(expectation, kl_per_token(policy, reference, "full"))


@pytest.mark.parametrize("kind", KL_KINDS)
@MATH
@given(logits=LOGITS)
def test_the_kl_of_any_distribution_to_itself_is_zero(kind, logits):
    policy = torch.from_numpy(logits[0]).log_softmax(-1)
    assert (kl_per_token(policy, policy.clone(), kind) == 0).all()


@MATH
@given(logits=LOGITS, near=st.booleans())
def test_the_full_kl_of_any_two_distributions_is_numpys_and_never_negative(logits, near):
    z, other = (x.astype(np.float64) for x in logits)
    if near:
        other = z + 1e-3 * other
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (z, other))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    expected = (p * np.log(p / q)).sum(-1)
    policy, reference = (torch.from_numpy(x).log_softmax(-1) for x in (z, other))
    actual = kl_per_token(policy, reference, "full")
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
    assert (actual >= -1e-12).all()
    rounded = kl_per_token(policy.float(), reference.float(), "full")
    largest = max(policy.abs().max().item(), reference.abs().max().item(), 1.0)
    assert (rounded >= -4 * torch.finfo(torch.float).eps * largest).all()


def test_an_unknown_kl_is_refused_by_name():
    with pytest.raises(ValueError, match="'kullback': use one of kl, abs, mse, full"):
        kl_per_token(torch.zeros(1, 1), torch.zeros(1, 1), "kullback")


# Rewards and advantages ----------------------------------------------------------------------


def test_the_score_lands_on_the_last_unmasked_token_and_nowhere_else():
    scores, kl, beta = torch.tensor([1.0, -2.0, 3.0, 0.5]), noise(B, T), 0.3
    rewards, penalty = rewards_per_token(scores, kl, MASK, beta)
    last = [6, 0, 4, 3]  # read off MASK by eye
    for i in range(B):
        for t in range(T):
            expected = -beta * kl[i, t].item()
            assert penalty[i, t].item() == pytest.approx(expected, abs=1e-6)
            expected += scores[i].item() if t == last[i] else 0.0
            assert rewards[i, t].item() == pytest.approx(expected, abs=1e-6)


NOISE = (noise(B, T).double(), noise(B, T, seed=1).double(), torch.ones(B, T).double())


@MATH
@given(drawn=per_token(2), gamma=st.floats(0, 1), lam=st.floats(0, 1))
@example(drawn=NOISE, gamma=1.0, lam=0.95)
@example(drawn=NOISE, gamma=0.9, lam=0.8)
@example(drawn=NOISE, gamma=1.0, lam=1.0)
@example(drawn=NOISE, gamma=0.7, lam=0.0)
def test_gae_is_the_plain_double_sum_for_any_gamma_and_lambda(drawn, gamma, lam):
    rewards, values, mask = drawn
    rewards, values = rewards * mask, values * mask
    r, v = rewards.numpy(), np.pad(values.numpy(), ((0, 0), (0, 1)))
    expected = np.zeros_like(r)
    T = r.shape[1]
    for i in range(len(r)):
        for t in range(T):
            for later in range(t, T):
                delta = r[i, later] + gamma * v[i, later + 1] - v[i, later]
                expected[i, t] += (gamma * lam) ** (later - t) * delta
    np.testing.assert_allclose(gae(rewards, values, gamma, lam), expected, rtol=0, atol=1e-9)


def test_gae_at_lambda_one_is_the_discounted_return_less_the_value():
    rewards, values, gamma = noise(B, T).double(), noise(B, T, seed=1).double(), 0.9
    to_go = torch.stack(
        [sum(gamma ** (s - t) * rewards[:, s] for s in range(t, T)) for t in range(T)], dim=1
    )
    torch.testing.assert_close(gae(rewards, values, gamma, 1.0), to_go - values)


def test_masked_zeros_after_the_response_change_no_advantage():
    rewards, values = noise(1, 3), noise(1, 3, seed=1)
    zeros = torch.zeros(1, 5)
    longer = gae(torch.cat([rewards, zeros], 1), torch.cat([values, zeros], 1), 0.9, 0.95)
    torch.testing.assert_close(longer[:, :3], gae(rewards, values, 0.9, 0.95))


@MATH
@given(drawn=per_token(2), shift=st.floats(-10, 10), data=st.data())
def test_the_shift_drops_out_of_the_equations_at_lambda_one(drawn, shift, data):
    """In float64, whatever the rewards and values; before whitening it is in each advantage."""
    kl, values, mask = drawn
    finite = st.floats(-10, 10)
    scores = torch.from_numpy(data.draw(arrays(float, len(mask), elements=finite), label="scores"))
    kept = mask.bool()
    raw = [
        gae(rewards_per_token(s, kl, mask, 0.2)[0] * mask, values * mask, 1.0, 1.0)
        for s in (scores, scores + shift)
    ]
    np.testing.assert_allclose((raw[1] - raw[0])[kept], shift, atol=1e-9)
    if kept.sum() > 1:
        whitened = [masked_whiten(a, mask)[kept] for a in raw]
        # Without variance they are divided by sqrt(1e-8), and so is their rounding.
        np.testing.assert_allclose(whitened[1], whitened[0], atol=1e-8)


# Losses --------------------------------------------------------------------------------------


def losses_by_loop(lp, old_lp, advantages, values, old_values, returns, c, cv):
    """Both losses and both clip fractions, token by token."""
    policy, value, policy_clipped, value_clipped = [], [], [], []
    for i in range(B):
        for t in range(T):
            if not KEPT[i, t]:
                continue
            a, ratio = advantages[i, t].item(), math.exp(lp[i, t].item() - old_lp[i, t].item())
            plain, clipped = -a * ratio, -a * min(max(ratio, 1 - c), 1 + c)
            policy.append(max(plain, clipped))
            policy_clipped.append(clipped > plain)
            v, old_v, r = values[i, t].item(), old_values[i, t].item(), returns[i, t].item()
            error = (v - r) ** 2
            clipped_error = (min(max(v, old_v - cv), old_v + cv) - r) ** 2
            value.append(0.5 * max(error, clipped_error))
            value_clipped.append(clipped_error > error)
    return [sum(x) / len(x) for x in (policy, policy_clipped, value, value_clipped)]


@pytest.mark.parametrize(("c", "cv"), [(0.2, 0.2), (0.05, 0.5)])
def test_losses_are_those_of_a_slow_loop_and_blind_to_masked_tokens(c, cv):
    tensors = [noise(B, T, seed=i) for i in range(6)]
    expected = losses_by_loop(*tensors, c, cv)
    lp, old_lp, advantages, values, old_values, returns = tensors
    lp, old_lp = torch.where(KEPT, lp, 9.0), torch.where(KEPT, old_lp, 2.0)  # a ratio of e^7
    pg, ratio, pg_clip = policy_loss(lp, old_lp, junk_under_mask(advantages), MASK, c)
    junk = [junk_under_mask(x) for x in (values, old_values, returns)]
    vf, vf_clip = value_loss(*junk, MASK, cv)
    assert [x.item() for x in (pg, pg_clip, vf, vf_clip)] == pytest.approx(expected, rel=1e-4)
    assert 0 < pg_clip < 1 and 0 < vf_clip < 1, "the case must have clipped and unclipped tokens"
    torch.testing.assert_close(ratio[KEPT], (lp - old_lp).exp()[KEPT])


# Masked ratios get as large as e^60, which float32 still holds.
@MATH
@given(drawn=per_token(6, largest=30.0, width=32), cliprange=st.sampled_from([0.1, 0.2, 0.5]))
def test_no_masked_token_gets_a_gradient_and_the_others_get_the_formulas(drawn, cliprange):
    drawn = [tensor.float() for tensor in drawn]
    lp, old_lp, advantage, values, old_values, returns, mask = drawn
    lp.requires_grad_(), values.requires_grad_()
    loss = policy_loss(lp, old_lp, advantage, mask, cliprange)[0]
    (loss + value_loss(values, old_values, returns, mask, cliprange)[0]).backward()
    n, kept = mask.sum().item(), mask.bool()
    assert (lp.grad[~kept] == 0).all() and (values.grad[~kept] == 0).all()
    for i, t in kept.nonzero().tolist():
        a = advantage[i, t].item()
        ratio = np.exp(np.float64(lp[i, t].item() - old_lp[i, t].item()))
        stopped = ratio > 1 + cliprange if a > 0 else ratio < 1 - cliprange
        if abs(abs(ratio - 1) - cliprange) > 1e-4:  # on the edge of the clip rounding decides
            expected = 0.0 if stopped else -a * ratio / n
            assert lp.grad[i, t].item() == pytest.approx(expected, rel=1e-4, abs=1e-20)
        v, old, target = (x[i, t].item() for x in (values, old_values, returns))
        clipped = min(max(v, old - cliprange), old + cliprange)
        ahead = abs(v - target) - abs(clipped - target)
        if min(abs(ahead), abs(abs(v - old) - cliprange)) > 1e-4 or abs(v - old) < cliprange - 1e-4:
            expected = 0.0 if ahead < 0 else (v - target) / n
            assert values.grad[i, t].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_clip_stops_the_gradient_only_where_the_step_went_too_far():
    # Ratio too high or too low, advantage positive or negative.
    old = torch.zeros(1, 4)
    lp = torch.tensor([[1.0, 1.0, -1.0, -1.0]]).requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    policy_loss(lp, old, advantages, torch.ones(1, 4), 0.2)[0].backward()
    assert (lp.grad == 0).tolist() == [[True, False, False, True]]
    assert lp.grad[0, 1] > 0  # descent lowers a bad token's probability, raises a good one's
    assert lp.grad[0, 2] < 0


# The controller and the running moments ------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.2 * (1 + 0.1 * 16 / 10_000)),  # 10% above the target
        (5.4, 0.2 * (1 - 0.1 * 16 / 10_000)),
        (60.0, 0.2 * (1 + 0.2 * 16 / 10_000)),  # clipped at 20%
        (0.0, 0.2 * (1 - 0.2 * 16 / 10_000)),
        (-3.0, 0.2 * (1 - 0.2 * 16 / 10_000)),  # an estimate can be negative
        (6.0, 0.2),
    ],
)
def test_the_adaptive_controller_by_hand(kl, expected):
    actual = adapted_kl_coef(0.2, kl, target=6.0, samples=16, horizon=10_000)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_running_moments_are_numpys_over_all_scores_so_far():
    moments, seen = RunningMoments(), []
    for i, n in enumerate((16, 3, 1, 40)):
        scores = noise(n, seed=i, scale=1.0 + i) + 5 * i
        seen.append(scores.double().numpy())
        moments = moments.updated(scores)
        everything = np.concatenate(seen)
        assert moments.count == pytest.approx(len(everything))
        assert moments.mean == pytest.approx(everything.mean(), rel=1e-9)
        assert moments.var == pytest.approx(everything.var(), rel=1e-9)
        assert moments.std == pytest.approx(everything.std(ddof=1), rel=1e-9)
