"""What notebook 10 says of simulated readers: labels that a taste needs, and what steering gains.

    python scripts/human.py features          # once: what the judges see of all answers (minutes)
    python scripts/human.py labels            # learning curves, three tastes, five seeds
    python scripts/human.py steer TASTE SEED  # 80 labels, a judge, PPO, and the win rate
    python scripts/human.py table             # what is there, in a table

Pairs are of the untouched policy's answers in bundled/feedback: those to the training prompts are
labelled, those to the test prompts tell how well a judge does. Results go to bundled/human/; what
is there is not done again, so several processes can share the work (with OMP_NUM_THREADS=1 each).
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rlhf_tutorial import AutoModelForCausalLMWithValueHead, Run, load_preset
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.human.choice import active_choice, random_choice
from rlhf_tutorial.human.judge import (
    BayesianJudge,
    Features,
    cross_validated_agreement,
    state_reader,
)
from rlhf_tutorial.human.labels import Pair, policy_name
from rlhf_tutorial.human.readers import TASTES, SimulatedReader
from rlhf_tutorial.human.steering import STEPS, steer, steered_policy
from rlhf_tutorial.human.study import (
    agreement_in_taste,
    committed_steering,
    label_pairs,
    labels_needed,
    learning_curve,
    pairs_of_rows,
    win_rate,
)
from rlhf_tutorial.notebook import setup
from rlhf_tutorial.studies.looks import look_at

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "rlhf_tutorial" / "bundled"
FOLDER, RUNS = BUNDLED / "human", ROOT / "runs" / "human"
SEEDS, CANDIDATES, LABELS, BUDGET = range(5), 1200, 200, 80


def pool(split: str) -> list[Pair]:
    return pairs_of_rows(load_feedback(BUNDLED / "feedback" / f"{split}.jsonl"))


def make_features() -> None:
    """Read all answers, fit the projection on the training prompts' alone, and keep both."""
    run = Run(load_preset("smollm2"), RUNS / "reader")
    features = Features.fit(state_reader(run, progress=tqdm), pool("train"))
    features.differences(pool("test"))
    features.save(RUNS / "features")


def load_features() -> Features:
    if not (RUNS / "features").exists():
        raise SystemExit("run `python scripts/human.py features` first")
    return Features.load(
        RUNS / "features", state_reader(Run(load_preset("smollm2"), RUNS / "reader"))
    )


def candidates(train: list[Pair], seed: int) -> list[Pair]:
    """Pairs to choose from, in an order of the seed's: without labels, all of them teach alike."""
    return [train[i] for i in np.random.default_rng(seed).permutation(len(train))[:CANDIDATES]]


def slug(taste: str) -> str:
    return taste.replace(" ", "-")


def labels() -> None:
    """Learning curves of each taste, by random choice and by both kinds of active choice."""
    features, train, test = load_features(), pool("train"), pool("test")
    for taste in TASTES:
        path = FOLDER / f"labels_{slug(taste)}.json"
        if path.exists():
            continue
        curves: dict[str, list[Any]] = {}
        for seed in SEEDS:
            choices = {
                "random": random_choice(seed),
                "active, weights": active_choice(features),
                "active, pairs": active_choice(features, "pairs", seed),
            }
            order = candidates(train, seed)
            for how, choose in choices.items():
                given = label_pairs(order, SimulatedReader(taste, seed), LABELS, choose)
                curves.setdefault(how, []).append(learning_curve(features, given, test, taste))
                print(taste, seed, how, [row["agreement"] for row in curves[how][-1]], flush=True)
        result = {"taste": taste, "pool": CANDIDATES, "seeds": list(SEEDS), "curves": curves}
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")


def steer_one(taste: str, seed: int, steps: int, choice: str) -> None:
    path = FOLDER / f"steer_{slug(taste)}_{seed}.json"
    if path.exists():
        return
    features, train, test = load_features(), pool("train"), pool("test")
    run = Run(load_preset("smollm2"), RUNS / f"{slug(taste)}-{seed}")
    choose = random_choice(seed) if choice == "random" else active_choice(features)
    reader, name = SimulatedReader(taste, seed), policy_name(run)
    given = label_pairs(candidates(train, seed), reader, BUDGET, choose, name)
    judge = BayesianJudge.fit(features, given, name)
    agreement = agreement_in_taste(judge, test, taste)
    own = cross_validated_agreement(features, given)
    print(f"{taste}, seed {seed}: {agreement} on test pairs; cross-validated {own}", flush=True)
    log = []
    for stats in steer(run, judge, steps, seed=seed):
        row = {"score": stats["ppo/mean_scores"], "kl": stats["objective/kl"]}
        log.append({name: round(float(value), 4) for name, value in row.items()})
        print(len(log), log[-1], flush=True)
    gc.collect()
    queries = run.queries("test")
    queries = queries.select(range(run.preset.comparison_prompts))
    judges = {"own": judge, "course": run.load_reward()}
    untouched = run.load_policy().to(run.device)
    looks = {}
    for when in ("before", "after"):
        policy = (
            untouched
            if when == "before"
            else AutoModelForCausalLMWithValueHead.from_pretrained(steered_policy(run))
        )
        looks[when] = look_at(
            policy.to(run.device), untouched, run, judges, queries, seed=seed, examples=len(queries)
        )
    won = win_rate(
        queries["query"][:], looks["before"]["answers"], looks["after"]["answers"], taste
    )
    print(f"{taste}, seed {seed}: win rate {won['win_rate']:.1%} {won['win_rate_interval']}")
    result = {
        "taste": taste, "seed": seed, "labels": len(given), "choice": choice, "steps": steps,
        "told": sum(label.choice != "tie" for label in given),
        "agreement": [agreement.right, agreement.n], "cross_validated": [own.right, own.n],
        **won, "log": log, "queries": queries["query"][:], **looks,
    }  # fmt: skip
    path.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(run.folder)  # half a gigabyte of policy


def table() -> None:
    for taste in TASTES:
        path = FOLDER / f"labels_{slug(taste)}.json"
        if path.exists():
            for how, curves in json.loads(path.read_text(encoding="utf-8"))["curves"].items():
                needed = {s: [labels_needed(c, s) for c in curves] for s in (0.7, 0.75)}
                print(f"{taste}, {how}: labels needed {needed}")
    print(committed_steering().round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("features")
    commands.add_parser("labels")
    steering = commands.add_parser("steer")
    steering.add_argument("taste", choices=list(TASTES))
    steering.add_argument("seed", type=int)
    steering.add_argument("--steps", type=int, default=STEPS)
    steering.add_argument("--choice", choices=("active", "random"), default="active")
    commands.add_parser("table")
    args = parser.parse_args()
    setup()  # no progress bars of other libraries
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.command == "steer":
        steer_one(args.taste, args.seed, args.steps, args.choice)
    else:
        {"features": make_features, "labels": labels, "table": table}[args.command]()


if __name__ == "__main__":
    main()
