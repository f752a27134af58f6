"""The blind reading: who answers, what a reader grades, and what came of it.

    python scripts/reading.py train                     # three seeds, and the long run
    python scripts/reading.py sample validation -o rows.jsonl
    python scripts/feedback.py sheets rows.jsonl reading --parts 3
    # readers grade
    python scripts/feedback.py fold rows.jsonl reading --parts 3 -o graded.jsonl
    python scripts/reading.py temperatures graded.jsonl # each policy's best, by validation prompts
    python scripts/reading.py sample test -o ...        # then sheets, fold, once
    python scripts/reading.py report graded.jsonl       # notebooks/results/smollm2/reading.json

Test answers are read once. What is chosen, the temperatures among it, is chosen on validation
prompts.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from feedback import SYSTEM, TOKENS, prompts_of, sample

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.assets import SMOLLM2, Bundled
from rlhf_tutorial.evaluation.reading import compare_sources
from rlhf_tutorial.feedback import Row, load_feedback, save_feedback
from rlhf_tutorial.presets import Preset
from rlhf_tutorial.template import PromptTemplate

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "reading"
RESULTS = ROOT / "notebooks" / "results" / "smollm2"
SEEDS, LONG_EPOCHS = (0, 1, 2), 6
TEMPERATURES = (0.01, 0.3, 0.5, 0.7)
"""At 0.01 an answer is the greedy one."""


@dataclass(frozen=True)
class Source:
    """Who answers: a policy, and how it is asked."""

    policy: str | None
    """Its folder; None for the untouched one."""
    temperature: float
    system: bool = True
    """Whether it is told to be brief."""
    best_of: int = 1
    """Of how many answers the judge chooses one."""
    first_sentence: bool = False
    """Whether an answer is cut after its first sentence, which costs nothing."""


def whole_answers() -> Preset:
    """The experiment of whole answers, which is to become the preset `smollm2`.

    Temperature 0.5, where answers of the untouched policy still differ; the top 12 layers, which in
    one trial each learned more per nat than the top 18, and more per second than the top 8; a value
    head that starts at the mean grade.
    """
    preset = load_preset("smollm2")
    return replace(
        preset,
        reward_model=SMOLLM2,
        reward_adapter=Bundled("judge"),
        second_judge=SMOLLM2,
        second_adapter=Bundled("evaluating_judge"),
        template=PromptTemplate(system=SYSTEM),
        max_new_tokens=TOKENS,
        epochs=1,
        num_shared_layers=18,
        value_head_start=1.25,
        ppo={**preset.ppo, "temperature": 0.5, "init_kl_coef": 0.05},
    )


def presets() -> dict[str, Preset]:
    """The trainings: the default run with three seeds, and the long one."""
    preset = whole_answers()
    seeds = {f"default-{s}": replace(preset, ppo={**preset.ppo, "seed": s}) for s in SEEDS}
    return {**seeds, "long": replace(preset, epochs=LONG_EPOCHS)}


def policies() -> dict[str, str | None]:
    trained = {name: str(FOLDER / name / "policy") for name in presets()}
    return {"untouched": None, **trained}


def validation_sources() -> dict[str, Source]:
    """Every policy at every temperature; of the default run's seeds the first."""
    return {
        f"{name} at {temperature}": Source(policy, temperature)
        for name, policy in policies().items()
        if name in ("untouched", "default-0", "long")
        for temperature in TEMPERATURES
    }


def test_sources(best: dict[str, float]) -> dict[str, Source]:
    temperature, found = whole_answers().ppo["temperature"], policies()
    trained = {name: policy for name, policy in found.items() if policy}
    return {
        "untouched": Source(None, temperature),
        "untouched, best": Source(None, best["untouched"]),
        "untouched, greedy": Source(None, TEMPERATURES[0]),
        "untouched, no prompt": Source(None, best["untouched"], system=False),
        "untouched, first sentence": Source(None, best["untouched"], first_sentence=True),
        "untouched, best of 4": Source(None, temperature, best_of=4),
        **{name: Source(policy, temperature) for name, policy in trained.items()},
        **{
            f"{name}, best": Source(policy, best[name.replace("-1", "-0").replace("-2", "-0")])
            for name, policy in trained.items()
        },
        "fine-tuned": Source(str(ROOT / "runs" / "fine-tuned"), best["untouched"]),
    }


def answered(sources: dict[str, Source], split: str) -> list[Row]:
    """An answer of each source to each prompt of the split."""
    prompts = prompts_of(split)
    rows: list[Row] = [{"prompt": prompt, "answers": []} for prompt in prompts]
    judge = Run(whole_answers(), FOLDER / "default-0").load_reward()
    for seed, (name, source) in enumerate(sources.items()):
        settings: dict[str, Any] = {} if source.system else {"system": None}
        drawn = sample(
            prompts,
            policy=source.policy,
            answers=source.best_of,
            temperature=source.temperature,
            seed=100 + seed,
            **settings,
        )
        for row, answer in zip(rows, _chosen(drawn, judge), strict=True):
            kept = first_sentence(answer) if source.first_sentence else answer
            row["answers"].append({**kept, "source": name})
    return rows


def first_sentence(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer up to the end of its first sentence, if it goes on after one."""
    match = re.match(r".*?(?<!\d)[.!?](?=\s)", answer["text"], re.DOTALL)
    return answer if match is None else {**answer, "text": match[0], "ended": True}


def _chosen(drawn: list[Row], judge: Any) -> Iterator[dict[str, Any]]:
    """Of each row the answer that the judge scores highest."""
    for row in drawn:
        answers = row["answers"]
        texts = [answer["text"] for answer in answers]
        scores = judge([row["prompt"]] * len(texts), texts) if len(texts) > 1 else [0.0]
        yield answers[int(np.argmax(scores))]


def best_temperatures(rows: list[Row]) -> dict[str, float]:
    """Each policy's temperature with the best mean grade; of equal ones the lowest."""
    grades: dict[str, dict[float, list[int]]] = {}
    for answer in (answer for row in rows for answer in row["answers"]):
        name, temperature = answer["source"].split(" at ")
        grades.setdefault(name, {}).setdefault(float(temperature), []).append(answer["grade"])
    return {
        name: max(sorted(found), key=lambda t: np.mean(found[t])) for name, found in grades.items()
    }


def report(rows: list[Row], best: dict[str, float]) -> dict[str, Any]:
    """`reading.json`: each control and each training against the untouched policy."""
    seeds = [f"default-{s}" for s in SEEDS]
    results: dict[str, Any] = {
        "temperatures": best,
        "default": compare_sources(rows, "untouched", seeds),
        "long": compare_sources(rows, "untouched", ["long"]),
        "best_temperatures": {
            "default": compare_sources(rows, "untouched, best", [f"{s}, best" for s in seeds]),
            "long": compare_sources(rows, "untouched, best", ["long, best"]),
        },
    }
    trained = {*seeds, "long", *(f"{s}, best" for s in seeds), "long, best"}
    for source in (answer["source"] for answer in rows[0]["answers"]):
        if source not in trained and source != "untouched":
            results[source] = compare_sources(rows, "untouched", [source])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="what is read").add_argument("names", nargs="*")
    sampling = commands.add_parser("sample", help="an answer of each source to each prompt")
    sampling.add_argument("split", choices=["validation", "test"])
    sampling.add_argument("-o", "--output", type=Path, required=True)
    for name in ("temperatures", "report"):
        commands.add_parser(name).add_argument("rows", type=Path)
    args = parser.parse_args()
    chosen = FOLDER / "temperatures.json"
    if args.command == "train":
        for name, preset in presets().items():
            if not args.names or name in args.names:
                Run(preset, FOLDER / name).trained_policy()
    elif args.command == "sample":
        validation = args.split == "validation"
        sources = (
            validation_sources() if validation else test_sources(json.loads(chosen.read_text()))
        )
        save_feedback(answered(sources, args.split), args.output)
    elif args.command == "temperatures":
        best = best_temperatures(load_feedback(args.rows))
        chosen.write_text(json.dumps(best) + "\n", encoding="utf-8")
        print(best)
    else:
        results = report(load_feedback(args.rows), json.loads(chosen.read_text()))
        text = json.dumps(results, indent=1) + "\n"
        (RESULTS / "reading.json").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
