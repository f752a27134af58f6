"""The original tutorial's six code blocks, in about as many lines, on look-alikes of its models."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.lookalikes import make

from rlhf_tutorial import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    RewardModel,
    load_preferences,
    load_tokenizer,
    prepare_queries,
    train,
)
from rlhf_tutorial.template import DLITE

END_KEY = "### End"
GEN_LEN = 16
BATCH = {"batch_size": 16, "mini_batch_size": 16}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    return make(tmp_path_factory.mktemp("lookalikes"))


@pytest.fixture(scope="module")
def tokenizer(paths):
    return load_tokenizer(paths["policy"])


@pytest.fixture(scope="module")
def dataset(paths, tokenizer):
    """Listing 1: dataset creation."""
    preferences = load_preferences(paths["data"], "train", data_dir="helpful-base")
    dataset, report = prepare_queries(preferences, DLITE.bind(tokenizer), limit=32)
    assert (report.kept, report.no_turns) == (32, 1) and report.too_long > 0
    return dataset


@pytest.fixture(scope="module")
def reward_model(paths):
    """Listing 3: the reward model with its own tokenizer."""
    return RewardModel.from_pretrained(paths["reward_model"], bf16=False)


def load_twice(path: Path) -> list[AutoModelForCausalLMWithValueHead]:
    """Listing 2: the policy and its reference."""
    return [AutoModelForCausalLMWithValueHead.from_pretrained(path) for _ in range(2)]


def make_trainer(path: Path, tokenizer, dataset) -> PPOTrainer:
    model, ref_model = load_twice(path)
    return PPOTrainer(PPOConfig(**BATCH), model, ref_model, tokenizer, dataset)


# 1. Dataset creation -------------------------------------------------------------------------


def test_the_queries_are_the_original_listings_prompts(paths, dataset, tokenizer):
    expected = []
    for text in load_preferences(paths["data"], "train", "helpful-base")["chosen"]:
        if text.startswith("\n\nHuman: "):
            prompt = text[len("\n\nHuman: ") : text.find("Assistant:")]
            expected.append(prompt.replace("\n", " ").strip())
    expected = [prompt for prompt in expected if len(prompt) < 100][:32]
    assert dataset["query"][:] == expected
    text = tokenizer.decode(dataset[0]["input_ids"])
    assert text == f"\n### Instruction:\n{expected[0]}\n### Response:\n"


# 2. Loading the model twice ------------------------------------------------------------------


def test_both_copies_are_the_same_and_in_memory_of_their_own(paths):
    model, ref_model = load_twice(paths["policy"])
    for (name, a), b in zip(model.named_parameters(), ref_model.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.data_ptr() != b.data_ptr(), name


# 3. The reward model -------------------------------------------------------------------------


def test_the_reward_model_reads_pairs_with_the_sentencepiece_tokenizer(paths, reward_model):
    """Against the listing's own calls: tokenise the pairs with padding, take the first logit."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DebertaV2Tokenizer

    queries = ["How do I bake bread?", "Can you give me tips to swim?", "hi"]
    answers = ["To bake bread, plan it first.", "No.", "Take your time and check the result!"]
    rank_model = AutoModelForSequenceClassification.from_pretrained(paths["reward_model"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(paths["reward_model"])
    assert isinstance(tokenizer, DebertaV2Tokenizer)
    pieces = tokenizer.tokenize("bake bread")
    assert pieces[0].startswith("▁") and "[UNK]" not in pieces
    with torch.no_grad():
        inputs = tokenizer(queries, answers, return_tensors="pt", padding=True)
        expected = rank_model(**inputs).logits[:, 0].tolist()
    assert reward_model(queries, answers) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01


# 4. The training loop ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["one query at a time", "a list"])
def test_the_training_loop(form, paths, tokenizer, dataset, reward_model):
    ppo_trainer = make_trainer(paths["policy"], tokenizer, dataset)
    before = {k: v.clone() for k, v in ppo_trainer.model.state_dict().items()}
    gen_kwargs = {
        "min_length": -1,
        "top_k": 0.0,
        "top_p": 1.0,
        "do_sample": True,
        "pad_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.encode(END_KEY),
    }
    assert len(gen_kwargs["eos_token_id"]) == 1
    xs = []
    for batch in ppo_trainer.dataloader:
        query_tensors = batch["input_ids"]
        if form == "a list":
            response_tensors = ppo_trainer.generate(
                query_tensors, return_prompt=False, max_new_tokens=GEN_LEN, **gen_kwargs
            )
        else:
            response_tensors = []
            for query in query_tensors:
                response = ppo_trainer.generate(query, max_new_tokens=GEN_LEN, **gen_kwargs)
                response_tensors.append(response.squeeze()[-GEN_LEN:])
        batch["response"] = [tokenizer.decode(r.squeeze()) for r in response_tensors]
        rewards = [torch.tensor(r) for r in reward_model(batch["query"], batch["response"])]
        stats = ppo_trainer.step(query_tensors, response_tensors, rewards)
        assert stats["ppo/mean_scores"] == pytest.approx(np.mean(rewards), abs=1e-5)
        xs.append(stats["ppo/mean_scores"])
    assert len(xs) == 2 and all(map(math.isfinite, xs))
    after = ppo_trainer.model.state_dict()
    assert any(not torch.equal(after[k], before[k]) for k in before)
    for name, value in ppo_trainer.ref_model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_answer_ends_at_the_end_key(paths, tokenizer, dataset):
    """And holds nothing of the prompt, whose end the original's slice takes in."""
    ppo_trainer = make_trainer(paths["policy"], tokenizer, dataset)
    (end,) = tokenizer.encode(END_KEY)
    with torch.no_grad():  # a policy that says nothing but the end key: the largest logit, always
        final_norm = ppo_trainer.model.pretrained_model.transformer.ln_f
        embeddings = ppo_trainer.model.pretrained_model.lm_head.weight
        final_norm.weight.zero_()
        final_norm.bias.copy_(100 * embeddings[end] / embeddings[end].norm() ** 2)
        embeddings[end] *= 10
    query = dataset[0]["input_ids"]
    settings = {"max_new_tokens": GEN_LEN, "eos_token_id": [end]}
    response = ppo_trainer.generate(query, return_prompt=False, **settings)
    assert response.tolist() == [[end]]
    assert DLITE.bind(tokenizer).decode(list(response)) == [""]
    sliced = ppo_trainer.generate(query, **settings).squeeze()[-GEN_LEN:]
    assert sliced.tolist() == [*query[-GEN_LEN + 1 :].tolist(), end]


def test_the_packages_own_loop_is_the_same_three_calls(paths, tokenizer, dataset, reward_model):
    ppo_trainer = make_trainer(paths["policy"], tokenizer, dataset)
    xs = [s["ppo/mean_scores"] for s in train(ppo_trainer, reward_model, DLITE)]
    assert len(xs) == 2 and all(map(math.isfinite, xs))


# 5. Comparing responses ----------------------------------------------------------------------


def test_the_comparison_is_printed_in_the_originals_form(paths, tokenizer, dataset, reward_model):
    from rlhf_tutorial.evaluation.compare import compare, format_examples
    from rlhf_tutorial.evaluation.sampling import sample_answers

    queries = dataset.select(range(8))
    answers = [
        sample_answers(
            model,
            DLITE.bind(tokenizer),
            queries["input_ids"][:],
            seed=seed,
            bf16=False,
            max_new_tokens=GEN_LEN,
        ).texts
        for seed, model in enumerate(load_twice(paths["policy"]))
    ]
    table = compare(queries["query"][:], *answers, reward_model)
    text = format_examples(table)
    example = r"prompt: .+\nanswer \(before\): .*\nanswer \(after\): .*"
    assert re.fullmatch(rf"{example}(\n\n{example}){{4}}", text)
    best = table.sort_values("score_after", ascending=False).iloc[0]
    assert text.splitlines()[0] == f"prompt: {best['query']}"
    assert text.splitlines()[2] == f"answer (after): {' '.join(best['response_after'].split())}"


# 6. Perplexity -------------------------------------------------------------------------------


def test_perplexity_is_the_model_s_own_loss_exponentiated(paths, tokenizer):
    """Of a start token and each `chosen` text of the test split, as evaluate's metric has it."""
    from transformers import AutoModelForCausalLM

    from rlhf_tutorial.evaluation.perplexity import Perplexity

    test = load_preferences(paths["data"], "test", data_dir="helpful-base")
    perplexity = Perplexity(keep_in_memory=True)
    results = perplexity.compute(predictions=test["chosen"][:], model_id=str(paths["policy"]))
    model = AutoModelForCausalLM.from_pretrained(paths["policy"])
    expected = []
    for text in test["chosen"]:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            expected.append(math.exp(model(ids, labels=ids).loss.item()))
    assert results["perplexities"] == pytest.approx(expected, rel=1e-4)
    assert results["mean_perplexity"] == pytest.approx(np.mean(expected), rel=1e-4)
    in_memory = perplexity.compute(predictions=test["chosen"][:], model=model, tokenizer=tokenizer)
    assert in_memory["mean_perplexity"] == pytest.approx(results["mean_perplexity"], rel=1e-6)


# All stages of the preset --------------------------------------------------------------------


def test_the_preset_dlite_runs_on_the_look_alikes(paths, tmp_path, monkeypatch):
    from rlhf_tutorial.presets import OVERRIDES, load_preset
    from rlhf_tutorial.run import Run

    for name, path in paths.items():
        monkeypatch.setenv(OVERRIDES[name], str(path))
    run = Run(load_preset("dlite"), tmp_path)
    assert len(list(run.train())) == 4
    table, perplexity = run.compare(), run.perplexity()
    assert len(table) > 16 and np.isfinite(table["gain"]).all()
    for when in ("before", "after"):
        assert all(math.isfinite(p["mean_perplexity"]) for p in perplexity[when].values())
    assert set(run.results()) >= {"training", "comparison"}
