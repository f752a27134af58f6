"""What only shows over thousands of steps. Minutes, so by flag: RLHF_LONG=1 pytest -s this file."""

from __future__ import annotations

import gc
import os
import threading
from itertools import count
from pathlib import Path

import psutil
import pytest

from rlhf_tutorial import Run, load_preset, train

WARM_UP = 600
"""Steps until the allocator has found its size: 30 MB of 600 come in the first few hundred."""


def usage() -> dict[str, int]:
    gc.collect()
    process = psutil.Process()
    files = process.num_fds() if hasattr(process, "num_fds") else len(process.open_files())
    return {"bytes": process.memory_info().rss, "threads": threading.active_count(), "files": files}


@pytest.mark.slow
@pytest.mark.skipif("RLHF_LONG" not in os.environ, reason="minutes: RLHF_LONG=1 runs it")
def test_memory_threads_and_files_stay_as_they_are_over_two_thousand_steps(tmp_path: Path) -> None:
    run = Run(load_preset("tiny"), tmp_path)
    trainer, reward, early = run.make_trainer(), run.load_reward(), {}
    for epochs in count(1):
        for _ in train(trainer, reward, run.preset.template, epochs=epochs):
            pass
        steps = len(trainer.history)
        if steps % 100 == 0:
            trainer.save_checkpoint(tmp_path / "checkpoints")
        if steps == WARM_UP:
            early = usage()
        if steps >= WARM_UP + 2000:
            break
    late = usage()
    print(f"after {WARM_UP} steps {early}, after {steps} {late}")
    assert late["bytes"] < 1.02 * early["bytes"]
    assert (late["threads"], late["files"]) == (early["threads"], early["files"])
