"""Seconds to score a batch with a judge of the original's shapes, DeBERTa-v3-large, random weights.

python benchmarks/dlite_judge.py --device cuda
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

LARGE = {
    "vocab_size": 128_100, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096, "relative_attention": True, "position_buckets": 256,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
TOKENS = 30, 16  # of query and answer


def main() -> None:
    """Time it after a warm-up, print and write the medians."""
    from transformers import AutoModelForSequenceClassification, DebertaV2Config

    from rlhf_tutorial import load_tokenizer
    from rlhf_tutorial.reward import RewardModel
    from rlhf_tutorial.tiny import make_tiny_policy

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--layers", type=int, default=LARGE["num_hidden_layers"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    # Its tokens are bytes, so that texts of any length in tokens are easily made.
    tokenizer = load_tokenizer(make_tiny_policy(Path(tempfile.mkdtemp()), ["Bytes."]))
    tokenizer.chat_template = None
    config = DebertaV2Config(**LARGE | {"num_hidden_layers": args.layers}, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    judge = RewardModel(model, tokenizer, device=args.device, batch_size=max(args.batch_sizes))
    rows = []
    for n in args.batch_sizes:
        seconds = []
        for _ in range(1 + args.repeats):
            start = time.perf_counter()
            judge(["q" * TOKENS[0]] * n, ["a" * TOKENS[1]] * n)  # its floats wait for the GPU
            seconds.append(time.perf_counter() - start)
        row = {"batch_size": n, "bf16": judge.bf16, "seconds": statistics.median(seconds[1:])}
        row["gpu"] = torch.cuda.get_device_name() if args.device == "cuda" else None
        rows.append(row)
        print(row)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
