"""One training with looks at held-out prompts along the way: what the studies are made of."""

from __future__ import annotations

import gc
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..evaluation.measures import text_measures
from ..models import AutoModelForCausalLMWithValueHead, shares_trunk
from ..ppo import PPOTrainer
from ..ppo.math import logprobs_from_logits
from ..ppo.rollout import collate, generate_responses
from ..run import Run
from ..scores import Reward, checked_scores
from ..training import train

if TYPE_CHECKING:
    from datasets import Dataset


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

    gc.collect()  # a trainer refers to itself: the one before would stay in memory
    reward = reward or next(iter(judges.values()))
    trainer = run.make_trainer(**ppo)
    epoch = len(trainer.dataloader)
    steps = steps or run.preset.epochs * epoch

    def looked(step: int) -> dict[str, Any]:
        return {"step": step, **look(trainer, run, judges, queries, examples)}

    log, found, seconds = [], [looked(0)], 0.0
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
                found.append(looked(step))
    return {
        "settings": ppo,
        "seconds": round(seconds, 1),
        "steps": log,
        "queries": queries["query"][:examples],
        "looks": found,
    }


def progress(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """A row per look: what was gained since the first one, and at what distance.

    Returns:
        "step", "kl" (its mean), the four text measures, and for each judge `<judge>` (its mean
        score less that of the first look), `<judge>_error` (the standard error of this difference,
        paired by prompt) and `<judge>_std` (the standard deviation of the first look's scores).
    """
    first, rows = result["looks"][0], []
    for at in result["looks"]:
        row = {"step": at["step"], "kl": float(np.mean(at["kl"])), **at["measures"]}
        for judge, scores in at["scores"].items():
            gain = np.subtract(scores, first["scores"][judge])
            row[judge] = float(gain.mean())
            row[f"{judge}_error"] = float(gain.std(ddof=1) / len(gain) ** 0.5)
            row[f"{judge}_std"] = float(np.std(first["scores"][judge], ddof=1))
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

    The answers are drawn by the trainer's seed, the same at every look, and the training's own
    random draws are left alone.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.accelerator.autocast():
        return look_at(
            policy, trainer.ref_model, run, judges, queries, trainer.config.seed, examples
        )


@torch.no_grad()
def look_at(
    policy: AutoModelForCausalLMWithValueHead,
    reference: AutoModelForCausalLMWithValueHead,
    run: Run,
    judges: Mapping[str, Reward],
    queries: Dataset,
    seed: int = 0,
    examples: int = 0,
) -> dict[str, Any]:
    """How a policy answers held-out prompts, in the precision that the caller has set.

    Returns:
        "scores" (by judge, one number per query), "kl" (one per query: the log-ratio of policy to
        reference of the drawn answer, whose mean is the KL), "measures" (`text_measures`) and
        "answers" (the first `examples`).
    """
    tokenizer, template = run.load_tokenizer(), run.preset.template
    device = next(policy.parameters()).device
    texts, ids = queries["query"][:], [i.to(device) for i in queries["input_ids"][:]]
    responses, kl = [], []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(ids), 32):
            part = ids[start : start + 32]
            drawn = generate_responses(
                policy,
                part,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=template.eos_token_ids(tokenizer),
                max_new_tokens=run.preset.max_new_tokens,
            )
            responses += drawn
            kl += _log_ratios(policy, reference, part, drawn, tokenizer.pad_token_id)
    answers = template.decode(tokenizer, responses)
    return {
        "scores": {
            name: [round(s, 4) for s in checked_scores(judge(texts, answers), len(texts))]
            for name, judge in judges.items()
        },
        "kl": [round(value, 4) for value in kl],
        "measures": text_measures(texts, answers),
        "answers": answers[:examples],
    }


def _log_ratios(
    policy: Any,
    reference: Any,
    queries: list[torch.Tensor],
    responses: list[torch.Tensor],
    pad_token_id: int,
) -> list[float]:
    """sum_t log pi(y_t) - log pi_ref(y_t) of each response."""
    batch = collate(queries, responses, pad_token_id)
    input_ids, *positions = batch.read()
    inputs: dict[str, Any] = {"logits_to_keep": batch.predicting}
    if shares_trunk(policy, reference):
        input_ids, inputs["trunk_states"] = None, policy.trunk(input_ids, *positions)
    logprobs = [
        logprobs_from_logits(model(input_ids, *positions, **inputs)[0].float(), batch.responses)
        for model in (policy, reference)
    ]
    return ((logprobs[0] - logprobs[1]) * batch.mask).sum(dim=1).tolist()
