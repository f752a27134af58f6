"""Perplexity against transformers' own loss, one text at a time, and against a loop over tokens."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import language_model
from support.tokenizers import BOS, EOS, byte_tokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_tutorial.errors import AssetError, DataError, ModelError
from rlhf_tutorial.evaluation import perplexity as module
from rlhf_tutorial.evaluation.perplexity import Perplexity, score_texts, token_nlls
from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead

CONTEXT_LENGTH = 48
TEXTS = [
    "How do I bake bread?",
    "Hi",
    "\n\nHuman: Why is the sky blue?",
    "?",
    "Tea, please.",
    "Stir until smooth, then rest.",
]


def wide_model(architecture: str) -> PreTrainedModel:
    """Of wider weights than usual, so that tokens differ more in how likely they are."""
    name = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    settings = {"layers": 2, "seed": 3, "initializer_range": 0.3, name: CONTEXT_LENGTH}
    return language_model(architecture, **settings)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(wraps=True)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return wide_model(request.param)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return wide_model("llama")


@torch.no_grad()
def loss_of(model: PreTrainedModel, prefix: list[int], ids: list[int]) -> float:
    """transformers' own mean loss of `ids`, with `prefix` read but labelled as not to be counted"""
    labels = torch.tensor([[-100] * len(prefix) + ids])
    return model(torch.tensor([prefix + ids]), labels=labels).loss.item()


def ids_of(text: str) -> list[int]:
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


def test_perplexities_are_transformers_own_loss_after_a_bos_token(model, tokenizer):
    losses = [loss_of(model, [BOS], ids_of(text)) for text in TEXTS]
    lengths = [len(text.encode()) for text in TEXTS]
    result = score_texts(TEXTS, model, tokenizer)
    expected = np.exp(losses)
    assert expected.std() > 10  # or the comparison would say little
    np.testing.assert_allclose(result["perplexities"], expected, rtol=1e-4)
    assert result["mean_perplexity"] == pytest.approx(expected.mean(), rel=1e-4)
    pooled = math.exp(np.average(losses, weights=lengths))
    assert result["pooled_perplexity"] == pytest.approx(pooled, rel=1e-4)
    assert pooled != pytest.approx(expected.mean(), rel=1e-3)
    assert result["tokens"] == lengths
    assert (result["truncated"], result["bos_token"]) == (0, "<bos>")


def test_token_nlls_agree_with_a_loop_over_tokens(model):
    ids = [BOS, *ids_of("Why is the sky blue?")]
    expected = []
    for t in range(3, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:t]])).logits[0, -1].double()
        expected.append((logits.logsumexp(0) - logits[ids[t]]).item())
    (actual,) = token_nlls(model, [ids], [3])
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("how", ["not asked for", "tokenizer has none"])
def test_without_a_bos_token_the_first_token_is_not_counted(model, how):
    texts = [text for text in TEXTS if len(text) > 1]
    tokenizer = byte_tokenizer(None if how == "tokenizer has none" else "<bos>", wraps=True)
    result = score_texts(texts, model, tokenizer, add_start_token=how == "tokenizer has none")
    expected = [math.exp(loss_of(model, ids_of(t)[:1], ids_of(t)[1:])) for t in texts]
    np.testing.assert_allclose(result["perplexities"], expected, rtol=1e-4)
    assert result["tokens"] == [len(text) - 1 for text in texts]
    assert result["bos_token"] is None


def test_contexts_are_read_but_not_counted(model, tokenizer):
    contexts = ["Q: hm?\nA: ", ids_of("User says: "), torch.tensor(ids_of("<eos>x"))]
    replies = ["Yes.", "It is so.", "No"]
    result = score_texts(replies, model, tokenizer, contexts=contexts)
    as_ids = [ids_of("Q: hm?\nA: "), ids_of("User says: "), [EOS, *ids_of("x")]]
    expected = [
        math.exp(loss_of(model, context, ids_of(reply)))
        for context, reply in zip(as_ids, replies, strict=True)
    ]
    np.testing.assert_allclose(result["perplexities"], expected, rtol=1e-4)
    assert result["tokens"] == [4, 9, 2]
    assert result["bos_token"] is None
    # An empty context is as none.
    mixed = score_texts(replies, model, tokenizer, contexts=[contexts[0], "", []])
    alone = score_texts(replies, model, tokenizer)
    assert mixed["perplexities"][0] == pytest.approx(expected[0], rel=1e-4)
    assert mixed["perplexities"][1:] == pytest.approx(alone["perplexities"][1:], rel=1e-4)
    assert mixed["bos_token"] == "<bos>"


def test_long_texts_are_cut_on_the_right_and_counted(model, tokenizer):
    fits, too_long = "a" * (CONTEXT_LENGTH - 1), "ab" * CONTEXT_LENGTH
    result = score_texts([fits, too_long], model, tokenizer)
    assert result["truncated"] == 1
    assert result["tokens"] == [CONTEXT_LENGTH - 1] * 2
    cut = ids_of(too_long)[: CONTEXT_LENGTH - 1]
    assert result["perplexities"][1] == pytest.approx(
        math.exp(loss_of(model, [BOS], cut)), rel=1e-4
    )

    shorter = score_texts([fits, "abc"], model, tokenizer, max_length=11)
    assert (shorter["truncated"], shorter["tokens"]) == (1, [10, 3])
    beyond = score_texts([fits, too_long], model, tokenizer, max_length=10 * CONTEXT_LENGTH)
    assert beyond == result

    without = score_texts([fits + "a", too_long], model, tokenizer, add_start_token=False)
    assert (without["truncated"], without["tokens"]) == (1, [CONTEXT_LENGTH - 1] * 2)


def test_long_contexts_are_cut_on_the_left_and_the_reply_only_if_it_must_be(model, tokenizer):
    context = [3 + i % 200 for i in range(60)]
    reply, long_reply = "Boil it for an hour.", "Boil " * 20
    result = score_texts([reply, long_reply], model, tokenizer, contexts=[context, context])
    assert result["truncated"] == 2
    assert result["tokens"] == [len(reply), CONTEXT_LENGTH - 1]
    expected = [
        loss_of(model, context[-(CONTEXT_LENGTH - len(reply)) :], ids_of(reply)),
        loss_of(model, context[-1:], ids_of(long_reply)[: CONTEXT_LENGTH - 1]),
    ]
    np.testing.assert_allclose(result["perplexities"], np.exp(expected), rtol=1e-4)


def test_neither_order_nor_batches_change_a_perplexity(model, tokenizer, monkeypatch):
    one_by_one = score_texts(TEXTS, model, tokenizer, batch_size=1)
    order = random.Random(1).sample(range(len(TEXTS)), len(TEXTS))
    shuffled = score_texts([TEXTS[i] for i in order], model, tokenizer, batch_size=4)
    expected = [one_by_one["perplexities"][i] for i in order]
    np.testing.assert_allclose(shuffled["perplexities"], expected, rtol=1e-4)
    assert shuffled["tokens"] == [one_by_one["tokens"][i] for i in order]
    monkeypatch.setattr(module, "TOKENS_PER_LOSS", 3)
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 40)
    in_pieces = score_texts(TEXTS, model, tokenizer)
    np.testing.assert_allclose(in_pieces["perplexities"], one_by_one["perplexities"], rtol=1e-4)


def test_batches_keep_to_both_limits_and_hold_every_row_once():
    lengths = [3000, 5, 300, 400, 350, *[20] * 40, 1024]
    batches = module._batches(lengths, batch_size=16)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) == 1 or (len(batch) <= 16 and padded <= module.TOKENS_PER_BATCH)
    assert max(map(len, batches)) == 16
    assert len(batches) < 10


def test_the_metric_gives_the_same_from_memory_and_from_a_path(llama, tokenizer, tmp_path: Path):
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    metric = Perplexity(keep_in_memory=True)
    in_memory = metric.compute(predictions=TEXTS, model=llama, tokenizer=tokenizer, batch_size=3)
    assert in_memory == score_texts(TEXTS, llama, tokenizer, batch_size=3)
    assert metric.compute(predictions=TEXTS, model_id=str(tmp_path), batch_size=3) == in_memory
    contexts = [[5, 6]] * len(TEXTS)
    given = metric.compute(predictions=TEXTS, contexts=contexts, model=llama, tokenizer=tokenizer)
    assert given == score_texts(TEXTS, llama, tokenizer, contexts=contexts)
    for arguments in ({}, {"model": llama}, {"model_id": "x/y", "tokenizer": tokenizer}):
        with pytest.raises(ModelError, match="model_id="):
            metric.compute(predictions=TEXTS, **arguments)
    with pytest.raises(AssetError, match="no_such_folder"):
        metric.compute(predictions=TEXTS, model_id="no_such_folder")


def test_a_policy_with_its_value_head_scores_as_its_language_model(llama, tokenizer):
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(llama)
    expected = score_texts(TEXTS, llama, tokenizer)
    assert score_texts(TEXTS, policy.pretrained_model, tokenizer) == expected
    assert score_texts(TEXTS, policy, tokenizer) == expected


def test_dropout_is_off_and_the_callers_state_is_left_alone(tokenizer, tmp_path: Path):
    model = wide_model("gpt2")
    expected = score_texts(TEXTS, model, tokenizer)
    model.train()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    metric = Perplexity(keep_in_memory=True)
    result = metric.compute(predictions=TEXTS, model=model, tokenizer=tokenizer)
    metric.compute(predictions=TEXTS, model_id=str(tmp_path))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert result == expected
    assert model.training
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.7])
def test_a_temperature_divides_the_logits(model, tokenizer, temperature, monkeypatch):
    """Against log_softmax in double precision, and a model whose output layer was divided."""
    monkeypatch.setattr(module, "TOKENS_PER_LOSS", 3)
    ids = [BOS, *ids_of("Why is the sky blue?")]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    expected = -(logits / temperature).log_softmax(-1)[range(3, len(ids) - 1), ids[4:]]
    (actual,) = token_nlls(model, [ids], [4], temperature=temperature)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)

    divided = copy.deepcopy(model)
    head = torch.nn.Parameter(model.get_output_embeddings().weight.detach() / temperature)
    divided.get_output_embeddings().weight = head  # no longer the input embeddings', if it was
    contexts = ["Q: hm?\nA: "] * len(TEXTS)
    result = score_texts(TEXTS, model, tokenizer, contexts=contexts, temperature=temperature)
    reference = score_texts(TEXTS, divided, tokenizer, contexts=contexts)
    np.testing.assert_allclose(result["perplexities"], reference["perplexities"], rtol=1e-4)
    metric = Perplexity(keep_in_memory=True)
    given = {"contexts": contexts, "model": model, "tokenizer": tokenizer}
    assert metric.compute(predictions=TEXTS, **given, temperature=temperature) == result
    at_1 = score_texts(TEXTS, model, tokenizer, contexts=contexts)
    ratio = result["pooled_perplexity"] / at_1["pooled_perplexity"]
    assert ratio > 1.5 if temperature < 1 else ratio < 0.8  # these texts are not the model's own


def test_temperature_1_is_to_the_bit_the_loss_of_the_logits(model):
    ids = [BOS, *ids_of("Stir until smooth, then rest.")]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    expected = cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    for temperature in ({}, {"temperature": 1}, {"temperature": 1.0}):
        (actual,) = token_nlls(model, [ids], [1], **temperature)
        assert torch.equal(actual, expected)


def test_the_models_own_logits_are_left_as_they_are(llama):
    ids, seen = [BOS, *ids_of("Tea, please.")], []
    hook = llama.register_forward_hook(lambda *call: seen.append(call[-1].logits))
    token_nlls(llama, [ids], [1], temperature=0.5)
    hook.remove()
    with torch.no_grad():
        assert torch.equal(seen[0], llama(torch.tensor([ids])).logits)


@pytest.mark.parametrize("temperature", [0, 0.0, -1, math.nan, math.inf])
def test_a_wrong_temperature_is_refused(llama, tokenizer, temperature):
    with pytest.raises(ModelError, match=f"temperature is {temperature}: use a number above 0"):
        score_texts(TEXTS, llama, tokenizer, temperature=temperature)
    with pytest.raises(ModelError, match="temperature"):
        token_nlls(llama, [[1, 2]], [1], temperature=temperature)


def test_bf16_is_close_but_not_the_same(llama, tokenizer):
    exact = score_texts(TEXTS, llama, tokenizer)["pooled_perplexity"]
    rounded = score_texts(TEXTS, llama, tokenizer, bf16=True)["pooled_perplexity"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["fine", ""], {}, "text 1 "),
        (["fine", "ok", "x"], {"add_start_token": False}, "text 2 .*'x'"),
        (["fine", ""], {"contexts": ["a", "b"]}, "text 1 "),
        ([], {}, "at least one"),
        (["fine", "ok"], {"contexts": ["a"]}, "1 contexts for 2 texts"),
    ],
)
def test_unusable_texts_are_named(llama, tokenizer, texts, options, message):
    with pytest.raises(DataError, match=message):
        score_texts(texts, llama, tokenizer, **options)


# Ways to call it -----------------------------------------------------------------------------


def test_a_bare_string_is_one_text(make_language_model, tokenizer):
    model = make_language_model("llama")
    one, listed = (score_texts(t, model, tokenizer) for t in ("a text", ["a text"]))
    assert one == listed and len(one["perplexities"]) == 1


def test_the_device_of_evaluates_metric(make_language_model, tokenizer, tmp_path):
    model = make_language_model("llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    metric = Perplexity(keep_in_memory=True)
    in_memory = {"model": model, "tokenizer": tokenizer}
    expected = metric.compute(predictions=["abc"], **in_memory)
    assert metric.compute(predictions=["abc"], **in_memory, device="cpu") == expected
    assert metric.compute(predictions=["abc"], model_id=tmp_path, device="cpu") == expected
    with pytest.raises(ModelError, match="the model is on cpu, and device is 'meta'"):
        metric.compute(predictions=["abc"], **in_memory, device="meta")
    with pytest.raises(ModelError, match="there is no device 'cuda'"):  # conftest.py hides it
        metric.compute(predictions=["abc"], model_id=tmp_path, device="gpu")
