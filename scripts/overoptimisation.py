"""Over-optimisation against a known gold: what notebook 08 shows (Gao et al. 2022).

    python scripts/overoptimisation.py fit          # the gold, and proxies of 50 to 800 grades
    python scripts/overoptimisation.py best-of-n    # the untouched policy's answers, all proxies
    python scripts/overoptimisation.py ppo 50 0     # PPO against a proxy, without a leash, seed 0
    python scripts/overoptimisation.py ppo 200 0 --kl 0.05
    python scripts/overoptimisation.py ppo 200 0 --controller
    python scripts/overoptimisation.py rows -o rows.jsonl   # for a reading: feedback.py sheets

The gold judge is fitted to all grades of training prompts that there are, a proxy to those of a few
answers of the untouched policy, other ones for each seed. PPO maximises the proxy, and both judges
look on, at answers to the validation prompts. Results go to bundled/overoptimisation/ in the
package; what is there already is not done again, so two processes can share the work (with
OMP_NUM_THREADS=1 each: see docs/performance.md).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feedback import prompts_of, sample
from fit_judges import FEEDBACK, LAYERS, flat

from rlhf_tutorial import Run, assets, load_preset
from rlhf_tutorial.data import prepare_queries
from rlhf_tutorial.feedback import Row, load_feedback, save_feedback
from rlhf_tutorial.reward import StateJudge, StateReader, fit_line
from rlhf_tutorial.studies.committed import committed_overoptimisation
from rlhf_tutorial.studies.looks import experiment
from rlhf_tutorial.studies.overoptimisation import best_of_n_curve

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "rlhf_tutorial" / "bundled" / "overoptimisation"
SIZES, SEEDS = (50, 200, 800), (0, 1, 2)
"""Grades that a proxy knows, four to a prompt; and of each size so many proxies."""
PRESET, RATE = replace(load_preset("smollm2"), learning_rate_decays=False), 3e-4
"""Three times the default's rate, to the end: forty steps are to lead too far."""
STEPS, LOOKS, ANSWERS = 40, (5, 10, 15, 20, 30), 32
CONTROLLER = {"adap_kl_ctrl": True, "init_kl_coef": 0.05, "target": 4.0, "horizon": 320}


def proxy_name(size: int, seed: int) -> str:
    return f"proxy-{size}-{seed}"


def fit() -> None:
    """The gold and the proxies, as lines on the disk."""
    reader = StateReader.from_pretrained(assets.resolve(assets.SMOLLM2), LAYERS["judge"])
    untouched = load_feedback(FEEDBACK / "train.jsonl")
    rounds = [row for p in sorted(FEEDBACK.glob("round-*.jsonl")) for row in load_feedback(p)]
    prompts, texts, grades = flat(untouched + rounds)
    features, given = reader(prompts, texts), torch.tensor(grades)
    StateJudge(reader, *fit_line(features, given)).save_pretrained(FOLDER / "gold")
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(untouched))
        for size in SIZES:
            kept = torch.tensor([4 * i + j for i in order for j in range(4)][:size])
            line = fit_line(features[kept], given[kept])
            StateJudge(reader, *line).save_pretrained(FOLDER / proxy_name(size, seed))


def load(name: str) -> StateJudge:
    return StateJudge.from_pretrained(assets.resolve(assets.SMOLLM2), FOLDER / name)


def ppo(size: int, seed: int, label: str, settings: dict[str, Any]) -> None:
    path = FOLDER / f"ppo-{size}-{seed}{label}.json"
    if path.exists():
        return
    run = Run(PRESET, ROOT / "runs" / "overoptimisation")
    queries, _ = prepare_queries(run.preferences("validation"), run.load_template())
    judges = {"proxy": load(proxy_name(size, seed)), "gold": load("gold")}
    result = experiment(
        run, judges, queries, steps=STEPS, looks=LOOKS, examples=len(queries), seed=seed,
        learning_rate=RATE, **settings,
    )  # fmt: skip
    found = {"size": size, "seed": seed, **result}
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")


def best_of_n() -> None:
    """Scores of 32 answers of the untouched policy to each validation prompt, by all judges."""
    run = load_preset("smollm2")
    rows = sample(
        prompts_of("validation"), answers=ANSWERS, temperature=run.ppo["temperature"], seed=7
    )
    prompts = [row["prompt"] for row in rows for _ in row["answers"]]
    texts = [answer["text"] for row in rows for answer in row["answers"]]
    names = ["gold", *(proxy_name(size, seed) for size in SIZES for seed in SEEDS)]
    gold = load("gold")
    features = gold.reader(prompts, texts)  # the same for all: their lines differ
    scores = {}
    for name in names:
        judge = load(name) if name != "gold" else gold
        given = features @ judge.weights + judge.bias
        scores[name] = [[round(s, 3) for s in row] for row in given.view(len(rows), -1).tolist()]
        curve = best_of_n_curve(np.array(scores[name]), np.array(scores["gold"]))
        print(f"{name}: what the gold gains by the best of n:", {r["n"]: r["gold"] for r in curve})
    (FOLDER / "best-of-n.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")


def rows_to_read() -> list[Row]:
    """Where gold and proxy part: of each size's first run the gold's best look, and the last."""
    found: list[Row] = []
    _, trainings = committed_overoptimisation()
    for size in SIZES:
        (result,) = (
            each for each in trainings
            if (each["size"], each["seed"], each["settings"]["init_kl_coef"]) == (size, 0, 0)
        )  # fmt: skip
        looks = result["looks"]
        best = max(looks[1:], key=lambda at: float(np.mean(at["scores"]["gold"])))
        found = found or [{"prompt": query, "answers": []} for query in result["queries"]]
        chosen = [("untouched", looks[0])] if size == SIZES[0] else []
        chosen += [(f"{size}, gold's best", best)] if best is not looks[-1] else []
        for name, at in [*chosen, (f"{size}, last", looks[-1])]:
            for row, text, ended in zip(found, at["answers"], at["ended"], strict=True):
                row["answers"].append({"text": text, "ended": ended, "source": name})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fit")
    commands.add_parser("best-of-n")
    training = commands.add_parser("ppo")
    training.add_argument("size", type=int, choices=SIZES)
    training.add_argument("seed", type=int, choices=SEEDS)
    training.add_argument("--kl", type=float, default=0.0, help="weight of the KL penalty")
    training.add_argument("--controller", action="store_true", help="a weight that is adapted")
    reading = commands.add_parser("rows")
    reading.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.command == "fit":
        fit()
    elif args.command == "best-of-n":
        best_of_n()
    elif args.command == "rows":
        save_feedback(rows_to_read(), args.output)
    elif args.controller:
        ppo(args.size, args.seed, "-controller", CONTROLLER)
    else:
        label = f"-kl-{args.kl:g}" if args.kl else ""
        ppo(args.size, args.seed, label, {"init_kl_coef": args.kl})


if __name__ == "__main__":
    main()
