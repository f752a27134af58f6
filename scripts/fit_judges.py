"""Fit the two judges to the graded answers that come with the course, and measure them.

    python scripts/fit_judges.py

The first judge trains policies; it learns from three quarters of the training prompts. The second
one only evaluates: it learns from the prompts that are left, and from the states of other layers.
Both are lines (`rlhf_tutorial.reward.states`) and take seconds, once the answers have been read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_tutorial import assets
from rlhf_tutorial.evaluation.reading import pair_accuracy
from rlhf_tutorial.feedback import Row, load_feedback
from rlhf_tutorial.reward import StateJudge, StateReader, fit_line

BUNDLED = Path(assets.__file__).parent / "bundled"
FEEDBACK = BUNDLED / "feedback"
LAYERS = {"judge": (18, 22), "evaluating_judge": (26, 29)}
SIZES = (25, 50, 100, 200, 480)


def flat(rows: list[Row]) -> tuple[list[str], list[str], list[float]]:
    """Prompts, texts and grades, an entry an answer."""
    answers = [
        (row["prompt"], a["text"], float(a["grade"])) for row in rows for a in row["answers"]
    ]
    prompts, texts, grades = zip(*answers, strict=True)
    return list(prompts), list(texts), list(grades)


def training_rows(name: str) -> list[Row]:
    """What a judge learns from: its prompts' answers, of the untouched policy and of the rounds."""
    rows = load_feedback(FEEDBACK / "train.jsonl")
    second = {row["prompt"] for row in rows[3::4]}
    for path in sorted(FEEDBACK.glob("round-*.jsonl")):
        rows += load_feedback(path)
    return [row for row in rows if (row["prompt"] in second) == (name == "evaluating_judge")]


def main() -> None:
    tests = {name: load_feedback(FEEDBACK / f"{name}.jsonl") for name in ("validation", "test")}
    for name, layers in LAYERS.items():
        reader = StateReader.from_pretrained(assets.resolve(assets.SMOLLM2), layers)
        rows = training_rows(name)
        prompts, texts, grades = flat(rows)
        features = reader(prompts, texts)
        weights, bias = fit_line(features, torch.tensor(grades))
        judge = StateJudge(reader, weights, bias)
        judge.save_pretrained(BUNDLED / name)
        read = {split: reader(*flat(tests[split])[:2]) for split in tests}
        metrics: dict[str, Any] = {
            "prompts": len({row["prompt"] for row in rows}),
            "grades": len(grades),
            "accuracy": {
                split: pair_accuracy(tests[split], (read[split] @ weights + bias).tolist())
                for split in tests
            },
            "by_prompts": {},
        }
        names = np.array(prompts)
        for size in (size for size in SIZES if size <= metrics["prompts"]):
            found = []
            for seed in range(5):
                kept = np.random.default_rng(seed).permutation(np.unique(names))[:size]
                chosen = torch.tensor(np.isin(names, kept))
                line, level = fit_line(features[chosen], torch.tensor(grades)[chosen])
                scores = (read["validation"] @ line + level).tolist()
                found.append(pair_accuracy(tests["validation"], scores, resamples=1)["accuracy"])
            metrics["by_prompts"][str(size)] = round(float(np.mean(found)), 4)
        # For a test that the judge that ships is the one that was measured.
        queries, responses, _ = flat(tests["validation"][:4])
        metrics["scores"] = [round(score, 3) for score in judge(queries, responses)]
        path = BUNDLED / name / "metrics.json"
        path.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
