"""What a GPU samples with, run without its recording: against the loop that goes token by token."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.models import lora_policy
from torch import Tensor

from rlhf_tutorial import sampler
from rlhf_tutorial.capture import record
from rlhf_tutorial.device import supports_bf16
from rlhf_tutorial.families import position_ids_from
from rlhf_tutorial.sampler import StaticSampler, Writer, sample_recorded

SETTINGS: dict[str, Any] = {"eos_token_ids": [1], "pad_token_id": 0}


def queries(lengths: tuple[int, ...] = (3, 9, 1, 6)) -> tuple[Tensor, Tensor]:
    """Random queries of those lengths, padded on the left, and their mask."""
    random = torch.Generator().manual_seed(3)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        ids[row, -n:] = torch.randint(3, 264, (n,), generator=random)
        mask[row, -n:] = 1
    return ids, mask


def both(policy: Any, new: int = 5, temperature: float = 1.0, **settings: Any) -> tuple[Any, Any]:
    """What `sample` and `sample_recorded` draw from the same seed."""
    ids, mask = queries()
    told = SETTINGS | {"max_new_tokens": new, "temperature": temperature} | settings
    torch.manual_seed(7)
    plain = policy.sample(ids, mask, **told)
    torch.manual_seed(7)
    language_model, halves = policy.language_model, policy.halves
    recorded = sample_recorded(policy, language_model, halves, ids, mask, **told)
    return plain, recorded


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "neox"])
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_same_random_numbers_give_the_same_answers(kind, k, attention, make_policy):
    policy = make_policy(kind)
    policy.pretrained_model.set_attn_implementation(attention)
    if k is not None:
        policy.freeze_lowest_layers(k)
    (sequences, states), (tokens, hidden) = both(policy, temperature=0.7)
    width = sequences.shape[1] - tokens.shape[1]
    assert torch.equal(sequences[:, width:], tokens)
    if k is None:
        assert states is None and hidden is None
        return
    real = states.attention_mask[:, :-1].bool()
    torch.testing.assert_close(hidden[real], states.hidden[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ends", [[], [1, *range(30, 90)], list(range(264))])
def test_answers_end_where_those_of_the_plain_loop_end(ends, make_policy):
    policy = make_policy("llama")
    policy.freeze_lowest_layers(2)
    (sequences, states), (tokens, hidden) = both(policy, eos_token_ids=ends)
    assert torch.equal(sequences[:, 9:], tokens)
    assert len(ends) < 264 or tokens.shape[1] == 1
    assert hidden.shape == states.hidden.shape


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_its_logits_are_those_of_a_pass_without_padding_or_cache(kind, make_language_model):
    model, (ids, mask) = make_language_model(kind), queries()
    static = StaticSampler(model, None, len(ids), 16, 16, temperature=1.0)
    uniforms = torch.rand(16, len(ids), 1, dtype=torch.double)
    with torch.no_grad():
        for new in (16, 1, 5):  # in the same memory, which holds what the one before left
            tokens, _ = static(ids, mask, uniforms[:new])
            assert tokens.shape == (4, new)
            for row, kept, logits, answer in zip(
                ids, mask.bool(), static.logits, tokens, strict=True
            ):
                text = torch.cat([row[kept], answer[:-1]])
                expected = model(text.unsqueeze(0)).logits[0, -1]
                torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_policy_sample_takes_the_recorded_answers_as_its_own(make_policy):
    """Through the branch that a GPU takes; the trunk's states serve a batch of these tokens."""
    policy = make_policy("llama")
    policy.freeze_lowest_layers(2)
    ids, mask = queries()
    torch.manual_seed(7)
    told = SETTINGS | {"max_new_tokens": 5, "temperature": 1.0}
    sequences, states = policy._sample_recorded(ids, mask, **told)
    torch.manual_seed(7)
    plain, plain_states = policy.sample(ids, mask, **told)
    assert torch.equal(sequences, plain)
    full = torch.cat([mask, torch.ones_like(sequences[:, ids.shape[1] :])], dim=1)
    read = sequences[:, :-1], full[:, :-1], position_ids_from(full)[:, :-1]
    kept = states.of(*read, policy.trunk_version())
    real = read[1].bool()
    expected = plain_states.of(*read, policy.trunk_version())
    torch.testing.assert_close(kept[real], expected[real], rtol=1e-4, atol=1e-5)


def test_weights_that_are_trained_are_read_as_they_are_now(make_policy):
    policy = make_policy("llama")
    policy.freeze_lowest_layers(2)
    both(policy)
    with torch.no_grad():
        for p in policy.pretrained_model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    (sequences, _), (tokens, _) = both(policy)
    assert torch.equal(sequences[:, 9:], tokens)


@pytest.mark.parametrize("k", [None, 2])
def test_under_autocast_it_reads_a_copy_that_every_batch_brings_up_to_date(k, make_policy):
    policy = make_policy("llama")
    if k is not None:
        policy.freeze_lowest_layers(k)
    with torch.autocast("cpu", torch.bfloat16):
        both(policy)
        writer = sampler._WRITERS[policy]
        with torch.no_grad():
            for p in policy.pretrained_model.parameters():
                if p.requires_grad:
                    p.mul_(1.5)
        both(policy)
        assert sampler._WRITERS[policy] is writer
    kept = dict(writer.model.named_parameters())
    for name, p in policy.language_model.named_parameters():
        if not p.requires_grad:
            assert kept[name] is p, "frozen weights are no copies"
        else:
            assert kept[name].dtype == (torch.bfloat16 if p.ndim >= 2 else torch.float32)
            assert torch.equal(kept[name], p.to(kept[name].dtype))
    assert not any(kept[name].requires_grad for name in kept)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


@pytest.mark.skipif(
    supports_bf16("cpu"),
    reason="in hardware the last bit of a bfloat16 product depends on its shape, and so may a draw",
)
def test_under_autocast_a_frozen_trunks_policy_draws_the_very_same_tokens(make_policy):
    """Whose embeddings are frozen, and in bfloat16 as the trainer makes them."""
    from rlhf_tutorial.trunk import cast_frozen_matrices

    policy = make_policy("llama")
    policy.freeze_lowest_layers(2)
    cast_frozen_matrices(policy)
    with torch.autocast("cpu", torch.bfloat16):
        (sequences, _), (tokens, _) = both(policy)
    assert torch.equal(sequences[:, 9:], tokens)


def test_weights_that_are_moved_are_recorded_anew(make_policy):
    policy = make_policy("llama")
    both(policy)
    before = sampler._WRITERS[policy]
    for p in policy.pretrained_model.parameters():
        p.data = p.data.clone()
    (sequences, _), (tokens, _) = both(policy)
    assert sampler._WRITERS[policy] is not before
    assert torch.equal(sequences[:, 9:], tokens)


def test_a_policy_that_is_frozen_after_it_was_sampled_gives_its_trunks_states(make_policy):
    policy = make_policy("llama")
    both(policy)
    policy.freeze_lowest_layers(2)
    (sequences, states), (tokens, hidden) = both(policy)
    assert torch.equal(sequences[:, 9:], tokens)
    assert hidden is not None and hidden.shape == states.hidden.shape


def test_a_lora_policy_draws_the_same(make_policy):
    policy = lora_policy(trained=0.05)
    (sequences, _), (tokens, _) = both(policy)
    assert torch.equal(sequences[:, 9:], tokens)


def test_a_policy_that_cannot_be_recorded_says_so_once_and_is_sampled_plainly(
    make_policy, monkeypatch, caplog
):
    policy = make_policy("llama")

    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(sampler, "record", refuse)
    with caplog.at_level(logging.WARNING):
        assert both(policy)[1] is None
        assert both(policy)[1] is None
    (said,) = caplog.messages
    assert "without CUDA graphs" in said and "LlamaForCausalLM" in said
    assert "not permitted when stream is capturing" in said and "\n" not in said


def test_a_family_that_says_something_else_with_a_fixed_cache_is_not_recorded(make_policy, caplog):
    policy = make_policy("llama")
    attention = policy.pretrained_model.model.layers[0].self_attn
    plain = attention.forward

    def blind(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and kwargs.get("past_key_values") is not None:
            attention_mask = attention_mask.roll(1, -1)
        return plain(*args, attention_mask=attention_mask, **kwargs)

    attention.forward = blind
    with caplog.at_level(logging.WARNING):
        assert both(policy)[1] is None
    assert "says something else" in caplog.text


def test_a_window_shorter_than_the_text_is_left_to_the_plain_loop(make_policy):
    policy = make_policy("llama")
    policy.language_model.config.sliding_window = 31
    assert both(policy)[1] is None, "16 and 16 tokens"
    policy.language_model.config.sliding_window = 32
    assert both(policy)[1] is not None


def test_shapes_are_few_and_those_last_used_stay(make_language_model, monkeypatch):
    monkeypatch.setattr(sampler, "KEPT", 2)
    writer = Writer(make_language_model("llama"), None)
    first = writer.sampler(4, 9, 7, 1.0)
    assert writer.sampler(4, 16, 16, 1.0) is first
    writer.sampler(4, 17, 7, 1.0)
    assert writer.sampler(4, 9, 7, 1.0) is first
    last = writer.sampler(4, 9, 7, 0.5)
    assert [*writer.samplers.values()] == [first, last]


def test_a_deep_copy_of_a_policy_takes_no_recording_along(make_policy):
    from rlhf_tutorial.models import create_reference_model

    policy = make_policy("llama")
    both(policy)
    reference = create_reference_model(policy)
    assert reference not in sampler._WRITERS


def test_without_a_gpu_work_is_run_as_it_is():
    works = (lambda: None, lambda: None)
    assert record(torch.device("cpu"), works, torch.zeros(1)) is works
