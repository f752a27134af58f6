"""What could be taught: the headroom of each candidate, and how much of it a judge recovers.

    python scripts/headroom.py      # reads bundled/feedback/candidates, writes headroom.json there

Eight answers to each of 150 training prompts were read: their mean, the best of eight by the reader
(the headroom), and the best of eight by a judge that was fitted on other prompts (what of it can be
recovered). The rule, set down before any policy was trained: teach what has the most recoverable
headroom; of two that are within 0.05, take the one without another stage of training before it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from rlhf_tutorial import assets
from rlhf_tutorial.evaluation.intervals import bootstrap_interval
from rlhf_tutorial.evaluation.reading import pair_accuracy
from rlhf_tutorial.feedback import Row, load_feedback
from rlhf_tutorial.reward import StateReader, fit_line

FOLDER = Path(assets.__file__).parent / "bundled" / "feedback" / "candidates"
FOLDS, CAP = 5, 1
CANDIDATES = {
    "second edition": ("untouched_second-edition", None),
    "form": ("untouched_form", None),
    "form, a cut answer at most 1": ("untouched_form", CAP),
    "form, after fine-tuning": ("fine-tuned_form", None),
    "form, a cut answer at most 1, after fine-tuning": ("fine-tuned_form", CAP),
}


def capped(rows: list[Row], cap: int | None) -> list[Row]:
    """The rows with the grades of answers that were cut off brought down to the cap."""
    if cap is None:
        return rows
    return [
        row
        | {
            "answers": [
                a | {"grade": a["grade"] if a["ended"] else min(a["grade"], cap)}
                for a in row["answers"]
            ]
        }
        for row in rows
    ]


def judged(features: torch.Tensor, grades: torch.Tensor) -> torch.Tensor:
    """(prompts, answers) scores, each by a judge that has not seen the prompt's grades.

    Args:
        features: (prompts, answers, F). grades: (prompts, answers).
    """
    order = np.random.default_rng(0).permutation(len(grades))
    scores = torch.empty_like(grades)
    for held_out in np.array_split(order, FOLDS):
        kept = np.setdiff1d(order, held_out)
        weights, bias = fit_line(features[kept].flatten(0, 1), grades[kept].flatten())
        scores[held_out] = features[held_out] @ weights + bias
    return scores


def main() -> None:
    reader = StateReader.from_pretrained(assets.resolve(assets.SMOLLM2))
    results, features = {}, {}
    for name, (file, cap) in CANDIDATES.items():
        rows = capped(load_feedback(FOLDER / f"{file}.jsonl"), cap)
        answers = [answer for row in rows for answer in row["answers"]]
        if file not in features:
            prompts = [row["prompt"] for row in rows for _ in row["answers"]]
            states = reader(prompts, [answer["text"] for answer in answers])
            features[file] = states.unflatten(0, (len(rows), -1))
        grades = torch.tensor([float(answer["grade"]) for answer in answers]).view(len(rows), -1)
        scores = judged(features[file], grades)
        picked = grades.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]
        gain = (picked - grades.mean(dim=1)).numpy()
        whole = torch.tensor([bool(answer["ended"]) for answer in answers]).view(len(rows), -1)
        of_whole = (grades * whole).sum(dim=1) / whole.sum(dim=1).clamp(min=1)
        by_ending = torch.where(whole.any(dim=1), of_whole, grades.mean(dim=1)) - grades.mean(dim=1)
        results[name] = {
            "prompts": len(rows),
            "mean": round(grades.mean().item(), 3),
            "ended": round(float(np.mean([answer["ended"] for answer in answers])), 3),
            "best_of_8_by_the_reader": round(grades.amax(dim=1).mean().item(), 3),
            "best_of_8_by_the_judge": round(picked.mean().item(), 3),
            "recovered": round(float(gain.mean()), 3),
            "recovered_interval": [round(x, 3) for x in bootstrap_interval(gain)],
            "by_ending_alone": round(by_ending.mean().item(), 3),
            "pair_accuracy": round(pair_accuracy(rows, scores.flatten().tolist())["accuracy"], 3),
        }
        print(name, json.dumps(results[name]), flush=True)
    path = FOLDER / "headroom.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
