"""Graded answers: sample them, print them for a blind reading, take the grades in.

    python scripts/feedback.py sample validation -o rows.jsonl      # four answers to each prompt
    python scripts/feedback.py sheets rows.jsonl reading --parts 3
    # a reader gets guide.md and one sheet, and writes grades-0.txt beside sheet-0.txt
    python scripts/feedback.py fold rows.jsonl reading --parts 3 -o graded.jsonl
    python scripts/feedback.py looks training.json 0 20 40 --name long -o rows.jsonl
    python scripts/feedback.py agreement graded.jsonl graded-again.jsonl

A reader may be a person or a model: it sees prompts and answers in random order, and nothing else.
What a sheet's order was follows from `--seed`; a second reading takes another one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from pathlib import Path

import torch

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.assets import Bundled, as_source, resolve
from rlhf_tutorial.data import first_prompt, load_preferences
from rlhf_tutorial.errors import DataError
from rlhf_tutorial.evaluation.reading import agreement
from rlhf_tutorial.evaluation.sampling import sample_answers
from rlhf_tutorial.feedback import (
    Row,
    fold_grades,
    load_feedback,
    make_sheet,
    save_feedback,
)
from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead
from rlhf_tutorial.template import PromptTemplate

FEEDBACK = Bundled("feedback")
PRESET = load_preset("smollm2")


def prompts_of(split: str) -> list[str]:
    """The bare prompts of a split of the course's preferences, "validation" among them."""
    dialogues = load_preferences(Bundled("preferences"), split)["chosen"][:]
    return [prompt for text in dialogues if (prompt := first_prompt(text)) is not None]


def sample(
    prompts: list[str],
    *,
    policy: str | None = None,
    answers: int = 4,
    temperature: float = 0.5,
    seed: int = 0,
    system: str | None = PRESET.template.system,
) -> list[Row]:
    """Rows of answers of a policy, by default the untouched one, `answers` to each prompt."""
    run = Run(PRESET)
    if policy is None:
        model = run.load_policy()
    else:
        model = AutoModelForCausalLMWithValueHead.from_pretrained(resolve(as_source(policy)))
    template = PromptTemplate(system=system).bind(run.load_tokenizer())
    asked = [prompt for prompt in prompts for _ in range(answers)]
    queries = [torch.tensor(template.encode(prompt)) for prompt in asked]
    order = sorted(range(len(queries)), key=lambda i: len(queries[i]))  # little padding
    drawn = sample_answers(
        model,
        template,
        [queries[i] for i in order],
        batch_size=64,
        seed=seed,
        temperature=temperature,
        max_new_tokens=PRESET.max_new_tokens,
    )
    found: dict[int, dict[str, object]] = {}
    for i, text, tokens in zip(order, drawn.texts, drawn.responses, strict=True):
        found[i] = {"text": text, "ended": int(tokens[-1]) in template.eos_token_ids}
    return [
        {"prompt": prompt, "answers": [found[answers * i + j] for j in range(answers)]}
        for i, prompt in enumerate(prompts)
    ]


def parts_of(rows: list[Row], parts: int) -> list[list[Row]]:
    """The rows in so many consecutive parts of nearly equal size."""
    bounds = [k * len(rows) // parts for k in range(parts + 1)]
    return [rows[start:end] for start, end in itertools.pairwise(bounds)]


def answers_on_the_way(training: Path, steps: list[int], name: str) -> list[Row]:
    """The answers with which a committed training was looked at after these steps, as rows."""
    found = json.loads(training.read_text(encoding="utf-8"))
    rows: list[Row] = [{"prompt": query, "answers": []} for query in found["queries"]]
    for at in (look for look in found["looks"] if look["step"] in steps):
        for row, text, ended in zip(rows, at["answers"], at["ended"], strict=True):
            source = f"{name}, step {at['step']}"
            row["answers"].append({"text": text, "ended": bool(ended), "source": source})
    return rows


def write_sheets(rows: list[Row], folder: Path, parts: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(resolve(FEEDBACK) / "GUIDE.md", folder / "guide.md")
    for k, part in enumerate(parts_of(rows, parts)):
        sheet = make_sheet(part, seed=1000 * seed + k)
        (folder / f"sheet-{k}.txt").write_text(sheet.text, encoding="utf-8")


def fold(rows: list[Row], folder: Path, parts: int, seed: int) -> list[Row]:
    graded = []
    for k, part in enumerate(parts_of(rows, parts)):
        sheet = make_sheet(part, seed=1000 * seed + k)
        if (folder / f"sheet-{k}.txt").read_text(encoding="utf-8") != sheet.text:
            raise DataError(
                f"{folder}/sheet-{k}.txt was not made of these rows with --parts {parts} --seed "
                f"{seed}: give those that it was made with"
            )
        grades = (folder / f"grades-{k}.txt").read_text(encoding="utf-8")
        graded += fold_grades(part, sheet, grades)
    return graded


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("sample", help="answers of a policy")
    drawing.add_argument("split", choices=["train", "validation", "test"])
    drawing.add_argument("--policy", help="a trained policy's folder; the untouched one without")
    drawing.add_argument("--answers", type=int, default=4)
    drawing.add_argument("--temperature", type=float, default=0.5)
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("-o", "--output", type=Path, required=True)
    looks = commands.add_parser("looks", help="what a training answered on its way")
    looks.add_argument("training", type=Path)
    looks.add_argument("steps", type=int, nargs="+")
    looks.add_argument("--name", required=True)
    looks.add_argument("-o", "--output", type=Path, required=True)
    for name, text in (("sheets", "sheets to read"), ("fold", "rows with the grades on them")):
        command = commands.add_parser(name, help=text)
        command.add_argument("rows", type=Path)
        command.add_argument("folder", type=Path)
        command.add_argument("--parts", type=int, default=1, help="readers")
        command.add_argument("--seed", type=int, default=0)
        if name == "fold":
            command.add_argument("-o", "--output", type=Path, required=True)
    comparing = commands.add_parser("agreement", help="of two readings of the same answers")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    args = parser.parse_args()
    if args.command == "sample":
        rows = sample(
            prompts_of(args.split),
            policy=args.policy,
            answers=args.answers,
            temperature=args.temperature,
            seed=args.seed,
        )
        save_feedback(rows, args.output)
    elif args.command == "looks":
        save_feedback(answers_on_the_way(args.training, args.steps, args.name), args.output)
    elif args.command == "sheets":
        write_sheets(load_feedback(args.rows), args.folder, args.parts, args.seed)
    elif args.command == "fold":
        rows = fold(load_feedback(args.rows), args.folder, args.parts, args.seed)
        save_feedback(rows, args.output)
    else:
        print(json.dumps(agreement(load_feedback(args.first), load_feedback(args.second))))


if __name__ == "__main__":
    main()
