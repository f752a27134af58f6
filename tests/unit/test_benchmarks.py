"""The benchmarks run; what they measure is not tested here, since tests do not time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support import ROOT

BENCHMARKS = ROOT / "benchmarks"


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_steps_are_measured_without_trl_too(tmp_path):
    """On a GPT-2 of random weights, as the original's shapes are on a GPU."""
    output = tmp_path / "rows.json"
    settings = ["--model", "tiny", "--steps", "1", "--batch-size", "4", "--output", str(output)]
    printed = run(str(BENCHMARKS / "ppo_step.py"), *settings, "--trl", str(tmp_path / "none"))
    rows = json.loads(output.read_text(encoding="utf-8"))
    names = {row["variant"] for row in rows}
    assert {"ours, full, float32", "ours, frozen trunk, float32"} <= names
    for row in rows:
        assert 0 < row["seconds"]["step"] < row["seconds"]["total"]
        assert row["flop"] > 0 and row["matmul_rate"] > 0 and row["peak_bytes"] > 1e8
        assert row["variant"] in printed
    full, frozen = (
        next(r["flop"] for r in rows if r["variant"] == f"ours, {kind}, float32")
        for kind in ("full", "frozen trunk")
    )
    assert frozen < 0.8 * full


@pytest.fixture
def ppo_step(tmp_path, monkeypatch):
    """The script, with workers that say in JSON whether they see a package on the path, or fail."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ppo_step

    (tmp_path / "packages" / "wheel_of_ours").mkdir(parents=True)
    (tmp_path / "packages" / "wheel_of_ours" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    seen = "from importlib.util import find_spec\nimport json\n"
    seen += "print(json.dumps({'sees': find_spec('wheel_of_ours') is not None}))\n"
    for name in ("our_loop.py", "original_loop.py"):
        (tmp_path / name).write_text(seen)
    (tmp_path / "fails.py").write_text("import wheel_that_is_not_there\n")
    monkeypatch.setattr(ppo_step, "HERE", tmp_path)
    return ppo_step


def test_our_workers_see_packages_on_the_path_and_trls_does_not(ppo_step):
    for name, sees in {"our_loop.py": True, "original_loop.py": False}.items():
        with ppo_step.worker({"python": sys.executable, "worker": name}, {}) as process:
            assert ppo_step.ask(process) == {"sees": sees}


def test_a_worker_that_stops_says_why(ppo_step):
    with ppo_step.worker({"python": sys.executable, "worker": "fails.py"}, {}) as process:
        process.wait()
        with pytest.raises(SystemExit, match=r"No module named 'wheel_that_is_not_there'"):
            ppo_step.ask(process, "step")


def test_seconds_of_hundredths_are_told_with_three_digits(ppo_step):
    assert [ppo_step.told(s) for s in (12.346, 0.123, 0.0296)] == ["12.35", "0.12", "0.030"]


def test_the_original_loops_worker_compiles():
    """It runs in TRL's environment, which the tests do not have."""
    compile(
        (BENCHMARKS / "original_loop.py").read_text(encoding="utf-8"), "original_loop.py", "exec"
    )


@pytest.mark.slow
@pytest.mark.weights
def test_scaling_is_measured(tmp_path):
    output = tmp_path / "rows.json"
    settings = ["--only", "model of 19M", "--steps", "1", "--output", str(output)]
    printed = run(str(BENCHMARKS / "scaling.py"), *settings)
    (row,) = json.loads(output.read_text(encoding="utf-8"))
    assert 0 < row["seconds"]["step"] < row["seconds"]["total"] and row["peak_bytes"] > 1e8
    assert "model of 19M" in printed


@pytest.mark.slow
@pytest.mark.weights
def test_the_plain_perplexity_that_ours_is_timed_against_gives_the_same_values(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import perplexity
    from transformers import AutoModelForCausalLM

    from rlhf_tutorial import load_tokenizer
    from rlhf_tutorial.assets import SMOLLM2, resolve
    from rlhf_tutorial.evaluation.perplexity import score_texts

    folder = resolve(SMOLLM2)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    texts = ["A short one.", "A longer text, so that the first of the two has to be padded."]
    plain = perplexity.plain(texts, model.eval(), tokenizer)
    ours = score_texts(texts, model, tokenizer)["perplexities"]
    exact = perplexity.plain(texts, model.double(), tokenizer)
    assert ours == pytest.approx(exact, rel=2e-5)
    # evaluate's transposed logits are summed one by one in float32, over 49,152 of them.
    assert plain == pytest.approx(exact, rel=5e-4)
