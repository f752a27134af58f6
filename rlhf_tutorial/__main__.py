"""The stages of the course without a notebook, its notebooks, and a doctor for the machine."""

from __future__ import annotations

import argparse
import io
import os
import sys
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from . import __version__
from .errors import TutorialError
from .notebook import copy_notebooks, headline

# The doctor is asked before torch, or anything else, is installed: what needs it is imported late.
if TYPE_CHECKING:
    from .presets import Preset
    from .run import Run

OLDEST_PYTHON = (3, 11)


def prepare(run: Run) -> None:
    """Turn the preference dialogues into queries."""
    for split in ("train", "test"):
        print(f"{split}: {len(run.queries(split)):,} queries in {run.folder / 'prompts' / split}")


def train(run: Run) -> None:
    """Train the policy with PPO."""
    from tqdm import tqdm

    from .training import batches_of

    trainer = run.make_trainer()
    total, main = run.preset.epochs * len(batches_of(trainer)), trainer.accelerator.is_main_process
    with tqdm(total=total, desc="PPO", unit="step", disable=not main) as bar:
        for stats in run.train(trainer):
            bar.set_postfix(score=stats["ppo/mean_scores"], kl=stats["objective/kl"])
            bar.update()
    if main:
        print(f"policy in {run.folder / 'policy'}, log in {run.folder / 'stats.jsonl'}")


def compare(run: Run) -> None:
    """Answer held-out prompts before and after, and score the answers."""
    from .evaluation.compare import format_examples

    print(format_examples(run.compare()))
    print(f"\n{headline(run.results())}")


def perplexity(run: Run) -> None:
    """Perplexity on the held-out dialogues before and after."""
    result = run.perplexity()
    for kind in result["before"]:
        before, after = (result[when][kind]["mean_perplexity"] for when in ("before", "after"))
        print(f"{kind}: {before:.3f} before, {after:.3f} after")


def notebooks(output: str | None) -> None:
    """Copy the notebooks that came with the package into a folder, to be run from there."""
    folder = Path(output or "notebooks")
    print(f"{len(copy_notebooks(folder))} notebooks in {folder}: jupyter lab {folder}")


def doctor(preset: Preset, output: str | None) -> None:
    """Say what this machine has for the course, what will be slow, and what to do about it."""
    from .doctor import examine, report

    folder = Path(output or os.environ.get("RLHF_RUNS") or "runs")
    findings = examine(preset, folder)
    print(report(findings, get_terminal_size().columns))
    if any(finding.verdict == "no" for finding in findings):
        sys.exit(1)


STAGES = {stage.__name__: stage for stage in (prepare, train, compare, perplexity)}


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a stage that needs an earlier one's work makes it first."""
    if sys.version_info[:2] < OLDEST_PYTHON:
        sys.exit(
            f"error: this is Python {sys.version.split()[0]}, and the course needs "
            f"{'.'.join(map(str, OLDEST_PYTHON))} or later: install one, and name it to make, as "
            "`make tutorial PYTHON=python3.12`"
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may have what Windows' cp1252 lacks
    from .assets import as_source
    from .human import commands as labelling
    from .human import steering_commands as steering
    from .presets import PRESETS, load_preset, shared_layers

    parser = argparse.ArgumentParser(prog="python -m rlhf_tutorial", description=__doc__)
    parser.add_argument("--version", action="version", version=f"rlhf-tutorial {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for_run = argparse.ArgumentParser(add_help=False)
    for_run.add_argument("--output", help="folder to write to; default: runs/<preset>")
    for_run.add_argument("--preset", choices=list(PRESETS), help="default: RLHF_PRESET")
    for_stage = argparse.ArgumentParser(add_help=False, parents=[for_run])
    for_stage.add_argument("--data", help="prompts or preferences of your own; default: RLHF_DATA")
    for_stage.add_argument(
        "--shared-layers",
        help="frozen layers: a number, a share as 0.6, or 0; default: RLHF_SHARED_LAYERS, or as "
        "the preset has it",
    )
    commands.add_parser(
        "doctor", parents=[for_run], help=doctor.__doc__, description=doctor.__doc__
    )
    copying = commands.add_parser(
        "notebooks", help=notebooks.__doc__, description=notebooks.__doc__
    )
    copying.add_argument("--output", help="folder to write to; default: notebooks")
    for name, stage in STAGES.items():
        stage_parser = commands.add_parser(
            name, parents=[for_stage], help=stage.__doc__, description=stage.__doc__
        )
        stage_parser.set_defaults(call=lambda run, args: STAGES[args.command](run))
    labelling.add_commands(commands, for_stage)
    steering.add_commands(commands, for_stage)
    args = parser.parse_args(arguments)
    try:
        if args.command != "train" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise TutorialError(f"{args.command} runs in one process: start it without a launcher")
        if args.command == "notebooks":
            return notebooks(args.output)
        preset = load_preset(args.preset)
        if args.command == "doctor":
            return doctor(preset, args.output)
        from .run import Run

        if args.data is not None:
            preset = replace(preset, data=as_source(args.data))
        if args.shared_layers is not None:
            preset = replace(preset, num_shared_layers=shared_layers(args.shared_layers))
        args.call(Run(preset, args.output), args)
    except KeyboardInterrupt:
        sys.exit("stopped; a training goes on from there when it is started again")
    except TutorialError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full or read-only disk, above all
        sys.exit(f"error: {error}: check the disk, or give another folder with --output")


if __name__ == "__main__":
    main()
