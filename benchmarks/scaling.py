"""What a step of ours costs against batch size, response length, trained layers and model size.

    python benchmarks/scaling.py

SmolLM2-135M from the cache, but for the model sizes, which are Llamas of random weights (without
shared keys and values, so a little larger than the SmolLM2 of the same shape). One thing
varies at a time, the rest is as in ppo_step.py. Medians of three steps after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from ppo_step import EPOCHS, NEW_TOKENS, SHARED, ask, inputs, worker

from rlhf_tutorial.device import supports_bf16

SIZES = {
    "19M": {"hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 768},
    "148M": {"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536},
    "401M": {"hidden_size": 960, "num_hidden_layers": 32, "intermediate_size": 2560},
}


def cases() -> dict[str, dict[str, Any]]:
    """The settings of each case, by its name."""
    common = {"batch_size": 16, "max_new_tokens": NEW_TOKENS, "shared_layers": SHARED["smollm2"]}
    common["ppo_epochs"] = EPOCHS
    found = {"as above": {}}
    found |= {f"batch of {n}": {"batch_size": n} for n in (4, 8, 32)}
    found |= {f"{n} new tokens": {"max_new_tokens": n} for n in (8, 32, 64)}
    found |= {f"top {30 - k} of 30 layers": {"shared_layers": k} for k in (29, 26, 15)}
    found["all layers, reference of its own"] = {"shared_layers": None}
    for name, sizes in SIZES.items():
        heads = sizes["hidden_size"] // 64
        shape = {
            "model_type": "llama",
            "vocab_size": 49152,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "tie_word_embeddings": True,
            **sizes,
        }
        layers = round(sizes["num_hidden_layers"] * 22 / 30)
        found[f"model of {name}"] = {"shape": shape, "folder": None, "shared_layers": layers}
    return {name: common | changes for name, changes in found.items()}


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| | seconds a step | generation | PPO | peak memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        s = row["seconds"]
        lines.append(
            f"| {row['case']} | {s['total']:.2f} | {s['generate']:.2f} | {s['step']:.2f} | "
            f"{row['peak_bytes'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure each case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", help="only the cases whose name holds this")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    precision = "bf16" if supports_bf16("cpu") else "no"
    common = inputs("smollm2", 32) | {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "shape": None,
    }
    rows = []
    for name, case in cases().items():
        if args.only and args.only not in name:
            continue
        variant = {"python": sys.executable, "worker": "our_loop.py"}
        with worker(variant, common | case) as process:
            ask(process)  # until it is ready
            seconds = [ask(process, "step") for _ in range(1 + args.steps)][1:]
            process.stdin.close()
            end = ask(process)
        median = {k: statistics.median(s[k] for s in seconds) for k in seconds[0]}
        rows.append({"case": name, "precision": precision, "seconds": median, **end})
        print(f"{name}: {median['total']:.2f} s", file=sys.stderr, flush=True)
    print(table(rows))
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
