"""Judges of any architecture: a score depends on the texts, and on neither batch nor tokenizer."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from support.judges import QUERIES, RESPONSES, SPECIAL, WORDS, tiny_tokenizer
from support.tokenizers import with_chat_template

from rlhf_tutorial.reward import RewardModel
from rlhf_tutorial.reward.judge import encode
from rlhf_tutorial.reward.states import StateReader

SIZE = {"vocab_size": len(SPECIAL + WORDS), "num_labels": 1, "pad_token_id": 0}
SIZE |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"intermediate_size": 64, "initializer_range": 0.3}
POSITIONS = {"max_position_embeddings": 48}
IDS = {"model_input_names": ["input_ids", "attention_mask"]}
NAMES = ("Bert", "Roberta", "GPT2", "OPT", "Llama", "XLNet", "GPTNeoX")


def make_model(name: str) -> Any:
    """A tiny classifier with a head of one logit."""
    settings = SIZE | POSITIONS
    if name == "GPT2":
        settings = {k: SIZE[k] for k in ("vocab_size", "num_labels", "pad_token_id")}
        settings |= {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48}
        settings |= {"initializer_range": 0.3}
    if name == "OPT":
        settings |= {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3}
    if name == "XLNet":
        settings = {k: SIZE[k] for k in ("vocab_size", "num_labels", "pad_token_id")}
        settings |= {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
        settings |= {"initializer_range": 0.3}
    torch.manual_seed(3)
    config = getattr(hf, f"{name}Config")(**settings)
    return getattr(hf, f"{name}ForSequenceClassification")(config).eval()


def alone(model: Any, queries: list[str], responses: list[str]) -> list[float]:
    """The reference: transformers, a pair at a time, without padding."""
    tokenizer = tiny_tokenizer(**IDS)
    with torch.no_grad():
        return [
            model(**tokenizer([q], [r], return_tensors="pt")).logits.item()
            for q, r in zip(queries, responses, strict=True)
        ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_score(name: str, side: str) -> None:
    model = make_model(name)
    expected = alone(model, QUERIES, RESPONSES)
    judge = RewardModel(model, tiny_tokenizer(padding_side=side, **IDS), "cpu", bf16=False)
    np.testing.assert_allclose(judge(QUERIES, RESPONSES), expected, atol=1e-4)
    assert np.std(expected) > 0.05
    assert judge.padding_side is not None


def test_the_side_that_the_tokenizer_pads_on_matters() -> None:
    """Without the check these two would score something else."""
    sides = {}
    for name, side in (("GPT2", "left"), ("XLNet", "right")):
        tokenizer = tiny_tokenizer(padding_side=side, **IDS)
        judge = RewardModel(make_model(name), tokenizer, "cpu", bf16=False)
        sides[name] = judge.padding_side
        judge.padding_side = side
        wrong = judge(QUERIES, RESPONSES)
        assert np.abs(np.subtract(wrong, alone(judge.model, QUERIES, RESPONSES))).max() > 0.05
    assert sides == {"GPT2": "right", "XLNet": "left"}


def test_where_any_padding_matters_batches_hold_one_length(caplog: Any) -> None:
    """A model that looks at the padding itself: the mean over all places."""
    model = make_model("Bert")
    forward = model.forward

    def blind(input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        return forward(input_ids=input_ids)

    model.forward = blind
    with caplog.at_level(logging.WARNING):
        judge = RewardModel(model, tiny_tokenizer(**IDS), "cpu", bf16=False)
    assert judge.padding_side is None and "batches hold one length" in caplog.text
    del model.forward
    expected = alone(model, QUERIES, RESPONSES)
    model.forward = blind
    np.testing.assert_allclose(judge(QUERIES, RESPONSES), expected, atol=1e-4)


def test_positions_that_begin_behind_the_padding_are_fewer() -> None:
    """RoBERTa's table of 48 has room for 47 tokens where padding is token 0."""
    endless = tiny_tokenizer(model_max_length=int(1e30), **IDS)
    judge = RewardModel(make_model("Roberta"), endless, "cpu", bf16=False)
    assert judge.max_length == 47
    assert RewardModel(make_model("Bert"), endless, "cpu", bf16=False).max_length == 48
    assert RewardModel(make_model("XLNet"), endless, "cpu", bf16=False).max_length > 10**6
    query, response = "w1 " * 100, "w2 w3 w4 w5"
    kept = " ".join(["w1"] * (47 - 3 - 4))
    np.testing.assert_allclose(
        judge([query], [response]), alone(judge.model, [kept], [response]), atol=1e-4
    )


@pytest.mark.parametrize("cuts", ["left", "right"])
def test_the_query_is_cut_and_the_answer_is_whole(cuts: str) -> None:
    tokenizer = tiny_tokenizer(truncation_side=cuts, **IDS)
    query = " ".join(f"w{i}" for i in range(20))
    response = " ".join(f"w{i}" for i in range(30, 36))
    (ids,) = encode(tokenizer, [query], [response], 16)["input_ids"]
    kept = " ".join(f"w{i}" for i in range(13, 20))
    assert ids == tokenizer(kept, response)["input_ids"] and len(ids) == 16
    (whole,) = encode(tokenizer, [query], [response], 29)["input_ids"]
    assert whole == tokenizer(query, response)["input_ids"]


def test_of_an_answer_that_is_too_long_the_beginning_is_read(caplog: Any) -> None:
    tokenizer = tiny_tokenizer(truncation_side="left", **IDS)
    response = " ".join(f"w{i}" for i in range(30))
    with caplog.at_level(logging.WARNING):
        encoded = encode(tokenizer, ["w50", "w50"], [response, "w1"], 16)["input_ids"]
    expected = tiny_tokenizer(**IDS)("w50", response, truncation=True, max_length=16)["input_ids"]
    assert encoded[0] == expected and tokenizer.truncation_side == "left"
    assert "1 answers are longer than the judge's 16 tokens" in caplog.text


CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_long_chat_loses_its_first_turns_and_then_words(tokenizer: Any, caplog: Any) -> None:
    tokenizer = with_chat_template(tokenizer, CHATML)
    query = "\n\nSystem: s\n\nHuman: first\n\nAssistant: second\n\nHuman: third of all"

    def read(length: int, response: str = "an answer") -> str:
        return tokenizer.decode(encode(tokenizer, [query], [response], length)["input_ids"][0])

    whole = (
        "<system>s<eos><user>first<eos><assistant>second<eos><user>third of all<eos><assistant>"
        "an answer"
    )
    tokens = len(tokenizer(whole)["input_ids"])
    assert read(tokens) == whole
    shorter = "<system>s<eos><user>third of all<eos><assistant>an answer"
    assert read(tokens - 1) == shorter == read(len(tokenizer(shorter)["input_ids"]))
    fewer = "<system>s<eos><user>of all<eos><assistant>an answer"
    assert read(len(tokenizer(shorter)["input_ids"]) - 1) == fewer
    least = "<user><eos><assistant>an answer"
    assert read(len(tokenizer(least)["input_ids"])) == least
    with caplog.at_level(logging.WARNING):
        part = read(40, "x" * 60)
    assert "1 answers are longer" in caplog.text and "<assistant>xx" in part


def test_a_state_reader_reads_the_whole_answer_too(
    make_language_model: Any, tokenizer: Any
) -> None:
    tokenizer = with_chat_template(tokenizer, CHATML)
    model = make_language_model("llama", layers=3)
    assert model.config.max_position_embeddings == 64

    def reader(length: int) -> StateReader:
        model.config.max_position_embeddings = length
        return StateReader(copy.deepcopy(model), tokenizer, [2], device="cpu", bf16=False)

    query, answer = "q" * 30, "an answer of some length"
    seen: list[Any] = []
    for length in (64, 1000):
        one = reader(length)
        one._read = lambda rows, read=one._read: seen.extend(rows) or read(rows)  # type: ignore
        one([query], [answer])
    (short_query, short_answer), (long_query, long_answer) = seen
    assert short_answer == long_answer and len(short_query) + len(short_answer) == 64
    assert short_query == long_query[-len(short_query) :] and len(long_query) > len(short_query)
