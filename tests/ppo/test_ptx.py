"""PPO-ptx: its loss against transformers' own, its gradient against autograd's, and 0 is off."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import VOCABULARY
from support.trainers import forget_accelerate, go_on, make_trainer, query_rows
from torch import Tensor

from rlhf_tutorial.errors import ModelError, TutorialError
from rlhf_tutorial.ppo import PPOConfig, PPOTrainer
from rlhf_tutorial.ppo.math import language_model_loss

Pairs = list[tuple[Tensor, Tensor]]


def pairs(n: int = 9) -> Pairs:
    """Contexts and replies of mixed lengths."""
    random = torch.Generator().manual_seed(4)

    def ids(length: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (length,), generator=random)

    return [(ids(1 + i % 3), ids(1 + (2 * i) % 5)) for i in range(n)]


def trainer_with(dataset: Pairs | None, shared: int | None = None, **settings: Any) -> PPOTrainer:
    """Four rows a step in one mini-batch, plain gradient descent."""
    usual = {"batch_size": 4, "mini_batch_size": 4, "ppo_epochs": 1, "adap_kl_ctrl": False}
    return make_trainer(shared=shared, layers=3, sgd=1.0, ptx_dataset=dataset, **usual | settings)


def step(trainer: PPOTrainer) -> dict[str, Any]:
    random = torch.Generator().manual_seed(6)

    def ids(lengths: tuple[int, ...]) -> list[Tensor]:
        return [torch.randint(3, VOCABULARY, (n,), generator=random) for n in lengths]

    return trainer.step(ids((3, 1, 4, 2)), ids((2, 5, 1, 3)), [1.0, -1.0, 0.5, 2.0])


def drawn(trainer: PPOTrainer) -> Pairs:
    """The pairs of the coming step: a draw from a copy of the trainer's generator."""
    random = torch.Generator()
    random.set_state(trainer.random.get_state())
    dataset = trainer.replies.dataset
    return [dataset[i] for i in torch.randint(len(dataset), (4,), generator=random).tolist()]


def loss_by_transformers(model: Any, dataset: Pairs) -> Tensor:
    """Mean cross-entropy over the replies' tokens, one pair at a time, by `labels=`."""
    total, tokens = 0.0, 0
    for context, reply in dataset:
        labels = torch.cat([torch.full_like(context, -100), reply])
        output = model(input_ids=torch.cat([context, reply])[None], labels=labels[None])
        total = total + output.loss * len(reply)
        tokens += len(reply)
    return total / tokens


def test_the_loss_is_the_mean_over_the_tokens_that_count() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -7.0, -7.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert language_model_loss(logprobs, mask).item() == pytest.approx(2.0)


@pytest.mark.parametrize("shared", [None, 1])
def test_a_step_adds_ptx_coef_times_the_gradient_of_the_language_model_loss(
    shared: int | None,
) -> None:
    """With SGD at rate 1 the weights of two steps differ by the gradient of what was added."""
    dataset = pairs()
    with_ptx = trainer_with(dataset, shared, ptx_coef=0.3)
    expected = drawn(with_ptx)
    model = copy.deepcopy(with_ptx.model.pretrained_model)
    loss = loss_by_transformers(model, expected)
    loss.backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}

    # One mini-batch: the rows that follow the draw come in another order, which changes nothing.
    without = trainer_with([], shared)
    plain, mixed = step(without), step(with_ptx)
    assert mixed["ppo/loss/ptx"] == pytest.approx(loss.item(), rel=1e-5)
    assert mixed["ppo/loss/total"] == pytest.approx(
        plain["ppo/loss/total"] + 0.3 * loss.item(), rel=1e-4
    )
    moved = 0
    others = dict(without.model.pretrained_model.named_parameters())
    for name, weight in with_ptx.model.pretrained_model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(
                others[name] - weight, 0.3 * gradients[name], rtol=1e-3, atol=2e-6
            )
            moved += 1
    assert moved > 5
    assert torch.equal(with_ptx.model.v_head.weight, without.model.v_head.weight)


def test_without_the_coefficient_nothing_changes_and_nothing_is_drawn() -> None:
    plain, with_pairs = trainer_with([]), trainer_with(pairs())
    stats, others = step(plain), step(with_pairs)
    assert stats.keys() == others.keys()
    assert "ppo/loss/ptx" not in stats
    assert torch.equal(plain.random.get_state(), with_pairs.random.get_state())
    for a, b in zip(plain.model.parameters(), with_pairs.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_replies_to_imitate_become_more_likely() -> None:
    dataset = pairs(4)
    trainer = trainer_with(dataset, ptx_coef=5.0, ppo_epochs=2)
    before = loss_by_transformers(trainer.model.pretrained_model, dataset).item()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.02
    for _ in range(8):
        step(trainer)
    assert loss_by_transformers(trainer.model.pretrained_model, dataset).item() < before - 0.2


def test_a_run_with_ptx_resumes_to_the_last_bit(tmp_path: Path) -> None:
    def fresh() -> PPOTrainer:
        forget_accelerate()
        settings = {"batch_size": 4, "mini_batch_size": 4, "ppo_epochs": 2, "ptx_coef": 0.4}
        return make_trainer(layers=2, dataset=query_rows(), ptx_dataset=pairs(), **settings)

    straight = go_on(fresh(), 4)
    go_on(fresh(), 2).save_checkpoint(tmp_path)
    second = fresh()
    assert second.resume(tmp_path) == 2
    go_on(second, 4)
    for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_coefficient_without_replies_and_a_negative_one_are_refused() -> None:
    with pytest.raises(ModelError, match=r"ptx_coef is 0\.3, but there is no ptx_dataset"):
        trainer_with([], ptx_coef=0.3)
    with pytest.raises(ModelError, match=r"there is no ptx_dataset"):
        trainer_with(None, ptx_coef=0.3)
    nothing, something = torch.tensor([], dtype=torch.long), torch.tensor([5])
    for pair, name in (((nothing, something), "contexts"), ((something, nothing), "replies")):
        with pytest.raises(ModelError, match=rf"ptx_{name}\[1\] has shape \(0,\)"):
            trainer_with([(something, something), pair], ptx_coef=0.3)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(TutorialError, match="use 0 or more"):
            PPOConfig(ptx_coef=wrong)
