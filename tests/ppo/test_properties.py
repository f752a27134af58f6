"""Properties that the PPO trainer must have on any batch, with examples drawn by hypothesis."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.models import SMALL_VOCABULARY, small_policy
from support.random_state import random_state_unchanged
from support.scripted import Scripted
from support.strategies import (
    KIND,
    MODEL,
    SIX,
    TWO_KINDS,
    Samples,
    conversations,
    divisors,
    reordered,
    sample_lists,
    tensors,
)
from support.tokenizers import EOS, PAD
from support.trainers import assert_same_scalars, assert_same_weights, next_order, weights_of
from support.trainers import make_trainer as trainer_of

from rlhf_tutorial.ppo import PPOTrainer
from rlhf_tutorial.ppo import trainer as trainer_module
from rlhf_tutorial.ppo.math import KL_KINDS
from rlhf_tutorial.ppo.rollout import Batch, LengthSampler, collate

pytestmark = pytest.mark.slow


def make_trainer(
    kind: str = "llama",
    samples: Samples = SIX,
    *,
    double: bool = False,
    other_reference: bool = False,
    **settings: Any,
) -> PPOTrainer:
    """A trainer for `samples`, by default in one mini-batch. `other_reference`: the KL is not 0."""
    policy = small_policy(kind)
    sizes = {"batch_size": len(samples), "mini_batch_size": len(samples)}
    return trainer_of(
        policy=policy.double() if double else policy,
        other=small_policy(kind, seed=1) if other_reference else None,
        **sizes | settings,
    )


@contextmanager
def more_padding(left: int, right: int) -> Iterator[None]:
    """Steps within lay their batch out as if for a longer query and a longer response."""

    def widened(*arguments: Any, **settings: Any) -> Batch:
        batch = collate(*arguments, **settings)
        whole = {"input_ids": PAD, "attention_mask": 0, "position_ids": 0}
        columns = {
            name: torch.nn.functional.pad(
                getattr(batch, name), (left if name in whole else 0, right), value=fill
            )
            for name, fill in (whole | {"responses": PAD, "mask": 0}).items()
        }
        return replace(batch, **columns)

    with mock.patch.object(trainer_module, "collate", widened):
        yield


def one_of(options: list[int], number: int) -> int:
    return options[number % len(options)]


NUMBER = st.integers(0, 11)


# 1. The ratio --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TWO_KINDS)
@pytest.mark.parametrize("shared", [None, 1])
@MODEL
@given(
    samples=sample_lists(masked=True),
    left=st.integers(0, 4),
    right=st.integers(0, 4),
    number=NUMBER,
)
@example(samples=SIX, left=0, right=0, number=3)
def test_the_ratio_is_one_on_the_first_update_of_any_batch(
    kind, shared, samples, left, right, number
):
    size = one_of(divisors(len(samples)), number)
    trainer = make_trainer(kind, samples, shared=shared, ppo_epochs=1, mini_batch_size=size)
    with more_padding(left, right):
        for _ in range(2):  # the second step starts from what the first one made of the weights
            stats = trainer.step(*samples.arguments)
            first = stats["ppo/policy/ratio"].reshape(len(samples), -1)[:size]
            assert np.abs(first - 1).max() <= 1e-6
            if size == len(samples):
                assert stats["ppo/policy/approxkl"] <= 1e-12
                assert stats["ppo/policy/clipfrac"] == 0


@pytest.mark.parametrize("kind", TWO_KINDS)
@MODEL
@given(
    samples=sample_lists(masked=True), left=st.integers(0, 4), number=NUMBER, double=st.booleans()
)
@example(samples=SIX, left=0, number=1, double=False)
def test_the_ratio_stays_one_at_learning_rate_zero_over_all_epochs(
    kind, samples, left, number, double
):
    """Each epoch draws other mini-batches, which must change nothing."""
    size = one_of(divisors(len(samples)), number)
    trainer = make_trainer(
        kind, samples, double=double, learning_rate=0.0, ppo_epochs=3, mini_batch_size=size
    )
    before = weights_of(trainer)
    with more_padding(left, 0):
        stats = trainer.step(*samples.arguments)
    ratio = stats["ppo/policy/ratio"]
    assert ratio.size == 3 * samples.kept.numel()
    # float32 rounds log-probabilities of 10 nats to 1e-6 each, and other batches round otherwise.
    assert np.abs(ratio - 1).max() <= (1e-6 if double else 2e-5)
    assert_same_weights(before, weights_of(trainer))


# The fast paths against the slow one ---------------------------------------------------------


@torch.no_grad()
def logprobs_alone(model: Any, query: list[int], response: list[int]) -> np.ndarray:
    """One sample, unpadded and in no batch, by NumPy in float64."""
    logits = model.pretrained_model(torch.tensor([query + response])).logits
    z = logits[0, len(query) - 1 : -1].double().numpy()
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return np.log([p[t, token] for t, token in enumerate(response)])


@pytest.mark.parametrize("shared", [None, 1])
@settings(MODEL, max_examples=10)
@given(kind=KIND, samples=sample_lists(masked=True))
@example(kind="gpt2", samples=SIX)
def test_logprobs_are_those_of_each_sample_alone(kind, shared, samples):
    """Padded by each other in one batch, read one by one in the test."""
    trainer = make_trainer(kind, samples, shared=shared, other_reference=True)
    models = {"objective/logprobs": small_policy(kind), "objective/ref_logprobs": trainer.ref_model}
    stats = trainer.step(*samples.arguments)
    for key, model in models.items():
        for i, sample in enumerate(zip(samples.queries, samples.responses, strict=True)):
            expected = logprobs_alone(model, *sample)
            np.testing.assert_allclose(stats[key][i, : len(expected)], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", TWO_KINDS)
@MODEL
@given(samples=sample_lists(), n=st.integers(1, 5), cut=st.integers(0, 2))
def test_a_step_is_the_same_for_a_trainer_that_did_not_sample_the_responses(kind, samples, n, cut):
    """One takes the trunk's states that its sampling left, the other computes them."""
    trainers = [
        make_trainer(kind, samples, shared=1, sgd=0.01, other_reference=True) for _ in range(2)
    ]
    queries, _, scores, _ = samples.arguments
    responses = trainers[0].generate(
        queries,
        return_prompt=False,
        max_new_tokens=n,
        eos_token_id=[EOS, *range(SMALL_VOCABULARY - 7, SMALL_VOCABULARY)],
    )
    responses[0] = responses[0][: max(1, len(responses[0]) - cut)]
    assert trainers[0].sampled is not None and trainers[1].sampled is None
    stats, others = (trainer.step(queries, responses, scores) for trainer in trainers)
    assert_same_scalars(stats, others)
    assert_same_weights(weights_of(trainers[0]), weights_of(trainers[1]), atol=1e-5)


# 2. Padding and order ------------------------------------------------------------------------


CONFIGS = st.fixed_dictionaries(
    {
        "kl_penalty": st.sampled_from(KL_KINDS),
        "whiten_rewards": st.booleans(),
        "lam": st.sampled_from([0.95, 1.0]),
    }
)
WHITENED = {"kl_penalty": "kl", "whiten_rewards": True, "lam": 0.95}


@pytest.mark.parametrize("kind", TWO_KINDS)
@pytest.mark.parametrize("shared", [None, 1])
@MODEL
@given(
    samples=sample_lists(masked=True),
    config=CONFIGS,
    left=st.integers(0, 6),
    right=st.integers(1, 6),
    number=NUMBER,
)
@example(samples=SIX, config=WHITENED, left=5, right=7, number=2)
def test_results_do_not_depend_on_the_padding_of_any_batch(
    kind, shared, samples, config, left, right, number
):
    results = []
    for padding in ((0, 0), (left, right)):
        trainer = make_trainer(
            kind,
            samples,
            shared=shared,
            sgd=0.01,
            other_reference=True,
            mini_batch_size=one_of([d for d in divisors(len(samples)) if d > 1], number),
            ppo_epochs=2,
            **config,
        )
        with more_padding(*padding):
            stats = trainer.step(*samples.arguments)
        results.append((stats, weights_of(trainer)))
    (stats, after), (padded_stats, padded_after) = results
    width = stats["objective/mask"].shape[1]
    assert padded_stats["objective/mask"].shape[1] == width + right
    assert_same_scalars(stats, padded_stats)
    assert_same_weights(after, padded_after, atol=1e-5)
    mask = stats["objective/mask"].astype(bool)
    for key in ("objective/logprobs", "objective/ref_logprobs"):
        np.testing.assert_allclose(padded_stats[key][:, :width][mask], stats[key][mask], atol=2e-5)


@pytest.mark.parametrize("kind", TWO_KINDS)
@pytest.mark.parametrize("shared", [None, 1])
@MODEL
@given(drawn=reordered(), config=CONFIGS)
@example(drawn=(SIX, [4, 2, 5, 0, 3, 1]), config=WHITENED)
def test_results_do_not_depend_on_the_order_of_any_samples(kind, shared, drawn, config):
    samples, order = drawn
    results = []
    for batch in (samples, samples.reordered(order)):
        trainer = make_trainer(
            kind, samples, shared=shared, sgd=0.01, other_reference=True, ppo_epochs=2, **config
        )
        results.append((trainer.step(*batch.arguments), weights_of(trainer)))
    (stats, after), (other_stats, other_after) = results
    assert_same_scalars(stats, other_stats)
    assert_same_weights(after, other_after, atol=1e-5)
    kl = stats["objective/kl_dist"][order]
    np.testing.assert_allclose(other_stats["objective/kl_dist"], kl, atol=1e-4)


# 3. Shifted scores ---------------------------------------------------------------------------


def advantages(samples: Samples, shift: float, **config: Any) -> np.ndarray:
    """The whitened advantages of the tokens that count, in the order of the first epoch."""
    trainer = make_trainer(samples=samples, other_reference=True, ppo_epochs=1, **config)
    rows = next_order(trainer)
    shifted = replace(samples, scores=[score + shift for score in samples.scores])
    stats = trainer.step(*shifted.arguments)
    return stats["ppo/policy/advantages"][samples.kept[rows].flatten().numpy()]


SHIFTS = st.one_of(st.floats(-10, -3), st.floats(3, 10))


@MODEL
@given(samples=sample_lists(masked=True), shift=SHIFTS, beta=st.sampled_from([0.0, 0.2]))
@example(samples=SIX, shift=5.0, beta=0.2)
def test_no_shift_of_any_scores_changes_an_advantage_at_lambda_one(samples, shift, beta):
    config = {"gamma": 1.0, "lam": 1.0, "init_kl_coef": beta}
    plain, shifted = (advantages(samples, s, **config) for s in (0.0, shift))
    assert len(plain) == samples.kept.sum()
    # Whitening divides advantages that are nearly the same by little, and their rounding as well.
    np.testing.assert_allclose(shifted, plain, atol=1e-5 if samples == SIX else 1e-3)


@MODEL
@given(samples=sample_lists(long_first=True), shift=SHIFTS)
@example(samples=SIX, shift=5.0)
def test_a_shift_of_any_scores_changes_an_advantage_at_lambda_095(samples, shift):
    """Where a response has two tokens: the shift reaches its first one at 0.95 of its size."""
    plain, shifted = (advantages(samples, s, gamma=1.0, lam=0.95) for s in (0.0, shift))
    assert np.abs(shifted - plain).max() > (0.05 if samples == SIX else 1e-3)


# 4. KL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", KL_KINDS)
@MODEL
@given(kind=KIND, shared=st.sampled_from([None, 1]), samples=sample_lists(masked=True))
@example(kind="llama", shared=None, samples=SIX)
def test_the_kl_of_an_untrained_policy_is_zero_on_any_batch(kl, kind, shared, samples):
    trainer = make_trainer(kind, samples, shared=shared, kl_penalty=kl, ppo_epochs=1)
    stats = trainer.step(*samples.arguments)
    assert np.abs(stats["objective/kl_dist"]).max() <= 1e-5
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(0, abs=1e-5)


@MODEL
@given(kind=KIND, samples=sample_lists(masked=True))
def test_the_full_kl_to_another_model_is_positive_on_any_batch(samples, kind):
    trainer = make_trainer(kind, samples, other_reference=True, kl_penalty="full", ppo_epochs=1)
    assert (trainer.step(*samples.arguments)["objective/kl_dist"] > 0).all()


# 5. Masked tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TWO_KINDS)
@pytest.mark.parametrize("shared", [None, 1])
@MODEL
@given(
    samples=sample_lists(masked=True),
    right=st.integers(0, 4),
    whiten=st.booleans(),
    number=NUMBER,
)
@example(samples=SIX, right=0, whiten=False, number=2)
def test_no_masked_token_of_any_batch_gets_a_gradient(kind, shared, samples, right, whiten, number):
    n = len(samples)
    size = one_of([d for d in divisors(n) if d < n], number)
    trainer = make_trainer(
        kind,
        samples,
        shared=shared,
        other_reference=True,
        learning_rate=0.0,
        ppo_epochs=1,
        mini_batch_size=size,
        whiten_rewards=whiten,
    )
    passes = []

    def watch(module: torch.nn.Module, inputs: tuple, output: tuple) -> None:
        if output[0].requires_grad:
            output[0].retain_grad(), output[2].retain_grad()
            passes.append((output[0], output[2]))

    trainer.model.register_forward_hook(watch)
    kept = torch.nn.functional.pad(samples.kept, (0, right))[next_order(trainer)]
    with more_padding(0, right):
        stats = trainer.step(*samples.arguments)
    assert len(passes) == n // size
    logits, values = (torch.cat([x.grad for x in column]) for column in zip(*passes, strict=True))
    assert logits.shape[:2] == values.shape == kept.shape
    assert (logits[~kept] == 0).all() and (values[~kept] == 0).all()
    # An advantage that happens to be the mean of all is 0 whitened.
    advantages = torch.from_numpy(stats["ppo/policy/advantages"]).reshape(kept.shape)
    assert (logits[kept & (advantages.abs() > 1e-3)].abs().sum(-1) > 0).all()
    assert (values[kept] != 0).all()


# 6. Responses --------------------------------------------------------------------------------


@MODEL
@given(conversation=conversations())
def test_the_trainer_puts_the_prompt_first_only_if_told_to(conversation):
    queries, answers, expected = conversation
    trainer = make_trainer()
    trainer.model_config = SimpleNamespace(vocab_size=200)  # the script's tokens go beyond 100
    for with_prompt in (False, True):
        scripted = Scripted(answers, PAD, [EOS])
        with mock.patch.object(trainer.model, "generate", scripted.generate):
            results = trainer.generate(tensors(queries), return_prompt=with_prompt, do_sample=False)
        for query, response, result in zip(queries, expected, results, strict=True):
            assert result.tolist() == (query + response if with_prompt else response)


# 7. The same seed, the same run --------------------------------------------------------------


def fingerprint(seed: int, kind: str = "llama", shared: int | None = None) -> str:
    """A digest of all that a short run draws, reports and leaves behind, to the last bit."""
    trainer = trainer_of(
        policy=small_policy(kind),
        shared=shared,
        dataset=[{"input_ids": torch.tensor([3 + i] * (1 + i % 3))} for i in range(9)],
        **{"batch_size": 4, "mini_batch_size": 2, "ppo_epochs": 2, "seed": seed},
    )
    lengths, digest = LengthSampler(2, 5, seed=seed), hashlib.sha256()
    for batch in trainer.dataloader:
        queries = batch["input_ids"]
        responses = trainer.generate(queries, length_sampler=lengths, return_prompt=False)
        digest.update(
            repr([[x.tolist() for x in tokens] for tokens in (queries, responses)]).encode()
        )
        scores = [len(set(r.tolist())) - len(r) / 2 for r in responses]
        stats = trainer.step(queries, responses, scores)
        for key, value in stats.items():
            if "time/" not in key:
                digest.update(key.encode() + np.asarray(value).tobytes())
    for name, value in weights_of(trainer).items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


@MODEL
@given(
    seed=st.integers(0, 2**31),
    callers=st.integers(0, 2**31),
    kind=KIND,
    shared=st.sampled_from([None, 1]),
)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(seed, callers, kind, shared):
    """Whatever the caller's own seed."""
    first = fingerprint(seed, kind, shared)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(callers)
        assert fingerprint(seed, kind, shared) == first
    assert fingerprint(seed + 1, kind, shared) != first


def test_the_same_seed_gives_the_same_run_in_two_processes():
    """This one, and one in which sets and hashes come in another order."""
    code = "import test_properties as t; print(t.fingerprint(3), t.fingerprint(4, shared=1))"
    other = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"}
    other["OMP_NUM_THREADS"] = "1"  # as here: sums are then in the same order
    printed = subprocess.check_output(
        [sys.executable, "-c", code], env=os.environ | other, text=True, timeout=120
    )
    here = [fingerprint(3), fingerprint(4, shared=1)]
    assert printed.split() == here
    assert len(set(here)) == 2


# 8. The caller's random state ----------------------------------------------------------------


@MODEL
@given(
    samples=sample_lists(masked=True),
    seed=st.integers(0, 2**31),
    kind=KIND,
    shared=st.sampled_from([None, 1]),
    sampling=st.booleans(),
    with_reference=st.booleans(),
    batch_size=st.none() | st.integers(1, 3),
)
def test_a_whole_run_leaves_the_callers_random_state_alone(
    samples, seed, kind, shared, sampling, with_reference, batch_size
):
    """A batch of the data, its answers, and a step; and once more, in the next pass."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        queries = tensors(samples.queries)
        rows = [{"input_ids": query} for query in queries]
        trainer = make_trainer(kind, samples, shared=shared, mini_batch_size=1, dataset=rows)
        for _ in range(2):
            with random_state_unchanged():
                (asked,) = [batch["input_ids"] for batch in trainer.dataloader]
            with random_state_unchanged():
                trainer.generate(
                    asked,
                    length_sampler=LengthSampler(1, 4, seed=seed),
                    batch_size=batch_size,
                    do_sample=sampling,
                    generate_ref_response=with_reference,
                )
            with random_state_unchanged():
                trainer.step(*samples.arguments)
