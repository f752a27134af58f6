"""PPO and its rivals at equal budget: what notebook 09 rests on.

    python scripts/rivals.py                    # all of it: trials, seeds, seconds; hours
    python scripts/rivals.py trial rloo 5e-05   # one learning rate on the validation prompts
    python scripts/rivals.py seed rloo 0        # one run on the test prompts
    python scripts/rivals.py seconds rloo       # of a few steps, on a quiet machine

Every training is a process of its own and leaves a file in rlhf_tutorial/bundled/rivals/. What is
there already is not done again, so two processes can share the work (with OMP_NUM_THREADS=1 each:
see docs/performance.md).

The budget is that of the preset: 1,280 answers of 16 tokens, sampled in training or to make pairs.
Each method has three trials of its learning rate, seed 100, on the validation prompts. (Two at
first. The larger won everywhere, so a third followed: between the two where the larger was near the
limit below, beyond it where it was not.) The rule, written before all of them: of the trials at a
KL of at most 10 nats the one that gains more under the first judge; if there is none, the one with
the smaller KL. The second judge and the test prompts are not looked at.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.data import prepare_queries
from rlhf_tutorial.device import supports_bf16
from rlhf_tutorial.evaluation.measures import text_measures
from rlhf_tutorial.studies.looks import look_at
from rlhf_tutorial.studies.rivals import (
    Trained,
    best_of_n,
    best_of_n_kl,
    given_pairs,
    sampled_pairs,
    train_dpo,
    train_online,
    train_ppo,
)

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "rlhf_tutorial" / "bundled" / "rivals"
RUNS = ROOT / "runs" / "rivals"
STEPS, BATCH = 80, 16
BEST, ONE, SMALLER = ("best of 4", "best of 16"), "one answer", "dpo, smaller rate"
TRIAL_SEED, MOST_KL = 100, 10.0
RATES: dict[str, tuple[float, ...]] = {
    "ppo": (5e-5,),  # had its trials, three rates as well: docs/first-edition.md
    "ppo, all layers": (1e-5, 2e-5, 5e-5),
    "rloo": (5e-5, 1e-4, 2e-4),
    "grpo": (5e-5, 1e-4, 2e-4),
    "dpo": (2e-5, 1e-4, 5e-4),
    "dpo, given pairs": (2e-5, 1e-4, 5e-4),
    # Not the rule's: a row of its own, since what the rule took of DPO's rates moves so far.
    SMALLER: (1e-4,),
}
BETA = {"rloo": 0.15, "grpo": 0.04, "dpo": 0.1}
SEEDS = range(3)


def path_of(what: str, method: str, which: str | float) -> Path:
    return FOLDER / f"{what}_{method.replace(', ', '_').replace(' ', '-')}_{which}.json"


def rate_of(method: str) -> float:
    """The learning rate that the rule takes."""
    trials = []
    for rate in RATES[method]:
        path = path_of("trial", method, rate)
        if not path.exists() and len(RATES[method]) > 1:
            sys.exit(f"{path.name} is missing: run the trials of {method!r} first")
        if path.exists():
            trials.append(json.loads(path.read_text(encoding="utf-8")))
    if not trials:
        return RATES[method][0]
    near = [t for t in trials if fmean(t["after"]["kl"]) <= MOST_KL]
    if near:
        return max(near, key=lambda t: fmean(t["after"]["scores"]["first"]))["learning_rate"]
    return min(trials, key=lambda t: fmean(t["after"]["kl"]))["learning_rate"]


def train(method: str, run: Run, reward: Any, rate: float, seed: int, steps: int) -> Trained:
    """One training of `steps` batches, or as many answers."""
    if method.startswith("ppo"):
        bf16 = "bf16" if supports_bf16(run.device) else "no"
        ppo = {"learning_rate": rate, "accelerator_kwargs": {"mixed_precision": bf16}}
        return train_ppo(run, reward, steps=steps, seed=seed, **ppo)
    if method in ("rloo", "grpo"):
        beta = BETA[method]
        return train_online(
            method, run, reward, steps=steps, learning_rate=rate, beta=beta, seed=seed
        )
    limit, start, given = steps * BATCH // 2, time.perf_counter(), method == "dpo, given pairs"
    pairs = (
        given_pairs(run)[:limit] if given else sampled_pairs(run, reward, seed=seed, limit=limit)
    )
    return train_dpo(
        run, pairs, learning_rate=rate, beta=BETA["dpo"], seed=seed,
        answers=0 if given else 2 * limit, seconds=time.perf_counter() - start,
    )  # fmt: skip


def run_of(method: str) -> Run:
    preset = load_preset("sixteen-tokens")
    if method == "ppo, all layers":
        preset = replace(preset, num_shared_layers=None)
    return Run(preset, RUNS / method.replace(", ", "_").replace(" ", "-"))


def one(what: str, method: str, which: str) -> None:
    """A trial (of a rate) or a seed, looked at before and after."""
    run = run_of(method)
    rate, seed = (float(which), TRIAL_SEED) if what == "trial" else (rate_of(method), int(which))
    judges = {"first": run.load_reward()}
    trained = train(method, run, judges["first"], rate, seed, STEPS)
    if what == "seed":
        judges["second"] = run.load_second_judge()
    result = {
        "method": method, "learning_rate": rate, "seed": seed, "answers": trained.answers,
        "log": trained.log, **before(run, judges, what, seed),
    }  # fmt: skip
    result["after"] = look_at(
        trained.model.eval(), run.load_policy().to(run.device), run, judges, held_out(run, what),
        seed=seed, examples=1000,
    )  # fmt: skip
    save(path_of(what, method, which), result)


def best(method: str, seed: int) -> None:
    """Best-of-n on the test prompts, where it samples all it samples."""
    run, n = run_of(method), of_n(method)
    judges = {"first": run.load_reward(), "second": run.load_second_judge()}
    queries = held_out(run, "seed")
    answers, _ = best_of_n(run, judges["first"], queries, n, seed=seed)
    texts = queries["query"][:]
    after = {
        "scores": {name: judge(texts, answers) for name, judge in judges.items()},
        "kl": [best_of_n_kl(n)] * len(texts),  # at the most
        "measures": text_measures(texts, answers),
        "answers": answers,
    }
    result = {"method": method, "seed": seed, "answers": 0, **before(run, judges, "seed", seed)}
    save(path_of("seed", method, seed), result | {"after": after})


def of_n(method: str) -> int:
    return int(method.removeprefix("best of "))


def no_judge(queries: list[str], responses: list[str]) -> list[float]:
    """What a trained policy needs when it answers."""
    return [0.0] * len(queries)


def held_out(run: Run, what: str) -> Any:
    """The prompts that a trial or a seed is looked at with."""
    rows = run.preferences("validation" if what == "trial" else "test")
    return prepare_queries(rows, run.load_template())[0]


def before(run: Run, judges: dict[str, Any], what: str, seed: int) -> dict[str, Any]:
    """The held-out prompts, and the untouched policy's answers to them."""
    policy, queries = run.load_policy().to(run.device), held_out(run, what)
    at = look_at(policy, policy, run, judges, queries, seed=seed, examples=1000)
    return {"queries": queries["query"][:], "before": at}


def seconds(method: str) -> None:
    """Seconds for 16 answers, and peak memory.

    In training, with all that is learnt from them; of best-of-n, and of a trained policy (any: they
    all answer as fast as the untouched one), at use. Start and loading go out in the difference of
    a long and a short measurement.
    """
    run = run_of(method)
    reward = run.load_reward()
    if method in RATES:
        rate = RATES[method][0]
        times = []
        for steps in (2, 6):
            times.append(train(method, run, reward, rate, 0, steps).seconds)
            gc.collect()  # accelerate's models are in reference cycles: one at a time in memory
        result = {"method": method, "seconds_per_step": (times[1] - times[0]) / 4}
    else:
        prompts, times = held_out(run, "trial"), []
        n, judge = (1, no_judge) if method == ONE else (of_n(method), reward)
        for rows in (32, 96):
            start = time.perf_counter()
            best_of_n(run, judge, prompts.select(range(rows)), n)
            times.append(time.perf_counter() - start)
        result = {"method": method, "seconds_at_use": (times[1] - times[0]) / 4}
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    save(path_of("seconds", method, 0), result | {"peak_bytes": memory})


def save(path: Path, result: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")


def jobs() -> list[list[str]]:
    """Everything, in an order in which each finds what it needs."""
    trials = [
        ["trial", method, str(rate)]
        for method, rates in RATES.items() if len(rates) > 1 for rate in rates
    ]  # fmt: skip
    seeds = [["seed", method, str(seed)] for seed in SEEDS for method in (*RATES, *BEST)]
    return (
        trials
        + seeds
        + [["seconds", method, "0"] for method in (*RATES, *BEST, ONE) if method != SMALLER]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["trial", "seed", "seconds"])
    parser.add_argument("method", nargs="?", choices=[*RATES, *BEST, ONE])
    parser.add_argument("which", nargs="?", default="")
    args = parser.parse_args()
    if args.what is None:
        for what, method, which in jobs():
            if not path_of(what, method, which).exists():
                print(what, method, which, flush=True)
                command = [sys.executable, __file__, what, method, which]
                subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    elif args.what == "seconds":
        seconds(args.method)
    elif args.method in BEST:
        best(args.method, int(args.which))
    else:
        one(args.what, args.method, args.which)


if __name__ == "__main__":
    main()
