"""The trainings that the default run's settings are chosen by: arms, seeds, looks on the way.

    python scripts/tuning.py train default 0    # one training: an arm, and a seed
    python scripts/tuning.py train long 0
    python scripts/tuning.py choose             # applies the rule; the table of docs/tuning.md
    python scripts/tuning.py train lora-1e-3 100
    python scripts/tuning.py lora               # the gains in docs/presets.md

Each training leaves its policy in runs/reading/<arm>-<seed>/, and what was seen on the way, at
answers to the validation prompts, in rlhf_tutorial/bundled/trainings/. What is there already is not
done again, so two processes can share the work (with OMP_NUM_THREADS=1 each: see
docs/performance.md).

The rule, written on 2026-11-28 before these trainings ran (trial trainings of one seed each had led
to the arm "default"; those of an earlier one, with four updates a step, took too long):

1. An arm is 40 steps, each of the 640 training prompts once, with seeds 0, 1 and 2. It is looked at
   with one answer to each of the 96 validation prompts. The test prompts and the evaluating judge
   have no say.
2. Out is an arm that takes more than five minutes on two cores; and one of which, in the mean of
   its seeds, fewer than 85% of the answers end by themselves, the median answer has fewer than 8
   words, more than a quarter begin with the same two words, or more than 5% are a bare yes or no to
   a question that does not ask for it.
3. Of the rest wins, among the arms whose gain under the training judge is within one standard error
   (over prompts, seeds together) of the best one's, the arm with the smallest KL.
4. The long run has four times as many answers a step, and each prompt four times. Its last policy
   answers the test prompts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from reading import FOLDER

from rlhf_tutorial import Run, assets, load_preset
from rlhf_tutorial.data import prepare_queries
from rlhf_tutorial.evaluation.measures import bare_yes_or_no, commonest_opening, words
from rlhf_tutorial.presets import Preset
from rlhf_tutorial.studies.looks import look
from rlhf_tutorial.studies.matched import gains_at_kl, track_of

DOCS = Path(__file__).resolve().parent.parent / "docs"
TRAININGS = Path(assets.__file__).parent / "bundled" / "trainings"
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "kl-0.1": {"init_kl_coef": 0.1},
    "top-8": {"num_shared_layers": 22},
    "long": {"batch_size": 64, "mini_batch_size": 64, "epochs": 4},
    "all-layers": {"num_shared_layers": None},
    "lora-2.5e-4": {"lora_rank": 16, "num_shared_layers": None, "learning_rate": 2.5e-4},
    "lora-5e-4": {"lora_rank": 16, "num_shared_layers": None, "learning_rate": 5e-4},
    "lora-1e-3": {"lora_rank": 16, "num_shared_layers": None, "learning_rate": 1e-3},
}
"""What an arm changes in the preset."""
CANDIDATES = ("default", "kl-0.1", "top-8")
SEEDS = (0, 1, 2)
"""The arms among which the rule chooses, by these seeds."""
WHAT_IS_TRAINED = {
    "default": "frozen trunk, top 12 of 30 layers, rate 1e-4",
    "all-layers": "all layers, rate 1e-4",
    "lora-2.5e-4": "LoRA of rank 16, rate 2.5e-4",
    "lora-5e-4": "LoRA of rank 16, rate 5e-4",
    "lora-1e-3": "LoRA of rank 16, rate 1e-3",
}
"""The rows of docs/presets.md, by arm."""
AT_EQUAL_KL = ("default", "kl-0.1", "top-8", "all-layers", "lora-5e-4", "long")
LOOKS = (10, 20, 30)


def preset_of(arm: str, seed: int) -> Preset:
    """The default's preset with the arm's fields, of `Preset` or else of `PPOConfig`, changed."""
    preset, changed = load_preset("smollm2"), ARMS[arm]
    fields = {name: value for name, value in changed.items() if hasattr(preset, name)}
    ppo = {name: value for name, value in changed.items() if name not in fields}
    return replace(preset, **fields, ppo={**preset.ppo, **ppo, "seed": seed})


def train(arm: str, seed: int) -> None:
    path = TRAININGS / f"{arm}-{seed}.json"
    if path.exists():
        return
    folder = FOLDER / f"{arm}-{seed}"
    run = Run(preset_of(arm, seed), folder)
    queries, _ = prepare_queries(run.preferences("validation"), run.load_template())
    judges = {"first": run.load_reward(), "second": run.load_second_judge()}
    trainer = run.make_trainer()

    def look_after(step: int) -> dict[str, Any]:
        return {"step": step, **look(trainer, run, judges, queries, examples=len(queries))}

    looks, steps = [look_after(0)], []
    for step, stats in enumerate(run.train(trainer, judges["first"]), start=1):
        steps.append(
            {
                "score": round(float(stats["ppo/mean_scores"]), 4),
                "kl": round(float(stats["objective/kl"]), 4),
            }
        )
        print(step, steps[-1], flush=True)
        if step in LOOKS:
            looks.append(look_after(step))
    looks.append(look_after(len(steps)))
    found = {"arm": arm, "seed": seed, "queries": queries["query"][:], "steps": steps}
    TRAININGS.mkdir(exist_ok=True)
    path.write_text(json.dumps(found | {"looks": looks}) + "\n", encoding="utf-8")


# --- The rule ------------------------------------------------------------------------------------

SECONDS_PER_STEP = {"default": 7.0, "kl-0.1": 7.0, "top-8": 7.0}
"""On two cores with nothing else to do, by notebook 05's training (results.json): the arms were
trained with one thread each. Another KL weight computes the same and fewer layers less: for
8 layers it is an upper bound."""
LIMITS = {"seconds": 300, "ended": 0.85, "words": 8, "opening": 0.25, "bare": 0.05}


def rows() -> list[dict[str, Any]]:
    """Every candidate that has all of its seeds, as the rule asks, by its last looks at them."""
    found = []
    for arm in CANDIDATES:
        runs = [training for training in trainings_of(arm) if training["seed"] in SEEDS]
        if len(runs) == len(SEEDS):
            found.append(row_of(arm, runs))
    return sorted(found, key=lambda row: row["kl"])


def trainings_of(arm: str) -> list[dict[str, Any]]:
    """The arm's trainings that are there, one for each seed."""
    found = (json.loads(path.read_text()) for path in sorted(TRAININGS.glob(f"{arm}-*.json")))
    return [training for training in found if training["arm"] == arm]


def row_of(arm: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rule looks at, of one arm."""
    row = {"arm": arm, "seeds": len(runs), **measured(runs)}
    row["seconds"] = len(runs[0]["steps"]) * SECONDS_PER_STEP[arm]
    return row | {"out": broken(row)}


def measured(
    runs: list[dict[str, Any]], zero: dict[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Gain, KL and what is counted at the last looks, means over the seeds.

    Args:
        zero: by judge, what to measure the gain of each prompt from; by default the first look.
    """

    def gain(run: dict[str, Any], judge: str) -> np.ndarray:
        before = zero[judge] if zero else run["looks"][0]["scores"][judge]
        return np.subtract(run["looks"][-1]["scores"][judge], before)

    judges = runs[0]["looks"][0]["scores"]
    gains = {judge: np.mean([gain(run, judge) for run in runs], axis=0) for judge in judges}
    last = [(run["queries"], run["looks"][-1]) for run in runs]
    lengths = [[len(words(answer)) for answer in at["answers"]] for _, at in last]
    bare = [
        [bare_yes_or_no(*pair) for pair in zip(q, at["answers"], strict=True)] for q, at in last
    ]
    return {
        "gain": float(gains["first"].mean()),
        **{judge: float(gain.mean()) for judge, gain in gains.items() if judge != "first"},
        "error": float(gains["first"].std(ddof=1) / len(gains["first"]) ** 0.5),
        "kl": float(np.mean([at["kl"] for _, at in last])),
        "ended": float(np.mean([at["ended"] for _, at in last])),  # by the end token
        "words": float(np.mean([np.median(each) for each in lengths])),
        "opening": float(np.mean([commonest_opening(at["answers"])[1] for _, at in last])),
        "first word": float(np.mean([commonest_opening(at["answers"], 1)[1] for _, at in last])),
        "bare": float(np.mean(bare)),
    }


def broken(row: dict[str, Any]) -> list[str]:
    """The limits that a row does not keep, of those that it has a number for."""
    return [
        name
        for name, limit in LIMITS.items()
        if name in row and (row[name] < limit if name in ("ended", "words") else row[name] > limit)
    ]


def chosen(candidates: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The arm that the rule takes, if any passes."""
    passing = [row for row in candidates if not row["out"]]
    if not passing:
        return None
    best = max(passing, key=lambda row: row["gain"])
    near = [row for row in passing if row["gain"] >= best["gain"] - best["error"]]
    return min(near, key=lambda row: row["kl"])


def table(candidates: list[dict[str, Any]]) -> str:
    """The arms as Markdown, by KL."""
    taken = chosen(candidates)
    lines = [
        "| arm | seeds | seconds | gain | evaluating judge | KL | whole | words | commonest first "
        "word | two words | bare yes or no | |",
        "| --- |" + " --- |" * 11,
    ]
    for row in candidates:
        if row["out"]:
            note = f"out: {', '.join(row['out'])}"
        elif len(candidates) == 1:  # nothing was chosen: there was no other
            note = "keeps all limits"
        else:
            note = "**chosen**" if row is taken else ""
        lines.append(
            f"| {row['arm']} | {row['seeds']} | {row['seconds']:.0f} | "
            f"{row['gain']:.2f} ± {row['error']:.2f} | "
            f"{row['second']:.2f} | {row['kl']:.1f} | {row['ended']:.0%} | {row['words']:.0f} | "
            f"{row['first word']:.0%} | {row['opening']:.0%} | {row['bare']:.1%} | {note} |"
        )
    return "\n".join(lines)


DISTANCES = (2.0, 3.0, 4.0, 6.0)


def gains_at_equal_kl() -> dict[float, dict[str, dict[str, float]]]:
    """What the arms had gained when they first were so far away, and more than the default."""
    tracks = {arm: track_of(trainings_of(arm), "first") for arm in AT_EQUAL_KL}
    return {at: gains_at_kl(tracks, at, than="default") for at in DISTANCES}


def table_at_equal_kl() -> str:
    """`gains_at_equal_kl` as Markdown."""
    found = gains_at_equal_kl()

    def cell(row: dict[str, float]) -> str:
        if np.isnan(row["gain"]):
            return ""
        low, high = row["low"], row["high"]
        return f"{row['gain']:.2f} ({low:.2f} to {high:.2f})"

    lines = [
        "| arm | seeds | " + " | ".join(f"at {at:.0f} nats" for at in DISTANCES) + " |",
        "| --- | --- |" + " --- |" * len(DISTANCES),
    ]
    for arm in AT_EQUAL_KL:
        cells = " | ".join(cell(found[at][arm]) for at in DISTANCES)
        lines.append(f"| {arm} | {len(trainings_of(arm))} | {cells} |")
    return "\n".join(lines)


def table_of_what_is_trained() -> str:
    """The default run with other weights trained, as Markdown."""
    lines = [
        "| default preset, 40 steps | seeds | gain | evaluating judge | KL | whole | words |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, name in WHAT_IS_TRAINED.items():
        if runs := trainings_of(arm):
            row = measured(runs)
            lines.append(
                f"| {name} | {len(runs)} | {row['gain']:.2f} ± {row['error']:.2f} | "
                f"{row['second']:.2f} | {row['kl']:.1f} | {row['ended']:.0%} | {row['words']:.0f} |"
            )
    return "\n".join(lines)


def write(page: Path, name: str, found: str) -> None:
    """Put a table between the page's marks of that name, and print it."""
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")
    after = rest[rest.index("<!-- end -->") :]
    page.write_text(f"{before}<!-- {name} -->\n{found}\n{after}", encoding="utf-8")
    print(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("arm", choices=ARMS)
    training.add_argument("seed", type=int)
    commands.add_parser("choose")
    commands.add_parser("lora")
    args = parser.parse_args()
    if args.command == "train":
        train(args.arm, args.seed)
    elif args.command == "choose":
        write(DOCS / "tuning.md", "arms", table(rows()))
        write(DOCS / "tuning.md", "at equal KL", table_at_equal_kl())
    else:
        write(DOCS / "presets.md", "trained", table_of_what_is_trained())


if __name__ == "__main__":
    main()
