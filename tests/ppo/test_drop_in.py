"""Scripts written for TRL 0.11.4 run with the import changed, and what is not supported says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from datasets import Dataset
from support import trainers
from support.lookalikes import make_policy, preferences
from transformers import AutoTokenizer, HfArgumentParser

from rlhf_tutorial import (
    AutoModelForCausalLMWithValueHead,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
)
from rlhf_tutorial import models as models_module
from rlhf_tutorial.errors import ModelError, TutorialError
from rlhf_tutorial.ppo import config as config_module


class Notes(GeneralTracker):
    """A tracker that keeps what it is given, tables too."""

    name, requires_logging_directory, main_process_only = "notes", False, True

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.logs: list[tuple[int | None, dict[str, Any]]] = []
        self.tables: list[tuple[list[str], list[list[Any]]]] = []

    @property
    def tracker(self) -> Notes:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logs.append((step, values))

    def log_table(self, name: str, columns: list[str], data: list[list[Any]], **_: Any) -> None:
        assert name == "game_log"
        self.tables.append((columns, data))


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    texts = [text for row in preferences() for text in row.values()]
    return make_policy(tmp_path_factory.mktemp("policy") / "gpt2", texts)


def reviews(tokenizer: Any, n: int = 16) -> Dataset:
    """Beginnings of texts, of 2 to 7 tokens, with columns that training does not use."""
    texts = [row["chosen"].strip() for row in preferences()][:n]
    length = LengthSampler(2, 8)
    rows = {"review": texts, "label": [i % 2 for i in range(n)]}
    dataset = Dataset.from_dict(rows)

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        row["input_ids"] = tokenizer.encode(row["review"])[: length()]
        row["query"] = tokenizer.decode(row["input_ids"])
        return row

    dataset = dataset.map(tokenize)
    dataset.set_format(type="torch")
    return dataset


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def test_the_sentiment_loop(path, tmp_path):
    """The form of the best known example: one query at a time, lengths drawn, any classifier."""
    notes = Notes()
    config = PPOConfig(
        model_name=str(path), learning_rate=1e-4, log_with=notes, batch_size=8, mini_batch_size=8
    )
    model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
    ref_model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
    tokenizer = AutoTokenizer.from_pretrained(config.model_name)
    tokenizer.pad_token = tokenizer.eos_token
    ppo_trainer = PPOTrainer(
        config, model, ref_model, tokenizer, dataset=reviews(tokenizer), data_collator=columns
    )
    assert ppo_trainer.accelerator.device == torch.device("cpu")
    generation_kwargs = {
        "min_length": -1,
        "top_k": 0.0,
        "top_p": 1.0,
        "do_sample": True,
        "pad_token_id": tokenizer.eos_token_id,
    }
    output_length = LengthSampler(4, 9)
    for batch in ppo_trainer.dataloader:
        assert set(batch) == {"input_ids", "query", "label"}, "the unused column is gone"
        responses = []
        for query in batch["input_ids"]:
            generation_kwargs["max_new_tokens"] = output_length()
            whole = ppo_trainer.generate(query, **generation_kwargs).squeeze()
            assert torch.equal(whole[: len(query)], query)
            responses.append(whole[len(query) :])
        batch["response"] = [tokenizer.decode(r.squeeze()) for r in responses]
        texts = [q + r for q, r in zip(batch["query"], batch["response"], strict=True)]
        rewards = [torch.tensor(float(text.count("e"))) for text in texts]
        stats = ppo_trainer.step(batch["input_ids"], responses, rewards)
        ppo_trainer.log_stats(stats, batch, rewards)
    assert notes.settings["learning_rate"] == 1e-4
    assert [step for step, _ in notes.logs] == [1, 2]
    logged = notes.logs[-1][1]
    assert stats.items() <= logged.items()
    scores = torch.stack(rewards)
    assert logged["env/reward_mean"] == pytest.approx(scores.mean().item())
    assert logged["env/reward_std"] == pytest.approx(scores.std().item())
    assert logged["env/reward_dist"].tolist() == scores.tolist()
    names, rows = notes.tables[-1]
    assert names == ["query", "response", "reward"]
    assert [row[:2] for row in rows] == [
        list(pair) for pair in zip(batch["query"], batch["response"], strict=True)
    ]
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "tuned")
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_controlled_loop(path):
    """As above with a control word before each query, all columns kept, stats of one's own."""
    notes = Notes()
    config = PPOConfig(
        model_name=str(path),
        steps=160,
        learning_rate=1e-4,
        remove_unused_columns=False,
        log_with=notes,
        batch_size=8,
        mini_batch_size=4,
    )
    assert config.total_ppo_epochs == 20
    tokenizer = AutoTokenizer.from_pretrained(config.model_name)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
    ref_model = create_reference_model(model)
    trainer = PPOTrainer(
        config, model, ref_model, tokenizer, reviews(tokenizer), data_collator=columns
    )
    controls = ["[short]", "[long]"]
    tokens = {c: tokenizer.encode(c, return_tensors="pt").squeeze() for c in controls}
    for batch in trainer.dataloader:
        assert "review" in batch
        drawn = [controls[i % 2] for i in range(config.batch_size)]
        queries = [
            torch.cat([tokens[c], ids]) for c, ids in zip(drawn, batch["input_ids"], strict=True)
        ]
        batch["query"] = [c + q for c, q in zip(drawn, batch["query"], strict=True)]
        responses = trainer.generate(queries, return_prompt=False, max_new_tokens=6, batch_size=3)
        batch["response"] = tokenizer.batch_decode(responses)
        rewards = [
            torch.tensor(len(r) * (1.0 if c == "[long]" else -1.0))
            for c, r in zip(drawn, responses, strict=True)
        ]
        stats = trainer.step(queries, responses, rewards)
        for control in controls:
            of_this = [r.numpy() for r, c in zip(rewards, drawn, strict=True) if c == control]
            stats[f"env/reward_{control.strip('[]')}"] = np.mean(of_this)
        trainer.log_stats(stats, batch, rewards, columns_to_log=["query", "review"])
    assert {"env/reward_short", "env/reward_long"} <= notes.logs[-1][1].keys()
    assert notes.tables[-1][0] == ["query", "review", "reward"]
    with pytest.raises(ModelError, match="log_stats cannot log 'answer'"):
        trainer.log_stats(stats, batch, rewards, columns_to_log=["answer"])


def make_trainer(path: Path) -> PPOTrainer:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token
    return trainers.make_trainer(policy=model, tokenizer=tokenizer, batch_size=4, mini_batch_size=4)


def step(trainer: PPOTrainer) -> dict[str, Any]:
    ids = torch.arange(10, 42).view(4, 8)
    return trainer.step(list(ids[:, :3]), list(ids[:, 3:]), [1.0, -1.0, 0.5, 2.0])


def test_the_references_responses_come_as_the_second_of_a_pair(path):
    trainer = make_trainer(path)
    queries = [torch.tensor([20, 21, 22]), torch.tensor([30])]
    ours, reference = trainer.generate(queries, generate_ref_response=True, max_new_tokens=8)
    for answers in (ours, reference):
        assert [a[: len(q)].tolist() for a, q in zip(answers, queries, strict=True)] == [
            q.tolist() for q in queries
        ]
    with torch.no_grad():  # a reference that can say one thing only
        head = trainer.ref_model.pretrained_model.transformer.ln_f
        embeddings = trainer.ref_model.pretrained_model.lm_head.weight
        head.weight.zero_()
        head.bias.copy_(1000 * embeddings[50] / embeddings[50].norm() ** 2)
        embeddings[50] *= 10
    settings = {"generate_ref_response": True, "max_new_tokens": 8, "return_prompt": False}
    ours, reference = trainer.generate(queries, **settings)
    assert all(set(a.tolist()) == {50} for a in reference)
    assert not any(set(a.tolist()) == {50} for a in ours)
    one, of_reference = trainer.generate(queries[0], **settings)
    assert one.shape[0] == of_reference.shape[0] == 1


def test_the_learning_rate_scheduler_moves_once_per_step(path):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = PPOTrainer(
        PPOConfig(batch_size=4, mini_batch_size=2),
        model,
        None,
        tokenizer,
        None,  # TRL's order: dataset, optimizer, data_collator, num_shared_layers, lr_scheduler
        optimizer,
        columns,
        1,
        scheduler,
    )
    assert trainer.shares_trunk
    rates = [step(trainer)["ppo/learning_rate"] for _ in range(3)]
    assert rates == pytest.approx([0.1, 0.05, 0.025])


def test_a_length_sampler_draws_each_length_of_its_range_and_nothing_else(unchanged_random_state):
    sampler = LengthSampler(2, 6)
    drawn = [sampler() for _ in range(400)]
    counts = [drawn.count(n) for n in range(2, 6)]
    assert sum(counts) == 400 and min(counts) > 60
    assert [LengthSampler(2, 6)() for _ in range(3)] == [drawn[0]] * 3
    assert drawn != [LengthSampler(2, 6, seed=1)() for _ in range(400)]
    with pytest.raises(ModelError, match=r"LengthSampler\(5, 5\)"):
        LengthSampler(5, 5)


# Uploading -----------------------------------------------------------------------------------


class Hub:
    """Stands for huggingface_hub.HfApi."""

    uploads: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
        assert exist_ok
        return type("Repo", (), {"repo_id": repo_id if "/" in repo_id else f"me/{repo_id}"})

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
        files = sorted(p.name for p in Path(folder_path).iterdir())
        Hub.uploads.append({"repo": repo_id, "files": files, "token": self.token})
        return f"https://hub/{repo_id}/commit/{commit_message}"


def test_a_policy_is_uploaded_with_its_value_head_and_tokenizer(path, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "uploads", [])
    trainer = make_trainer(path)
    address = trainer.push_to_hub("me/tuned", commit_message="done", token="secret")
    assert address == "https://hub/me/tuned/commit/done"
    trainer.model.push_to_hub("bare")
    trainer.model.save_pretrained(tmp_path / "kept", push_to_hub=True)
    trained, model, kept = Hub.uploads
    needed = {"config.json", "model.safetensors", "value_head.safetensors"}
    assert needed | {"tokenizer.json"} <= set(trained["files"])
    assert trained["token"] == "secret" and model["token"] is None
    assert needed <= set(model["files"]) and model["repo"] == "me/bare"
    assert needed <= set(kept["files"]) and kept["repo"] == "me/kept"
    assert (tmp_path / "kept" / "config.json").exists()


# What is not supported -----------------------------------------------------------------------


@pytest.mark.parametrize("name", config_module.NOT_SUPPORTED)
def test_a_setting_of_trls_that_is_not_supported_is_named_with_the_reason(name):
    with pytest.raises(TutorialError) as error:
        PPOConfig(batch_size=8, mini_batch_size=8, **{name: 8})
    message = str(error.value)
    assert message.startswith(f"PPOConfig.{name} is not supported: ") and "\n" not in message
    assert message.endswith(config_module.NOT_SUPPORTED[name])


ASKS_FOR_NOTHING = [None, False, 0, 0.0, "", {}, []]


@pytest.mark.parametrize("name", [*config_module.NOT_SUPPORTED, *config_module.WITHOUT_EFFECT])
def test_a_setting_of_trls_that_asks_for_nothing_is_taken(name, caplog):
    plain = PPOConfig(batch_size=8, mini_batch_size=8)
    with caplog.at_level("INFO", "rlhf_tutorial"):
        for nothing in ASKS_FOR_NOTHING:
            assert PPOConfig(batch_size=8, mini_batch_size=8, **{name: nothing}) == plain
    assert not caplog.records


@pytest.mark.parametrize("name", config_module.WITHOUT_EFFECT)
def test_a_setting_of_trls_without_effect_is_taken_and_logged(name, caplog):
    with caplog.at_level("INFO", "rlhf_tutorial"):
        config = PPOConfig(batch_size=8, mini_batch_size=8, **{name: True})
    assert config == PPOConfig(batch_size=8, mini_batch_size=8)
    assert caplog.messages == [f"{name}=True is left out: {config_module.WITHOUT_EFFECT[name]}"]


def test_the_old_name_of_the_mini_batchs_size_goes_before_it(caplog):
    with caplog.at_level("INFO", "rlhf_tutorial"):
        config = PPOConfig(batch_size=8, mini_batch_size=8, forward_batch_size=2)
    assert config.mini_batch_size == 2 and "forward_batch_size=2 is taken as" in caplog.text
    assert PPOConfig(batch_size=8, mini_batch_size=4, forward_batch_size=None).mini_batch_size == 4


def test_a_mini_batch_size_that_is_not_set_is_asked_for():
    with pytest.raises(TutorialError, match="is more than batch_size 16: set mini_batch_size"):
        PPOConfig(batch_size=16)


def test_the_size_of_an_update_can_be_set_to_what_it_is():
    config = PPOConfig(batch_size=8, mini_batch_size=2, gradient_accumulation_steps=2)
    config.backward_batch_size = 4
    with pytest.raises(TutorialError, match="backward_batch_size is set to 8, and it is mini"):
        config.backward_batch_size = 8
    assert config.backward_batch_size == 4


@pytest.mark.parametrize("name", ["max_grad_norm", "score_clip"])
def test_a_limit_of_0_is_none_and_says_so(name, caplog):
    with caplog.at_level("INFO", "rlhf_tutorial"):
        config = PPOConfig(**{name: 0})
    assert getattr(config, name) is None and name in caplog.text


def test_0_is_taken_where_it_is_a_number_like_others():
    zeros = {"target_kl": 0, "cliprange": 0, "cliprange_value": 0.0}
    assert PPOConfig(**zeros).cliprange == 0
    assert PPOConfig(horizon=0, adap_kl_ctrl=False).horizon == 0
    with pytest.raises(TutorialError, match="PPOConfig.horizon is 0"):
        PPOConfig(horizon=0)


def test_a_configs_settings_are_there_as_trl_had_them():
    config = PPOConfig(batch_size=8, mini_batch_size=2, gradient_accumulation_steps=2)
    assert config.to_dict()["batch_size"] == 8 and config.backward_batch_size == 4


def test_arguments_of_the_model_that_ask_for_nothing_are_taken(path, caplog):
    load = AutoModelForCausalLMWithValueHead.from_pretrained
    nothing = {name: None for name in models_module.NOT_SUPPORTED} | {"load_in_8bit": False}
    plain, same = load(path), load(pretrained_model_name_or_path=path, **nothing)
    for (name, a), b in zip(plain.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b), name
    with caplog.at_level("INFO", "rlhf_tutorial"):
        load(path, summary_dropout_prob=0.1)
    assert "summary_dropout_prob=0.1 is left out" in caplog.text
    load(path, trust_remote_code=True)  # which needs no code of its own


@pytest.mark.parametrize("name", sorted({*models_module.NOT_SUPPORTED} - {"trust_remote_code"}))
def test_an_argument_of_the_model_that_is_not_supported_is_named_with_the_reason(name, path):
    with pytest.raises(ModelError, match=f"^{name} is not supported: ") as error:
        AutoModelForCausalLMWithValueHead.from_pretrained(path, **{name: "asked"})
    assert "\n" not in str(error.value)


def test_arguments_of_the_trainer_that_do_not_fit_are_refused_in_one_line(path):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token
    reference = create_reference_model(model)
    config = PPOConfig(batch_size=4, mini_batch_size=4)
    for arguments, message in (
        ({"training_data_collator": columns}, "training_data_collator is not supported"),
        ({"ref_model": reference, "num_shared_layers": 1}, "num_shared_layers is for"),
        ({"model": model.pretrained_model}, "model is a GPT2LMHeadModel: wrap it"),
        ({"ref_model": reference.pretrained_model}, "ref_model is a GPT2LMHeadModel: wrap it"),
        ({"ref_model": model}, "ref_model holds weights of the policy that are trained"),
        ({"optimizer": torch.optim.Adam(reference.parameters())}, "the optimizer has no weight of"),
    ):
        with pytest.raises(ModelError, match=message) as error:
            PPOTrainer(config, **({"model": model, "tokenizer": tokenizer} | arguments))
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=r"queries\[0\] has shape \(1, 3\)"):
        make_trainer(path).generate(torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ModelError, match="pattern is not supported"):
        create_reference_model(model, 1, pattern="transformer.h.{layer}")


class Pairs(torch.utils.data.Dataset):
    """Rows that are tuples, as TRL's own tests have them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(3, 5 + i), torch.arange(5, 8)


@pytest.mark.parametrize("collator", [{}, {"data_collator": None}])
def test_rows_that_are_tuples_come_as_a_tuple_of_columns(path, collator):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    config = PPOConfig(batch_size=4, mini_batch_size=4)
    trainer = PPOTrainer(config, model, tokenizer=tokenizer, dataset=Pairs(), **collator)
    ((queries, responses),) = trainer.dataloader
    assert sorted(map(len, queries)) == [2, 3, 4, 5]
    assert [response.tolist() for response in responses] == [[5, 6, 7]] * 4
    trainer.step(list(queries), list(responses), [1.0, 0.0, 1.0, 0.0])
    plain = PPOTrainer(config, model, tokenizer=tokenizer, dataset=["a", "b", "c", "d"])
    assert sorted(*plain.dataloader) == ["a", "b", "c", "d"]


def test_weights_that_transformers_loads_in_bfloat16_are_told_of(path, tmp_path, caplog):
    """Since version 5 it takes the checkpoint's own dtype, where scripts of TRL's got float32."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(path).bfloat16().save_pretrained(tmp_path)
    tokenizer, config = AutoTokenizer.from_pretrained(path), PPOConfig()
    for given, told in ((AutoModelForCausalLM.from_pretrained(tmp_path), True), (tmp_path, False)):
        caplog.clear()
        model = AutoModelForCausalLMWithValueHead.from_pretrained(given)
        PPOTrainer(config, model, tokenizer=tokenizer)
        assert ("weights are bfloat16, in which most of" in caplog.text) is told


def test_padding_and_queries_among_what_is_trained_on_are_told_of(path, caplog):
    trainer = make_trainer(path)
    pad, size = trainer.tokenizer.pad_token_id, trainer.config.batch_size
    query, answer = torch.tensor([5, 6, 7]), torch.tensor([8, 9])
    once, twice = torch.tensor([pad]), torch.tensor([pad, pad])
    for one_query, one_answer, told in (
        (query, torch.cat([answer, once]), ""),
        (torch.cat([once, query]), answer, ""),
        (torch.cat([twice, query]), answer, "queries[0] begins or ends with padding"),
        (query, torch.cat([answer, twice]), "responses[0] begins or ends with padding"),
        (query, torch.cat([query, answer]), "each response begins with its query"),
    ):
        caplog.clear()
        trainer.step([one_query] * size, [one_answer] * size, [float(i) for i in range(size)])
        (message,) = caplog.messages or [""]
        assert message.startswith(told) and bool(message) is bool(told)


def test_a_tracker_that_is_not_installed_is_an_error(path):
    """accelerate would leave it out, and the run would not be logged."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token
    config = PPOConfig(log_with="comet_ml", batch_size=4, mini_batch_size=4)
    refused = pytest.raises(ModelError, match="log_with is 'comet_ml', which is not installed")
    with pytest.warns(UserWarning, match="no supported trackers"), refused:
        PPOTrainer(config, model, tokenizer=tokenizer)


def test_the_value_head_can_be_drawn_as_in_trl(path):
    normal = AutoModelForCausalLMWithValueHead.from_pretrained(
        path, v_head_init_strategy="normal", v_head_initializer_range=3.0
    )
    assert normal.v_head.bias.item() == 0
    assert 1.5 < normal.v_head.weight.std().item() < 6
    with pytest.raises(ModelError, match="v_head_init_strategy is 'uniform'"):
        AutoModelForCausalLMWithValueHead.from_pretrained(path, v_head_init_strategy="uniform")


def test_torch_dtype_is_taken_as_dtype(path):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(path, torch_dtype=torch.bfloat16)
    assert model.pretrained_model.dtype is torch.bfloat16


def test_a_model_that_projects_its_last_hidden_state_gets_a_head_of_that_width():
    """As OPT-350m does."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 16, "vocab_size": 30}
    config = OPTConfig(
        **sizes, num_hidden_layers=1, num_attention_heads=2, do_layer_norm_before=False
    )
    model = AutoModelForCausalLMWithValueHead.from_pretrained(OPTForCausalLM(config))
    _, _, values = model(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long))
    assert model.v_head.in_features == 8 and values.shape == (1, 3)


def test_the_settings_can_come_from_the_command_line():
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(
        ["--learning_rate", "1e-4", "--batch_size", "16", "--mini_batch_size", "4"]
        + ["--use_score_scaling", "--log_with", "wandb", "--score_clip", "2", "--target", "5"]
    )
    assert (config.learning_rate, config.batch_size, config.score_clip) == (1e-4, 16, 2.0)
    assert config.use_score_scaling and config.log_with == "wandb" and config.target == 5
    assert config.max_grad_norm is None and config.accelerator_kwargs == {}


@pytest.mark.parametrize(("file", "longest"), [("math.py", 24), ("trainer.py", 75)])
def test_functions_that_are_read_beside_the_equations_stay_short(file, longest):
    """Lines with docstrings: an equation on half a screen, `step` with its stages on one."""
    import ast

    tree = ast.parse((Path(config_module.__file__).parent / file).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    functions = [f for f in functions if "overload" not in map(ast.unparse, f.decorator_list)]
    assert len(functions) > 10
    for node in functions:
        assert node.end_lineno - node.lineno + 1 <= longest, node.name
        assert ast.get_docstring(node), node.name
