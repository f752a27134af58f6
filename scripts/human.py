"""What notebook 10 says of simulated readers: labels that a taste needs, and what steering gains.

    python scripts/human.py features          # once: what the judges see of all answers (minutes)
    python scripts/human.py labels            # learning curves, three tastes, five seeds
    python scripts/human.py steer TASTE SEED  # 80 labels, a judge, PPO, and the win rate;
                                              # --rounds 2: twelve labels more, and once again
    python scripts/human.py controls SEED     # what a system message, say, does without training
    python scripts/human.py table             # what is there, in a table

Pairs are of the untouched policy's answers in bundled/feedback: those to the training prompts are
labelled, those to the test prompts tell how well a judge does. Results go to bundled/human/; what
is there is not done again, so several processes can share the work (with OMP_NUM_THREADS=1 each).
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from rlhf_tutorial import AutoModelForCausalLMWithValueHead, Run, load_preset
from rlhf_tutorial.evaluation.measures import first_sentence
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.human.choice import active_choice, random_choice
from rlhf_tutorial.human.judge import (
    BayesianJudge,
    Features,
    cross_validated_agreement,
    state_reader,
    weights_of,
)
from rlhf_tutorial.human.labels import NextPair, Pair, policy_name
from rlhf_tutorial.human.readers import TASTES, SimulatedReader
from rlhf_tutorial.human.steering import STEPS, pairs_against, steer, steered_policy
from rlhf_tutorial.human.study import (
    FROM_COURSE,
    agreement_in_taste,
    committed_curves,
    committed_steering,
    label_pairs,
    labels_needed_table,
    learning_curve,
    pairs_of_rows,
    simulated_label,
    win_rate,
)
from rlhf_tutorial.notebook import setup
from rlhf_tutorial.studies.looks import look_at

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "rlhf_tutorial" / "bundled"
FOLDER, RUNS = BUNDLED / "human", ROOT / "runs" / "human"
SEEDS, CANDIDATES, LABELS, BUDGET, AGAINST = range(5), 1200, 200, 80, 12
ROUNDS = ("steer", "again")
"""What the results of the first and of the second round are called."""
MESSAGES = {
    "short and concrete": "Answer in three to five words.",
    "warm and personal": "Answer briefly and warmly, as a friend would, in one sentence of at most "
    "20 words.",
    "names a number": "Answer briefly, in one sentence of at most 20 words, with a number in it.",
}
"""What somebody would write who asks for a taste in words. Nothing was tried before these."""


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
    """Learning curves of each taste: random choice, both kinds of active choice, and with a prior.

    The prior is the course's judge, as far as the features tell it, for the pairs of random choice.
    """
    features, train, test = load_features(), pool("train"), pool("test")
    course = weights_of(Run(load_preset("smollm2"), RUNS / "reader").load_reward(), features, train)
    for taste in TASTES:
        path = FOLDER / f"labels_{slug(taste)}.json"
        curves = json.loads(path.read_text(encoding="utf-8"))["curves"] if path.exists() else {}
        ways: dict[str, tuple[Callable[[int], NextPair], Tensor | None]] = {
            "random": (random_choice, None),
            "active, weights": (lambda _: active_choice(features), None),
            "active, pairs": (lambda seed: active_choice(features, "pairs", seed), None),
            FROM_COURSE: (random_choice, course),
        }
        for how, (choose, prior) in ways.items():
            for seed in SEEDS[len(curves.setdefault(how, [])) :]:
                reader = SimulatedReader(taste, seed)
                given = label_pairs(candidates(train, seed), reader, LABELS, choose(seed))
                curve = learning_curve(features, given, test, taste, prior_mean=prior)
                curves[how].append(curve)
                print(taste, seed, how, [row["agreement"] for row in curve], flush=True)
        result = {"taste": taste, "pool": CANDIDATES, "seeds": list(SEEDS), "curves": curves}
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")


def steer_one(taste: str, seed: int, rounds: int, steps: int, choice: str) -> None:
    """One or two rounds of labels, judge, training and a look at the test prompts.

    The second is that of notebook 10's arms race: more labels, on what the first policy does.
    """
    paths = [FOLDER / f"{name}_{slug(taste)}_{seed}.json" for name in ROUNDS[:rounds]]
    if all(path.exists() for path in paths):
        return
    features, train, test = load_features(), pool("train"), pool("test")
    run = Run(load_preset("smollm2"), RUNS / f"{slug(taste)}-{seed}")
    choose = random_choice(seed) if choice == "random" else active_choice(features)
    reader, name = SimulatedReader(taste, seed), policy_name(run)
    given = label_pairs(candidates(train, seed), reader, BUDGET, choose, name)
    for path in paths:
        if path != paths[0]:
            against = pairs_against(run, steered_policy(run), AGAINST)
            given += [simulated_label(pair, reader(pair), name) for pair in against]
        judge = BayesianJudge.fit(features, given, name)
        agreement = agreement_in_taste(judge, test, taste)
        own = cross_validated_agreement(features, given)
        print(f"{path.stem}: {agreement} on test pairs; cross-validated {own}", flush=True)
        log = []
        for stats in steer(run, judge, steps, seed=seed):  # what is done is not done again
            row = {"score": stats["ppo/mean_scores"], "kl": stats["objective/kl"]}
            log.append({name: round(float(value), 4) for name, value in row.items()})
            print(len(log), log[-1], flush=True)
        gc.collect()
        if path.exists():
            continue
        result = {
            "taste": taste, "seed": seed, "labels": len(given), "choice": choice, "steps": steps,
            "told": sum(label.choice != "tie" for label in given),
            "agreement": [agreement.right, agreement.n], "cross_validated": [own.right, own.n],
            **looks(run, judge, taste, seed), "log": log,
        }  # fmt: skip
        print(f"{path.stem}: win rate {result['win_rate']:.1%} {result['win_rate_interval']}")
        path.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")


def looks(run: Run, judge: BayesianJudge, taste: str, seed: int) -> dict[str, Any]:
    """The test prompts answered before and after, and how often the taste prefers the latter."""
    queries = test_queries(run)
    judges = {"own": judge, "course": run.load_reward()}
    untouched = run.load_policy().to(run.device)
    trained = AutoModelForCausalLMWithValueHead.from_pretrained(steered_policy(run))
    before, after = (
        look_at(policy, untouched, run, judges, queries, seed=seed, examples=len(queries))
        for policy in (untouched, trained.to(run.device))
    )
    won = win_rate(queries["query"][:], before["answers"], after["answers"], taste)
    return {**won, "queries": queries["query"][:], "before": before, "after": after}


def controls(seed: int) -> None:
    """What takes no training, against the same untouched answers: a win rate a taste and a way.

    A system message that asks for the taste in words; the first sentence of the answer alone; and
    of four answers the one that the judge of the first round scores highest.
    """
    path = FOLDER / f"controls_{seed}.json"
    if path.exists():
        return
    features, train = load_features(), pool("train")
    run = Run(load_preset("smollm2"), RUNS / "controls")
    found = test_queries(run)
    queries, texts = found["input_ids"][:], found["query"][:]
    policy = run.load_policy()
    before = run.answers(policy, queries, seed)
    draws = [run.answers(policy, queries, 1000 * (seed + 1) + i) for i in range(4)]
    result: dict[str, Any] = {"seed": seed, "queries": texts, "before": before, "ways": {}}
    for taste, message in MESSAGES.items():
        reader = SimulatedReader(taste, seed)
        given = label_pairs(candidates(train, seed), reader, BUDGET, active_choice(features))
        scores = [BayesianJudge.fit(features, given, "")(texts, drawn) for drawn in draws]
        best = np.argmax(scores, axis=0)
        template = replace(run.preset.template, system=message)
        asked = Run(replace(run.preset, template=template), RUNS / f"asked-{slug(taste)}")
        ways = {
            "system message": asked.answers(policy, test_queries(asked)["input_ids"][:], seed),
            "first sentence": [first_sentence(answer) for answer in before],
            "best of 4": [draws[which][n] for n, which in enumerate(best)],
        }
        result["ways"][taste] = {
            way: {**win_rate(texts, before, answers, taste), "answers": answers}
            for way, answers in ways.items()
        }
        print(taste, {w: found["win_rate"] for w, found in result["ways"][taste].items()})
    path.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")


def test_queries(run: Run) -> Dataset:
    """The prompts that the policies are looked at with."""
    return run.queries("test").select(range(run.preset.comparison_prompts))


def table() -> None:
    print(labels_needed_table(committed_curves()).to_string())
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
    steering.add_argument("--rounds", type=int, choices=(1, 2), default=1)
    steering.add_argument("--steps", type=int, default=STEPS)
    steering.add_argument("--choice", choices=("active", "random"), default="active")
    commands.add_parser("controls").add_argument("seed", type=int)
    commands.add_parser("table")
    args = parser.parse_args()
    setup()  # no progress bars of other libraries
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.command == "steer":
        steer_one(args.taste, args.seed, args.rounds, args.steps, args.choice)
    elif args.command == "controls":
        controls(args.seed)
    else:
        {"features": make_features, "labels": labels, "table": table}[args.command]()


if __name__ == "__main__":
    main()
