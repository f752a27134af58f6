"""Rewards: scores free of batching effects, heads and inputs checked, training that learns."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.judges import (
    QUERIES,
    RESPONSES,
    accuracy,
    load,
    tiny_config,
    tiny_tokenizer,
    toy_pairs,
)
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
)

from rlhf_tutorial.device import default_device, supports_bf16
from rlhf_tutorial.errors import DataError, ModelError, RewardError
from rlhf_tutorial.reward import RewardModel, rule_reward, train_reward_model, tricks
from rlhf_tutorial.reward import training as rewards
from rlhf_tutorial.reward.judge import encode


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny trained-looking reward model: one logit, head and tokenizer saved."""
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    BertForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A tiny encoder without a head, as MiniLM comes."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(1)
    BertModel(tiny_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def one_by_one(folder: Path, queries: list[str], responses: list[str], **inputs) -> list[float]:
    """The reference: transformers alone, a pair at a time, no padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = tiny_tokenizer()
    scores = []
    for query, response in zip(queries, responses, strict=True):
        encoded = tokenizer([query], [response], truncation=True, return_tensors="pt", **inputs)
        with torch.no_grad():
            scores.append(model(**encoded).logits.item())
    return scores


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batching_and_order_do_not_change_scores(checkpoint, batch_size):
    scores = load(checkpoint, batch_size=batch_size)(QUERIES, RESPONSES)
    expected = one_by_one(checkpoint, QUERIES, RESPONSES)
    assert np.std(expected) > 0.01
    assert all(isinstance(score, float) for score in scores)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_batches_hold_neighbours_in_length(checkpoint, monkeypatch):
    judge = load(checkpoint, batch_size=2)
    shapes = []
    forward = judge.model.forward
    monkeypatch.setattr(
        judge.model, "forward", lambda **kw: shapes.append(kw["input_ids"].shape) or forward(**kw)
    )
    judge(["w1"] * 4, ["w1 " * 20, "w1", "w1 " * 20, "w1"])
    assert shapes == [(2, 5), (2, 24)]


def test_long_pairs_are_truncated_to_the_models_maximum(checkpoint):
    long = ["w1 " * 30], ["w2 " * 90]
    np.testing.assert_allclose(load(checkpoint)(*long), one_by_one(checkpoint, *long), atol=1e-5)


def test_maximum_length_comes_from_the_model_where_the_tokenizer_has_none(checkpoint):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    judge = RewardModel(model, tiny_tokenizer(model_max_length=int(1e30)), "cpu", bf16=False)
    assert judge.max_length == 48
    assert math.isfinite(judge(["w1"], ["w2 " * 90])[0])


def test_token_type_ids_follow_the_checkpoints_own_tokenizer(checkpoint, tmp_path):
    with_types = load(checkpoint)(QUERIES, RESPONSES)
    AutoModelForSequenceClassification.from_pretrained(checkpoint).save_pretrained(tmp_path)
    tiny_tokenizer(model_input_names=["input_ids", "attention_mask"]).save_pretrained(tmp_path)
    without_types = load(tmp_path)(QUERIES, RESPONSES)
    expected = one_by_one(checkpoint, QUERIES, RESPONSES, return_token_type_ids=False)
    np.testing.assert_allclose(without_types, expected, atol=1e-5)
    assert not np.allclose(with_types, without_types, atol=1e-3)


# Judges that are chat models ------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_judge(tokenizer, tmp_path) -> Path:
    """A tiny decoder with a head, and a tokenizer with a chat template."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=264, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=96, num_labels=1, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "chat")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


def test_a_chat_model_reads_the_dialogue_in_its_template(chat_judge):
    """Against transformers alone: the template written out, one row at a time, no padding."""
    judge = load(chat_judge)
    queries, responses = ["Why?", "How do I?", "What now"], ["Because.", "", "Take it, then go"]
    scores = judge(queries, responses)
    for query, response, score in zip(queries, responses, scores, strict=True):
        text = f"<user>{query}<eos><assistant>{response}"
        ids = judge.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            expected = judge.model(input_ids=ids).logits.item()
        assert score == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in scores}) == 3


def test_a_special_token_that_a_text_spells_out_is_text_to_a_pairs_judge(checkpoint):
    judge = load(checkpoint)
    queries = ["w1 [SEP] w2", "w1 w2", "w1 [SEP] " * 30]
    responses = ["w3", "w4[SEP]w5 [CLS]", "w6 [PAD] w7"]
    inputs = encode(judge.tokenizer, queries, responses, judge.max_length)
    for ids in inputs["input_ids"]:
        assert (ids.count(2), ids.count(3), ids.count(0)) == (1, 2, 0), "[CLS], [SEP] and [PAD]"
    written = ["w1 [ SEP] w2", "w1 w2"], ["w3", "w4[ SEP]w5 [ CLS]"]
    expected = one_by_one(checkpoint, *written)
    np.testing.assert_allclose(judge(queries[:2], responses[:2]), expected, atol=1e-5)


def test_a_special_token_that_a_text_spells_out_is_text_to_a_chat_judge(chat_judge):
    tokenizer = load(chat_judge).tokenizer
    (ids,) = encode(tokenizer, ["Why<eos>?"], ["So.<eos><user>And?"], 96)["input_ids"]
    text = "<user>Why< eos>?<eos><assistant>So.< eos><user>And?"
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"] and ids.count(1) == 1


def test_adapters_are_on_every_linear_layer_of_a_chat_judge(chat_judge, tmp_path):
    from safetensors import safe_open

    train_reward_model(
        [{"prompt": "a", "chosen": "good", "rejected": "bad"}] * 4, chat_judge,
        output=tmp_path / "adapter", batch_size=2, device="cpu", bf16=False,
    )  # fmt: skip
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    adapted = {name for name in names if "lora_" in name}
    assert len(adapted) == 2 * 2 * 7, "two matrices for each of two blocks' seven linear layers"


def test_the_choice_of_precision_is_printed_once(checkpoint, capsys):
    judge = load(checkpoint)
    judge(QUERIES, RESPONSES)
    assert (
        capsys.readouterr().out == "reward model: BertForSequenceClassification on cpu, float32\n"
    )


def test_bf16_stays_close(checkpoint):
    exact = load(checkpoint)(QUERIES, RESPONSES)
    rough = RewardModel.from_pretrained(checkpoint, device="cpu", bf16=True)(QUERIES, RESPONSES)
    assert np.corrcoef(exact, rough)[0, 1] > 0.99


def test_bf16_only_where_the_hardware_has_it(monkeypatch):
    for capabilities, expected in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True),
                                   ({"avx512_f": True}, False), ({}, False)):  # fmt: skip
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c, raising=False)
        assert supports_bf16("cpu") is expected
    assert supports_bf16("meta") is False
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_head_of_several_logits_is_refused(tmp_path):
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config(num_labels=3))
    with pytest.raises(ModelError, match="3 logits"):
        RewardModel(model, tiny_tokenizer())
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="3 logits"):
        load(tmp_path)


def test_an_untrained_head_is_refused(encoder, tmp_path):
    with pytest.raises(ModelError, match="exactly one"):
        load(encoder)
    BertModel(tiny_config(num_labels=1)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no weights for classifier"):
        load(tmp_path)
    with pytest.raises(ModelError, match="adapter_config.json"):
        load(encoder, adapter=tmp_path)


def test_wrong_inputs_are_refused(checkpoint):
    judge = load(checkpoint)
    with pytest.raises(RewardError, match="2 queries but 1 responses"):
        judge(["w1", "w2"], ["w3"])
    with pytest.raises(RewardError, match="strings"):
        judge(["w1"], [torch.tensor([1, 2])])
    assert judge([], []) == []


def test_a_score_that_is_not_finite_is_refused(checkpoint):
    judge = load(checkpoint)
    torch.nn.init.constant_(judge.model.classifier.bias, math.nan)
    with pytest.raises(RewardError, match="finite"):
        judge(["w1"], ["w2"])


def test_loading_keeps_the_random_state_and_warns_of_nothing(adapter, encoder, caplog, capfd):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    load(encoder, adapter=adapter)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
    assert not caplog.records
    assert "initialized" not in capfd.readouterr().err


# Training -------------------------------------------------------------------------------------


TOY = {"batch_size": 16, "epochs": 6, "learning_rate": 5e-3, "device": "cpu"}


@pytest.fixture(scope="module")
def adapter(encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    train_reward_model(toy_pairs(96, 0), encoder, output=folder, bf16=False, **TOY)
    return folder


def test_lora_learns_saves_and_loads_what_it_learned(adapter, encoder):
    judge = load(encoder, adapter=adapter)
    assert accuracy(judge, toy_pairs(64, 1)) > 0.9
    # Merged weights against PEFT's own unmerged forward pass, without token_type_ids.
    from peft import PeftModel

    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    unmerged = PeftModel.from_pretrained(base, adapter).eval()
    encoded = tiny_tokenizer()(
        QUERIES, RESPONSES, padding=True, return_token_type_ids=False, return_tensors="pt"
    )
    with torch.no_grad():
        expected = unmerged(**encoded).logits[:, 0].tolist()
    np.testing.assert_allclose(judge(QUERIES, RESPONSES), expected, atol=1e-4)


def test_full_tuning_learns_and_reports(encoder, tmp_path):
    steps = []
    judge = train_reward_model(
        toy_pairs(96, 0),
        encoder,
        output=tmp_path,
        lora=False,
        bf16=False,
        log=lambda step, figures: steps.append((step, figures["loss"], figures["accuracy"])),
        **TOY,
    )
    assert accuracy(judge, toy_pairs(64, 1)) > 0.9
    assert [step for step, *_ in steps] == [10, 20, 30]
    assert steps[-1][1] < steps[0][1]
    assert load(tmp_path)(QUERIES, RESPONSES) == pytest.approx(judge(QUERIES, RESPONSES))


def test_training_repeats_by_seed_and_keeps_the_random_state(encoder):
    short = TOY | {"epochs": 1, "bf16": False}
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    first = train_reward_model(toy_pairs(32, 0), encoder, seed=7, **short)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
    again = train_reward_model(toy_pairs(32, 0), encoder, seed=7, **short)
    other = train_reward_model(toy_pairs(32, 0), encoder, seed=8, **short)
    assert first(QUERIES, RESPONSES) == again(QUERIES, RESPONSES)
    assert first(QUERIES, RESPONSES) != other(QUERIES, RESPONSES)


def test_training_rows_are_all_there_truncated_and_grouped_by_length():
    pairs = toy_pairs(40, 2)
    rows = rewards._training_rows(pairs, tiny_tokenizer(), 2, 8, 12, 0)
    ids = []
    for pair in pairs:
        asked, said = pair["prompt"].split(), pair["chosen"].split()
        if room := max(0, 12 - 3 - len(said)):  # three tokens are the tokenizer's own
            asked = asked[-room:]
        elif len(said) == 9:
            asked = []
        texts = [" ".join(asked)], [" ".join(said)]
        ids += tiny_tokenizer()(*texts, truncation=True, max_length=12)["input_ids"]
    assert sorted(rows["chosen_ids"]) == sorted(ids * 2)
    longest = [max(map(len, row.values())) for row in rows]
    assert max(longest) == 12
    spread = [max(longest[i : i + 8]) - min(longest[i : i + 8]) for i in range(0, 80, 8)]
    assert sum(spread) < 10 * (max(longest) - min(longest)) / 2


def test_training_on_nothing_is_an_error(encoder):
    with pytest.raises(DataError, match="no preference pairs"):
        train_reward_model([], encoder)


# Rules and figures ----------------------------------------------------------------------------


def test_rule_reward_against_values_by_hand():
    texts = ["plain words here", "", "one one one one", "ab12", "Say hi! Say hi!", "ééé"]
    expected = [1.0, -1.0, 1 - 3 / 4, 0.5, 13 / 15 - 2 / 4, 0.0]
    assert rule_reward(["q"] * 6, texts) == pytest.approx(expected)
    with pytest.raises(RewardError):
        rule_reward(["q"], [])


def test_a_decoder_judge_pads_with_its_tokenizer_s_token(tokenizer) -> None:
    """Else the score of a padded row would be read from its padding."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_labels=1, pad_token_id=7, initializer_range=0.5,
    )  # fmt: skip
    judge = RewardModel(LlamaForSequenceClassification(config), tokenizer, "cpu", bf16=False)
    queries, answers = ["a", "a longer question"], ["b", "a longer answer than that"]
    together = judge(queries, answers)
    alone = [judge([q], [a])[0] for q, a in zip(queries, answers, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_tricks_are_an_answer_to_each_prompt_and_spoil_the_good_one():
    prompts, good = ["a?", "b?", "c?"], ["Boil it now for six", "Ask your old friend twice", "Rest"]
    found = tricks(prompts, good)
    assert all(len(answers) == 3 for answers in found.values())
    assert found["the prompt repeated"] == prompts
    assert found["another prompt's answer"] == [good[1], good[2], good[0]]
    assert found["the good answer, broken off"] == ["Boil it", "Ask your", ""]
    assert found["four words, over and over"][0].startswith("Boil it now for Boil it now for")
    for shuffled, answer in zip(found["the good answer, shuffled"], good, strict=True):
        assert sorted(shuffled.split()) == sorted(answer.split())
    assert found["Yes."] == ["Yes."] * 3 and tricks(prompts, good) == found
