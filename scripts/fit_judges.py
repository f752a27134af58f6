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

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
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


def graded_rows(name: str) -> tuple[list[list[Row]], dict[str, list[Row]]]:
    """The answers that a judge learns from, and those on which it is measured, by their file.

    It learns from the untouched policy's answers, the first list, and from those of each round.

    The two judges share the training prompts: of a round's answers each is measured on those to the
    other one's prompts.
    """
    train = load_feedback(FEEDBACK / "train.jsonl")
    others = {row["prompt"] for row in train[3::4]}
    fit: list[list[Row]] = []
    found: dict[str, list[Row]] = {"validation": [], "test": []}
    for path in (FEEDBACK / "train.jsonl", *sorted(FEEDBACK.glob("round-*.jsonl"))):
        rows = load_feedback(path)
        mine = [row for row in rows if (row["prompt"] in others) == (name == "evaluating_judge")]
        fit.append(mine)
        if path.stem != "train":
            found[path.stem] = [row for row in rows if row not in mine]
    for split in ("validation", "test"):
        found[split] = load_feedback(FEEDBACK / f"{split}.jsonl")
    return fit, found


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


CARD = """---
base_model: {base}
license: apache-2.0
language: en
---

# {title}

A linear judge on the hidden states of [{base}](https://huggingface.co/{base}): it grades one answer
of at most 32 tokens to one request in English, on the scale of [its guide](../feedback/GUIDE.md),
0 to 5.
{role} `scripts/fit_judges.py` fitted it and wrote this page; every figure is in `metrics.json`.

```python
from rlhf_tutorial import assets
from rlhf_tutorial.reward import StateJudge

judge = StateJudge.from_pretrained(
    assets.resolve(assets.SMOLLM2), assets.resolve(assets.Bundled("{name}"))
)
judge(["How do I boil an egg?"], ["Put it in boiling water for eight minutes."])
```

It reads request and answer as turns of the chat template, and the end token behind the answer. Of
layers {layers} it takes the mean over the answer's tokens and the state at the end token. Ridge
regression fitted the weights of these {features} numbers to {grades} grades of answers to {prompts}
training prompts ([AI feedback](../feedback/README.md), not people's).

## How often it orders two answers as the reader does

Pairs of different grade to prompts whose grades it has not seen, with 95% intervals over prompts.

| answers | pairs | right | pairs that both ended | right |
| --- | --- | --- | --- | --- |
{table}

By the number of prompts it learns from, on validation pairs, means of five draws: {curve}.
All training prompts are graded: more would have to be written.

## Round by round

The same judge when it had learned from the untouched policy's answers alone, and then from one
round more each time. Pairs as above, of all answers. In italics: rounds that it had not learned
from yet.

| learned from | {columns} |
| --- | {dashes} |
{rounds}

## Limits

- It learned what one language model likes, of answers by one small model. It knows no facts.
- Much of what it knows is whether an answer has ended: see the columns on the right.
- Push a policy against it, and the policy finds what it overrates. The rounds are there for that.
"""

TITLES = {
    "judge": ("The training judge", "Policies are trained on it."),
    "evaluating_judge": (
        "The evaluating judge",
        "No policy is trained on it: it learned from other prompts than the training judge, and "
        "reads other layers.",
    ),
}
LABELS = {"validation": "untouched policy, validation", "test": "untouched policy, test"}


def write_card(name: str, metrics: dict[str, Any], folder: Path) -> None:
    """The card from `metrics`, so that no number in it is typed by hand."""

    def cell(figures: dict[str, float]) -> str:
        return f"{figures['accuracy']:.1%} ({figures['low']:.0%} to {figures['high']:.0%})"

    table = "\n".join(
        f"| {LABELS.get(split, f'trained policies, {split}')} | {found['all']['n']} | "
        f"{cell(found['all'])} | {found['whole']['n']} | {cell(found['whole'])} |"
        for split, found in metrics["accuracy"].items()
    )
    curve = ", ".join(f"{n}: {share:.1%}" for n, share in metrics["by_prompts"].items())
    splits = [split for split in metrics["accuracy"] if split != "validation"]
    rounds = []
    for known, found in enumerate(metrics["by_rounds"]):
        row = [f"{known or 'no'} round{'s' * (known > 1)}"]
        for split in splits:
            text = cell(found[split])
            row.append(f"*{text}*" if split in splits[known + 1 :] else text)
        rounds.append(f"| {' | '.join(row)} |")
    title, role = TITLES[name]
    layers = LAYERS[name]
    card = CARD.format(
        base=BASE_NAME,
        name=name,
        title=title,
        role=role,
        layers=" and ".join(map(str, layers)),
        features=f"{metrics['features']:,}",
        grades=f"{metrics['grades']:,}",
        prompts=metrics["prompts"],
        table=table,
        curve=curve,
        columns=" | ".join(LABELS.get(split, split) for split in splits),
        dashes=" | ".join("---" for _ in splits),
        rounds="\n".join(rounds),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"{' or '.join(LAYERS)}; both without")
    for name in parser.parse_args().names or LAYERS:
        layers = LAYERS[name]
        reader = StateReader.from_pretrained(assets.resolve(assets.SMOLLM2), layers)
        fit, tests = graded_rows(name)
        rows = [row for part in fit for row in part]
        prompts, texts, grades = flat(rows)
        features = reader(prompts, texts)
        weights, bias = fit_line(features, torch.tensor(grades))
        judge = StateJudge(reader, weights, bias)
        judge.save_pretrained(BUNDLED / name)
        read = {split: reader(*flat(tests[split])[:2]) for split in tests}
        metrics: dict[str, Any] = {
            "prompts": len({row["prompt"] for row in rows}),
            "grades": len(grades),
            "features": len(weights),
            "accuracy": {
                split: accuracies(tests[split], (read[split] @ weights + bias).tolist())
                for split in tests
            },
            "by_prompts": {},
            "by_rounds": [],
        }
        learned = 0
        for part in fit:
            learned += sum(len(row["answers"]) for row in part)
            line, level = fit_line(features[:learned], torch.tensor(grades[:learned]))
            metrics["by_rounds"].append(
                {
                    split: pair_accuracy(tests[split], (read[split] @ line + level).tolist())
                    for split in tests
                }
            )
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
        write_card(name, metrics, path.parent)
        print(name, json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
