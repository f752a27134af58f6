"""The clinic's trainings: what notebook 05b shows, one thing broken in each.

    python scripts/clinic.py dropout           # one of them, 16 steps of the default preset
    python scripts/clinic.py healthy --steps 3 --output /tmp/clinic

A training takes some seven minutes of one core (OMP_NUM_THREADS=1), and leaves some 15 kB in
rlhf_tutorial/bundled/clinic/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.data import prepare_queries
from rlhf_tutorial.studies.clinic import PATIENTS, examined

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "rlhf_tutorial" / "bundled" / "clinic"
HELD_OUT = 8
"""Prompts of the validation split that are answered before and after."""


def tell(step: int, stats: dict[str, Any]) -> None:
    """A line for each step."""
    score, kl, ratio = (stats[key] for key in ("ppo/mean_scores", "objective/kl", "first_ratio"))
    print(f"step {step}: score {score:.2f}, KL {kl:.2f}, first ratio off {ratio:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patient", choices=PATIENTS)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    run = Run(load_preset(), ROOT / "runs" / "clinic" / args.patient)
    queries, _ = prepare_queries(run.preferences("validation"), run.load_template())
    found = examined(
        run,
        PATIENTS[args.patient],
        run.load_reward(),
        queries.select(range(HELD_OUT)),
        args.steps,
        tell,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{args.patient}.json"
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
