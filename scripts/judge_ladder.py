"""The ladder of judges: how often each orders two answers of different grade as the reader does.

    python scripts/judge_ladder.py              # rules, log-probability, the course's two judges
    python scripts/judge_ladder.py lora 480     # RewardTrainer on the grades of so many prompts

All on the answers of the untouched policy to the 128 test prompts. Rows go to ladder.json beside
the judge, each in place of the one of its name. The two rows "fitted to other data" stay as they
are: those judges, of the course's first edition, came with the package up to commit befbc40.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fit_judges import BUNDLED, FEEDBACK, accuracies, flat, graded_rows

from rlhf_tutorial import Run, assets, load_preset
from rlhf_tutorial.evaluation.perplexity import token_nlls
from rlhf_tutorial.evaluation.reading import agreement
from rlhf_tutorial.feedback import Row, load_feedback, pairs
from rlhf_tutorial.reward import train_reward_model

PATH = BUNDLED / "judge" / "ladder.json"
RUNS = Path(__file__).resolve().parent.parent / "runs" / "ladder"
RULES: dict[str, Callable[[dict[str, Any]], float]] = {
    "rule: shorter": lambda answer: -len(answer["text"].split()),
    "rule: it ended": lambda answer: float(answer["ended"]),
    "rule: it ended, then longer": lambda a: 1000 * a["ended"] + len(a["text"].split()),
}


def save(judge: str, learned_from: str, figures: dict[str, Any]) -> None:
    """Put a row into the file, in place of the one of this judge, or at the end."""
    rows = json.loads(PATH.read_text(encoding="utf-8"))["rows"] if PATH.exists() else []
    row = {"judge": judge, "learned from": learned_from, **figures}
    names = [each["judge"] for each in rows]
    if judge in names:
        rows[names.index(judge)] = row
    else:
        rows.append(row)
    PATH.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(judge, figures, flush=True)


def mean_log_probability(run: Run, prompts: list[str], texts: list[str]) -> list[float]:
    """Of an answer's tokens, given the prompt in the run's template, at temperature 1."""
    template, model = run.load_template(), run.load_policy().pretrained_model
    asked = [template.encode(prompt) for prompt in prompts]
    said = [template.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = [question + answer for question, answer in zip(asked, said, strict=True)]
    nlls = token_nlls(model, rows, first=[len(question) for question in asked])
    return [-float(nll.mean()) if len(nll) else 0.0 for nll in nlls]


def without_training(test: list[Row]) -> None:
    prompts, texts, _ = flat(test)
    for name, rule in RULES.items():
        scores = [rule(answer) for row in test for answer in row["answers"]]
        save(name, "nothing", accuracies(test, scores))
    run = Run(load_preset("smollm2"), RUNS / "smollm2")
    scores = mean_log_probability(run, prompts, texts)
    save("the policy's log-probability", "its pretraining", accuracies(test, scores))
    for name, judge, source in (
        ("training judge", run.load_reward(), "480 prompts' grades"),
        ("evaluating judge", run.load_second_judge(), "160 prompts' grades"),
    ):
        save(name, source, accuracies(test, judge(prompts, texts)))
    again = [load_feedback(FEEDBACK / f"validation{part}.jsonl") for part in ("", "-again")]
    found = agreement(*again)
    ceiling = {"n": found["pairs"], "accuracy": found["same_order"]}
    # On validation prompts: only they were read twice.
    save("a second reading", "the guide", {"all": ceiling})


def lora(test: list[Row], count: int) -> None:
    """A low-rank adapter on all layers of the policy's body, by pairs of grades, each seen once."""
    asked = {row["prompt"] for part in graded_rows("judge")[0] for row in part}
    train = [row for row in load_feedback(FEEDBACK / "train.jsonl") if row["prompt"] in asked]
    judge = train_reward_model(
        pairs(train[:count]), assets.resolve(assets.SMOLLM2),
        log=lambda step, figures: print(step, figures, flush=True),
    )  # fmt: skip
    prompts, texts, _ = flat(test)
    with torch.no_grad():
        found = accuracies(test, judge(prompts, texts))
    save(f"SmolLM2 with LoRA, {count} prompts' pairs", f"{count} prompts' pairs", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["lora"])
    parser.add_argument("prompts", nargs="?", type=int, default=480)
    args = parser.parse_args()
    test = load_feedback(FEEDBACK / "test.jsonl")
    if args.what == "lora":
        lora(test, args.prompts)
    else:
        without_training(test)


if __name__ == "__main__":
    main()
