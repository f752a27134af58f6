"""Draw the README's two pictures: the plan of the experiment, and the committed run's curve.

python scripts/make_figures.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.figures.plan import plan_diagram
from rlhf_tutorial.figures.training import reward_curve
from rlhf_tutorial.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]


def read_stats(path: Path) -> list[dict[str, float]]:
    """The steps of a run's log, one JSON object a line.

    Raises:
        DataError: if the log is missing or a line is not JSON.
    """
    if not path.is_file():
        raise DataError(f"no training log at {path}: run notebook 05 first, or pass --stats")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: the log is damaged") from error
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--stats", type=Path, default=ROOT / "notebooks/results/smollm2/stats.jsonl"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "images")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=PRESETS["smollm2"].ppo["batch_size"],
        help="responses per step of that run, for the error band",
    )
    args = parser.parse_args(argv)
    plan_diagram(args.output / "rlhf-tutorial.png")
    print(f"wrote {args.output / 'rlhf-tutorial.png'}")
    reward_curve(
        read_stats(args.stats), path=args.output / "rlhf_curve.png", batch_size=args.batch_size
    )
    print(f"wrote {args.output / 'rlhf_curve.png'}")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(str(error)) from None
