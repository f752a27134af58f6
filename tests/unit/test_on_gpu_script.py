"""scripts/on_gpu.py on a CPU: parts, and all of its work with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial import assets

script = load_script("on_gpu")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    file = tmp_path / "weights-1.0-py3-none-any.whl"
    file.write_bytes(bytes(range(256)) * 100)
    return file


def test_parts_are_the_whole_again(wheel, tmp_path):
    script.split(wheel, tmp_path / "parts", size=10_000)
    parts = sorted((tmp_path / "parts").glob("*.whl.*"))
    assert [part.stat().st_size for part in parts] == [10_000, 10_000, 5_600]
    joined = script.join(tmp_path / "parts", tmp_path / "cache" / "wheels")
    assert joined.name == wheel.name and joined.read_bytes() == wheel.read_bytes()
    assert script.PART_BYTES < 45e6


@pytest.mark.parametrize("damage", ["missing", "altered", "cut"])
def test_a_part_that_is_not_what_was_cut_is_named(damage, wheel, tmp_path):
    script.split(wheel, tmp_path / "parts", size=10_000)
    part = tmp_path / "parts" / f"{wheel.name}.01"
    if damage == "missing":
        part.unlink()
    else:
        content = bytearray(part.read_bytes())
        content[7] ^= 1
        part.write_bytes(content if damage == "altered" else content[:-1])
    with pytest.raises(SystemExit, match=r"whl\.01 is missing or altered: send it again"):
        script.join(tmp_path / "parts", tmp_path / "cache")


def test_the_weights_are_found_without_a_network(wheel, tmp_path, monkeypatch, capsys):
    """Where the course looks for a wheel that somebody put there, by the hash that is pinned."""
    source = assets.Wheel("weights", "1.0", sha256=script.sha256(wheel), folder="weights")
    monkeypatch.setenv("RLHF_TUTORIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "SMOLLM2", source)
    monkeypatch.setattr(assets, "resolve", assets._local_wheel)
    script.split(wheel, tmp_path / "parts", size=10_000)
    script.weights(tmp_path / "parts")
    *_, found = capsys.readouterr().out.split()
    assert Path(found).read_bytes() == wheel.read_bytes()


def test_it_ends_within_ten_minutes_and_what_it_leaves_is_a_few_files():
    assert sum(script.SECONDS.values()) < 600
    assert len(script.SECONDS) + len(["speed.json", "training.json", "summary.json"]) <= 8


@pytest.mark.slow
def test_all_of_it_on_a_cpu(tmp_path):
    done = subprocess.run(
        [sys.executable, "scripts/on_gpu.py", "run", "none", str(tmp_path), "--smoke"]
        + ["--only", "tests", "speed", "training"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    logs = {name: (tmp_path / f"{name}.log").read_text()[-1500:] for name in summary}
    assert done.returncode == 0, logs
    assert {part["outcome"] for part in summary.values()} == {0}
    speed = json.loads((tmp_path / "speed.json").read_text())
    assert {"ours, full, float32"} <= {row["variant"] for row in speed["a tiny GPT-2"]}
    training = json.loads((tmp_path / "training.json").read_text())
    assert len(training["steps"]) == training["planned_steps"] == 8
    assert [at["step"] for at in training["looks"]] == [0, 8]
    for at in training["looks"]:
        assert len(at["answers"]) == len(at["kl"]) == len(training["queries"]) == 4
        assert at["scores"].keys() == {"first", "second"}


def test_what_runs_out_of_time_is_ended_and_said(tmp_path, monkeypatch):
    monkeypatch.setitem(script.SECONDS, "tests", 0.1)
    with pytest.raises(SystemExit, match="not all of it went well"):
        script.run(tmp_path, tmp_path, ["tests"], smoke=False, trl="none")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tests"]["outcome"] == "out of time"
