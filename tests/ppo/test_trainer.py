"""The PPO step against a slow reference, and the properties that must hold around it."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.trainers import assert_same_scalars, assert_same_weights, weights_of
from torch import Tensor

from rlhf_tutorial.errors import ModelError, RewardError, TrainingError, TutorialError
from rlhf_tutorial.models import (
    VALUE_HEAD_FILE,
    AutoModelForCausalLMWithValueHead,
    create_reference_model,
)
from rlhf_tutorial.ppo import PPOConfig, PPOTrainer
from rlhf_tutorial.ppo.math import KL_KINDS
from rlhf_tutorial.ppo.rollout import ForwardPass, collate
from rlhf_tutorial.ppo.stats import scalars

BATCH = PPOConfig(batch_size=6, mini_batch_size=6, learning_rate=1e-3)


# A PPO step as the equations say it: one sample at a time, unpadded, token by token ------------


def read(model: AutoModelForCausalLMWithValueHead, query: Tensor, response: Tensor) -> tuple:
    """log pi over the vocabulary (T, V), log pi of the response (T,) and values (T,)."""
    output = model.pretrained_model(
        torch.cat([query, response]).unsqueeze(0), output_hidden_states=True
    )
    before = slice(len(query) - 1, -1)
    everything = output.logits[0, before].log_softmax(-1)
    values = model.v_head(output.hidden_states[-1][0, before])[:, 0]
    return (
        everything,
        torch.stack([p[i] for p, i in zip(everything, response, strict=True)]),
        values,
    )


def reference_step(
    model, reference, queries, responses, scores, config: PPOConfig, orders, lr, masks=None
) -> dict[str, Any]:
    """One step with plain gradient descent; updates `model` in place."""
    c, n = config, len(queries)
    masks = masks or [torch.ones(len(r)) for r in responses]
    kept = [[t for t in range(len(m)) if m[t]] for m in masks]
    old_lp, old_values, rewards, kls, penalties = [], [], [], [], []
    with torch.no_grad():
        for i in range(n):
            p, lp, v = read(model, queries[i], responses[i])
            p_ref, lp_ref, _ = read(reference, queries[i], responses[i])
            kl = []
            for t in range(len(lp)):
                d = (lp[t] - lp_ref[t]).item()
                full = sum(x.exp() * (x - y) for x, y in zip(p[t], p_ref[t], strict=True))
                kl.append({"kl": d, "abs": abs(d), "mse": d * d / 2, "full": full}[c.kl_penalty])
            r = [-c.init_kl_coef * float(k) for k in kl]
            penalties += [r[t] for t in kept[i]]
            r[kept[i][-1]] += scores[i]
            rewards.append([x if t in kept[i] else 0.0 for t, x in enumerate(r)])
            kls.append(sum(float(kl[t]) for t in kept[i]))
            old_lp.append(lp)
            old_values.append(v)
    if c.whiten_rewards:
        flat = np.array([rewards[i][t] for i in range(n) for t in kept[i]])
        scale = 1 / math.sqrt(flat.var(ddof=1) + 1e-8)
        for i in range(n):
            for t in kept[i]:
                rewards[i][t] = (rewards[i][t] - flat.mean()) * scale + flat.mean()
    advantages, returns = [], []
    for i in range(n):
        v = [old_values[i][t].item() if t in kept[i] else 0.0 for t in range(len(rewards[i]))]
        delta = [r + c.gamma * w - u for r, u, w in zip(rewards[i], v, [*v[1:], 0.0], strict=True)]
        T = range(len(delta))
        a = [sum((c.gamma * c.lam) ** (s - t) * delta[s] for s in T if s >= t) for t in T]
        advantages.append(a)
        returns.append([x + y for x, y in zip(a, v, strict=True)])
    flat = np.array([advantages[i][t] for i in range(n) for t in kept[i]])
    mean, scale = flat.mean(), 1 / math.sqrt(flat.var(ddof=1) + 1e-8)
    advantages = [[(x - mean) * scale for x in a] for a in advantages]

    trainable = [p for p in model.parameters() if p.requires_grad]
    policy_losses, value_losses, clipped, clipped_values, tokens = [], [], [], [], []
    for order in orders:
        for rows in order.split(c.mini_batch_size):
            pg, vf = [], []
            for i in rows.tolist():
                _, lp, values = read(model, queries[i], responses[i])
                for t in kept[i]:
                    ratio, a = (lp[t] - old_lp[i][t]).exp(), advantages[i][t]
                    plain = -a * ratio
                    cut = -a * min(max(ratio, 1 - c.cliprange), 1 + c.cliprange)
                    pg.append(max(plain, cut))
                    v, old, target = values[t], old_values[i][t], returns[i][t]
                    near = min(max(v, old - c.cliprange_value), old + c.cliprange_value)
                    error, near_error = (v - target) ** 2, (near - target) ** 2
                    vf.append(max(error, near_error) / 2)
                    clipped.append(float(cut > plain))
                    clipped_values.append(float(near_error > error))
            pg_loss, vf_loss = sum(pg) / len(pg), sum(vf) / len(vf)
            gradients = torch.autograd.grad(
                pg_loss + c.vf_coef * vf_loss, trainable, allow_unused=True
            )
            with torch.no_grad():
                for p, g in zip(trainable, gradients, strict=True):
                    if g is not None:
                        p -= lr * g
            policy_losses.append(pg_loss.item())
            value_losses.append(vf_loss.item())
            tokens.append(len(pg))
    return {
        "objective/kl": np.mean(kls),
        "ppo/mean_non_score_reward": np.mean(penalties),
        "ppo/loss/policy": np.mean(policy_losses),
        "ppo/loss/value": np.mean(value_losses),
        "share of clipped ratios": np.mean(clipped),
        "share of clipped values": np.mean(clipped_values),
    }


CASES = {
    "llama": {"kind": "llama"},
    "gpt2": {"kind": "gpt2"},
    "abs": {"kl_penalty": "abs"},
    "mse": {"kl_penalty": "mse"},
    "full": {"kl_penalty": "full"},
    "shared trunk": {"shared": 2, "lr": 0.06},
    "shared trunk, gpt2": {"kind": "gpt2", "shared": 2, "lr": 0.06},
    "gamma and lambda": {"gamma": 0.9, "lam": 0.7},
    "whitened rewards": {"whiten_rewards": True},
    "response mask": {"masked": True},
    "whitened rewards, response mask": {"whiten_rewards": True, "masked": True},
    "wide clips, all of the value loss": {"cliprange": 0.5, "cliprange_value": 1.0, "vf_coef": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_the_slow_reference(case, make_trainer, make_policy, samples):
    """Two epochs of three mini-batches with a rate at which both clips are at work."""
    case = dict(CASES[case])
    kind, shared = case.pop("kind", "llama"), case.pop("shared", None)
    lr = case.pop("lr", 0.02)
    queries, responses, scores = samples
    masks = None
    if case.pop("masked", False):
        masks = [torch.ones(len(r), dtype=torch.long) for r in responses]
        masks[0][0] = masks[2][2] = masks[2][5] = masks[5][3] = 0
    trainer = make_trainer(
        kind,
        shared,
        sgd=lr,
        other=None if shared else 1,
        mini_batch_size=2,
        ppo_epochs=2,
        **case,
    )
    model = make_policy(kind)
    if shared:
        create_reference_model(model, shared)
    random = torch.Generator()
    random.set_state(trainer.random.get_state())
    orders = [torch.randperm(6, generator=random) for _ in range(2)]
    reference = trainer.ref_model
    expected = reference_step(
        model, reference, queries, responses, scores, trainer.config, orders, lr, masks
    )
    before = weights_of(trainer)
    stats = trainer.step(queries, responses, scores, response_masks=masks)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            trainer.model.state_dict()[name], value, rtol=1e-4, atol=2e-5, msg=name
        )
    for key in ("objective/kl", "ppo/mean_non_score_reward", "ppo/loss/policy", "ppo/loss/value"):
        assert stats[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
    # The case shows something only if the weights moved and both clips were at work.
    moved = max((v - before[k]).abs().max() for k, v in model.state_dict().items())
    assert moved > 1e-2
    assert 0 < expected["share of clipped ratios"] < 1
    assert 0 < expected["share of clipped values"] < 1


def with_divided_logits(policy: Any, temperature: float) -> Any:
    """The policy of a model that divides its logits by itself."""
    head = policy.pretrained_model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: logits / temperature)
    return policy


@pytest.mark.parametrize("kl_penalty", ["kl", "full"])
@pytest.mark.parametrize("shared", [None, 2])
@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_a_temperature_is_a_model_whose_logits_are_divided(
    temperature, shared, kl_penalty, make_policy, make_trainer, samples
):
    """Samples, log-probabilities, entropy, KL, reference and gradient, over three steps."""
    queries, _, scores = samples
    settings = {"sgd": 0.05, "kl_penalty": kl_penalty, "init_kl_coef": 0.5, "mini_batch_size": 3}
    mine = make_trainer("llama", shared, temperature=temperature, **settings)
    divided = with_divided_logits(make_policy("llama"), temperature)
    oracle = make_trainer("llama", shared, policy=divided, **settings)
    plain = make_trainer("llama", shared, **settings)
    before = weights_of(oracle)
    for step in range(3):
        drawn = [t.generate(queries, return_prompt=False, max_new_tokens=8) for t in (mine, oracle)]
        assert [r.tolist() for r in drawn[0]] == [r.tolist() for r in drawn[1]]
        stats, expected = (t.step(queries, drawn[0], scores) for t in (mine, oracle))
        for key in ("objective/kl", "objective/entropy", "ppo/loss/policy", "ppo/policy/entropy"):
            assert stats[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), (step, key)
        if step == 0:  # it is another policy than at temperature 1
            other = plain.step(queries, drawn[0], scores)
            assert abs(other["objective/entropy"] - stats["objective/entropy"]) > 0.01
    after = weights_of(oracle)
    assert max((after[name] - before[name]).abs().max() for name in after) > 1e-2
    for name, value in after.items():
        torch.testing.assert_close(weights_of(mine)[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_samples_of_another_temperature_are_refused_unless_it_was_left_at_one(
    make_trainer, samples
):
    trainer = make_trainer(temperature=0.5)
    trainer.generate(samples[0], max_new_tokens=2, temperature=0.5)
    with pytest.raises(ModelError, match=r"temperature 1\.0, but PPOConfig.temperature is 0\.5"):
        trainer.generate(samples[0], max_new_tokens=2, temperature=1.0)
    make_trainer().generate(samples[0], max_new_tokens=2, temperature=0.5)  # as TRL does


# Ratio, padding, order -----------------------------------------------------------------------


def test_dropout_stays_off(make_policy, make_trainer, samples):
    rates = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    policy = make_policy("gpt2", **rates)
    policy.train()  # a caller may hand it over like this
    trainer = make_trainer("gpt2", policy=policy, ppo_epochs=1)
    assert np.abs(trainer.step(*samples)["ppo/policy/ratio"] - 1).max() <= 1e-6


# Gradients -----------------------------------------------------------------------------------


def test_what_stands_under_the_padding_changes_nothing(make_trainer, make_policy, samples):
    """The pad token's own embedding gets no gradient, and may be anything."""
    results = []
    for scale in (1.0, 30.0):
        policy = make_policy("llama", tie_word_embeddings=False)
        embeddings = policy.pretrained_model.get_input_embeddings().weight
        before = scale * embeddings[0].detach().clone() + scale - 1
        with torch.no_grad():
            embeddings[0] = before
        trainer = make_trainer(policy=policy, sgd=0.02)
        stats = trainer.step(*samples)
        assert torch.equal(embeddings[0], before)
        results.append((stats, weights_of(trainer)))
    assert_same_scalars(results[0][0], results[1][0])
    a, b = ({k: v for k, v in r[1].items() if "embed_tokens" not in k} for r in results)
    assert_same_weights(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_only_the_upper_layers_and_the_head_train_above_a_shared_trunk(kind, make_trainer, samples):
    trainer = make_trainer(kind, 2)
    before = weights_of(trainer)
    reference = {k: v.clone() for k, v in trainer.ref_model.state_dict().items()}
    for _ in range(2):
        trainer.step(*samples)
    for name, parameter in trainer.model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        # Key biases of attention shift all scores alike: they have no gradient but rounding.
        assert moved == parameter.requires_grad, name
    for name, value in trainer.ref_model.state_dict().items():
        assert torch.equal(value, reference[name]), name
    assert all(p.grad is None for p in trainer.ref_model.parameters())


def test_a_full_reference_stays_as_it_was_while_every_layer_trains(make_trainer, samples):
    trainer = make_trainer("llama")
    before = weights_of(trainer)
    trainer.step(*samples)
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert_same_weights(before, dict(trainer.ref_model.state_dict()))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "neox"])
def test_the_trunk_computed_once_is_only_a_short_cut(kind, make_trainer, make_policy, samples):
    """The same step without it: whole forward passes, and a reference with no memory in common."""
    fast = make_trainer(kind, 2, sgd=0.02, mini_batch_size=3)
    assert fast.shares_trunk
    policy = make_policy(kind)
    policy.freeze_lowest_layers(2)
    policy.num_shared_layers = 0  # frozen all the same, but the trainer knows of no trunk
    slow = make_trainer(kind, policy=policy, sgd=0.02, mini_batch_size=3)
    assert not slow.shares_trunk
    assert fast.with_trunk_states(collate(*samples[:2], 0)).trunk_states is not None
    assert slow.with_trunk_states(collate(*samples[:2], 0)).trunk_states is None
    before = weights_of(slow)
    assert_same_weights(before, weights_of(fast))
    for _ in range(2):
        assert_same_scalars(fast.step(*samples), slow.step(*samples))
    assert_same_weights(weights_of(fast), weights_of(slow), atol=1e-5)
    assert max((v - before[k]).abs().max() for k, v in weights_of(fast).items()) > 1e-2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("shared", [None, 2])
def test_the_first_updates_pass_is_also_that_of_the_old_probabilities(
    kind, shared, make_trainer, samples, monkeypatch
):
    """The same step with a pass of its own for the first update."""
    fast, slow = (make_trainer(kind, shared, sgd=0.02, seed=3) for _ in range(2))
    optimise, passes = slow.optimise, {}
    monkeypatch.setattr(slow, "optimise", lambda batch, old, live: optimise(batch, old, None))
    for trainer in (fast, slow):
        forward, passes[trainer] = trainer.forward, 0

        def counted(*args: Any, trainer=trainer, forward=forward) -> ForwardPass:
            passes[trainer] += 1
            return forward(*args)

        monkeypatch.setattr(trainer, "forward", counted)
    for _ in range(2):
        assert_same_scalars(fast.step(*samples), slow.step(*samples), atol=1e-6)
    assert (passes[fast], passes[slow]) == (2 * 5, 2 * 6)
    assert_same_weights(weights_of(fast), weights_of(slow), atol=1e-6)


def test_a_batch_is_evaluated_in_mini_batches(make_trainer, samples, monkeypatch):
    """So that a mini-batch that fits the memory is enough."""
    trainer, sizes = make_trainer(mini_batch_size=2, kl_penalty="full", ppo_epochs=1), []
    forward = trainer.forward
    monkeypatch.setattr(
        trainer, "forward", lambda model, b: sizes.append(len(b.mask)) or forward(model, b)
    )
    trainer.step(*samples)
    assert sizes == [2] * 9


def test_a_reference_of_its_own_beside_a_policy_with_a_trunk(make_trainer, make_policy, samples):
    policy = make_policy("llama")
    shared = make_trainer("llama", 2, sgd=0.02).step(*samples)
    policy.freeze_lowest_layers(2)
    trainer = make_trainer(policy=policy, sgd=0.02)  # its reference is a full copy
    assert trainer.model.num_shared_layers == 2 and not trainer.shares_trunk
    assert_same_scalars(shared, trainer.step(*samples))


class Recording(torch.optim.SGD):
    """Plain gradient descent that remembers the norm of each update's gradient."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norms: list[float] = []

    def step(self, closure: None = None) -> None:
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        self.norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
        super().step(closure)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_update_is_clipped_to_the_largest_norm_allowed(accumulation, make_trainer, samples):
    norms = {}
    for limit in (None, 0.01):
        trainer = make_trainer(
            optimizer=lambda p: Recording(p, lr=1e-3),
            mini_batch_size=2,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=limit,
        )
        trainer.step(*samples)
        trainer.step(*samples)
        norms[limit] = trainer.optimizer.optimizer.norms
    assert len(norms[0.01]) == 2 * 4 * 3 // accumulation
    assert min(norms[None]) > 0.02, "or there is nothing to clip"
    assert norms[0.01] == pytest.approx([0.01] * len(norms[0.01]), rel=1e-3)


def equal_lengths(seed: int = 3, n: int = 6) -> tuple[list[Tensor], list[Tensor], list[float]]:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 264, (n, 9), generator=random)
    return list(ids[:, :4]), list(ids[:, 4:]), torch.randn(n, generator=random).tolist()


def test_accumulated_gradients_are_those_of_one_large_mini_batch(make_trainer):
    """Of responses of equal length: the loss is a mean over the tokens of each mini-batch."""
    results = []
    for settings in (
        {"mini_batch_size": 6},
        {"mini_batch_size": 2, "gradient_accumulation_steps": 3},
        {"mini_batch_size": 1, "gradient_accumulation_steps": 6},
        {"mini_batch_size": 2},
    ):
        trainer = make_trainer(optimizer=lambda p: Recording(p, lr=0.02), other=1, **settings)
        for seed in range(2):
            trainer.step(*equal_lengths(seed))
        results.append((weights_of(trainer), len(trainer.optimizer.optimizer.norms)))
    one, thirds, sixths, separate = results
    assert one[1] == thirds[1] == sixths[1] == 8 and separate[1] == 24
    assert_same_weights(one[0], thirds[0], atol=1e-5)
    assert_same_weights(one[0], sixths[0], atol=1e-5)
    assert max((v - one[0][k]).abs().max() for k, v in separate[0].items()) > 1e-3


def test_accumulation_works_inside_the_dataloaders_loop_and_on_its_last_batch(make_trainer):
    """accelerate by itself would step at every mini-batch once the loader is at its end."""
    queries = Dataset.from_dict({"input_ids": [[3 + i, 4, 5] for i in range(18)]})
    queries.set_format("torch")
    results = []
    for settings in (
        {"mini_batch_size": 6},
        {"mini_batch_size": 2, "gradient_accumulation_steps": 3},
    ):
        trainer = make_trainer(
            optimizer=lambda p: Recording(p, lr=0.005), other=1, dataset=queries, **settings
        )
        for i, batch in enumerate(trainer.dataloader):
            _, responses, scores = equal_lengths(i)
            trainer.step(batch["input_ids"], responses, scores)
        assert i == 2
        results.append((weights_of(trainer), len(trainer.optimizer.optimizer.norms)))
    assert results[0][1] == results[1][1] == 3 * 4
    assert_same_weights(results[0][0], results[1][0], atol=1e-5)


# Skipping, stopping, the controller ----------------------------------------------------------


def test_a_mini_batch_whose_ratio_ran_away_is_skipped(make_trainer, samples, caplog):
    """A threshold below 1 makes every mini-batch one of them."""
    trainer = make_trainer(sgd=0.02, ratio_threshold=0.5)
    before = weights_of(trainer)
    with caplog.at_level(logging.WARNING):
        stats = trainer.step(*samples)
    assert stats["ppo/loss/policy"] == stats["ppo/loss/value"] == stats["ppo/loss/total"] == 0
    assert_same_weights(before, weights_of(trainer))
    assert len(caplog.messages) == 4 and "ratio_threshold 0.5" in caplog.messages[0]


def test_a_ratio_that_overflows_leaves_the_weights_alone(make_trainer, samples, monkeypatch):
    """exp of more than 88.7 is infinite in float32, and infinity times 0 is not a number."""
    trainer = make_trainer(sgd=0.02, ppo_epochs=1)
    evaluate = trainer.evaluate
    monkeypatch.setattr(
        trainer,
        "evaluate",
        lambda *a: replace(found := evaluate(*a), logprobs=found.logprobs - 200),
    )
    before = weights_of(trainer)
    stats = trainer.step(*samples)
    assert stats["ppo/loss/total"] == 0 and np.isinf(stats["ppo/policy/ratio"]).any()
    assert_same_weights(before, weights_of(trainer))


def test_only_the_mini_batches_above_the_threshold_are_skipped(make_trainer, samples, caplog):
    """The first update is at ratio 1, the second meets what the first has done."""
    results = {}
    for n, threshold in ((1, 10.0), (2, 10.0), (2, 1.02)):
        trainer = make_trainer(sgd=0.05, ppo_epochs=n, ratio_threshold=threshold)
        with caplog.at_level(logging.WARNING):
            trainer.step(*samples)
        results[n, threshold] = weights_of(trainer)
    assert len(caplog.messages) == 1 and "above ratio_threshold 1.0" in caplog.messages[0]
    assert_same_weights(results[1, 10.0], results[2, 1.02])
    with pytest.raises(AssertionError):
        assert_same_weights(results[1, 10.0], results[2, 10.0])


def epochs(stats: dict[str, Any]) -> float:
    return stats["ppo/policy/ratio"].size / stats["objective/logprobs"].size


def test_early_stopping_leaves_the_epochs_once_the_policy_has_moved(make_trainer, samples):
    plain = make_trainer(sgd=0.02, ppo_epochs=8)
    assert epochs(plain.step(*samples)) == 8
    moved = []
    for n in range(1, 9):  # how far the policy has moved after each number of epochs
        trainer, seen = make_trainer(sgd=0.02, ppo_epochs=n), []
        update = trainer.update
        trainer.update = lambda *a, update=update, seen=seen: seen.append(update(*a)) or seen[-1]
        trainer.step(*samples)
        moved.append(seen[-1]["ppo/policy/policykl"].item())
    assert moved[0] == pytest.approx(0, abs=1e-6)
    for target in (0.05, 0.09):
        expected = next(n for n, kl in enumerate(moved, 1) if kl > 1.5 * target)
        assert 1 < expected < 8
        stopping = make_trainer(sgd=0.02, ppo_epochs=8, early_stopping=True, target_kl=target)
        assert epochs(stopping.step(*samples)) == expected
    never = make_trainer(sgd=0.02, ppo_epochs=8, early_stopping=True, target_kl=1e6)
    assert epochs(never.step(*samples)) == 8


def test_the_kl_coefficient_moves_as_by_hand_and_only_if_told_to(make_trainer, samples):
    trainer = make_trainer(other=1, init_kl_coef=0.3, target=5.0, horizon=100)
    beta = 0.3
    for _ in range(3):
        stats = trainer.step(*samples)
        assert stats["objective/kl_coef"] == pytest.approx(
            beta
        )  # the coefficient that this step used
        error = min(max(stats["objective/kl"] / 5.0 - 1, -0.2), 0.2)
        beta *= 1 + error * 6 / 100
        assert trainer.kl_coef == pytest.approx(beta, rel=1e-9)
    assert beta != pytest.approx(0.3, rel=1e-3)
    fixed = make_trainer(other=1, init_kl_coef=0.3, adap_kl_ctrl=False)
    fixed.step(*samples)
    assert fixed.kl_coef == 0.3


@pytest.mark.parametrize("kind", KL_KINDS)
def test_all_four_kls_run_and_start_from_zero(kind, make_trainer, samples):
    trainer = make_trainer(kl_penalty=kind)
    assert trainer.step(*samples)["objective/kl"] == pytest.approx(0, abs=1e-5)
    second = trainer.step(*samples)
    assert math.isfinite(second["objective/kl"])
    if kind != "kl":
        assert second["objective/kl"] > 0
        assert (second["objective/kl_dist"] > 0).all()


# Scores --------------------------------------------------------------------------------------


def test_scores_are_scaled_normed_and_clipped_in_this_order(make_trainer, samples):
    queries, responses, _ = samples
    batches = [np.array([1.0, 4, -2, 3, 0, 6]), np.array([10.0, -3, 2, 2, 1, 0])]
    everything = [batches[0], np.concatenate(batches)]
    for settings, expected in (
        ({}, batches),
        ({"score_clip": 2.5}, [b.clip(-2.5, 2.5) for b in batches]),
        (
            {"use_score_scaling": True},
            [b / e.std(ddof=1) for b, e in zip(batches, everything, strict=True)],
        ),
        (
            {"use_score_scaling": True, "use_score_norm": True, "score_clip": 0.9},
            [
                ((b - e.mean()) / e.std(ddof=1)).clip(-0.9, 0.9)
                for b, e in zip(batches, everything, strict=True)
            ],
        ),
    ):
        trainer = make_trainer(**settings)
        for scores, wanted in zip(batches, expected, strict=True):
            stats = trainer.step(queries, responses, scores.tolist())
            assert stats["ppo/mean_scores"] == pytest.approx(wanted.mean(), abs=1e-5)
            assert stats["ppo/std_scores"] == pytest.approx(wanted.std(ddof=1), rel=1e-5)


def test_the_first_score_alone_has_no_deviation_to_be_divided_by(make_trainer, samples):
    queries, responses, _ = samples
    trainer = make_trainer(batch_size=1, mini_batch_size=1, use_score_scaling=True)
    assert trainer.step(queries[:1], responses[:1], [2.0])["ppo/mean_scores"] == pytest.approx(2)
    stats = trainer.step(queries[:1], responses[:1], [5.0])
    assert stats["ppo/mean_scores"] == pytest.approx(5 / np.std([2, 5], ddof=1))


def test_scores_may_be_floats_tensors_or_one_tensor(make_trainer, samples):
    queries, responses, scores = samples
    results = [
        scalars(make_trainer().step(queries, responses, form))
        for form in (scores, [torch.tensor(s) for s in scores], torch.tensor(scores))
    ]
    assert_same_scalars(results[0], results[1], atol=0)
    assert_same_scalars(results[0], results[2], atol=0)


# What step() reports -------------------------------------------------------------------------


TRL_KEYS = [
    "objective/kl",
    "objective/kl_dist",
    "objective/logprobs",
    "objective/ref_logprobs",
    "objective/kl_coef",
    "objective/entropy",
    "ppo/mean_non_score_reward",
    "ppo/mean_scores",
    "ppo/std_scores",
    "ppo/learning_rate",
    "ppo/loss/policy",
    "ppo/loss/value",
    "ppo/loss/total",
    "ppo/policy/entropy",
    "ppo/policy/approxkl",
    "ppo/policy/policykl",
    "ppo/policy/clipfrac",
    "ppo/policy/advantages",
    "ppo/policy/advantages_mean",
    "ppo/policy/ratio",
    "ppo/returns/mean",
    "ppo/returns/var",
    "ppo/val/vpred",
    "ppo/val/error",
    "ppo/val/clipfrac",
    "ppo/val/mean",
    "ppo/val/var",
    "ppo/val/var_explained",
    "tokens/queries_len_mean",
    "tokens/queries_len_std",
    "tokens/queries_dist",
    "tokens/responses_len_mean",
    "tokens/responses_len_std",
    "tokens/responses_dist",
]


def test_a_step_reports_trls_keys(make_trainer, samples):
    trainer = make_trainer(learning_rate=2e-4)
    stats = trainer.step(*samples)
    assert set(TRL_KEYS) <= set(stats)
    assert any(key.startswith("time/ppo/") for key in stats)
    assert all(np.isfinite(value).all() for value in stats.values())
    assert stats["ppo/learning_rate"] == 2e-4
    assert stats["tokens/queries_dist"].tolist() == [3, 7, 1, 5, 4, 2]
    assert stats["tokens/responses_dist"].tolist() == [4, 1, 6, 2, 1, 5]
    assert stats["tokens/responses_len_mean"] == pytest.approx(19 / 6)
    assert stats["tokens/responses_len_std"] == pytest.approx(np.std([4, 1, 6, 2, 1, 5], ddof=1))
    mask = stats["objective/mask"].astype(bool)
    assert mask.sum(1).tolist() == [4, 1, 6, 2, 1, 5]
    entropy = -(stats["objective/logprobs"] * mask).sum(1).mean()
    assert stats["objective/entropy"] == pytest.approx(entropy, rel=1e-5)
    total = stats["ppo/loss/policy"] + 0.1 * stats["ppo/loss/value"]
    assert stats["ppo/loss/total"] == pytest.approx(total, rel=1e-5)
    explained = 1 - stats["ppo/val/error"] / stats["ppo/returns/var"]
    assert stats["ppo/val/var_explained"] == pytest.approx(explained, rel=1e-5)
    assert 0 < stats["ppo/policy/entropy"] < math.log(264)
    log_line = scalars(stats)
    assert "ppo/policy/ratio" not in log_line and all(type(v) is float for v in log_line.values())


def test_a_lone_token_in_a_mini_batch_does_not_break_the_step(make_trainer, samples):
    """A response may end at once: alone in its mini-batch, its value has no variance."""
    trainer = make_trainer(mini_batch_size=1)
    stats = trainer.step(*samples)
    for key in ("ppo/loss/total", "ppo/returns/mean", "objective/kl"):
        assert math.isfinite(stats[key]), key


# Generation ----------------------------------------------------------------------------------


def test_one_query_or_a_list_with_or_without_its_prompt(make_trainer, samples):
    queries = samples[0]

    def fresh() -> PPOTrainer:
        return make_trainer()  # starts again from its seed

    single = fresh().generate(queries[0], max_new_tokens=5)
    assert single.shape[0] == 1 and single.ndim == 2
    assert single[0, :3].tolist() == queries[0].tolist() and 4 <= single.shape[1] <= 8
    response = fresh().generate(queries[0], max_new_tokens=5, return_prompt=False)
    assert response.shape[0] == 1 and response[0].tolist() == single[0, 3:].tolist()
    many = fresh().generate(queries, max_new_tokens=5)
    alone = fresh().generate(queries, max_new_tokens=5, return_prompt=False)
    assert isinstance(many, list) and isinstance(alone, list) and len(many) == len(alone) == 6
    for query, whole, answer in zip(queries, many, alone, strict=True):
        assert whole.ndim == answer.ndim == 1 and 1 <= len(answer) <= 5
        assert whole.tolist() == query.tolist() + answer.tolist()


def test_a_prompt_that_contains_eos_stays_out_of_the_response(make_trainer):
    eos, pad = 1, 0
    queries = [torch.tensor([eos, 5, eos, 6]), torch.tensor([pad, eos]), torch.tensor([eos])]
    responses = make_trainer().generate(
        queries, return_prompt=False, max_new_tokens=6, eos_token_id=-1
    )
    assert [len(r) for r in responses] == [6, 6, 6]
    # Every token ends the answer: what is left is the first one drawn.
    stopped = make_trainer().generate(
        queries, return_prompt=False, max_new_tokens=6, eos_token_id=list(range(264))
    )
    assert [r.tolist() for r in stopped] == [r[:1].tolist() for r in responses]


def test_a_length_sampler_and_a_batch_size(make_trainer, samples):
    lengths = iter([2, 4, 3])
    responses = make_trainer().generate(
        samples[0],
        length_sampler=lambda: next(lengths),
        batch_size=2,
        return_prompt=False,
        eos_token_id=-1,
    )
    assert [len(r) for r in responses] == [2, 2, 4, 4, 3, 3]


def test_no_two_calls_draw_the_same(make_trainer, samples):
    trainer = make_trainer()
    first, second = (
        trainer.generate(samples[0], return_prompt=False, max_new_tokens=6) for _ in range(2)
    )
    assert [r.tolist() for r in first] != [r.tolist() for r in second]


def test_the_dataloader_shuffles_anew_each_epoch_and_drops_the_short_batch(make_trainer):
    data = Dataset.from_dict({"input_ids": [[i] for i in range(3, 23)], "query": list("x" * 20)})
    data.set_format("torch", columns=["input_ids"], output_all_columns=True)
    trainer = make_trainer(dataset=data)
    assert len(trainer.dataloader) == 3
    passes = []
    for _ in range(2):
        batches = list(trainer.dataloader)
        assert [len(b["input_ids"]) for b in batches] == [6, 6, 6]
        assert batches[0]["query"] == ["x"] * 6
        passes.append([t.item() for b in batches for t in b["input_ids"]])
    assert len(set(passes[0])) == 18 and passes[0] != passes[1] != sorted(passes[1])
    assert make_trainer().dataloader is None


# Precision, saving ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("shared", [None, 2])
def test_bfloat16_on_a_cpu(kind, shared, make_trainer, samples, tmp_path):
    from transformers import AutoModelForCausalLM

    trainer = make_trainer(kind, shared, accelerator_kwargs={"mixed_precision": "bf16"})
    for name, p in trainer.model.named_parameters():
        frozen_matrix = not p.requires_grad and p.ndim >= 2
        assert p.dtype == (torch.bfloat16 if frozen_matrix else torch.float32), name
    queries = samples[0]
    responses = trainer.generate(queries, return_prompt=False, max_new_tokens=5)
    before = weights_of(trainer)
    stats = trainer.step(queries, responses, samples[2])
    assert all(np.isfinite(v).all() for v in stats.values())
    if shared:  # the very same trunk and, before the first update, the same top
        assert stats["objective/kl"] == pytest.approx(0, abs=1e-5)
    for name, p in trainer.model.named_parameters():
        assert p.requires_grad or torch.equal(p, before[name]), name
    moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 10
    assert np.abs(stats["ppo/policy/ratio"][: 6 * len(stats["objective/mask"][0])] - 1).max() < 1e-6
    trainer.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in saved.parameters()} == {torch.float32}
    for name, p in trainer.model.pretrained_model.named_parameters():
        assert torch.equal(saved.get_parameter(name), p.float()), name


def test_the_precision_is_not_that_of_the_trainer_before(make_trainer):
    """Accelerate keeps one for the whole process, and would hand it on in silence."""
    make_trainer(accelerator_kwargs={"mixed_precision": "bf16"})
    with pytest.raises(ModelError, match="'mixed_precision': 'no'.*ask for the same") as error:
        make_trainer()
    assert "\n" not in str(error.value)
    again = make_trainer(accelerator_kwargs={"mixed_precision": "bf16"})
    assert again.accelerator.mixed_precision == "bf16"


def test_without_a_gpu_of_nvidias_the_cpu_is_used(make_trainer, monkeypatch):
    """Apple's GPU lacks the double precision that sampling sums in."""
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert make_trainer().device.type == "cpu"


def test_bfloat16_is_near_float32(make_trainer, samples):
    from accelerate.state import AcceleratorState

    full = make_trainer(learning_rate=0.0).step(*samples)
    AcceleratorState._reset_state(reset_partial_state=True)  # or the precision could not change
    half = make_trainer(learning_rate=0.0, accelerator_kwargs={"mixed_precision": "bf16"})
    stats = half.step(*samples)
    mask = full["objective/mask"].astype(bool)
    difference = np.abs(stats["objective/logprobs"] - full["objective/logprobs"])[mask]
    assert 0 < difference.max() < 0.3  # log-probabilities of several nats, in 8 bits of mantissa


def test_the_saved_policy_is_complete(make_trainer, samples, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = make_trainer("llama", 2)
    trainer.step(*samples)
    trainer.save_pretrained(tmp_path)
    assert (tmp_path / VALUE_HEAD_FILE).exists()
    ids = torch.cat([samples[0][1], samples[1][2]]).unsqueeze(0)
    with torch.no_grad():
        logits, _, values = trainer.model(ids)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, logits)
        again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
        assert torch.equal(again(ids)[2], values)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<eos>"


# Errors --------------------------------------------------------------------------------------


def test_what_step_cannot_use_is_refused_in_one_line_before_anything_changes(make_trainer, samples):
    trainer = make_trainer()
    q, r, s = samples
    before = weights_of(trainer)
    empty = [*r[:5], torch.tensor([], dtype=torch.long)]
    for arguments, cls, message in (
        ((q[:5], r, s), ModelError, "step got 5 queries, but batch_size is 6"),
        ((q, r[:5], s), ModelError, "step got 5 responses, but batch_size is 6"),
        ((q, r, s[:5]), RewardError, "step got 5 scores, but batch_size is 6"),
        ((q, empty, s), ModelError, r"responses\[5\] has shape"),
        (([*q[:5], torch.ones(2, 2).long()], r, s), ModelError, r"queries\[5\] has shape"),
        (([q[0].float(), *q[1:]], r, s), ModelError, r"queries\[0\] is of torch.float32: token"),
        ((q, [r[0].bool(), *r[1:]], s), ModelError, r"responses\[0\] is of torch.bool: token ids"),
        ((q, [r[0].tolist(), *r[1:]], s), ModelError, r"responses\[0\] is a list: give 1-d"),
        ((None, r, s), ModelError, "step got a NoneType as queries"),
        ((q, r, [*s[:3], float("nan"), *s[4:]]), RewardError, "score of response 3 is nan"),
        ((q, r, [*s[:5], -float("inf")]), RewardError, "score of response 5 is -inf"),
    ):
        with pytest.raises(cls, match=message) as error:
            trainer.step(*arguments)
        assert "\n" not in str(error.value) and isinstance(error.value, TutorialError)
    assert_same_weights(before, weights_of(trainer))
    assert trainer.score_moments.count < 1


@pytest.mark.parametrize("shared", [None, 2])
@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 1.0}])
def test_an_update_whose_gradient_is_not_finite_is_refused(shared, settings, make_trainer, samples):
    trainer, untouched = (make_trainer(shared=shared, **settings) for _ in range(2))
    queries, responses, scores = samples
    before = weights_of(trainer)
    with pytest.raises(
        TrainingError, match="update refused in step 1: its gradient's norm"
    ) as error:
        trainer.step(queries, responses, [1e30, *scores[1:]])  # its square is beyond float32
    assert "\n" not in str(error.value) and "learning_rate" in str(error.value)
    assert_same_weights(before, weights_of(trainer))
    assert not trainer.optimizer.state_dict()["state"], "Adam has seen none of it"
    # It can go on, and what the refused pass had computed is gone.
    trainer.random.set_state(untouched.random.get_state())
    trainer.step(*samples)
    untouched.step(*samples)
    assert_same_weights(weights_of(trainer), weights_of(untouched))


def test_refused_scores_do_not_enter_the_running_moments(make_trainer, samples):
    trainer = make_trainer(use_score_scaling=True)
    queries, responses, scores = samples
    with pytest.raises(ModelError):
        trainer.step(queries, [*responses[:5], torch.tensor([], dtype=torch.long)], scores)
    assert trainer.score_moments.count < 1


def test_a_tokenizer_without_a_pad_token_is_refused(make_policy, tokenizer):
    import copy

    without = copy.deepcopy(tokenizer)
    without.pad_token = without.eos_token = None  # without the one, the other would do
    for tokenizer, needed in ((without, "pad token"), (None, "needs a tokenizer: give it")):
        with pytest.raises(ModelError, match=needed) as error:
            PPOTrainer(BATCH, make_policy(), None, tokenizer)
        assert "\n" not in str(error.value)


def test_the_default_reference_is_made_from_the_policy(make_policy, tokenizer, samples):
    trainer = PPOTrainer(BATCH, make_policy(), tokenizer=tokenizer, num_shared_layers=2)
    assert trainer.shares_trunk
    assert trainer.step(*samples)["objective/kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "PPOConfig.batch_size is 0"),
        ({"ppo_epochs": 0}, "PPOConfig.ppo_epochs is 0"),
        ({"mini_batch_size": -1}, "PPOConfig.mini_batch_size is -1"),
        ({"batch_size": 6, "mini_batch_size": 4}, "batch_size 6 is not a multiple"),
        (
            {"batch_size": 8, "mini_batch_size": 4, "gradient_accumulation_steps": 4},
            "gradient_accumulation_steps = 16",
        ),
        ({"kl_penalty": "k3"}, "kl_penalty is 'k3': use one of kl, abs, mse, full"),
        ({"learning_rate": -1e-5}, "learning_rate is -1e-05: use 0 or more"),
        ({"init_kl_coef": float("nan")}, "init_kl_coef is nan: use 0 or more"),
        ({"target": 0.0}, "target is 0.0: use more than 0"),
        ({"horizon": 0}, "horizon is 0: use more than 0"),
        ({"cliprange": -0.2}, "cliprange is -0.2: use 0 or more"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0: use more than 0"),
        ({"lam": 1.5}, "lam is 1.5: use 0 to 1"),
    ],
)
def test_a_setting_out_of_range_is_named_in_one_line(settings, message):
    with pytest.raises(TutorialError, match=message) as error:
        PPOConfig(**settings)
    assert "\n" not in str(error.value)


def test_the_default_optimizer_is_trls(make_trainer):
    optimizer = make_trainer(learning_rate=2e-4).optimizer.optimizer
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 2e-4 and optimizer.defaults["eps"] == 1e-8
    assert optimizer.defaults["weight_decay"] == 0


# All together --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_few_dozen_steps_raise_the_score_clearly(tmp_path):
    """The policy of the preset `tiny` learns to write letters and spaces without repeating."""
    from rlhf_tutorial.presets import load_preset
    from rlhf_tutorial.run import Run

    settings = {"batch_size": 64, "mini_batch_size": 16, "learning_rate": 5e-3}
    preset = replace(
        load_preset("tiny"),
        epochs=24,
        max_new_tokens=8,
        num_shared_layers=None,
        value_head_learning_rate=1e-2,
        ppo={**settings, "init_kl_coef": 0.02},
    )
    history = list(Run(preset, tmp_path).train())
    scores = [stats["ppo/mean_scores"] for stats in history]
    assert len(scores) == 24
    # 4 batches of 64 scores with a deviation of 0.14: their mean is known to 0.01.
    assert np.mean(scores[-4:]) > np.mean(scores[:4]) + 0.1
    assert all(math.isfinite(stats["objective/kl"]) for stats in history)
