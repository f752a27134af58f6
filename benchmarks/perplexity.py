"""Perplexity of 256 real dialogues: the plain algorithm against ours, the values compared.

    python benchmarks/perplexity.py [--dialogues FOLDER] [--texts 256]

The plain algorithm is that of evaluate's metric: dataset order, batches of 16 padded to the
longest, the logits of all positions kept and turned to float32. FOLDER holds a test.jsonl.gz in
hh-rlhf's form (such as Anthropic's own); without it the course's bundled dialogues are used, which
are shorter.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm


@torch.no_grad()
def plain(texts: list[str], model: Any, tokenizer: Any, batch_size: int = 16) -> list[float]:
    """exp of the mean negative log-likelihood of each text, as evaluate's metric computes it."""
    results = []
    limit = min(model.config.max_position_embeddings, 1024)
    for start in tqdm(range(0, len(texts), batch_size), desc="plain", leave=False):
        batch = tokenizer(
            texts[start : start + batch_size],
            add_special_tokens=False,
            padding=True,
            truncation=True,
            max_length=limit - 1,
            padding_side="right",
            return_tensors="pt",
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        bos = torch.full((len(ids), 1), tokenizer.bos_token_id)
        ids = torch.cat([bos, ids], dim=1)
        mask = torch.cat([torch.ones_like(bos), mask], dim=1)
        logits = model(ids, attention_mask=mask).logits
        losses = cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        counted = mask[:, 1:]
        results += ((losses * counted).sum(1) / counted.sum(1)).exp().tolist()
    return results


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ["| perplexity | seconds | times faster | largest difference |"]
    lines.append("| --- | --- | --- | --- |")
    for row in rows:
        lines.append(
            f"| {row['variant']}, {row['texts']} texts | {row['seconds']:.1f} | "
            f"{rows[0]['seconds'] / row['seconds']:.1f} | "
            f"{row['largest_relative_difference']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Time both in turns, compare the values, print a table and write the JSON."""
    from transformers import AutoModelForCausalLM

    from rlhf_tutorial import load_preset, load_tokenizer
    from rlhf_tutorial.assets import SMOLLM2, resolve
    from rlhf_tutorial.data import load_preferences
    from rlhf_tutorial.device import supports_bf16
    from rlhf_tutorial.evaluation.perplexity import score_texts

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dialogues", help="folder with test.jsonl.gz; default: the bundled ones")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    folder = resolve(SMOLLM2)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    source = args.dialogues or load_preset("smollm2").data
    texts = load_preferences(source, "test")["chosen"][: args.texts]

    ways = {
        "plain, float32": lambda: plain(texts, model, tokenizer),
        "ours, float32": lambda: score_texts(texts, model, tokenizer, max_length=1024)[
            "perplexities"
        ],
    }
    if supports_bf16("cpu"):
        ways["ours, bf16"] = lambda: score_texts(
            texts, model, tokenizer, max_length=1024, bf16=True
        )["perplexities"]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, torch.Tensor] = {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            values[name] = torch.tensor(way(), dtype=torch.double)
            seconds[name].append(time.perf_counter() - start)
    reference = values["plain, float32"]
    rows = []
    for name in ways:
        off = ((values[name] - reference) / reference).abs().max().item()
        rows.append(
            {
                "variant": name,
                "texts": len(texts),
                "seconds": sorted(seconds[name])[len(seconds[name]) // 2],
                "all": seconds[name],
                "largest_relative_difference": off,
                "mean_perplexity": values[name].mean().item(),
            }
        )
    print(table(rows))
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
