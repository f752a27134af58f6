"""Over-optimisation against a known gold: what notebook 08 is to show (Gao et al. 2022).

    python scripts/overoptimisation.py fit         # the gold, and proxies of 50, 200 and 800 grades
    python scripts/overoptimisation.py ppo 50 0    # PPO against a proxy, seed 0
    python scripts/overoptimisation.py best-of-n   # the untouched policy's answers, all proxies

The gold judge is fitted to all grades there are, a proxy to those of a few answers of the untouched
policy. PPO maximises the proxy without a KL penalty, and both judges look on, at answers to the
validation prompts. Results go to runs/overoptimisation/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from feedback import prompts_of, sample
from fit_judges import FEEDBACK, LAYERS, flat

from rlhf_tutorial import Run, assets, load_preset
from rlhf_tutorial.data import prepare_queries
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.reward import StateJudge, StateReader, fit_line
from rlhf_tutorial.studies.looks import experiment
from rlhf_tutorial.studies.overoptimisation import expected_best_of_n

FOLDER = Path(__file__).resolve().parent.parent / "runs" / "overoptimisation"
SIZES = (50, 200, 800)
"""Grades that a proxy knows."""
STEPS, LOOKS, ANSWERS = 80, (5, 10, 20, 30, 40, 60), 32


def fit() -> None:
    """The gold and the proxies, as lines on the disk."""
    reader = StateReader.from_pretrained(assets.resolve(assets.SMOLLM2), LAYERS["judge"])
    untouched = load_feedback(FEEDBACK / "train.jsonl")
    rounds = [row for p in sorted(FEEDBACK.glob("round-*.jsonl")) for row in load_feedback(p)]
    prompts, texts, grades = flat(untouched + rounds)
    features, given = reader(prompts, texts), torch.tensor(grades)
    StateJudge(reader, *fit_line(features, given)).save_pretrained(FOLDER / "gold")
    order = np.random.default_rng(0).permutation(len(untouched))
    for size in SIZES:
        kept = torch.tensor([4 * i + j for i in order[: size // 4] for j in range(4)])
        line = fit_line(features[kept], given[kept])
        StateJudge(reader, *line).save_pretrained(FOLDER / f"proxy-{size}")


def load(name: str) -> StateJudge:
    return StateJudge.from_pretrained(assets.resolve(assets.SMOLLM2), FOLDER / name)


def ppo(size: int, seed: int) -> None:
    run = Run(load_preset("smollm2"), FOLDER / "run")
    queries, _ = prepare_queries(run.preferences("validation"), run.load_template())
    judges = {"proxy": load(f"proxy-{size}"), "gold": load("gold")}
    result = experiment(
        run,
        judges,
        queries,
        steps=STEPS,
        looks=LOOKS,
        examples=len(queries),
        init_kl_coef=0.0,
        seed=seed,
    )
    path = FOLDER / f"ppo-{size}-{seed}.json"
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")


def best_of_n() -> None:
    rows = sample(
        prompts_of("validation"),
        answers=ANSWERS,
        temperature=load_preset("smollm2").ppo["temperature"],
        seed=7,
    )
    prompts = [row["prompt"] for row in rows for _ in row["answers"]]
    texts = [answer["text"] for row in rows for answer in row["answers"]]
    names = ["gold", *(f"proxy-{size}" for size in SIZES)]
    scores = {name: np.reshape(load(name)(prompts, texts), (len(rows), ANSWERS)) for name in names}
    gains = {
        name: {
            str(n): {
                judge: expected_best_of_n(scores[name], scores[judge], n).round(4).tolist()
                for judge in (name, "gold")
            }
            for n in (2**k for k in range(ANSWERS.bit_length()))
        }
        for name in names
    }
    (FOLDER / "best-of-n.json").write_text(json.dumps(gains) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fit")
    training = commands.add_parser("ppo")
    training.add_argument("size", type=int, choices=SIZES)
    training.add_argument("seed", type=int)
    commands.add_parser("best-of-n")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.command == "fit":
        fit()
    elif args.command == "ppo":
        ppo(args.size, args.seed)
    else:
        best_of_n()


if __name__ == "__main__":
    main()
