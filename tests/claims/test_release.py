"""What is released: built, installed, and used from another folder.

The environment here sees this one's other packages; test_colab.py installs the same wheel into one
with none of them, where pip finds what it needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from support import ROOT
from support.release import build

import rlhf_tutorial

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it and not from this folder."""
    return build(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def python(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with the wheel, which sees this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scheme = {"base": str(folder), "platbase": str(folder)}
    program = shutil.which("python", path=sysconfig.get_path("scripts", "venv", scheme))
    site = Path(sysconfig.get_path("purelib", "venv", scheme))
    ours = sysconfig.get_path("purelib")
    # As `--system-site-packages` from within an environment would be: torch is not fetched again.
    # Only the folder is added, and not run as a site, so that no editable install comes along.
    (site / "others.pth").write_text(f"{ours}\n", encoding="utf-8")
    pip = [
        program,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        str(built[1]),
    ]
    subprocess.run(pip, check=True, env=surroundings(folder))
    return program


def surroundings(folder: Path) -> dict[str, str]:
    """The environment variables, without what would find the package in this folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RLHF_"))}
    return {**kept, "RLHF_TUTORIAL_CACHE": str(folder / "cache")}


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=surroundings(folder), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_source_distribution_is_the_repository(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tops = ("notebooks", "docs", "images", "scripts", "tests", "benchmarks", "rlhf_tutorial")
    files = [path for top in tops for path in (ROOT / top).rglob("*") if path.is_file()]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.txt"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    files = [path for path in files if not {"__pycache__", ".ipynb_checkpoints"} & {*path.parts}]
    assert len(files) > 300
    assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert built[0].stat().st_size < 20e6


def test_the_wheel_has_the_package_with_its_data_and_the_notebooks(
    built: tuple[Path, Path],
) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
    package = [path for path in (ROOT / "rlhf_tutorial").rglob("*") if path.is_file()]
    wanted = {p.relative_to(ROOT).as_posix() for p in package if "__pycache__" not in p.parts}
    assert {name for name in names if name.startswith("rlhf_tutorial/")} == wanted
    shipped = {Path(name).name for name in names if name.endswith(".ipynb")}
    assert shipped == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    size = built[1].stat().st_size / 1e6
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (stated,) = re.findall(r"wheel of (\d+) MB", page)
    assert abs(size - int(stated)) < 0.3 * size


def test_an_installed_package_works_from_another_folder(python: str, tmp_path: Path) -> None:
    here = run(tmp_path, python, "-c", "import rlhf_tutorial; print(rlhf_tutorial.__file__)")
    assert not Path(here).is_relative_to(ROOT)
    program = (python, "-m", "rlhf_tutorial")
    assert run(tmp_path, *program, "--version").split()[1] == rlhf_tutorial.__version__
    assert "course runs here" in run(tmp_path, *program, "doctor", "--preset", "tiny")
    assert "64 queries" in run(tmp_path, *program, "prepare", "--preset", "tiny")
    assert (tmp_path / "runs" / "tiny" / "prompts" / "train").is_dir()


def test_an_installed_package_brings_its_notebooks(python: str, tmp_path: Path) -> None:
    program = (python, "-m", "rlhf_tutorial", "notebooks")
    assert "notebooks in notebooks" in run(tmp_path, *program)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        copy = json.loads((tmp_path / "notebooks" / path.name).read_text(encoding="utf-8"))
        ours = json.loads(path.read_text(encoding="utf-8"))
        assert len(copy["cells"]) == len(ours["cells"])
        for cell, our in zip(copy["cells"], ours["cells"], strict=True):
            if cell["cell_type"] == "code":
                assert cell["source"] == our["source"]
            assert "](../" not in "".join(cell["source"])
    again = subprocess.run(
        program, cwd=tmp_path, env=surroundings(tmp_path), capture_output=True, encoding="utf-8"
    )
    assert again.returncode == 1
    assert again.stderr.startswith("error: ") and "there already" in again.stderr
