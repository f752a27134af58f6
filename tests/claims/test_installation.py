"""The files that install the package name the same packages and bounds."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from support import ROOT

import rlhf_tutorial
from rlhf_tutorial.__main__ import main


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def environment() -> list:
    file = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert file["name"] == "rlhf-tutorial"
    return file["dependencies"]


@pytest.fixture(scope="module")
def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return requirements([line for line in lines if line.strip() and not line.startswith("#")])


def lower_bounds(requirements: dict[str, Requirement]) -> dict[str, str]:
    bounds = {}
    for name, requirement in requirements.items():
        (bounds[name],) = [s.version for s in requirement.specifier if s.operator == ">="]
    return bounds


def test_environment_and_pyproject_name_the_same_packages_and_bounds(project, environment):
    (pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    conda = [entry for entry in environment if isinstance(entry, str)]
    listed = [line for line in [*conda, *pip] if not re.match(r"-|python\b|pip$", line)]
    assert lower_bounds(requirements(listed)) == lower_bounds(requirements(project["dependencies"]))
    (python,) = [entry for entry in conda if entry.startswith("python")]
    assert python.removeprefix("python") == project["requires-python"]
    assert any("constraints.txt" in line for line in pip)


def test_constraints_pin_every_dependency_within_its_bounds(project, constraints):
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for name, requirement in requirements([*project["dependencies"], *extras]).items():
        assert name in constraints, f"{name} is not pinned in constraints.txt"
        ((operator, version),) = [(s.operator, s.version) for s in constraints[name].specifier]
        assert operator == "==" and requirement.specifier.contains(version), name


def test_every_pin_can_be_installed_on_the_oldest_python(project, constraints):
    """pip tells an older Python of two packages in conflict, and not that it is too old for one."""
    (oldest,) = [s.version for s in SpecifierSet(project["requires-python"]) if s.operator == ">="]
    looked_at = set()
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name in constraints and constraints[name].specifier.contains(distribution.version):
            needed = SpecifierSet(distribution.metadata.get("Requires-Python") or "")
            assert needed.contains(f"{oldest}.0"), f"{name} {distribution.version}: {needed}"
            looked_at.add(name)
    assert len(looked_at) > 100, "the pinned packages are installed here"


@pytest.mark.slow
def test_condas_environment_is_created_where_there_is_conda(tmp_path: Path) -> None:
    conda = shutil.which("conda")
    if conda is None:
        pytest.skip("no conda here; docs/install.md says that it was not tried")
    course, environment = tmp_path / "course", tmp_path / "environment"
    left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, course, ignore=left_out)  # which the environment's `--editable .` is then

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [conda, *arguments]
        return subprocess.run(command, cwd=course, capture_output=True, encoding="utf-8")

    made = run("env", "create", "--quiet", "--prefix", environment, "--file", "environment.yml")
    if "CondaHTTPError" in made.stderr:
        pytest.skip("conda's channel is not reached")
    assert made.returncode == 0, made.stdout + made.stderr
    told = run("run", "--prefix", environment, "python", "-m", "rlhf_tutorial", "--version")
    assert told.stdout.strip() == f"rlhf-tutorial {rlhf_tutorial.__version__}", told.stderr


def test_the_version_is_one(project):
    assert project["version"] == rlhf_tutorial.__version__


def test_the_version_heads_the_changelog(project):
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$", changelog, re.MULTILINE)
    assert released[0] == project["version"]


def test_what_is_public_is_listed_under_releases():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Releases")[1]
    first, *_ = page.split(";\n")
    assert set(re.findall(r"`(\w+)`", first)) == set(rlhf_tutorial.__all__)
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "rlhf_tutorial").rglob("*.py")]
    read = set(re.findall(r"RLHF_[A-Z_]+", "\n".join(sources)))
    assert set(re.findall(r"`(RLHF_[A-Z_]+)`", page)) == read


def test_the_program_tells_its_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"rlhf-tutorial {rlhf_tutorial.__version__}\n"
