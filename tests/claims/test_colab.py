"""Notebooks 01 to 05 where Colab's own packages are: none of those that it holds to is replaced.

The environment is a clean one, with nothing of this project's; the wheel as it is released goes
into it, and pip finds what that needs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import warnings
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from packaging.utils import canonicalize_name
from support import ROOT
from support.release import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Colab is a Linux"),
]

COLAB = {
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
    "jupyter-client": "7.4.9",
    "matplotlib": "3.10.0",
    "notebook": "6.5.7",
    "numpy": "2.0.2",
    "pandas": "2.2.2",
    "tornado": "6.5.1",
    "traitlets": "5.7.1",
}
"""What Colab's runtime of 2026 has, and for the most part its package google-colab asks for."""
COLAB_TORCH = "2.9.0"
"""The runtime's of January 2026 (googlecolab/colabtools, issue 5661), a CUDA build there."""
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
"""
CLICK = """
import sys
from pathlib import Path
from rlhf_tutorial.human.labelling import Session
from rlhf_tutorial.human.labels import Pair, load_labels
from rlhf_tutorial.human.widget import LabellingWidget
path, Session.seconds = Path(sys.argv[1]), 1.0  # faster clicks count as double ones
pairs = [Pair(f"Prompt {n}?", f"One {n}.", f"Two {n}.") for n in range(5)]
shown = LabellingWidget(Session(pairs, path, policy="tiny, untouched"))
for name in ("left", "tie", "back", "right", "skip"):
    shown.buttons[name].click()
print(*(f"{label.prompt} {label.choice in 'ab'}" for label in load_labels(path)), sep="\\n")
"""


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with Colab's packages and a torch, into which our wheel has been installed."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet"]
    there = [f"{name}=={number}" for name, number in COLAB.items()]
    subprocess.run([*pip, torch_like_colabs(pip), *there], check=True)
    before = frozen(python)
    # What is not there yet as in this project's own environment, so that no release breaks a test.
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    ours = [line for line in lines if canonicalize_name(line.split("==")[0]) not in before]
    (folder / "constraints.txt").write_text("\n".join(ours) + "\n", encoding="utf-8")
    _, wheel = build(folder)
    subprocess.run([*pip, "--constraint", folder / "constraints.txt", wheel], check=True)
    (folder / "before.json").write_text(json.dumps(before), encoding="utf-8")
    return folder


def torch_like_colabs(pip: list[str | Path]) -> str:
    """A CPU build of Colab's torch where an index of pip's has one; else this project's own torch.

    The CUDA build of that number, which the package registry has, is some gigabytes.
    """
    wanted, ours = f"torch=={COLAB_TORCH}+cpu", "torch==" + version("torch").split("+")[0]
    if subprocess.run([*pip, "--dry-run", "--no-deps", wanted], capture_output=True).returncode:
        warnings.warn(f"no index of pip's has {wanted}: {ours} in its place", stacklevel=2)
        return ours
    return wanted


def frozen(python: Path) -> dict[str, str]:
    """The version of every package."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True
    )
    return {canonicalize_name(row["name"]): row["version"] for row in json.loads(listed.stdout)}


def test_the_install_replaces_nothing_that_colab_holds_to(colab: Path) -> None:
    before = json.loads((colab / "before.json").read_text(encoding="utf-8"))
    after = frozen(colab / "environment" / "bin" / "python")
    assert "rlhf-tutorial" in after
    for name in ("torch", *COLAB):
        assert after[name] == before[name], name


def test_notebooks_one_to_five_run_there(colab: Path, tmp_path: Path) -> None:
    """From a folder with nothing in it but the notebook, as Colab opens one."""
    python = colab / "environment" / "bin" / "python"
    kept = {k: v for k, v in os.environ.items() if not re.match("PYTHON|RLHF_|JUPYTER", k)}
    cache = {"RLHF_TUTORIAL_CACHE": str(tmp_path / "cache"), "RLHF_PRESET": "tiny"}
    for path in sorted((ROOT / "notebooks").glob("0[1-5]*_*.ipynb")):
        notebook = tmp_path / path.name
        nbformat.write(nbformat.read(path, as_version=4), notebook)
        done = subprocess.run(
            [python, "-c", EXECUTE, notebook],
            cwd=tmp_path,
            env=kept | cache,
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, f"{path.name}: {done.stderr[-2000:]}"


def test_labels_are_clicked_in_colabs_widgets(colab: Path, tmp_path: Path) -> None:
    """Notebook 10's buttons, under ipywidgets 7: left, tie, back, right, skip."""
    done = subprocess.run(
        [colab / "environment" / "bin" / "python", "-c", CLICK, tmp_path / "labels.jsonl"],
        env={k: v for k, v in os.environ.items() if not re.match("PYTHON|RLHF_|JUPYTER", k)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["Prompt 0? True", "Prompt 1? True", "Prompt 2? False"]
