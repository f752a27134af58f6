"""The package's public names, and what it costs to import it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import ROOT

import rlhf_tutorial


def test_the_public_names_are_there_and_listed():
    for name in rlhf_tutorial.__all__:
        assert getattr(rlhf_tutorial, name) is not None
        assert name in dir(rlhf_tutorial)
    for name in (  # those of the original listings
        "AutoModelForCausalLMWithValueHead",
        "create_reference_model",
        "PPOConfig",
        "PPOTrainer",
        "RewardModel",
    ):
        assert name in rlhf_tutorial.__all__
    from rlhf_tutorial.models import create_reference_model

    assert rlhf_tutorial.create_reference_model is create_reference_model
    with pytest.raises(AttributeError, match="no attribute 'PPOTrainr'"):
        _ = rlhf_tutorial.PPOTrainr


def in_a_fresh_process(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_importing_the_package_is_quick_and_light():
    code = (
        "import sys, time; start = time.perf_counter(); import rlhf_tutorial; "
        "print(time.perf_counter() - start, *sys.modules)"
    )
    seconds, *modules = in_a_fresh_process(code).split()
    assert float(seconds) < 2
    assert "rlhf_tutorial" in modules
    assert not {"trl", "evaluate", "peft", "transformers", "torch", "datasets"} & set(modules)


def test_the_public_names_do_without_the_slow_imports():
    code = (
        "import sys, rlhf_tutorial\n"
        "for name in rlhf_tutorial.__all__: getattr(rlhf_tutorial, name)\n"
        "print(*sys.modules)"
    )
    modules = set(in_a_fresh_process(code).split())
    assert "rlhf_tutorial.ppo.trainer" in modules
    assert not {"trl", "evaluate", "peft", "matplotlib"} & modules
