"""Draw the course's two pictures: the plan of the experiment, and what came of it.

python scripts/make_figures.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.reading import gains_of
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.figures import plan_diagram, seeds_and_controls
from rlhf_tutorial.studies.committed import committed_trainings

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
JUDGES = {"first": "training\njudge", "second": "evaluating\njudge"}
UNTOUCHED = "untouched, best"
READ = {
    "… cut after one sentence": (["untouched, first sentence"], False),
    "… drawn again until it ends": (["untouched, until it ends"], False),
    "… best of 4 by the judge": (["untouched, best of 4"], False),
    "fine-tuned on short replies": (["fine-tuned"], False),
    "PPO, three seeds": ([f"default-{seed}, best" for seed in SEEDS], True),
    "PPO, the long run": (["long, best"], True),
}
"""What was read, each policy at its best temperature: its sources, and whether PPO trained it."""


def judged() -> dict[str, list[list[dict[str, float]]]]:
    """Of each judge the default run's seeds: mean scores of 96 validation prompts, at each look."""
    trainings = committed_trainings()
    looks = [trainings[f"default, seed {seed}"]["looks"] for seed in SEEDS]
    return {
        label: [
            [{"step": at["step"], "score": float(np.mean(at["scores"][judge]))} for at in run]
            for run in looks
        ]
        for judge, label in JUDGES.items()
    }


def read() -> list[dict[str, Any]]:
    """The untouched policy and what was read against it: mean grades of 128 test prompts.

    "low" and "high" are the 95% interval of the gain over the untouched policy, by pairs.
    """
    rows = load_feedback(resolve(Bundled("feedback")) / "reading.jsonl")

    def mean_grade(source: str) -> float:
        answers = [answer for row in rows for answer in row["answers"]]
        return float(np.mean([a["grade"] for a in answers if a["source"] == source]))

    untouched = mean_grade(UNTOUCHED)
    label = "untouched, with the\nsystem message, at 0.3"
    found = [{"label": label, "value": untouched, "ppo": False}]
    for label, (sources, ppo) in READ.items():
        gain = gains_of(rows, UNTOUCHED, sources)
        low, high = (untouched + end for end in gain["mean_gain_interval"])
        row = {"label": label, "value": untouched + gain["mean_gain"], "low": low, "high": high}
        if len(sources) > 1:
            row["seeds"] = [mean_grade(source) for source in sources]
        found.append({**row, "ppo": ppo})
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "images")
    folder = parser.parse_args(argv).output
    plan_diagram(folder / "rlhf-tutorial.png")
    titles = (
        "Three seeds: the judges' scores rise each time",
        "A blind reader agrees. Cheap controls come near",
    )
    seeds_and_controls(judged(), read(), titles, folder / "result.png")
    for name in ("rlhf-tutorial.png", "result.png"):
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    main()
