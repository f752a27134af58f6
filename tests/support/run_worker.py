"""Trainings in processes of their own, to be killed and interrupted by the tests.

They are forked from a server that has imported everything once: a start takes a fraction of a
second.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rlhf_tutorial import Run, load_preset, presets
from rlhf_tutorial import run as run_module
from rlhf_tutorial.presets import Preset
from rlhf_tutorial.reward import rule_reward

# The packages, and what they would load only when a training starts.
IMPORTED = ["torch", "transformers", "accelerate", "datasets", "rlhf_tutorial.run", "torch._dynamo"]
IMPORTED += ["transformers.models.llama.modeling_llama", "rlhf_tutorial.tiny", "safetensors.torch"]
IMPORTED += ["torch.distributed.algorithms.join", "transformers.generation"]

CTRL_C = 130  # the exit code for an interrupted program, as shells have it
EVERY = 2  # steps between two checkpoints


def preset(epochs: int) -> Preset:
    """Twelve short steps an epoch, in mini-batches and with everything that has a state."""
    ppo = {"batch_size": 4, "mini_batch_size": 2, "ppo_epochs": 2, "learning_rate": 1e-3}
    ppo |= {"use_score_scaling": True, "use_score_norm": True, "target": 0.1, "horizon": 100}
    tiny = load_preset("tiny")
    return replace(tiny, prompts=50, epochs=epochs, max_new_tokens=6, ppo=ppo)


def start(target: Callable[..., None], *args: Any) -> Any:
    """A process that runs a function of this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_child, args=(target, *args), daemon=True)
    process.start()
    return process


def _child(target: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(
        threading.RLock()
    )  # not tqdm's own lock: it is a semaphore of the system, which a kill would leave behind
    # As in a terminal, also where the tests themselves run in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run_module.CHECKPOINT_EVERY = EVERY
    target(*args)


def training(
    folder: Path, epochs: int, stop: tuple[str, int] | None = None, news: Any = None
) -> None:
    """Train; with `stop`, die at that moment of that save. `news` hears of every new step."""
    if stop is not None:
        die_in_a_save(*stop)
    run = Run(preset(epochs), folder)
    trainer = run.make_trainer()
    for i, _ in enumerate(run.train(trainer)):
        if i == 0:
            start = len(trainer.history)
            with (folder / "starts").open("a") as file:
                file.write(f"{start}\n")
        if news is not None and i >= start:
            news.send(i)


def interrupted(folder: Path, number: int, at_step: int) -> None:
    """Train, and get a signal in the middle of that step: while its answers are being scored."""
    run = Run(preset(epochs=1), folder)
    trainer = run.make_trainer()

    def reward(queries: list[str], responses: list[str]) -> list[float]:
        if len(trainer.history) + 1 == at_step:
            os.kill(os.getpid(), number)
        return rule_reward(queries, responses)

    try:
        for stats in run.train(trainer, reward):
            with (folder / "seen").open("a") as file:
                file.write(f"{stats['objective/kl']!r}\n")
    except KeyboardInterrupt:
        sys.exit(CTRL_C)


def command_line(folder: Path, epochs: int) -> None:
    """`python -m rlhf_tutorial train --preset tiny`, with a preset of that name to test with."""
    printed = os.open(folder.parent / "printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    presets.PRESETS["tiny"] = preset(epochs)
    sys.argv = ["rlhf_tutorial", "train", "--preset", "tiny", "--output", str(folder)]
    runpy.run_module("rlhf_tutorial", run_name="__main__", alter_sys=True)


# Dying at a chosen moment of a save ---------------------------------------------------------------

MOMENTS = (
    "before it begins",
    "in the middle of the tensors",
    "after the tensors",
    "in the middle of the hashes",
    "before they are on the disk",
    "before the rename",
    "after the rename",
    "while the oldest is deleted",
)


def die_in_a_save(moment: str, number: int) -> None:
    """Arrange for this process to be killed at that moment of its `number`-th save."""
    from rlhf_tutorial.ppo import checkpoint

    saves = 0

    def die() -> None:
        if saves >= number:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(
        owner: Any, name: str, before: Callable[..., Any], after: Callable[..., Any]
    ) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before(*args)
            result = original(*args, **kwargs)
            after(*args)
            return result

        setattr(owner, name, wrapped)

    def nothing(*_: Any) -> None:
        pass

    def begin(*_: Any) -> None:
        nonlocal saves
        saves += 1
        if moment == MOMENTS[0]:
            die()

    def cut(_: Any, path: Path) -> None:
        if saves == number:
            os.truncate(path, path.stat().st_size // 2)
        die()

    def half_of_the_hashes(path: Path, text: str, **_: Any) -> None:
        if path.name == checkpoint.HASHES:
            path.write_bytes(text[: len(text) // 2].encode())
            die()

    def renamed(path: Path, _: Any) -> None:
        if path.suffix == ".partial":
            die()

    def delete(path: Path, **_: Any) -> None:
        if path.name.startswith("step-") and not path.suffix:
            next(path.iterdir()).unlink()
            die()

    around(checkpoint, "_write", begin, nothing)
    if moment == "in the middle of the tensors":
        around(checkpoint, "save_file", nothing, cut)
    elif moment == "after the tensors":
        around(checkpoint, "save_file", nothing, lambda *_: die())
    elif moment == "in the middle of the hashes":
        around(Path, "write_text", half_of_the_hashes, nothing)
    elif moment == "before they are on the disk":
        around(checkpoint, "_flush", lambda *_: die(), nothing)
    elif moment == "before the rename":
        around(Path, "rename", renamed, nothing)
    elif moment == "after the rename":
        around(Path, "rename", nothing, renamed)
    elif moment == "while the oldest is deleted":
        around(shutil, "rmtree", delete, nothing)
    elif moment != MOMENTS[0]:
        raise KeyError(moment)
