"""Our loop, one step for each line on standard input; started by `ppo_step.py`.

python benchmarks/our_loop.py SETTINGS.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from worker import arithmetic, matmul_rate, model_config, serve

from rlhf_tutorial import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
    models,
)
from rlhf_tutorial.models import set_training_attention


def load(folder: str | None, shape: dict[str, Any] | None) -> AutoModelForCausalLMWithValueHead:
    """A policy from a checkpoint folder or of a shape, with random weights."""
    if folder is not None:
        return AutoModelForCausalLMWithValueHead.from_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_config(shape))
    return AutoModelForCausalLMWithValueHead.from_pretrained(model)


def main() -> None:
    """Serve steps: generate a batch, score with constants as the original's worker does, step."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=settings["tokenizer_file"])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(settings["eos"])
    tokenizer.pad_token = tokenizer.eos_token
    n = settings["batch_size"]
    model = load(settings["folder"], settings["shape"])
    set_training_attention(model.pretrained_model, torch.device(settings["device"]))
    precision = {"mixed_precision": settings["precision"], "cpu": settings["device"] == "cpu"}
    config = PPOConfig(
        batch_size=n,
        mini_batch_size=n,
        ppo_epochs=settings["ppo_epochs"],
        accelerator_kwargs=precision,
    )
    trainer = PPOTrainer(
        config, model, create_reference_model(model, settings["shared_layers"]), tokenizer
    )
    queries = [torch.tensor(q) for q in settings["queries"]]

    def step(i: int) -> dict[str, float]:
        batch = [queries[(i * n + j) % len(queries)] for j in range(n)]
        start = time.perf_counter()
        responses = trainer.generate(
            batch, return_prompt=False, max_new_tokens=settings["max_new_tokens"]
        )
        generated = time.perf_counter()
        trainer.step(batch, responses, [float(j % 3) for j in range(n)])
        return {"generate": generated - start, "step": time.perf_counter() - generated}

    start = time.perf_counter()
    if trainer.device.type == "cuda":  # launches are recorded at the first batch of each length
        for i in range(len(queries) // n):
            step(i)
        torch.cuda.synchronize()
    recording = time.perf_counter() - start

    def work() -> dict[str, float]:
        # What is replayed cannot be counted.
        trainer.recorded, models.sample_recorded = {}, lambda *_, **__: None
        dtype = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
        found = {"flop": arithmetic(step), "matmul_rate": matmul_rate(dtype, trainer.device)}
        return found | {"recording_seconds": recording}

    serve(step, at_the_end=work)


if __name__ == "__main__":
    main()
