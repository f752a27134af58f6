"""Experiments that look at the policy while it trains: the looks are right and disturb nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.evaluation.measures import text_measures
from rlhf_tutorial.evaluation.sampling import sample_answers
from rlhf_tutorial.reward import rule_of_variety, rule_reward
from rlhf_tutorial.studies.looks import experiment, levels, look, look_at, progress

pytestmark = pytest.mark.slow

JUDGES = {"first": rule_reward, "second": rule_of_variety}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(load_preset("tiny"), tmp_path_factory.mktemp("experiment"))


def train(run: Run, **settings: Any) -> dict[str, Any]:
    queries = run.queries("test").select(range(6))
    return experiment(run, JUDGES, queries, examples=3, **settings)


def test_it_trains_as_long_as_asked_and_looks_where_asked(run: Run) -> None:
    result = train(run, steps=6, looks=[2, 4], init_kl_coef=0.5)
    assert result["settings"] == {"init_kl_coef": 0.5}
    assert len(result["steps"]) == 6, "more than the four of an epoch"
    assert [at["step"] for at in result["looks"]] == [0, 2, 4, 6]
    assert result["steps"][0]["kl_coef"] == 0.5
    for at in result["looks"]:
        assert len(at["scores"]["first"]) == len(at["scores"]["second"]) == len(at["kl"]) == 6
        assert len(at["answers"]) == 3


def test_looks_do_not_disturb_the_training(run: Run) -> None:
    with_looks = train(run, steps=4, looks=[1, 2, 3])
    assert with_looks["steps"] == train(run, steps=4)["steps"]


def test_the_first_judge_is_the_reward_unless_another_is_given(run: Run) -> None:
    asked: list[int] = []

    def reward(queries: list[str], responses: list[str]) -> list[float]:
        asked.append(len(responses))
        return [0.25] * len(responses)

    result = train(run, steps=2, reward=reward)
    assert asked == [16, 16]
    assert [step["score"] for step in result["steps"]] == [0.25, 0.25]
    assert result["looks"][0]["scores"] == train(run, steps=1)["looks"][0]["scores"]


def test_a_look_scores_and_measures_its_answers(run: Run) -> None:
    trainer = run.make_trainer()
    queries = run.queries("test").select(range(6))
    seen = look(trainer, run, JUDGES, queries, examples=6)
    texts = queries["query"][:]
    for name, judge in JUDGES.items():
        assert seen["scores"][name] == pytest.approx(judge(texts, seen["answers"]), abs=1e-4)
    assert seen["measures"] == text_measures(texts, seen["answers"])
    template = run.load_template()
    drawn = sample_answers(
        trainer.policy, template, queries["input_ids"][:], max_new_tokens=run.preset.max_new_tokens,
        temperature=run.temperature, seed=trainer.config.seed,
        bf16=trainer.accelerator.mixed_precision == "bf16",
    )  # fmt: skip
    assert seen["answers"] == drawn.texts
    assert seen["ended"] == [set(template.eos_token_ids) >= {int(r[-1])} for r in drawn.responses]
    assert seen["kl"] == [0.0] * 6, "policy and reference are one model before the first step"


def test_a_look_says_in_which_arithmetic_it_was_taken(run: Run) -> None:
    queries, policy = run.queries("test").select(range(2)), run.load_policy()
    for bf16 in (False, True):
        assert look_at(policy, policy, run, JUDGES, queries, bf16=bf16)["bf16"] is bf16
    trainer = run.make_trainer()
    found = look(trainer, run, JUDGES, queries)["bf16"]
    assert found is (trainer.accelerator.mixed_precision == "bf16")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_kl_of_a_look_is_the_log_ratio_of_its_answers(
    temperature: float, tmp_path: Path
) -> None:
    """Against transformers alone, an answer at a time, without padding."""
    from rlhf_tutorial.ppo.rollout import generate_responses

    preset = load_preset("tiny")
    run = Run(replace(preset, ppo={**preset.ppo, "temperature": temperature}), tmp_path)
    precise = {"mixed_precision": "no", "cpu": True}
    trainer = run.make_trainer(learning_rate=3e-3, accelerator_kwargs=precise)
    batch = next(iter(trainer.dataloader))
    responses = trainer.generate(batch["input_ids"], return_prompt=False, max_new_tokens=6)
    trainer.step(batch["input_ids"], responses, [float(i % 3) for i in range(16)])
    queries = run.queries("test").select(range(6))
    seen = look(trainer, run, JUDGES, queries)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn, _ = generate_responses(
            trainer.model,
            queries["input_ids"][:],
            pad_token_id=trainer.tokenizer.pad_token_id,
            eos_token_id=run.preset.template.bind(trainer.tokenizer).eos_token_ids,
            max_new_tokens=run.preset.max_new_tokens,
            temperature=temperature,
        )
    for query, response, kl in zip(queries["input_ids"][:], drawn, seen["kl"], strict=True):
        ids = torch.cat([query, response])[None]
        logprobs = []
        for model in (trainer.model, trainer.ref_model):
            with torch.no_grad():
                logits = model.pretrained_model(ids).logits[0, len(query) - 1 : -1]
            logprobs.append(
                (logits / temperature).log_softmax(-1).gather(1, response[:, None]).sum()
            )
        assert kl == pytest.approx((logprobs[0] - logprobs[1]).item(), abs=2e-4)
    assert any(abs(kl) > 0.01 for kl in seen["kl"])


def test_the_callers_random_state_is_left_alone(run: Run, unchanged_random_state: None) -> None:
    train(run, steps=1)


def test_ptx_reads_the_chosen_replies_of_the_training_split(run: Run, tmp_path: Path) -> None:
    replies = run.chosen_replies()
    tokenizer = run.load_tokenizer()
    assert len(replies) == len(run.preferences("train"))
    context, reply = replies[3]
    text = run.preferences("train")["chosen"][3]
    assert tokenizer.decode(reply[:-1]).strip() in text
    assert reply[-1] in run.preset.template.bind(tokenizer).eos_token_ids or len(reply) == 64
    assert (
        tokenizer.decode(context)
        .strip()
        .endswith(run.preset.template.bind(tokenizer).render([("Human", "x")]).strip()[-9:])
    )
    assert all(1 <= len(r) <= 64 and 1 <= len(c) <= 64 for c, r in replies)
    result = train(run, steps=2, ptx_coef=1.0)
    assert result["settings"] == {"ptx_coef": 1.0}


def test_levels_are_what_was_there_and_progress_what_was_added() -> None:
    scores = [[1.0, 2.0, 3.0], [2.0, 2.0, 5.0]]
    looks = [
        {"step": i, "kl": [float(i)] * 3, "measures": {}, "scores": {"judge": of}}
        for i, of in enumerate(scores)
    ]
    first, last = levels({"looks": looks})
    assert first == {"step": 0, "kl": 0.0, "judge": 2.0, "judge_error": pytest.approx(3**-0.5)}
    assert (last["judge"], last["judge_error"]) == (3.0, pytest.approx(1.0))
    assert progress({"looks": looks})[1]["judge"] == last["judge"] - first["judge"]
