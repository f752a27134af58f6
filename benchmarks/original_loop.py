"""The original tutorial's loop on TRL 0.11.4, one step for each line on standard input.

Runs in the environment of scripts/parity/requirements.txt; started by `ppo_step.py`.

    python benchmarks/original_loop.py SETTINGS.json
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from worker import model_config, serve


def load(folder: str | None, shape: dict[str, Any] | None) -> Any:
    """A policy with a value head, from a checkpoint folder or of a shape, with random weights."""
    if folder is None:
        config = model_config(shape)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        config = transformers.AutoConfig.from_pretrained(folder)
        saved = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        # transformers 5 moved it; without it the older release would take another base.
        if rope := saved.get("rope_parameters"):
            config.rope_theta = rope["rope_theta"]
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, torch_dtype=torch.float32
        )
    return AutoModelForCausalLMWithValueHead.from_pretrained(model)


def main() -> None:
    """Serve steps: generate one query at a time, score with what the driver sent, step."""
    warnings.filterwarnings("ignore")
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=settings["tokenizer_file"])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(settings["eos"])
    tokenizer.pad_token = tokenizer.eos_token
    n = settings["batch_size"]
    cpu = settings["device"] == "cpu"
    trainer = PPOTrainer(
        PPOConfig(
            batch_size=n,
            mini_batch_size=n,
            ppo_epochs=settings["ppo_epochs"],
            accelerator_kwargs={"cpu": cpu},
        ),
        load(settings["folder"], settings["shape"]),
        load(settings["folder"], settings["shape"]),
        tokenizer,
    )
    queries = [torch.tensor(q, device=trainer.current_device) for q in settings["queries"]]
    new = settings["max_new_tokens"]
    gen_kwargs = {
        "min_length": -1,
        "top_k": 0.0,
        "top_p": 1.0,
        "do_sample": True,
        "pad_token_id": settings["eos"],
        "eos_token_id": settings["eos"],
    }

    def step(i: int) -> dict[str, float]:
        batch = [queries[(i * n + j) % len(queries)] for j in range(n)]
        start = time.perf_counter()
        responses = []
        for query in batch:
            response = trainer.generate(query, max_new_tokens=new, **gen_kwargs)
            responses.append(response.squeeze()[-new:])
        generated = time.perf_counter()
        scores = [torch.tensor(float(j % 3)) for j in range(n)]
        trainer.step(batch, responses, scores)
        return {"generate": generated - start, "step": time.perf_counter() - generated}

    serve(step)


if __name__ == "__main__":
    main()
