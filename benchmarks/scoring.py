"""Scoring 1,024 answers with the course's judge: one call per batch in order against one for all.

python benchmarks/scoring.py
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path


def table(result: dict) -> str:
    """The result as Markdown."""
    lines = ["| scoring | seconds | times faster |", "| --- | --- | --- |"]
    base = next(iter(result["seconds"].values()))
    for name, seconds in result["seconds"].items():
        ratio = base / seconds
        lines.append(f"| {name}, {result['answers']} answers | {seconds:.2f} | {ratio:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Time both in turns, compare the scores, print a table and write the JSON."""
    from rlhf_tutorial import Run, load_preset
    from rlhf_tutorial.data import last_reply, load_preferences

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=1024)
    parser.add_argument("--dialogues", help="folder; default: the bundled preferences")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    preset = load_preset("smollm2")
    rows = load_preferences(args.dialogues or preset.data, "test" if args.dialogues else "train")
    replies = [last_reply(text) for text in rows["chosen"][:] + rows["rejected"][:]]
    pairs = [(reply[0][0][1], reply[1]) for reply in replies if reply is not None]
    random.Random(0).shuffle(pairs)
    pairs = (pairs * (1 + args.answers // len(pairs)))[: args.answers]
    queries, answers = map(list, zip(*pairs, strict=True))
    judge = Run(preset, "runs/bench").load_reward()

    def per_batch() -> list[float]:
        scores: list[float] = []
        for start in range(0, len(queries), 16):
            batch = slice(start, start + 16)
            scores += judge(queries[batch], answers[batch])
        return scores

    ways = {"one call per batch of 16": per_batch, "ours": lambda: judge(queries, answers)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            scores[name] = way()
            seconds[name].append(time.perf_counter() - start)
    first, second = scores.values()
    off = max(abs(a - b) for a, b in zip(first, second, strict=True))
    medians = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    result = {"answers": len(queries), "seconds": medians, "all": seconds}
    result["largest_difference"] = off
    print(table(result))
    print(f"largest difference of a score: {off:.1e}")
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
