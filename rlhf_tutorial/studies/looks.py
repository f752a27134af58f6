"""One training with looks at held-out prompts along the way: what the studies are made of."""

from __future__ import annotations

import gc
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..device import supports_bf16
from ..evaluation.measures import text_measures
from ..evaluation.sampling import Answers, sample_answers
from ..models import AutoModelForCausalLMWithValueHead, shares_trunk
from ..ppo import PPOTrainer
from ..ppo.math import logprobs_from_logits
from ..ppo.rollout import collate
from ..run import Run
from ..scores import Reward, checked_scores
from ..training import batches_of, train

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_SIZE = 32
"""Queries at a time, when a policy is looked at."""


def experiment(
    run: Run,
    judges: Mapping[str, Reward],
    queries: Dataset,
    *,
    reward: Reward | None = None,
    steps: int | None = None,
    looks: Collection[int] = (),
    examples: int = 0,
    **ppo: Any,
) -> dict[str, Any]:
    """Train the run's policy with other settings of PPO, and look at it on the way.

    Nothing is left in the run's folder but the prompts.

    Args:
        judges: score the answers at each look, by name.
        queries: held-out prompts; all of them are answered at each look.
        reward: what PPO maximises; by default the first of `judges`.
        steps: where to stop; by default after the preset's epochs. With more, prompts come again.
        looks: steps after which to look. Before the first and after the last it looks in any case.
        examples: of how many answers to keep the text at each look.
        ppo: fields of `PPOConfig` in place of the preset's.

    Returns:
        Ready for JSON: "settings" (`ppo`), "seconds" (of the training, without the looks), "steps"
        (a row of numbers each), "queries" (those of the examples) and "looks" (see `look`, and
        "step").
    """
    from tqdm import tqdm

    gc.collect()  # a trainer refers to itself, so only this frees the one of the training before
    reward = reward or next(iter(judges.values()))
    trainer = run.make_trainer(steps=steps, **ppo)
    epoch = len(batches_of(trainer))
    steps = steps or run.preset.epochs * epoch

    def look_after(step: int) -> dict[str, Any]:
        return {"step": step, **look(trainer, run, judges, queries, examples)}

    log, looked, seconds = [], [look_after(0)], 0.0
    training = train(
        trainer,
        reward,
        run.preset.template,
        epochs=-(-steps // epoch),
        max_new_tokens=run.preset.max_new_tokens,
    )
    desc = " ".join(f"{name}={value}" for name, value in ppo.items())
    with tqdm(total=steps, desc=desc, bar_format="{desc}: {n}/{total} steps, {elapsed}") as bar:
        for step in range(1, steps + 1):
            start = time.perf_counter()
            stats = next(training)
            seconds += time.perf_counter() - start
            log.append(
                {
                    "score": round(float(stats["ppo/mean_scores"]), 4),
                    "kl": round(float(stats["objective/kl"]), 4),
                    "kl_coef": float(stats["objective/kl_coef"]),
                }
            )
            bar.update()
            if step in looks or step == steps:
                looked.append(look_after(step))
    return {
        "settings": ppo,
        "seconds": round(seconds, 1),
        "steps": log,
        "queries": queries["query"][:examples],
        "looks": looked,
    }


def progress(
    result: Mapping[str, Any], zero: Mapping[str, np.ndarray] | None = None
) -> list[dict[str, float]]:
    """A row per look: what was gained since the first one, and at what distance.

    Args:
        zero: by judge, what to measure the gain of each prompt from, in place of the first look.

    Returns:
        "step", "kl" (its mean), the four text measures, and for each judge `<judge>` (its mean
        score less that of the first look), `<judge>_error` (the standard error of this difference,
        paired by prompt) and `<judge>_std` (the standard deviation of the first look's scores).
    """
    first, rows = result["looks"][0], []
    for at in result["looks"]:
        row = {"step": at["step"], "kl": float(np.mean(at["kl"])), **at["measures"]}
        for judge, scores in at["scores"].items():
            gain = np.subtract(scores, zero[judge] if zero else first["scores"][judge])
            row[judge] = float(gain.mean())
            row[f"{judge}_error"] = float(gain.std(ddof=1) / len(gain) ** 0.5)
            row[f"{judge}_std"] = float(np.std(first["scores"][judge], ddof=1))
        rows.append(row)
    return rows


def levels(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """A row per look: the mean scores themselves, where `progress` has what was gained.

    Returns:
        "step", "kl" (its mean), and for each judge `<judge>` (its mean score) and `<judge>_error`
        (the standard error over prompts).
    """
    rows = []
    for at in result["looks"]:
        row = {"step": at["step"], "kl": float(np.mean(at["kl"]))}
        for judge, scores in at["scores"].items():
            row[judge] = float(np.mean(scores))
            row[f"{judge}_error"] = float(np.std(scores, ddof=1) / len(scores) ** 0.5)
        rows.append(row)
    return rows


def look(
    trainer: PPOTrainer,
    run: Run,
    judges: Mapping[str, Reward],
    queries: Dataset,
    examples: int = 0,
) -> dict[str, Any]:
    """How the policy in training answers held-out prompts: see `look_at`.

    The answers are drawn by the trainer's seed, the same at every look, in the trainer's precision.
    The training's own random draws are left alone.
    """
    return look_at(
        trainer.policy,
        trainer.ref_model,
        run,
        judges,
        queries,
        seed=trainer.config.seed,
        examples=examples,
        bf16=trainer.accelerator.mixed_precision == "bf16",
    )


def look_at(
    policy: AutoModelForCausalLMWithValueHead,
    reference: AutoModelForCausalLMWithValueHead,
    run: Run,
    judges: Mapping[str, Reward],
    queries: Dataset,
    *,
    seed: int = 0,
    examples: int = 0,
    bf16: bool | None = None,
) -> dict[str, Any]:
    """How a policy answers held-out prompts.

    Args:
        examples: of how many answers to give the text.
        bf16: compute in bfloat16; by default where the run's device has it in hardware.

    Returns:
        "scores" (by judge, one number per query), "kl" (one per query: the log-ratio of policy to
        reference of the drawn answer, whose mean is the KL), "measures" (`text_measures`),
        "answers" and "ended" (the first `examples`, and which of them ended by themselves), and
        "bf16": two trainings in different arithmetic draw other answers from the first step on, so
        a control belongs in that of what it is compared with.
    """
    bf16 = supports_bf16(run.device) if bf16 is None else bf16
    template, texts, ids = run.load_template(), queries["query"][:], queries["input_ids"][:]
    answers = sample_answers(
        policy,
        template,
        ids,
        max_new_tokens=run.preset.max_new_tokens,
        temperature=run.temperature,
        batch_size=BATCH_SIZE,
        seed=seed,
        bf16=bf16,
    )
    pad_token_id = template.tokenizer.pad_token_id
    kl = _log_ratios(policy, reference, ids, answers, pad_token_id, bf16, run.temperature)
    return {
        "scores": {
            name: [round(s, 4) for s in checked_scores(judge(texts, answers.texts), len(texts))]
            for name, judge in judges.items()
        },
        "kl": [round(value, 4) for value in kl],
        "measures": text_measures(texts, answers.texts),
        "answers": answers.texts[:examples],
        "ended": [int(r[-1]) in template.eos_token_ids for r in answers.responses[:examples]],
        "bf16": bf16,
    }


@torch.no_grad()
def _log_ratios(
    policy: AutoModelForCausalLMWithValueHead,
    reference: AutoModelForCausalLMWithValueHead,
    queries: list[torch.Tensor],
    answers: Answers,
    pad_token_id: int,
    bf16: bool,
    temperature: float,
) -> list[float]:
    """sum_t log pi(y_t) - log pi_ref(y_t) of each answer, of softmax(z / temperature)."""
    device, ratios = next(policy.parameters()).device, []
    for n, sampled in enumerate(answers.trunk_states):
        rows = slice(n * BATCH_SIZE, (n + 1) * BATCH_SIZE)
        batch = collate(
            [query.to(device) for query in queries[rows]], answers.responses[rows], pad_token_id
        )
        input_ids, attention_mask, position_ids = batch.read()
        read = {"input_ids": input_ids}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            if shares_trunk(policy, reference):
                states = None
                if sampled is not None:
                    states = sampled.of(*batch.read(), policy.trunk_version())
                read = {"trunk_states": policy.trunk(*batch.read()) if states is None else states}
            logits = [
                model(
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    logits_to_keep=batch.predicting,
                    **read,
                )[0]
                for model in (policy, reference)
            ]
            logprobs = [
                logprobs_from_logits(z.float() / temperature, batch.responses) for z in logits
            ]
        ratios += ((logprobs[0] - logprobs[1]) * batch.mask).sum(dim=1).tolist()
    return ratios
