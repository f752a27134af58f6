"""The stages of the course without a notebook: python -m rlhf_tutorial prepare|train|compare|..."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

from tqdm import tqdm

from .assets import as_source
from .errors import TutorialError
from .human import commands
from .notebook import headline
from .presets import PRESETS, load_preset, shared_layers
from .run import Run
from .training import batches_of


def prepare(run: Run) -> None:
    """Turn the preference dialogues into queries."""
    for split in ("train", "test"):
        print(f"{split}: {len(run.queries(split)):,} queries in {run.folder / 'prompts' / split}")


def train(run: Run) -> None:
    """Train the policy with PPO."""
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


STAGES = {stage.__name__: stage for stage in (prepare, train, compare, perplexity)}


def main(arguments: list[str] | None = None) -> None:
    """Run one stage; a stage that needs an earlier one's work makes it first."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_tutorial", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--preset", choices=list(PRESETS), help="default: RLHF_PRESET")
    common.add_argument("--data", help="your own prompts: a file or folder; default: RLHF_DATA")
    common.add_argument(
        "--shared-layers",
        help="frozen layers: a number, a share as 0.6, or 0; default: RLHF_SHARED_LAYERS, or "
        "as the preset has it",
    )
    common.add_argument("--output", help="folder of the run; default: runs/<preset>")
    for name, stage in STAGES.items():
        stage_parser = stages.add_parser(name, parents=[common], help=stage.__doc__)
        stage_parser.set_defaults(call=lambda run, args: STAGES[args.stage](run))
    commands.add_commands(stages, common)
    args = parser.parse_args(arguments)
    try:
        if args.stage != "train" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise TutorialError(f"{args.stage} runs in one process: start it without a launcher")
        preset = load_preset(args.preset)
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
