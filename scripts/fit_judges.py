"""Fit the two judges to the graded answers that come with the course, and measure them.

    python scripts/fit_judges.py                  # both; or name one: judge, evaluating_judge

The first judge trains policies; it learns from three quarters of the training prompts. The second
one only evaluates: it learns from the prompts that are left, and from the states of other layers.
Both are lines (`rlhf_tutorial.reward.states`) and take seconds, once the answers have been read.
"""

from __future__ import annotations

import argparse
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


def graded_rows(name: str) -> dict[str, list[Row]]:
    """The answers that a judge learns from, and those on which it is measured, by their file.

    The two judges share the training prompts: of a round's answers each is measured on those to the
    other one's prompts.
    """
    train = load_feedback(FEEDBACK / "train.jsonl")
    others = {row["prompt"] for row in train[3::4]}
    found: dict[str, list[Row]] = {"fit": [], "validation": [], "test": []}
    for path in (FEEDBACK / "train.jsonl", *sorted(FEEDBACK.glob("round-*.jsonl"))):
        rows = load_feedback(path)
        mine = [row for row in rows if (row["prompt"] in others) == (name == "evaluating_judge")]
        found["fit"] += mine
        if path.stem != "train":
            found[path.stem] = [row for row in rows if row not in mine]
    for split in ("validation", "test"):
        found[split] = load_feedback(FEEDBACK / f"{split}.jsonl")
    return found


def accuracies(rows: list[Row], scores: list[float]) -> dict[str, Any]:
    """Of all pairs, and of the pairs of answers that both ended by themselves."""
    given = iter(scores)
    kept = [[(a, next(given)) for a in row["answers"]] for row in rows]
    whole = [[(a, score) for a, score in pairs if a["ended"]] for pairs in kept]
    ended = [{"prompt": row["prompt"], "answers": [a for a, _ in pairs]}
             for row, pairs in zip(rows, whole, strict=True)]  # fmt: skip
    return {
        "all": pair_accuracy(rows, scores),
        "whole": pair_accuracy(ended, [score for pairs in whole for _, score in pairs]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"{' or '.join(LAYERS)}; both without")
    for name in parser.parse_args().names or LAYERS:
        layers = LAYERS[name]
        reader = StateReader.from_pretrained(assets.resolve(assets.SMOLLM2), layers)
        tests = graded_rows(name)
        rows = tests.pop("fit")
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
                split: accuracies(tests[split], (read[split] @ weights + bias).tolist())
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
