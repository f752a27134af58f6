"""The blind reading: who answers, what a reader grades, and what came of it.

    python scripts/tuning.py train default 0            # the trainings, each arm and seed
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from feedback import prompts_of, sample

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.evaluation.measures import first_sentence
from rlhf_tutorial.evaluation.reading import compare_sources, gain_by_ending
from rlhf_tutorial.feedback import Row, load_feedback, save_feedback
from rlhf_tutorial.scores import Reward

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "reading"
RESULTS = ROOT / "notebooks" / "results" / "smollm2"
PRESET, SEEDS = load_preset("smollm2"), (0, 1, 2)
DEFAULT = "default"
"""The arm of scripts/tuning.py that the rule took."""
LONG = "long-0"
FIRST_SEED = 200
"""Of the answers that are drawn: other ones than any that have been read before."""
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
    until_ended: int = 1
    """How often at the most it is drawn again while it does not end; then the last draw stands."""


def policies() -> dict[str, str]:
    """The trained ones: the default run with three seeds, and the long one."""
    chosen = {f"default-{seed}": f"{DEFAULT}-{seed}" for seed in SEEDS} | {"long": LONG}
    return {name: str(FOLDER / folder / "policy") for name, folder in chosen.items()}


def validation_sources(names: Sequence[str]) -> dict[str, Source]:
    """These policies, by default all that are tried, at every temperature."""
    tried = {"untouched": None, **{name: policies()[name] for name in ("default-0", "long")}}
    return {
        f"{name} at {temperature}": Source(tried[name], temperature)
        for name in names or tried
        for temperature in TEMPERATURES
    }


def test_sources(best: dict[str, float]) -> dict[str, Source]:
    """Who answers the test prompts. The default's seeds share the best temperature of the first."""
    temperature, trained = PRESET.ppo["temperature"], policies()
    best = {name: best["default-0"] for name in trained} | best
    return {
        "untouched": Source(None, temperature),
        "untouched, best": Source(None, best["untouched"]),
        "untouched, greedy": Source(None, TEMPERATURES[0]),
        "untouched, temperature 1": Source(None, 1.0),
        "untouched, no prompt, temperature 1": Source(None, 1.0, system=False),
        "untouched, no prompt": Source(None, best["untouched"], system=False),
        "untouched, first sentence": Source(None, best["untouched"], first_sentence=True),
        "untouched, until it ends": Source(None, best["untouched"], until_ended=8),
        "untouched, best of 4": Source(None, temperature, best_of=4),
        **{name: Source(policy, temperature) for name, policy in trained.items()},
        **{f"{name}, best": Source(policy, best[name]) for name, policy in trained.items()},
        "fine-tuned": Source(str(ROOT / "runs" / "fine-tuned"), best["untouched"]),
    }


def answered(sources: dict[str, Source], split: str) -> list[Row]:
    """An answer of each source to each prompt of the split."""
    prompts, judge = prompts_of(split), Run(PRESET).load_reward()
    rows: list[Row] = [{"prompt": prompt, "answers": []} for prompt in prompts]
    for seed, (name, source) in enumerate(sources.items()):
        for row, answer in zip(rows, answers_of(source, prompts, judge, seed), strict=True):
            row["answers"].append({**answer, "source": name})
    return rows


def answers_of(
    source: Source, prompts: list[str], judge: Reward, seed: int
) -> Iterator[dict[str, Any]]:
    """The source's answer to each prompt."""
    settings: dict[str, Any] = {} if source.system else {"system": None}
    drawn = sample(
        prompts,
        policy=source.policy,
        answers=max(source.best_of, source.until_ended),
        temperature=source.temperature,
        seed=FIRST_SEED + seed,
        **settings,
    )
    chosen = _first_ended(drawn) if source.until_ended > 1 else _chosen(drawn, judge)
    for answer in chosen:
        yield cut(answer) if source.first_sentence else answer


def judged(rows: list[Row]) -> list[Row]:
    """The rows with both judges' scores, for what a judge predicts beside what a reader says."""
    run = Run(PRESET)
    answers = [(row["prompt"], answer) for row in rows for answer in row["answers"]]
    texts = [prompt for prompt, _ in answers], [answer["text"] for _, answer in answers]
    for name, judge in (("first", run.load_reward()), ("second", run.load_second_judge())):
        for (_, answer), score in zip(answers, judge(*texts), strict=True):
            answer[name] = round(score, 3)
    return rows


def cut(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer up to the end of its first sentence, if it goes on after one."""
    text = first_sentence(answer["text"])
    return answer if text == answer["text"] else {**answer, "text": text, "ended": True}


def _chosen(drawn: list[Row], judge: Reward) -> Iterator[dict[str, Any]]:
    """Of each row the answer that the judge scores highest."""
    for row in drawn:
        answers = row["answers"]
        texts = [answer["text"] for answer in answers]
        scores = judge([row["prompt"]] * len(texts), texts) if len(texts) > 1 else [0.0]
        yield answers[int(np.argmax(scores))]


def _first_ended(drawn: list[Row]) -> Iterator[dict[str, Any]]:
    """Of each row the first answer that ended by itself; the last one where none did."""
    for row in drawn:
        yield next((answer for answer in row["answers"] if answer["ended"]), row["answers"][-1])


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
    best_seeds = [f"{seed}, best" for seed in seeds]

    def trained_against_untouched(compare: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        at_best = compare(rows, "untouched, best", best_seeds)
        return {
            "default": compare(rows, "untouched", seeds),
            "long": compare(rows, "untouched", ["long"]),
            "best_temperatures": {
                **at_best,  # the default run's, as a control has them
                "default": at_best,
                "long": compare(rows, "untouched, best", ["long, best"]),
            },
        }

    results: dict[str, Any] = {
        "temperatures": best,
        **trained_against_untouched(compare_sources),
        "gain_by_ending": trained_against_untouched(gain_by_ending),
    }
    trained = {*seeds, *best_seeds, "long", "long, best"}
    for source in (answer["source"] for answer in rows[0]["answers"]):
        if source in trained or source == "untouched":
            continue
        results[source] = compare_sources(rows, "untouched", [source])
        # What is left of the gain over this control, each at its best temperature.
        results[source]["default_against_it"] = compare_sources(rows, source, best_seeds)
        results[source]["long_against_it"] = compare_sources(rows, source, ["long, best"])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sampling = commands.add_parser("sample", help="an answer of each source to each prompt")
    sampling.add_argument("split", choices=["validation", "test"])
    sampling.add_argument("policies", nargs="*", help="of validation only these")
    sampling.add_argument("-o", "--output", type=Path, required=True)
    for name in ("temperatures", "report"):
        commands.add_parser(name).add_argument("rows", type=Path)
    args = parser.parse_args()
    chosen = FOLDER / "temperatures.json"
    if args.command == "sample":
        validation = args.split == "validation"
        sources = (
            validation_sources(args.policies)
            if validation
            else test_sources(json.loads(chosen.read_text()))
        )
        rows = answered(sources, args.split)
        save_feedback(rows if validation else judged(rows), args.output)
    elif args.command == "temperatures":
        best = best_temperatures(load_feedback(args.rows))
        earlier = json.loads(chosen.read_text()) if chosen.exists() else {}
        kept = earlier | best
        chosen.write_text(json.dumps(kept) + "\n", encoding="utf-8")
        print(kept)
    else:
        results = report(load_feedback(args.rows), json.loads(chosen.read_text()))
        text = json.dumps(results, indent=1) + "\n"
        (RESULTS / "reading.json").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
