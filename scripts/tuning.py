"""The trainings that the default run's settings are chosen by: arms, seeds, looks on the way.

    python scripts/tuning.py default 0      # one training: an arm, and a seed
    python scripts/tuning.py long 0

Each leaves its policy in runs/reading/<arm>-<seed>/, and what was seen on the way, at answers to the
validation prompts, in looks.json there. What is there already is not done again, so two processes
can share the work (with OMP_NUM_THREADS=1 each: see docs/performance.md).

The rule, written on 2026-11-28 before these trainings ran (trial trainings of one seed each, and a
reading of two of them, had led to the arm "default"):

1. An arm is 40 steps, each of the 640 training prompts once, with seeds 0, 1 and 2. It is looked at
   with one answer to each of the 96 validation prompts. The test prompts and the evaluating judge
   have no say.
2. Out is an arm that takes more than five minutes on two cores; and one of which, in the mean of its
   seeds, fewer than 85% of the answers end by themselves, the median answer has fewer than 8 words,
   more than a quarter begin with the same two words, or more than 5% are a bare yes or no to a
   question that does not ask for it.
3. Of the rest wins, among the arms whose gain under the training judge is within one standard error
   (over prompts, seeds together) of the best one's, the arm with the smallest KL.
4. The long run goes on as long as the validation judge rises; of its policies after 80, 160 and 240
   steps the last is read on test prompts unless a reading of validation prompts puts an earlier one
   above it by more than its standard error.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from reading import FOLDER, whole_answers

from rlhf_tutorial import Run
from rlhf_tutorial.data import prepare_queries
from rlhf_tutorial.presets import Preset
from rlhf_tutorial.studies.looks import look

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "top-8": {"num_shared_layers": 22},
    "top-18": {"num_shared_layers": 12},
    "kl-0.1": {"init_kl_coef": 0.1},
    "kl-0.02": {"init_kl_coef": 0.02},
    "long": {"init_kl_coef": 0.1, "epochs": 6},
}
LOOKS = (0, 10, 20, 30, 40, 60, 80, 120, 160, 200, 240)
KEPT = (80, 160)
"""Steps of the long run after which the policy is kept, for a reading on the way."""


def preset_of(arm: str, seed: int) -> Preset:
    """The default's preset with what the arm changes: fields of `Preset`, or else of `PPOConfig`."""
    preset, changed = whole_answers(), ARMS[arm]
    fields = {name: value for name, value in changed.items() if hasattr(preset, name)}
    ppo = {name: value for name, value in changed.items() if name not in fields}
    return replace(preset, **fields, ppo={**preset.ppo, **ppo, "seed": seed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    folder = FOLDER / f"{args.arm}-{args.seed}"
    if (folder / "looks.json").exists():
        return
    run = Run(preset_of(args.arm, args.seed), folder)
    queries, _ = prepare_queries(run.preferences("validation"), run.load_template())
    judges = {"first": run.load_reward(), "second": run.load_second_judge()}
    trainer = run.make_trainer()

    def look_after(step: int) -> dict[str, Any]:
        return {"step": step, **look(trainer, run, judges, queries, examples=len(queries))}

    looks = [look_after(0)]
    for step, stats in enumerate(run.train(trainer, judges["first"]), start=1):
        print(step, f"{stats['ppo/mean_scores']:.2f}, KL {stats['objective/kl']:.1f}", flush=True)
        if step in LOOKS:
            looks.append(look_after(step))
        if step in KEPT:
            trainer.policy.save_pretrained(folder / f"policy-{step}")
    found = {"arm": args.arm, "seed": args.seed, "queries": queries["query"][:], "looks": looks}
    (folder / "looks.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
