"""The judge that is a line: what it reads, how it is fitted, and what it is kept in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.errors import one_line
from support.models import language_model
from support.tokenizers import byte_tokenizer, with_chat_template

from rlhf_tutorial.errors import DataError, ModelError, RewardError
from rlhf_tutorial.reward import StateJudge, StateReader, fit_line, load_judge

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LAYERS = (1, 3)
QUERIES = ["Why?", "How so", "Is it?", "Why?", "?"]
RESPONSES = ["Because.", "It is so", "", "No", "A longer answer."]


@pytest.fixture
def tokenizer():
    return with_chat_template(byte_tokenizer(), TEMPLATE)


@pytest.fixture
def make_reader(tokenizer):
    def make(kind: str = "llama", **settings):
        model = language_model(kind, max_position_embeddings=200)
        return StateReader(model, tokenizer, LAYERS, **{"bf16": False} | settings)

    return make


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_features_are_means_and_end_states_of_the_whole_model_read_one_by_one(
    batch_size, make_reader, tokenizer
):
    model = language_model("llama", max_position_embeddings=200)
    features = make_reader(batch_size=batch_size)(QUERIES, RESPONSES)
    assert features.shape == (5, 2 * 2 * 32) and features.dtype == torch.float32
    for query, response, found in zip(QUERIES, RESPONSES, features, strict=True):
        asked = tokenizer(f"<user>{query}<eos><assistant>")["input_ids"]
        said = tokenizer(response)["input_ids"]
        with torch.no_grad():
            states = model(
                torch.tensor([[*asked, *said, 1]]), output_hidden_states=True
            ).hidden_states
        expected = []
        for layer in LAYERS:
            answer = states[layer][0, len(asked) :]
            expected += [answer[: max(len(said), 1)].mean(dim=0), answer[-1]]
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_special_tokens_are_the_templates_alone(make_reader, tokenizer, monkeypatch):
    reader, read = make_reader(), []
    monkeypatch.setattr(reader, "_read", lambda rows: read.extend(rows) or torch.zeros(len(rows)))
    reader(["Why<eos>?"], ["So.<eos><user>"])
    ((asked, said),) = read
    assert asked == tokenizer("<user>Why< eos>?<eos><assistant>")["input_ids"]
    assert said == [*tokenizer("So.< eos><user>")["input_ids"], 1] and said.count(1) == 1


def test_bfloat16_is_near_float32(make_reader):
    exact, fast = make_reader()(QUERIES, RESPONSES), make_reader(bf16=True)(QUERIES, RESPONSES)
    assert fast.dtype == torch.float32
    assert (exact - fast).abs().mean() < 0.02 * exact.abs().mean()


def test_the_line_is_that_of_ridge_regression_by_numpy():
    """As least squares over the rows and one further row a weight: sqrt(penalty) w = 0."""
    random = np.random.default_rng(0)
    x, y = random.normal(3, [1, 5, 0.1, 2], (30, 4)), random.normal(2, 1, 30)
    weights, bias = fit_line(torch.tensor(x), torch.tensor(y), ridge=0.7)
    z = (x - x.mean(0)) / x.std(0)
    rows = np.concatenate([z, np.sqrt(0.7 * 4) * np.eye(4)])
    wanted = np.linalg.lstsq(rows, np.concatenate([y - y.mean(), np.zeros(4)]), rcond=None)[0]
    np.testing.assert_allclose(weights.numpy(), wanted / x.std(0), rtol=1e-4)
    np.testing.assert_allclose(x @ weights.numpy() + bias, z @ wanted + y.mean(), rtol=1e-5)


def test_without_a_penalty_a_line_that_is_there_is_found():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(6.0)
    weights, bias = fit_line(x, x @ truth - 2, ridge=0)
    torch.testing.assert_close(weights, truth, rtol=1e-4, atol=1e-4)
    assert bias == pytest.approx(-2, abs=1e-4)


def test_a_judge_orders_what_it_was_fitted_on_and_gives_plain_numbers(make_reader):
    queries = ["What?"] * 12
    responses = [letter * 8 for letter in "abcdefghijkl"]
    grades = [3.0 if letter in "aeci" else 1.0 for letter in "abcdefghijkl"]
    judge = StateJudge.fit(make_reader(), queries, responses, grades, ridge=1e-3)
    scores = judge(queries, responses)
    assert all(type(score) is float for score in scores)
    np.testing.assert_allclose(scores, grades, atol=0.2)
    assert judge(queries[:2], [responses[4], responses[1]]) == pytest.approx(
        [scores[4], scores[1]], abs=1e-4
    )
    assert judge([], []) == []


def test_a_judge_comes_back_from_the_disk(make_reader, tokenizer, tmp_path):
    judge = StateJudge.fit(make_reader(), QUERIES, RESPONSES, [1.0, 2, 3, 4, 5])
    language_model("llama", max_position_embeddings=200).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    judge.save_pretrained(tmp_path / "line")
    size = sum(path.stat().st_size for path in (tmp_path / "line").iterdir())
    assert size < 2000, "the line alone"
    back = StateJudge.from_pretrained(tmp_path / "base", tmp_path / "line", bf16=False)
    assert back.reader.layers == LAYERS
    assert back(QUERIES, RESPONSES) == pytest.approx(judge(QUERIES, RESPONSES), abs=1e-5)
    same = load_judge(tmp_path / "base", tmp_path / "line")
    assert isinstance(same, StateJudge), "as a preset names it: a base and what makes it a judge"
    settings = tmp_path / "line" / "line.json"
    settings.write_text(json.dumps({"layers": [1]}))
    with pytest.raises(ModelError, match="has 128 weights, but .* gives 64 numbers") as error:
        StateJudge.from_pretrained(tmp_path / "base", tmp_path / "line")
    one_line(error)
    settings.unlink()
    with pytest.raises(ModelError, match="cannot load"):
        StateJudge.from_pretrained(tmp_path / "base", tmp_path / "line")


def test_what_does_not_fit_together_is_refused(make_reader):
    reader = make_reader()
    with pytest.raises(DataError, match="3 grades for 5 answers") as error:
        StateJudge.fit(reader, QUERIES, RESPONSES, [1.0, 2, 3])
    one_line(error)
    with pytest.raises(RewardError, match="1 queries but 2 responses"):
        reader(["?"], ["a", "b"])
    with pytest.raises(RewardError, match="no answer to read"):
        reader([], [])
    with pytest.raises(ModelError, match="num_shared_layers is 9|the model has 4 layers"):
        StateReader(language_model("llama"), reader.template.tokenizer, (2, 9))
