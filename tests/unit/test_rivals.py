"""The methods beside PPO see the course's prompts, judge and layers, and count what they sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.errors import DataError
from rlhf_tutorial.reward import rule_reward
from rlhf_tutorial.studies import rivals
from rlhf_tutorial.studies.looks import experiment, look_at
from rlhf_tutorial.studies.rivals import (
    best_of_n,
    best_of_n_kl,
    sampled_pairs,
    train_dpo,
    train_online,
    train_ppo,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(load_preset("tiny"), tmp_path_factory.mktemp("rivals"))


def online(method: str) -> Callable[..., Any]:
    def train(run: Run, learning_rate: float, reward: Any = rule_reward, **settings: Any) -> Any:
        sizes = {"steps": 2, "beta": 0.1, "batch_size": 8}
        return train_online(method, run, reward, learning_rate=learning_rate, **sizes, **settings)

    return train


def dpo(run: Run, learning_rate: float, **settings: Any) -> Any:
    pairs = sampled_pairs(run, rule_reward, limit=12)
    return train_dpo(run, pairs, learning_rate=learning_rate, batch_size=4, **settings)


METHODS = {"rloo": online("rloo"), "grpo": online("grpo"), "dpo": dpo}


def changed(run: Run, trained: Any) -> set[str]:
    """Names of the weights that differ from the untouched policy's."""
    before = run.load_policy().pretrained_model.state_dict()
    after = trained.model.pretrained_model.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("method", METHODS)
def test_without_a_learning_rate_the_policy_stays_what_it_was(run: Run, method: str) -> None:
    """So what comes back is the policy, with nothing of TRL's left in it."""
    state = torch.get_rng_state()
    trained = METHODS[method](run, 0.0)
    assert not changed(run, trained)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state"
    ids = torch.arange(5).unsqueeze(0) + 10
    same = run.load_policy().pretrained_model(ids).logits
    torch.testing.assert_close(trained.model.pretrained_model(ids).logits, same)


@pytest.mark.parametrize("method", METHODS)
def test_the_preset_s_layers_are_trained_and_no_others(run: Run, method: str) -> None:
    k = run.preset.num_shared_layers
    names = changed(run, METHODS[method](run, 1e-3))
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in names if ".layers." in name}
    assert layers and min(layers) >= k
    assert not any("embed" in name for name in names)


@pytest.mark.parametrize("method", [*METHODS, "ppo"])
def test_looks_on_the_way_see_every_step_and_change_nothing(run: Run, method: str) -> None:
    queries, seen = run.queries("test").select(range(4)), []

    def after(step: int, policy: Any) -> None:
        at = look_at(policy, run.load_policy(), run, {"first": rule_reward}, queries)
        seen.append((step, np.mean(at["kl"])))

    def train(**settings: Any) -> Any:
        if method == "ppo":
            return train_ppo(run, rule_reward, steps=2, **settings)
        return METHODS[method](run, 1e-3, **settings)

    looked, unseen = train(after=after), train()
    weights = (t.model.pretrained_model.state_dict() for t in (looked, unseen))
    assert all(torch.equal(*two) for two in zip(*(w.values() for w in weights), strict=True))
    assert [set(row) for row in looked.log] == [set(row) for row in unseen.log]
    steps = 2 if method != "dpo" else len([row for row in unseen.log if "loss" in row])
    assert [step for step, _ in seen] == list(range(1, steps + 1))
    at = look_at(looked.model, run.load_policy(), run, {"first": rule_reward}, queries)
    assert np.mean(at["kl"]) == pytest.approx(seen[-1][1], abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_rate_falls_to_0_where_the_preset_says_so(run: Run, method: str) -> None:
    assert {row["learning_rate"] for row in METHODS[method](run, 1e-3).log if "loss" in row} == {
        1e-3
    }
    decaying = Run(replace(run.preset, learning_rate_decays=True), run.folder / "decaying")
    rates = [row["learning_rate"] for row in METHODS[method](decaying, 1e-3).log if "loss" in row]
    assert rates == pytest.approx(np.linspace(1e-3, 0, len(rates) + 1)[:-1])


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_quarters_gives_the_gradient_of_the_whole(
    run: Run, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(shared: Callable[..., dict[str, Any]]) -> list[dict[str, float]]:
        monkeypatch.setattr(rivals, "shared_arguments", shared)
        return [row for row in METHODS[method](run, 1e-3).log if "loss" in row]

    told_to_all = rivals.shared_arguments

    def in_quarters(*args: Any) -> dict[str, Any]:
        # In float32: bfloat16 rounds a loss by more than the 1e-4 below.
        return told_to_all(*args) | {"bf16": False}

    def at_once(*args: Any) -> dict[str, Any]:
        told = in_quarters(*args)
        size = told["per_device_train_batch_size"] * told["gradient_accumulation_steps"]
        return told | {"per_device_train_batch_size": size, "gradient_accumulation_steps": 1}

    parts, whole = log(in_quarters), log(at_once)
    assert len(parts) == len(whole) >= 2
    for part, all_of_it in zip(parts, whole, strict=True):
        assert part["grad_norm"] == pytest.approx(all_of_it["grad_norm"], rel=1e-3)
        assert part["loss"] == pytest.approx(all_of_it["loss"], abs=1e-4)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_the_judge_gets_the_course_s_questions_and_whole_groups(run: Run, method: str) -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def reward(queries: list[str], responses: list[str]) -> list[float]:
        seen.append((list(queries), list(responses)))
        return rule_reward(queries, responses)

    trained = online(method)(run, 1e-3, reward)
    assert trained.answers == 16 == sum(len(queries) for queries, _ in seen)
    questions = set(run.queries()["query"][:])
    for queries, responses in seen:
        assert set(queries) <= questions
        assert all(queries.count(query) == 4 for query in queries), "four answers to each"
        assert all(isinstance(answer, str) and "<|im" not in answer for answer in responses)
    rewards = [row["reward"] for row in trained.log if "reward" in row]
    assert rewards == pytest.approx([np.mean(rule_reward(*batch)) for batch in seen], abs=1e-5)
    first = next(row for row in trained.log if "kl" in row)
    assert first["kl"] == pytest.approx(0, abs=1e-6), "the reference is the untouched policy"


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_two_updates_a_batch_sample_no_more_answers(run: Run, method: str) -> None:
    judged: list[str] = []

    def reward(queries: list[str], responses: list[str]) -> list[float]:
        judged.extend(responses)
        return rule_reward(queries, responses)

    trained = online(method)(run, 1e-3, reward, num_iterations=2)
    assert trained.answers == len(judged) == 16
    assert len([row for row in trained.log if "loss" in row]) == 4


def test_the_text_that_trl_tokenises_gives_the_course_s_tokens(run: Run) -> None:
    tokenizer, queries = run.load_tokenizer(), run.queries()
    for text, ids in zip(queries["query"][:8], queries["input_ids"][:8], strict=True):
        rendered = run.preset.template.bind(tokenizer).render([("Human", text)])
        assert tokenizer(rendered)["input_ids"] == ids.tolist()


def test_sampled_pairs_put_the_better_answer_first(run: Run) -> None:
    tokenizer, template = run.load_tokenizer(), run.preset.template
    pairs = sampled_pairs(run, rule_reward, limit=12)
    prompts = [ids.tolist() for ids in run.queries()["input_ids"][:12]]
    assert 0 < len(pairs) <= 12
    for pair in pairs:
        assert pair["prompt_ids"] in prompts
        good, bad = (
            template.bind(tokenizer).decode([torch.tensor(pair[f"{side}_ids"])])
            for side in ("chosen", "rejected")
        )
        assert rule_reward([""], good) > rule_reward([""], bad)
        assert max(map(len, (pair["chosen_ids"], pair["rejected_ids"]))) <= 16
    assert pairs == sampled_pairs(run, rule_reward, limit=12)
    assert pairs != sampled_pairs(run, rule_reward, limit=12, seed=1)
    assert sampled_pairs(run, lambda queries, _: [0.5] * len(queries), limit=12) == []


def logprob(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Of the answer's tokens, the plain way."""
    with torch.no_grad():
        logits = model.pretrained_model(torch.tensor([prompt + answer])).logits[0, :-1]
    logprobs = logits.log_softmax(-1)[torch.arange(len(logits)), torch.tensor(prompt + answer)[1:]]
    return float(logprobs[-len(answer) :].sum())


def test_dpo_raises_the_margin_of_the_very_tokens_that_it_was_given(run: Run) -> None:
    pairs = sampled_pairs(run, rule_reward, limit=12)
    trained = train_dpo(
        run, pairs, learning_rate=3e-3, epochs=4, batch_size=4, answers=24, seconds=1e6
    )
    assert trained.answers == 24 and trained.seconds > 1e6
    first = trained.log[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5), "at the start: the reference"
    untouched = run.load_policy()

    def margin(model: Any) -> float:
        return float(
            np.mean(
                [
                    logprob(model, p["prompt_ids"], p["chosen_ids"])
                    - logprob(model, p["prompt_ids"], p["rejected_ids"])
                    for p in pairs
                ]
            )
        )

    assert margin(trained.model) > margin(untouched) + 1
    # No end was added to answers that were cut off: the first batch's log-probabilities say so.
    mean = np.mean([logprob(untouched, p["prompt_ids"], p["chosen_ids"]) for p in pairs])
    assert sum("logps/chosen" in row for row in trained.log) == 4 * -(-len(pairs) // 4)
    untrained = train_dpo(run, pairs, learning_rate=0.0, batch_size=len(pairs)).log[0]
    assert untrained["logps/chosen"] == pytest.approx(mean, rel=2e-3)  # perhaps in bfloat16
    with pytest.raises(DataError, match="no pairs"):
        train_dpo(run, [], learning_rate=1e-3)


def test_ppo_is_the_course_s_own(run: Run) -> None:
    asked: list[int] = []

    def reward(queries: list[str], responses: list[str]) -> list[float]:
        asked.append(len(responses))
        return rule_reward(queries, responses)

    trained = train_ppo(run, reward, steps=6, seed=3)
    assert asked == [16] * 6, "not a step more than asked, though the passes hold eight"
    queries = run.queries("test").select(range(2))
    same = experiment(run, {"first": rule_reward}, queries, steps=6, seed=3)
    assert [round(row["reward"], 4) for row in trained.log] == [s["score"] for s in same["steps"]]
    assert trained.answers == 6 * 16


def test_best_of_n_takes_the_best_of_what_it_drew(run: Run) -> None:
    queries = run.queries("test").select(range(6))
    answers, scores = best_of_n(run, rule_reward, queries, 5)
    assert np.shape(scores) == (5, 6)
    assert rule_reward(queries["query"][:], answers) == pytest.approx(np.max(scores, axis=0))
    assert best_of_n(run, rule_reward, queries, 2)[1] == scores[:2]
    assert best_of_n(run, rule_reward, queries, 2, seed=1)[1] != scores[:2]


def test_the_kl_of_best_of_n_is_bounded_as_stated() -> None:
    """Exactly, for a distribution over a hundred answers, no two of the same score."""
    p = np.random.default_rng(0).dirichlet(np.ones(100))
    below = np.concatenate([[0], p.cumsum()])
    for n in (1, 2, 4, 16):
        best = np.diff(below**n)
        kl = float((best * np.log(best / p)).sum())
        assert kl <= best_of_n_kl(n) + 1e-12
        assert kl == pytest.approx(best_of_n_kl(n), rel=0.15)
    assert best_of_n_kl(1) == 0


def test_a_look_at_a_policy_s_own_reference_finds_no_distance(run: Run) -> None:
    from rlhf_tutorial import create_reference_model

    policy, queries = run.load_policy(), run.queries("test").select(range(4))
    at = look_at(policy, create_reference_model(policy), run, {"first": rule_reward}, queries)
    assert at["kl"] == pytest.approx([0.0] * 4, abs=1e-4)
    assert at == look_at(policy, policy, run, {"first": rule_reward}, queries)
