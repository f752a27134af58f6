"""Over-optimisation against a known gold: what notebook 08 shows (Gao et al. 2022).

    python scripts/overoptimisation.py fit          # the gold, and proxies of 50 to 800 grades
    python scripts/overoptimisation.py measure      # how often each orders answers as the reader
    python scripts/overoptimisation.py best-of-n    # the untouched policy's answers, all proxies
    python scripts/overoptimisation.py ppo 50 0     # PPO against a proxy, without a leash, seed 0
    python scripts/overoptimisation.py control leash   # the same on the default's leash
    python scripts/overoptimisation.py control gold    # ... and with the gold as the reward
    python scripts/overoptimisation.py no           # what the judges give to "no", and why
    python scripts/overoptimisation.py rows -o rows.jsonl   # for a reading: feedback.py sheets

The gold judge is fitted to all grades of training prompts that there are, a proxy to those of a few
answers of the untouched policy, other ones for each seed. PPO maximises the proxy, and both judges
look on, at answers to the validation prompts. Results go to bundled/overoptimisation/ in the
package.
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
from rlhf_tutorial.evaluation.measures import words
from rlhf_tutorial.evaluation.reading import lead, pair_accuracy
from rlhf_tutorial.feedback import Row, load_feedback, save_feedback
from rlhf_tutorial.reward import StateJudge, StateReader, fit_line
from rlhf_tutorial.studies.committed import committed_overoptimisation
from rlhf_tutorial.studies.looks import experiment
from rlhf_tutorial.studies.overoptimisation import best_of_n_curve, known_to, load_judge

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "rlhf_tutorial" / "bundled" / "overoptimisation"
SIZES, SEEDS = (50, 200, 800), (0, 1, 2)
"""Grades that a proxy knows, four to a prompt; and of each size so many proxies."""
PRESET, RATE = replace(load_preset("smollm2"), learning_rate_decays=False), 3e-4
"""Three times the default's rate, to the end: forty steps are to lead too far."""
STEPS, LOOKS, ANSWERS = 40, (1, 2, 3, 5, 10, 15, 20, 30), 16


def proxy_name(size: int, seed: int) -> str:
    return f"proxy-{size}-{seed}"


NAMES = ["gold", *(proxy_name(size, seed) for size in SIZES for seed in SEEDS)]


def fit() -> None:
    """The gold and the proxies, as lines on the disk."""
    reader = StateReader.from_pretrained(assets.resolve(assets.SMOLLM2), LAYERS["judge"])
    untouched = load_feedback(FEEDBACK / "train.jsonl")
    rounds = [row for p in sorted(FEEDBACK.glob("round-*.jsonl")) for row in load_feedback(p)]
    prompts, texts, grades = flat(untouched + rounds)
    features, given = reader(prompts, texts), torch.tensor(grades)
    StateJudge(reader, *fit_line(features, given)).save_pretrained(FOLDER / "gold")
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(untouched))  # as `known_to` has it
        for size in SIZES:
            kept = torch.tensor([4 * i + j for i in order for j in range(4)][:size])
            line = fit_line(features[kept], given[kept])
            StateJudge(reader, *line).save_pretrained(FOLDER / proxy_name(size, seed))
    measure()


def measure() -> None:
    """How often each judge orders two answers to a test prompt as the reader does.

    In these pairs, "from_gold" is how far it is ahead of the gold. Beside the judges there is the
    two-step rule: whole before cut off, then the longer one.
    """
    rows = load_feedback(FEEDBACK / "test.jsonl")
    prompts, texts, _ = flat(rows)
    features = load_judge("gold").reader(prompts, texts)  # the same for all: their lines differ
    scores = {}
    for name in NAMES:
        judge = load_judge(name)
        scores[name] = (features @ judge.weights + judge.bias).tolist()
    scores["rule"] = [
        1000.0 * answer["ended"] + len(answer["text"].split())
        for row in rows
        for answer in row["answers"]
    ]
    found = {
        name: {**pair_accuracy(rows, given), "from_gold": lead(rows, given, scores["gold"])}
        for name, given in scores.items()
    }
    (FOLDER / "judges.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def read_once(reader: StateReader) -> Any:
    """The reader, but the same answers are read once when two judges ask one after the other."""
    last: dict[Any, torch.Tensor] = {}

    def read(queries: list[str], responses: list[str]) -> torch.Tensor:
        key = tuple(queries), tuple(responses)
        if key not in last:
            last.clear()
            last[key] = reader(queries, responses)
        return last[key]

    return read


def ppo(size: int, seed: int) -> None:
    found = against({"proxy": proxy_name(size, seed), "gold": "gold"}, seed=seed)
    save(FOLDER / f"ppo-{size}-{seed}.json", {"size": size, "seed": seed, **found})


def control(what: str) -> None:
    """Draw 0 of 200 grades again, but for one thing: with a KL penalty, or trained on the gold."""
    if what == "leash":
        weight = PRESET.ppo["init_kl_coef"]
        found = against({"proxy": proxy_name(200, 0), "gold": "gold"}, seed=0, init_kl_coef=weight)
    else:
        found = against({"gold": "gold", "proxy": proxy_name(200, 0)}, seed=0)
    save(FOLDER / f"control-{what}.json", found)


def against(names: dict[str, str], *, seed: int, init_kl_coef: float = 0.0) -> dict[str, Any]:
    """PPO on the first of the judges while both look on, at answers to the validation prompts."""
    run = Run(PRESET, ROOT / "runs" / "overoptimisation")
    queries, _ = prepare_queries(run.preferences("validation"), run.load_template())
    judges = {which: load_judge(name) for which, name in names.items()}
    judges["proxy"].reader = judges["gold"].reader = read_once(judges["gold"].reader)
    return experiment(
        run, judges, queries, steps=STEPS, looks=LOOKS, examples=len(queries), seed=seed,
        learning_rate=RATE, init_kl_coef=init_kl_coef,
    )  # fmt: skip


def save(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")


def no() -> None:
    """What each judge gives to "no", the answer of one trained policy to every prompt.

    Its proxy is fitted again without the shortest answers that it knows, and without as many others
    for comparison, five times.
    """
    _, trainings = committed_overoptimisation()
    (told,) = (each for each in trainings if (each["size"], each["seed"]) == (800, 1))
    reader = load_judge("gold").reader
    untouched = reader(told["queries"], told["looks"][0]["answers"])
    always_no = reader(told["queries"], ["no"] * len(told["queries"]))

    def given(weights: torch.Tensor, bias: float) -> dict[str, float]:
        both = {"no": always_no, "untouched": untouched}
        return {name: round((z @ weights + bias).mean().item(), 4) for name, z in both.items()}

    judges = {name: load_judge(name) for name in NAMES}
    found: dict[str, Any] = {name: given(j.weights, j.bias) for name, j in judges.items()}
    known = known_to(800, 1)
    states = reader([row["prompt"] for row in known], [row["text"] for row in known])
    grades = torch.tensor([float(row["grade"]) for row in known])
    short = np.array([row["ended"] and len(words(row["text"])) <= 3 for row in known])

    def without(left_out: np.ndarray) -> dict[str, float]:
        kept = torch.tensor(np.setdiff1d(np.arange(len(known)), left_out))
        return given(*fit_line(states[kept], grades[kept]))

    found["without the short ones"] = without(np.flatnonzero(short))
    others = np.flatnonzero(~short)
    found["without as many others"] = [
        without(np.random.default_rng(seed).choice(others, short.sum(), replace=False))
        for seed in range(5)
    ]
    (FOLDER / "no.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def best_of_n() -> None:
    """Scores of 16 answers of the untouched policy to each validation prompt, by all judges."""
    run = load_preset("smollm2")
    rows = sample(
        prompts_of("validation"), answers=ANSWERS, temperature=run.ppo["temperature"], seed=7
    )
    prompts = [row["prompt"] for row in rows for _ in row["answers"]]
    texts = [answer["text"] for row in rows for answer in row["answers"]]
    features = load_judge("gold").reader(prompts, texts)
    scores = {}
    for name in NAMES:
        judge = load_judge(name)
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
            if (each["size"], each["seed"]) == (size, 0)
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
    commands.add_parser("measure")
    commands.add_parser("best-of-n")
    commands.add_parser("no")
    training = commands.add_parser("ppo")
    training.add_argument("size", type=int, choices=SIZES)
    training.add_argument("seed", type=int, choices=SEEDS)
    commands.add_parser("control").add_argument("what", choices=["leash", "gold"])
    reading = commands.add_parser("rows")
    reading.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.command == "fit":
        fit()
    elif args.command == "measure":
        measure()
    elif args.command == "no":
        no()
    elif args.command == "best-of-n":
        best_of_n()
    elif args.command == "rows":
        save_feedback(rows_to_read(), args.output)
    elif args.command == "control":
        control(args.what)
    else:
        ppo(args.size, args.seed)


if __name__ == "__main__":
    main()
