"""What the fast paths that change results cost or win: learning curves of the default run.

    python benchmarks/learning_curves.py

Trains the preset `smollm2` three times from the same seed: as it is (frozen trunk, bfloat16), with
the frozen trunk in float32, and with all layers trained in bfloat16. Every few steps the held-out
prompts are answered and scored; that time is not counted. About twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_tutorial import PPOTrainer, Run, load_preset, train
from rlhf_tutorial.evaluation.sampling import sample_answers

VARIANTS = {
    "frozen trunk, bf16": {"shared": 22, "precision": "bf16"},
    "frozen trunk, float32": {"shared": 22, "precision": "no"},
    "all layers, bf16": {"shared": None, "precision": "bf16"},
}


def held_out_score(run: Run, trainer: PPOTrainer, reward: Any, prompts: int) -> float:
    """Mean score of an answer to each of the held-out prompts, from the same random numbers."""
    queries = run.queries("test").select(range(prompts))
    answers = sample_answers(
        trainer.policy,
        run.load_template(),
        queries["input_ids"][:],
        max_new_tokens=run.preset.max_new_tokens,
        bf16=trainer.accelerator.mixed_precision == "bf16",
    )
    scores = reward(queries["query"][:], answers.texts)
    return sum(scores) / len(scores)


def measure(variant: dict[str, Any], every: int, prompts: int, steps: int | None) -> dict[str, Any]:
    """The curves of one training."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # or the precision would stay
    with tempfile.TemporaryDirectory() as folder:
        preset = replace(load_preset("sixteen-tokens"), num_shared_layers=variant["shared"])
        run = Run(preset, folder)
        reward = run.load_reward()
        trainer = run.make_trainer(accelerator_kwargs={"mixed_precision": variant["precision"]})
        held_out, seconds = [[0, 0.0, held_out_score(run, trainer, reward, prompts)]], 0.0
        start = time.perf_counter()
        for _ in train(trainer, reward, run.preset.template, epochs=run.preset.epochs):
            seconds += time.perf_counter() - start
            n = len(trainer.history)
            if n % every == 0:
                held_out.append([n, seconds, held_out_score(run, trainer, reward, prompts)])
                print(n, round(seconds), round(held_out[-1][2], 3), file=sys.stderr, flush=True)
            if n == steps:
                break
            start = time.perf_counter()
        keys = ("ppo/mean_scores", "objective/kl")
        return {"held_out": held_out} | {k: [h[k] for h in trainer.history] for k in keys}


def one_point(row: dict[str, Any]) -> list[float] | None:
    """Steps and seconds after which the held-out score first stood one point above its start."""
    before = row["held_out"][0][2]
    return next(([n, s] for n, s, score in row["held_out"] if score >= before + 1), None)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| | steps | training, seconds | held-out gain | KL at the end | one point gained after |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        n, seconds, after = row["held_out"][-1]
        point = one_point(row)
        last = row["objective/kl"][-10:]
        lines.append(
            f"| {row['variant']} | {n} | {seconds:.0f} | {after - row['held_out'][0][2]:.2f} | "
            f"{sum(last) / len(last):.1f} | "
            + (f"{point[0]} steps, {point[1]:.0f} s |" if point else "not reached |")
        )
    return "\n".join(lines)


def main() -> None:
    """Train each variant, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=5, help="steps between two evaluations")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--steps", type=int, help="stop after so many")
    parser.add_argument("--only", choices=list(VARIANTS))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    for name, variant in VARIANTS.items():
        if args.only in (None, name):
            rows.append({"variant": name} | measure(variant, args.every, args.prompts, args.steps))
    print(table(rows))
    if args.output:
        args.output.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
