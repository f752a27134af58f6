"""Policy, value head, reference and shared trunk, on four architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.errors import one_line
from support.models import SMALL_VOCABULARY, small_policy
from support.strategies import KINDS, MODEL, SIX, Samples, sample_lists
from support.tokenizers import PAD
from torch import Tensor

from rlhf_tutorial.errors import AssetError, ModelError, TutorialError
from rlhf_tutorial.models import (
    VALUE_HEAD_FILE,
    AutoModelForCausalLMWithValueHead,
    create_reference_model,
    load_tokenizer,
    position_ids_from,
    shares_trunk,
)
from rlhf_tutorial.ppo.rollout import collate

LENGTHS = (9, 4, 1)


def left_padded(lengths: tuple[int, ...] = LENGTHS, width: int = 9) -> tuple[Tensor, Tensor]:
    """Random token ids (B, width) behind padding on the left, and their mask."""
    ids = torch.randint(3, 264, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([(torch.arange(width) >= width - n).long() for n in lengths])
    return ids * mask, mask


def storages(model: torch.nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


# Forward pass --------------------------------------------------------------------------------


def test_positions_count_real_tokens_only():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
    expected = [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 1, 1, 1]]
    assert position_ids_from(mask).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_left_padding_changes_neither_logits_nor_values(kind, make_policy):
    policy = make_policy(kind)
    ids, mask = left_padded()
    logits, _, values = policy(ids, mask, position_ids_from(mask))
    for row, n in enumerate(LENGTHS):
        alone = policy.pretrained_model(ids[row : row + 1, -n:], output_hidden_states=True)
        torch.testing.assert_close(logits[row, -n:], alone.logits[0], rtol=1e-4, atol=1e-4)
        expected = policy.v_head(alone.hidden_states[-1][0]).squeeze(-1)
        torch.testing.assert_close(values[row, -n:], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_gpt2_without_position_ids_does_depend_on_padding(make_policy):
    """Otherwise the test above would pass with a model that ignores positions."""
    policy = make_policy("gpt2")
    ids, mask = left_padded()
    with_ids, without = policy(ids, mask, position_ids_from(mask))[0], policy(ids, mask)[0]
    assert (with_ids - without)[1, -4:].abs().max() > 0.1


def whole_pass(
    policy: AutoModelForCausalLMWithValueHead,
    samples: Samples,
    left: bool,
    extra: int = 0,
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities and values at each response's tokens, every fast path off.

    Query and response stand side by side, padded together on one side, with positions spelled out;
    all layers and all logits are computed.
    """
    rows = [q + r for q, r in zip(samples.queries, samples.responses, strict=True)]
    width = max(len(row) for row in rows) + extra
    starts = [width - len(row) if left else 0 for row in rows]
    ids, mask, positions = torch.full((3, len(rows), width), 0)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        here = slice(start, start + len(row))
        ids[i, here], mask[i, here] = torch.tensor(row), 1
        positions[i, here] = torch.arange(len(row))
    with torch.no_grad():
        logits, _, values = policy(input_ids=ids, attention_mask=mask, position_ids=positions)
    logprobs, at_responses = logits.log_softmax(-1), []
    for i, (query, response) in enumerate(zip(samples.queries, samples.responses, strict=True)):
        first = starts[i] + len(query) - 1
        at = [logprobs[i, first + t, token] for t, token in enumerate(response)]
        at_responses.append((torch.stack(at), values[i, first : first + len(response)]))
    return tuple(list(column) for column in zip(*at_responses, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@MODEL
@given(samples=sample_lists(), extra=st.integers(0, 4))
@example(samples=SIX, extra=3)
def test_the_ratio_of_two_passes_padded_on_different_sides_is_one(kind, samples, extra):
    # In float64: float32 rounds log-probabilities of 10 nats to 1e-6 each.
    policy = small_policy(kind).double()
    on_left = whole_pass(policy, samples, True, extra)
    on_right = whole_pass(policy, samples, False)
    for left, right in zip(on_left[0], on_right[0], strict=True):
        assert ((left - right).exp() - 1).abs().max() <= 1e-6
    for left, right in zip(on_left[1], on_right[1], strict=True):
        assert (left - right).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
@MODEL
@given(samples=sample_lists(), drawn=st.sets(st.integers(0, 11), min_size=1))
@example(samples=SIX, drawn={5, 6, 8})
@torch.no_grad()
def test_the_logits_kept_are_a_slice_of_all_logits(kind, samples, drawn):
    policy = small_policy(kind).double()
    batch = collate(*samples.arguments[:2], PAD)
    inputs = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    logits, _, values = policy(batch.input_ids, **inputs)
    width = batch.input_ids.shape[1]
    columns = torch.tensor(sorted({column % width for column in drawn}))
    for keep in (batch.predicting, columns):
        some = policy(batch.input_ids, **inputs, logits_to_keep=keep)
        assert some[0].shape == (len(samples), len(keep), SMALL_VOCABULARY)
        torch.testing.assert_close(some[0], logits[:, keep], rtol=0, atol=1e-10)
        torch.testing.assert_close(some[2], values[:, keep], rtol=0, atol=1e-10)


def test_an_encoder_decoder_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=20, **sizes))
    with pytest.raises(ModelError, match="encoder-decoder") as error:
        AutoModelForCausalLMWithValueHead.from_pretrained(t5)
    one_line(error)


def test_an_unknown_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(AssetError) as error:
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "nothing here")
    assert "nothing here" in one_line(error)


# The full copy -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_reference_is_a_frozen_copy_of_its_own(kind, make_policy):
    policy = make_policy(kind)
    reference = create_reference_model(policy)
    assert set(storages(policy).values()).isdisjoint(storages(reference).values())
    assert all(p.requires_grad for p in policy.parameters())
    assert not any(p.requires_grad for p in reference.parameters())
    for name, parameter in reference.named_parameters():
        assert torch.equal(parameter, policy.get_parameter(name))
    assert not shares_trunk(policy, reference)
    with pytest.raises(ModelError, match="no frozen trunk"):
        policy.trunk(*left_padded(), None)


# The shared trunk ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 3])
@torch.no_grad()
def test_trunk_and_top_are_exactly_the_model(kind, k, make_policy):
    policy = make_policy(kind)
    ids, mask = left_padded()
    positions = position_ids_from(mask)
    expected = policy(ids, mask, positions)
    reference = create_reference_model(policy, k)
    states = policy.trunk(ids, mask, positions)
    for model in (policy, reference):
        for actual in (
            model(None, mask, positions, trunk_states=states),
            model(ids, mask, positions),  # the whole model still works, too
        ):
            assert torch.equal(actual[0][mask.bool()], expected[0][mask.bool()])
            assert torch.equal(actual[2][mask.bool()], expected[2][mask.bool()])


@torch.no_grad()
def test_a_split_keeps_the_kinds_of_attention_of_its_layers(make_policy):
    """Qwen2 can mix full and sliding-window layers, and looks up which is which by number."""
    policy = make_policy(
        "qwen2", use_sliding_window=True, sliding_window=2, max_window_layers=2, layers=4
    )
    assert policy.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    ids, mask = left_padded()
    positions = position_ids_from(mask)
    expected = policy(ids, mask, positions)[0]
    create_reference_model(policy, 2)
    states = policy.trunk(ids, mask, positions)
    actual = policy(None, mask, positions, trunk_states=states)[0]
    assert torch.equal(actual[mask.bool()], expected[mask.bool()])


FROZEN_BY_TRL = {
    "gpt2": ("transformer.wte.", "transformer.wpe.", "transformer.h.0.", "transformer.h.1."),
    "llama": ("model.embed_tokens.", "model.layers.0.", "model.layers.1."),
    "qwen2": ("model.embed_tokens.", "model.layers.0.", "model.layers.1."),
    "neox": ("gpt_neox.embed_in.", "gpt_neox.layers.0.", "gpt_neox.layers.1."),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_frozen_is_what_trl_freezes_and_is_one_memory(kind, tied, make_policy):
    policy = make_policy(kind, tie_word_embeddings=tied)
    before = storages(policy)
    reference = create_reference_model(policy, 2)
    assert storages(policy) == before, "freezing must happen in place"
    theirs = storages(reference)
    for name, parameter in policy.named_parameters():
        inner = name.removeprefix("pretrained_model.")
        frozen = inner.startswith(FROZEN_BY_TRL[kind])
        assert parameter.requires_grad != frozen, name
        assert (theirs[name] == before[name]) == frozen, name
    # A tied head is the embedding matrix, so named once, and frozen with it.
    head, model = policy.pretrained_model.get_output_embeddings().weight, policy.pretrained_model
    assert (head is model.get_input_embeddings().weight) == tied
    assert head.requires_grad == (not tied)
    assert not any(p.requires_grad for p in reference.parameters())
    assert shares_trunk(policy, reference)


def test_the_shared_reference_adds_only_the_upper_layers_to_memory(make_policy):
    policy = make_policy("llama", tie_word_embeddings=False)
    reference = create_reference_model(policy, 3)
    unique = {p.data_ptr(): p.numel() for m in (policy, reference) for p in m.parameters()}
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.parameters())
    assert 0 < trained < total
    assert sum(unique.values()) == total + trained


@pytest.mark.parametrize("k", [-1, 0, 4, 5])
def test_a_number_of_layers_out_of_range_is_refused_and_freezes_nothing(k, make_policy):
    policy = make_policy("llama", layers=4)
    with pytest.raises(ModelError, match=f"num_shared_layers is {k}, .* has 4 layers") as error:
        create_reference_model(policy, k)
    one_line(error)
    assert all(p.requires_grad for p in policy.parameters())
    assert policy.num_shared_layers == 0


# Saving and loading --------------------------------------------------------------------------


def assert_same_after_reloading(policy, folder) -> None:
    from transformers import AutoModelForCausalLM

    ids, mask = left_padded()
    positions = position_ids_from(mask)
    plain = AutoModelForCausalLM.from_pretrained(folder)  # in the dtype that the config names
    again = AutoModelForCausalLMWithValueHead.from_pretrained(folder)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    with torch.no_grad():
        logits, _, values = policy(ids, mask, positions)
        assert torch.equal(plain(ids, attention_mask=mask, position_ids=positions).logits, logits)
        again_logits, _, again_values = again(ids, mask, positions)
    assert torch.equal(again_logits, logits) and torch.equal(again_values, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("k", [None, 2])
def test_a_saved_policy_is_an_ordinary_checkpoint(kind, tied, k, make_policy, tmp_path):
    policy = make_policy(kind, tie_word_embeddings=tied)
    create_reference_model(policy, k)
    torch.nn.init.normal_(policy.v_head.weight)
    policy.save_pretrained(tmp_path)
    assert_same_after_reloading(policy, tmp_path)
    head = load_file(tmp_path / VALUE_HEAD_FILE)
    assert set(head) == {"weight", "bias"} and torch.equal(head["weight"], policy.v_head.weight)
    assert not [*tmp_path.glob("*.bin"), *tmp_path.glob("*.pt")], "no pickles"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_policy_with_a_bfloat16_trunk_is_saved_in_float32(kind, tied, make_policy, tmp_path):
    policy = make_policy(kind, tie_word_embeddings=tied)
    create_reference_model(policy, 2)
    for parameter in policy.parameters():
        if not parameter.requires_grad and parameter.ndim >= 2:
            parameter.data = parameter.data.bfloat16()
    dtypes = {name: p.dtype for name, p in policy.named_parameters()}
    assert torch.bfloat16 in dtypes.values()
    policy.save_pretrained(tmp_path)
    assert {name: p.dtype for name, p in policy.named_parameters()} == dtypes
    assert_same_after_reloading(policy.float(), tmp_path)


def test_loading_draws_the_same_value_head_and_no_random_number(
    make_language_model, tmp_path, unchanged_random_state
):
    make_language_model("llama").save_pretrained(tmp_path)
    first = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    second = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    in_memory = AutoModelForCausalLMWithValueHead.from_pretrained(make_language_model("llama"))
    for other in (second, in_memory):
        assert torch.equal(first.v_head.weight, other.v_head.weight)
        assert torch.equal(first.v_head.bias, other.v_head.bias)
    assert not first.training and first.v_head.weight.abs().sum() > 0


def test_a_bfloat16_checkpoint_is_loaded_in_float32_unless_told_otherwise(
    make_language_model, tmp_path
):
    make_language_model("llama").bfloat16().save_pretrained(tmp_path)
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert policy.pretrained_model.dtype == torch.bfloat16
    assert policy.v_head.weight.dtype == torch.float32
    ids, mask = left_padded()
    assert policy(ids, mask, position_ids_from(mask))[2].dtype == torch.float32


def test_load_tokenizer_pads_with_eos_where_there_is_no_pad_token(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "with")
    assert load_tokenizer(tmp_path / "with").pad_token == "<pad>"
    import copy

    without = copy.deepcopy(tokenizer)
    without.pad_token = None
    without.save_pretrained(tmp_path / "without")
    assert load_tokenizer(tmp_path / "without").pad_token == "<eos>"


# The tiny policy -----------------------------------------------------------------------------


def test_the_tiny_policy_is_a_checkpoint_and_leaves_random_state_alone(
    tmp_path, unchanged_random_state
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf_tutorial.tiny import make_tiny_policy

    texts = ["Human: how do I bake bread?", "Assistant: slowly, at 220 °C."]
    folders = [make_tiny_policy(tmp_path / name, texts) for name in ("a", "b")]
    other = make_tiny_policy(tmp_path / "c", texts, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    assert tokenizer.decode(tokenizer(texts[1])["input_ids"]) == texts[1]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"
    a, b, c = (AutoModelForCausalLM.from_pretrained(f) for f in (*folders, other))
    assert a.config.vocab_size == len(tokenizer)
    assert torch.equal(a.lm_head.weight, b.lm_head.weight)
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)
    assert np.isfinite(a(torch.tensor([[5, 6, 7]])).logits.detach().numpy()).all()


def test_every_error_of_the_module_is_one_the_reader_can_catch():
    assert issubclass(ModelError, TutorialError) and issubclass(ModelError, ValueError)


def test_a_tied_head_is_saved_once(make_policy, tmp_path):
    from safetensors import safe_open

    model = make_policy("llama", tie_word_embeddings=True)
    create_reference_model(model, num_shared_layers=2)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()  # as the trainer does under bf16
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (a file, not a dict)
        assert file.get_tensor("model.embed_tokens.weight").dtype == torch.float32


# Sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "neox"])
@pytest.mark.parametrize("k", [None, 2])
def test_each_token_is_drawn_from_the_models_own_distribution(kind, k, make_policy):
    """Without padding, cache or split, one row at a time, with the same random numbers."""
    policy = make_policy(kind)
    if k is not None:
        policy.freeze_lowest_layers(k)
    input_ids, mask = left_padded()
    torch.manual_seed(11)
    settings = {"max_new_tokens": 5, "eos_token_ids": [], "pad_token_id": 0}
    sampled, _ = policy.sample(input_ids, mask, **settings)
    assert torch.equal(sampled[:, : input_ids.shape[1]], input_ids)
    torch.manual_seed(11)
    rows = [list(ids[m.bool()]) for ids, m in zip(input_ids, mask, strict=True)]
    for t in range(5):
        us = torch.rand(len(rows), 1, dtype=torch.double)
        for row, u, drawn in zip(rows, us, sampled, strict=True):
            with torch.no_grad():
                logits = policy.pretrained_model(torch.tensor([row])).logits[0, -1]
            p = np.exp(logits.double().numpy())
            edges = np.cumsum(p / p.sum())
            token = drawn[input_ids.shape[1] + t].item()
            # The number lies within the token's share of the whole, but for rounding.
            low = edges[token - 1] if token else 0.0
            assert low - 1e-5 <= u.item() <= edges[token] + 1e-5
            row.append(token)


def test_draws_have_the_frequencies_of_the_softmax():
    from rlhf_tutorial.models import draw

    logits = torch.tensor([[0.0, 1.0, -float("inf"), 2.0, -1.0]])
    torch.manual_seed(0)
    counts = torch.bincount(draw(logits.expand(40_000, -1)), minlength=5) / 40_000
    torch.testing.assert_close(counts, logits[0].softmax(-1), rtol=0, atol=0.01)
    assert counts[2] == 0
    sure = torch.full((1, 7), -1e4)
    sure[0, 6] = 0.0
    assert draw(sure.expand(1000, -1)).unique().tolist() == [6]


def test_a_row_that_has_ended_is_filled_with_padding_and_the_loop_stops(make_policy):
    policy = make_policy("llama")
    input_ids, mask = left_padded()
    everything_ends = {"eos_token_ids": list(range(264)), "pad_token_id": 0}
    short, _ = policy.sample(input_ids, mask, max_new_tokens=6, **everything_ends)
    assert short.shape[1] == input_ids.shape[1] + 1
    torch.manual_seed(1)
    some = list(range(3, 130))
    rows, _ = policy.sample(input_ids, mask, max_new_tokens=6, eos_token_ids=some, pad_token_id=0)
    for row in rows[:, input_ids.shape[1] :].tolist():
        ends = [i for i, token in enumerate(row) if token in some]
        if ends:
            assert row[ends[0] + 1 :] == [0] * (len(row) - ends[0] - 1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_trunks_states_of_sampled_tokens_are_those_of_a_pass_over_them(kind, make_policy):
    policy = make_policy(kind)
    policy.freeze_lowest_layers(2)
    input_ids, mask = left_padded()
    sampled, states = policy.sample(
        input_ids, mask, max_new_tokens=4, eos_token_ids=[], pad_token_id=0
    )
    mask = torch.cat([mask, torch.ones(len(mask), 4, dtype=mask.dtype)], dim=1)
    read = (sampled[:, :-1], mask[:, :-1], position_ids_from(mask)[:, :-1])
    kept = states.of(*read, policy.trunk_version())
    shorter = states.of(*(t[:, :-2] for t in read), policy.trunk_version())
    assert torch.equal(shorter, kept[:, :-2])
    computed = policy.trunk(*read)
    real = read[1].bool()
    torch.testing.assert_close(kept[real], computed[real], rtol=1e-4, atol=1e-5)


def test_states_kept_from_sampling_serve_no_other_tokens_and_no_other_weights(make_policy):
    policy = make_policy("llama")
    policy.freeze_lowest_layers(2)
    input_ids, mask = left_padded()
    sampled, states = policy.sample(
        input_ids, mask, max_new_tokens=2, eos_token_ids=[], pad_token_id=0
    )
    mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], dim=1)
    others = sampled[:, :-1].clone()
    others[1, -2] = (others[1, -2] + 1) % 264
    positions, version = position_ids_from(mask), policy.trunk_version()
    assert states.of(sampled[:, :-1], mask, positions, version) is not None
    assert states.of(others, mask, positions, version) is None
    assert states.of(sampled[1:, :-1], mask[1:], positions[1:], version) is None
    longer = (torch.cat([t, t[:, -1:]], dim=1) for t in (sampled, mask, positions))
    assert states.of(*longer, version) is None, "of the last token that was drawn there is no state"
    weights = {k: v + 0.1 for k, v in policy.state_dict().items()}
    policy.load_state_dict(weights)
    assert states.of(sampled[:, :-1], mask, positions, policy.trunk_version()) is None


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_states_kept_from_sampling_do_not_serve_a_batch_padded_in_another_way(kind, make_policy):
    """The same ids, of which the first is a token in one batch and padding in the other."""
    policy = make_policy(kind)
    policy.freeze_lowest_layers(2)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    whole = torch.ones_like(ids)
    padded = torch.tensor([[0, 1, 1], [1, 1, 1]])
    settings = {"max_new_tokens": 2, "eos_token_ids": [], "pad_token_id": 5}
    for sampled_mask, read_mask in ((whole, padded), (padded, whole)):
        sequences, states = policy.sample(ids, sampled_mask, **settings)
        for other, known in ((read_mask, False), (sampled_mask, True)):
            mask = torch.cat([other, torch.ones(2, 1, dtype=torch.long)], dim=1)
            read = sequences[:, :-1], mask, position_ids_from(mask)
            assert (states.of(*read, policy.trunk_version()) is not None) == known


def test_the_value_head_is_where_the_model_in_memory_is(make_language_model) -> None:
    model = make_language_model("llama").to("meta")
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(model)
    assert policy.v_head.weight.device == model.device
