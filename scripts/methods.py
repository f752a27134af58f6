"""PPO and its rivals at equal budget, tuned alike: what notebook 09 rests on.

    python scripts/methods.py                    # all of it: trials, seeds, samples; hours
    python scripts/methods.py trial rloo 1e-04   # one learning rate
    python scripts/methods.py seed rloo 0        # one training at the rate that the rule takes
    python scripts/methods.py samples            # the untouched policy's answers, for best-of-n
    python scripts/methods.py rows               # last answers, for a reading: feedback.py sheets

Every training is a process of its own and leaves a file in rlhf_tutorial/bundled/methods/. What is
there already is not done again, so a day's work can be done in pieces. Two such calls at a time
would start with the same one: to share the work, name single trainings, with OMP_NUM_THREADS=1
each (see docs/performance.md).

The budget is that of the preset: 640 answers of at most 32 tokens, sampled in training or to make
pairs. One method samples nothing: it has as many pairs of the answers that a reader has graded. All
rates fall to 0 over the training, as the preset's do.

The rule, written on 2026-11-29 before any of these trainings ran. Each method, PPO among them, has
three trials of its learning rate, a factor of two apart, seed 100, looked at in the end with one
answer to each of the 96 validation prompts. Its rate is chosen as `scripts/tuning.py` chooses an
arm: out is a trial whose answers break a limit on form (or, if all do, none is), or whose KL is
above 10 nats (or, if all are, none is). Of the rest wins, among those within a standard error of
the largest gain under the judge of the training, the one with the smallest KL. If the largest or
the smallest of the three wins, a fourth rate follows beyond it, once. The evaluating judge and the
test prompts have no say. At the rate that is taken each method is trained with other seeds, and
looked at on the way with one answer to each of the 128 test prompts. (So far two seeds of four
methods are there: the graded pairs and the third seed are left.)

Twice it was first applied wrongly: an answer without a full stop counted as one that does not end,
and PPO's trial at 1e-4 was measured from other answers of the untouched policy than the rest. So
PPO was trained at 1e-4 and DPO at 2e-4. These trainings are kept as "hotter", since a reader has
graded their answers; so is DPO's fourth trial, at 4e-4, which would not have been made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tuning

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.data import prepare_queries
from rlhf_tutorial.feedback import Row, save_feedback
from rlhf_tutorial.studies.committed import committed_methods, committed_samples, committed_zero
from rlhf_tutorial.studies.looks import look_at
from rlhf_tutorial.studies.rivals import (
    After,
    Trained,
    graded_pairs,
    sampled_pairs,
    train_dpo,
    train_online,
    train_ppo,
    untouched_sampler,
)

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "rlhf_tutorial" / "bundled" / "methods"
PRESET = load_preset("smollm2")
STEPS, BATCH = 40, 16
GRADED = "dpo, graded pairs"
TRIAL_SEED, MOST_KL, SEEDS = 100, 10.0, range(3)
RATES: dict[str, tuple[float, ...]] = {
    "ppo": (5e-5, 1e-4, 2e-4),
    "rloo": (1e-4, 2e-4, 4e-4),
    "grpo": (1e-4, 2e-4, 4e-4),
    "dpo": (5e-5, 1e-4, 2e-4),
    GRADED: (5e-5, 1e-4, 2e-4),
}
BETA = {"rloo": PRESET.ppo["init_kl_coef"], "grpo": 0.04, "dpo": 0.1}
"""RLOO maximises what PPO does, with the same weight; GRPO and DPO have their papers' ones."""


def path_of(what: str, method: str, which: str | float) -> Path:
    return FOLDER / f"{what}_{method.replace(', ', '_').replace(' ', '-')}_{which}.json"


def trials_of(method: str) -> list[dict[str, Any]]:
    """The trials that there are, by rate, each with what the rule looks at.

    All gains are measured from one zero: each prompt's mean over the untouched policy's sixteen
    answers. A single draw's mean may be a tenth of a grade off.
    """
    zero, found = committed_zero("validation"), []
    for path in FOLDER.glob(path_of("trial", method, "*").name):
        trial = json.loads(path.read_text(encoding="utf-8"))
        if trial["method"] == method:
            found.append({"rate": trial["learning_rate"], **tuning.measured([trial], zero)})
    return sorted(found, key=lambda row: row["rate"])


def rate_of(trials: list[dict[str, Any]]) -> float:
    """The learning rate that the rule takes."""
    kept = [row for row in trials if not tuning.broken(row)] or trials
    kept = [row for row in kept if row["kl"] <= MOST_KL] or kept
    return tuning.chosen([row | {"out": []} for row in kept])["rate"]


def next_rate(method: str) -> float | None:
    """The next rate to try; None once there are enough."""
    trials = trials_of(method)
    if missing := sorted(set(RATES[method]) - {row["rate"] for row in trials}):
        return missing[0]
    rates = [row["rate"] for row in trials]
    if len(rates) > len(RATES[method]):
        return None
    return {rates[0]: rates[0] / 2, rates[-1]: rates[-1] * 2}.get(rate_of(trials))


def train(
    method: str, run: Run, reward: Any, rate: float, seed: int, steps: int, after: After | None
) -> tuple[Trained, int]:
    """One training of `steps` batches, or as many answers; and the number of its updates."""
    if method == "ppo":
        done = train_ppo(run, reward, steps=steps, seed=seed, learning_rate=rate, after=after)
        return done, steps * PRESET.ppo["ppo_epochs"]
    if method in BETA and method != "dpo":
        done = train_online(
            method, run, reward, steps=steps, learning_rate=rate, beta=BETA[method], seed=seed,
            after=after,
        )  # fmt: skip
        return done, steps
    limit, start = steps * BATCH // 2, time.perf_counter()
    if method == GRADED:
        chosen, sampled = graded_pairs(run, limit, seed=seed), 0
    else:
        chosen, sampled = sampled_pairs(run, reward, seed=seed, limit=limit), 2 * limit
    done = train_dpo(
        run, chosen, learning_rate=rate, beta=BETA["dpo"], seed=seed, answers=sampled,
        seconds=time.perf_counter() - start, after=after,
    )  # fmt: skip
    return done, -(-len(chosen) // BATCH)


def run_of(method: str) -> Run:
    return Run(PRESET, ROOT / "runs" / "methods" / method.replace(", ", "_").replace(" ", "-"))


def held_out(run: Run, split: str) -> Any:
    return prepare_queries(run.preferences(split), run.load_template())[0]


def one(what: str, method: str, which: str) -> None:
    """A trial (of a rate), looked at in the end; or a seed, looked at on the way as well."""
    run, trial = run_of(method), what == "trial"
    seed = TRIAL_SEED if trial else int(which)
    rate = float(which) if trial else rate_of(trials_of(method))
    judges = {"first": run.load_reward(), "second": run.load_second_judge()}
    untouched = run.load_policy().to(run.device)
    queries = held_out(run, "validation" if trial else "test")
    steps = STEPS // 2 if method.startswith("dpo") else STEPS  # a step of DPO has 16 pairs
    to_look = {steps} if trial else {steps // 2, steps}
    looks = [{"step": 0, **untouched_look(run, untouched, judges, queries, seed)}]

    def look(step: int, policy: Any) -> None:
        found = look_at(policy, untouched, run, judges, queries, seed=seed, examples=1000)
        looks.append({"step": step, **found})

    def after(step: int, policy: Any) -> None:
        print(step, flush=True)
        if step in to_look:
            look(step, policy)

    done, updates = train(method, run, judges["first"], rate, seed, STEPS, after)
    if looks[-1]["step"] < steps:  # DPO, where two equal answers made no pair
        look(updates, done.model.eval())
    result = {
        "method": method, "learning_rate": rate, "seed": seed, "answers": done.answers,
        "updates": updates, "log": done.log, "queries": queries["query"][:], "looks": looks,
    }  # fmt: skip
    save(path_of(what, method, which), result)


def untouched_look(run: Run, policy: Any, judges: Any, queries: Any, seed: int) -> dict[str, Any]:
    """The look before a training: the same for every method, so it is kept beside their runs."""
    path = run.folder.parent / f"untouched-{len(queries)}-{seed}.json"
    if not path.exists():
        found = look_at(policy, policy, run, judges, queries, seed=seed, examples=1000)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def samples() -> None:
    """Sixteen answers of the untouched policy to each held-out prompt, scored by both judges.

    In the file that comes with the package "ended" was told afterwards, from how many tokens a text
    has when it is encoded again: that is right for 999 in 1,000 answers whose end is known.
    """
    run = run_of("best of n")
    judges = {"first": run.load_reward(), "second": run.load_second_judge()}
    ends = run.load_template().eos_token_ids
    sample, found = untouched_sampler(run), {"method": "best of n"}
    for split in ("validation", "test"):
        queries = held_out(run, split)
        texts, draws = queries["query"][:], []
        for draw in range(16):
            drawn = sample(queries["input_ids"][:], 1000 * draw)
            scores = {name: judge(texts, drawn.texts) for name, judge in judges.items()}
            ended = [int(tokens[-1]) in ends for tokens in drawn.responses]
            draws.append({"answers": drawn.texts, "ended": ended, "scores": scores})
        found[split] = {"queries": texts, "draws": draws}
    save(path_of("samples", "best of n", 0), found)


def rows() -> list[Row]:
    """Answers to the test prompts: the untouched policy's, each training's last, the best of n."""
    found = committed_methods("seed")
    looks = {"untouched": found["ppo"][0]["looks"][0]}
    looks |= {method: of[0]["looks"][-1] for method, of in found.items()}
    hotter = committed_methods("hotter").items()
    looks |= {f"{method}, hotter": of[0]["looks"][-1] for method, of in hotter}
    draws, everybody = committed_samples("test"), np.arange(len(found["ppo"][0]["queries"]))
    for n in (4, 16):
        best = draws["first"][:, :n].argmax(axis=1)
        looks[f"best of {n}"] = {key: draws[key][everybody, best] for key in ("answers", "ended")}
    return [
        {
            "prompt": query,
            "answers": [
                {"text": str(at["answers"][i]), "ended": bool(at["ended"][i]), "source": name}
                for name, at in looks.items()
            ],
        }
        for i, query in enumerate(found["ppo"][0]["queries"])
    ]


def save(path: Path, result: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")


def jobs() -> list[list[str]]:
    """What is missing, in an order in which each finds what it needs."""
    samples = ["samples", "best of n", "0"]
    if not path_of(*samples).exists():
        return [samples]  # what the trials' gains are measured from
    found = [
        ["trial", m, f"{rate:.1e}".replace(".0e", "e")]
        for m in RATES
        if (rate := next_rate(m)) is not None
    ]
    found = found or [["seed", method, str(seed)] for seed in SEEDS for method in RATES]
    return [job for job in found if not path_of(*job).exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["trial", "seed", "samples", "rows"])
    parser.add_argument("method", nargs="?", default="best of n")
    parser.add_argument("which", nargs="?", default="")
    args = parser.parse_args()
    if args.what is None:
        while todo := jobs():
            print(*todo[0], flush=True)
            command = [sys.executable, __file__, *todo[0]]
            subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    elif args.what == "samples":
        samples()
    elif args.what == "rows":
        path = run_of("reading").folder / "rows.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_feedback(rows(), path)
        print(path)
    else:
        one(args.what, args.method, args.which)


if __name__ == "__main__":
    main()
