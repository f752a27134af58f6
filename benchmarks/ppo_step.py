"""Seconds and memory of one PPO step: the original loop on TRL 0.11.4 against ours.

    python benchmarks/ppo_step.py                        # SmolLM2-135M, where the weights are
    python benchmarks/ppo_step.py --model dlite          # the original's shapes, random weights
    python benchmarks/ppo_step.py --model tiny           # a smoke test

A step is generation and PPO step; scoring is left out on both sides. All variants live in processes
of their own and take turns, so that a machine whose speed drifts is fair to all: one warm-up each,
then five steps each, of which the medians are reported. Peak memory is the whole process's on a
CPU, the allocator's on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
SHAPES: dict[str, dict[str, Any] | None] = {
    "smollm2": None,
    "dlite": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "tiny": {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 2, "vocab_size": 600},
}
SHARED = {"smollm2": 22, "dlite": 18, "tiny": 3}
NEW_TOKENS, EPOCHS = 16, 4


def variants(shared_layers: int, device: str, trl: Path | None) -> dict[str, dict[str, Any]]:
    """Name of each variant: its interpreter, worker, precision and number of shared layers."""
    from rlhf_tutorial.device import supports_bf16

    ours = {"python": sys.executable, "worker": "our_loop.py"}
    found = {} if trl is None else {"original": {"python": str(trl), "worker": "original_loop.py"}}
    for name, shared in (("full", None), ("frozen trunk", shared_layers)):
        for precision in ("no", "bf16") if supports_bf16(device) else ("no",):
            key = f"ours, {name}, {'float32' if precision == 'no' else 'bf16'}"
            found[key] = ours | {"precision": precision, "shared_layers": shared}
    return found


def inputs(model: str, batch_size: int) -> dict[str, Any]:
    """Queries, tokenizer and checkpoint that all variants get."""
    from rlhf_tutorial import load_preset, load_tokenizer, prepare_queries
    from rlhf_tutorial.assets import SMOLLM2, resolve
    from rlhf_tutorial.data import load_preferences
    from rlhf_tutorial.template import CHAT

    preset = load_preset("smollm2")
    if model == "smollm2":
        folder = resolve(SMOLLM2)
    else:  # only its tokenizer is used
        from rlhf_tutorial.tiny import make_tiny_policy

        folder = make_tiny_policy(Path(tempfile.mkdtemp()), ["Some text to learn bytes from."])
    tokenizer = load_tokenizer(folder)
    preferences = load_preferences(preset.data, "train")
    queries, _ = prepare_queries(preferences, CHAT.bind(tokenizer), limit=8 * batch_size)
    # The tokens of a look-alike's own vocabulary: only the lengths matter.
    return {
        "folder": str(folder) if model == "smollm2" else None,
        "tokenizer_file": str(Path(folder) / "tokenizer.json"),
        "eos": tokenizer.eos_token_id,
        "queries": [ids.tolist() for ids in queries["input_ids"][:]],
    }


@contextmanager
def worker(variant: dict[str, Any], settings: dict[str, Any]) -> Iterator[subprocess.Popen]:
    """A worker, started: it says when it is ready."""
    # Packages may be on the path: ours, which TRL's own environment is not to see.
    paths = [str(ROOT)]
    if variant["worker"] == "our_loop.py" and "PYTHONPATH" in os.environ:
        paths.append(os.environ["PYTHONPATH"])
    with (
        tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
    ):
        json.dump(settings | variant, file)
        file.flush()
        process = subprocess.Popen(
            [variant["python"], str(HERE / variant["worker"]), file.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)},
        )
        process.stderr = errors  # for `ask`
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen, line: str | None = None) -> dict[str, Any]:
    """Send a line, if any, and wait for the next JSON line."""
    if line is not None:
        with suppress(BrokenPipeError):  # it has stopped, which is said below
            process.stdin.write(line + "\n")
            process.stdin.flush()
    for answer in process.stdout:
        if answer.startswith("{"):
            return json.loads(answer)
    process.stderr.seek(0)
    said = "".join(process.stderr.readlines()[-5:])
    sys.exit(f"the worker {process.args[1]} stopped:\n{said}")


def measure(args: argparse.Namespace, trl: Path | None) -> list[dict]:
    """A row per variant, by the command's arguments."""
    settings = inputs(args.model, args.batch_size) | {
        "batch_size": args.batch_size,
        "device": args.device,
        "max_new_tokens": args.new_tokens,
        "ppo_epochs": args.ppo_epochs,
        "shape": SHAPES[args.model],
        "threads": torch.get_num_threads(),
        "precision": "no",
        "shared_layers": None,
    }
    shared_layers = SHARED[args.model] if args.shared_layers is None else args.shared_layers
    chosen = variants(shared_layers, args.device, trl)
    with ExitStack() as stack:
        workers = {n: stack.enter_context(worker(v, settings)) for n, v in chosen.items()}
        gpus = {ask(process)["cuda"] for process in workers.values()}  # all loaded, side by side
        gpu = gpus.pop() if args.device == "cuda" else None
        times: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
        for i in range(1 + args.steps):
            for name, process in workers.items():
                seconds = ask(process, "step")
                if i:  # the first is the warm-up
                    times[name].append(seconds)
                print(f"{name}: {seconds['total']:.2f} s", file=sys.stderr, flush=True)
        rows = []
        for name, process in workers.items():
            process.stdin.close()
            median = {k: statistics.median(t[k] for t in times[name]) for k in times[name][0]}
            rows.append(
                {"model": args.model, "batch_size": args.batch_size, "variant": name, "gpu": gpu}
                | {"seconds": median}
                | {"all": [t["total"] for t in times[name]]}
                | ask(process)
            )
    return rows


def told(seconds: float) -> str:
    """With a third digit where two would say little."""
    return f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.3f}"


def table(rows: list[dict]) -> str:
    """The rows as Markdown, with the ratios to the original."""
    original = next((r for r in rows if r["variant"] == "original"), None)
    lines = ["| | seconds a step | generation | PPO | times faster | peak memory | of its floor |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        s = row["seconds"]
        faster = f"{original['seconds']['total'] / s['total']:.1f}" if original else ""
        floor = row["flop"] / row["matmul_rate"] if "flop" in row else None
        times = " | ".join(told(s[part]) for part in ("total", "generate", "step"))
        lines.append(
            f"| {row['variant']} | {times} | "
            f"{faster} | {row['peak_bytes'] / 2**30:.2f} GiB | "
            + (f"{s['total'] / floor:.1f}x of {told(floor)} s |" if floor else "|")
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SHAPES), default="smollm2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--new-tokens", type=int, default=NEW_TOKENS, help="of each answer, at the most"
    )
    parser.add_argument("--ppo-epochs", type=int, default=EPOCHS, help="updates on each batch")
    parser.add_argument("--shared-layers", type=int, help="those of the frozen trunk")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each variant")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--trl", type=Path, default=ROOT / ".venv-trl" / "bin" / "python")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    trl = args.trl if args.trl.exists() else None
    if trl is None:
        print(f"{args.trl} is not there: without the original loop (make bench sets it up)")
    rows = measure(args, trl)
    print(table(rows))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
