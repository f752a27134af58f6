"""scripts/on_gpu.py on a CPU: parts, and all of its work with tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial import assets
from rlhf_tutorial.presets import PRESETS

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


def test_a_part_and_the_repository_go_in_one_upload():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not in a checkout")
    files = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    assert len(files) > 300
    size = sum(file.stat().st_size for file in files if file.is_file())
    assert size + script.PART_BYTES < 64 * 2**20


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


def test_a_table_is_of_the_default_presets_step():
    preset = PRESETS["smollm2"]
    told = f"--model smollm2 --new-tokens {preset.max_new_tokens} "
    told += f"--shared-layers {preset.num_shared_layers} --ppo-epochs {preset.ppo['ppo_epochs']}"
    assert told == script.DEFAULT and preset.ppo["batch_size"] == 16
    answers = 640 * preset.epochs * script.TIMES
    assert preset.prompts in (None, 640) and f"some {answers:,}" in script.__doc__


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pieces of work write what they were told, in the place of doing it."""
    told = tmp_path / "told"
    stub = tmp_path / "stub.py"
    stub.write_text(
        "import os, sys, time\n"
        f"with open({str(told)!r}, 'a') as file:\n"
        "    print(*sys.argv[2:4], os.getpid(), file=file)\n"
        "time.sleep(60 if sys.argv[2] == 'training' else 0)\n"
    )
    monkeypatch.setattr(script, "__file__", str(stub))
    return told


def test_the_weights_come_first_and_time_that_is_left_goes_to_the_next(pieces, tmp_path):
    script.run(tmp_path, tmp_path / "out", ["tests", "speed"], smoke=False, trl=Path("none"))
    told = [line.split() for line in pieces.read_text().splitlines()]
    assert [name for name, *_ in told] == ["weights", "speed", "tests"]
    assert float(told[0][1]) == script.SECONDS["weights"]
    assert 60 < float(told[1][1]) - script.SECONDS["speed"] < script.SECONDS["weights"]


@pytest.mark.parametrize("only", [["tests"], ["speed"]])
def test_the_weights_are_not_asked_for_where_they_are_not_needed(only, pieces, tmp_path):
    script.run(tmp_path, tmp_path / "out", only, smoke=only != ["tests"], trl=Path("none"))
    assert [line.split()[0] for line in pieces.read_text().splitlines()] == only


def test_a_run_that_is_ended_from_outside_ends_its_piece(pieces, tmp_path):
    def end(*_: object) -> None:
        if pieces.exists() and pieces.read_text().endswith("\n"):
            raise SystemExit("ended from outside")
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(SystemExit, match="ended from outside"):
            script.run(tmp_path, tmp_path / "out", ["training"], smoke=True, trl=Path("none"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    _, _, process = pieces.read_text().split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


def test_a_table_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    stub = "import json, sys\nassert '--fails' not in sys.argv\n"
    stub += "open(sys.argv[sys.argv.index('--output') + 1], 'w').write(json.dumps(sys.argv[1:]))\n"
    for name in ("ppo_step.py", "dlite_judge.py"):
        (tmp_path / "benchmarks" / name).write_text(stub)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    tables = {"a": "ppo_step.py", "b": "ppo_step.py --fails", "c": "dlite_judge.py"}
    monkeypatch.setattr(script, "TABLES", tables | {"d": "ppo_step.py --steps 3"})
    with pytest.raises(SystemExit, match="not measured: b$"):
        script.speed(tmp_path, smoke=False, trl=Path("python-of-trl"))
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [*found] == ["a", "c", "d"]
    assert found["a"][-2:] == ["--trl", "python-of-trl"], "the original's takes a minute and more"
    assert found["d"][-2:] == ["--trl", "none"] and found["d"][:2] == ["--steps", "3"]
    assert "--trl" not in found["c"] and "cuda" in found["c"]


@pytest.mark.slow
def test_the_original_loops_packages_come_out_of_wheels(tmp_path):
    with zipfile.ZipFile(tmp_path / "oldlib-1.0-py3-none-any.whl", "w") as made:
        made.writestr("oldlib.py", "VERSION = 1\n")
        info = "oldlib-1.0.dist-info"
        made.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: oldlib\nVersion: 1.0\n")
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        made.writestr(f"{info}/RECORD", "")
    python = script.trl_from_wheels(tmp_path)
    subprocess.run([python, "-c", "import oldlib"], check=True)


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
    assert [row["batch_size"] for row in speed["a small judge"]] == [2]
    training = json.loads((tmp_path / "training.json").read_text())
    assert len(training["steps"]) == training["planned_steps"] == 8
    assert [at["step"] for at in training["looks"]] == [0, 8]
    for at in training["looks"]:
        assert len(at["answers"]) == len(at["kl"]) == len(training["queries"]) == 4
        assert at["scores"].keys() == {"first", "second"}


def test_what_runs_out_of_time_is_ended_and_said(tmp_path, monkeypatch):
    monkeypatch.setitem(script.SECONDS, "tests", 0.1)
    with pytest.raises(SystemExit, match="not all of it went well"):
        script.run(tmp_path, tmp_path, ["tests"], smoke=False, trl=Path("none"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tests"]["outcome"] == "out of time"
