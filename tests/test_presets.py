"""Presets and their overrides; the package's names, its import, and the files that install it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rlhf_tutorial
from rlhf_tutorial.assets import Bundled, Hub, Wheel
from rlhf_tutorial.errors import AssetError, TutorialError
from rlhf_tutorial.ppo import PPOConfig
from rlhf_tutorial.presets import OVERRIDES, PRESETS, load_preset

tomllib = pytest.importorskip("tomllib", reason="in Python from 3.11 on")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    for variable in ("RLHF_PRESET", *OVERRIDES.values()):
        monkeypatch.delenv(variable, raising=False)


# Presets -------------------------------------------------------------------------------------


def test_there_are_three_presets_and_the_default_needs_no_hub(monkeypatch):
    assert set(PRESETS) == {"smollm2", "dlite", "tiny"}
    assert all(preset.name == name for name, preset in PRESETS.items())
    default = load_preset()
    assert default.name == "smollm2" and default.num_shared_layers == 22
    for source in (default.policy, default.reward_model, default.reward_adapter, default.data):
        assert isinstance(source, (Wheel, Bundled))
    monkeypatch.setenv("RLHF_PRESET", "tiny")
    assert load_preset().name == "tiny"
    assert load_preset("dlite").name == "dlite", "a name given goes before the environment"


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_settings_are_settings_of_ppo(name):
    PPOConfig(**PRESETS[name].ppo)


def test_dlite_is_the_original_experiment():
    preset = load_preset("dlite")
    assert preset.policy == Hub("aisquared/dlite-v1-355m")
    assert preset.reward_model == Hub("OpenAssistant/reward-model-deberta-v3-large-v2")
    assert (preset.data, preset.data_dir) == (Hub("Anthropic/hh-rlhf"), "helpful-base")
    assert preset.prompts == 6400 and preset.max_new_tokens == 16 and preset.epochs == 1
    assert preset.template.text == "\n### Instruction:\n{instruction}\n### Response:\n"
    assert preset.template.end == "### End"
    # All else TRL's defaults, and every layer trained against a full copy.
    assert PPOConfig(**preset.ppo) == PPOConfig(batch_size=16, mini_batch_size=16)
    assert preset.num_shared_layers is None and preset.value_head_learning_rate is None
    assert preset.perplexity_texts is None


def test_tiny_needs_no_weights_at_all():
    preset = load_preset("tiny")
    assert preset.policy is None and preset.reward_model is None
    assert isinstance(preset.data, Bundled)


def test_every_source_can_be_replaced_by_a_folder_or_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_POLICY", str(tmp_path))
    monkeypatch.setenv("RLHF_REWARD_MODEL", "some/judge")
    monkeypatch.setenv("RLHF_DATA", str(tmp_path))
    preset = load_preset("smollm2")
    assert preset.policy == preset.data == tmp_path
    assert preset.reward_model == Hub("some/judge")
    assert preset.reward_adapter is None, "the adapter belongs to the preset's own encoder"
    assert PRESETS["smollm2"].reward_adapter is not None, "the preset itself stays as it is"


def test_an_unknown_preset_or_override_is_named_in_one_line(monkeypatch):
    with pytest.raises(TutorialError, match="no preset 'smolm': use one of smollm2") as error:
        load_preset("smolm")
    assert "\n" not in str(error.value)
    monkeypatch.setenv("RLHF_POLICY", "/no/such/folder")
    with pytest.raises(AssetError, match="/no/such/folder") as error:
        load_preset("tiny")
    assert "\n" not in str(error.value)


# The package ---------------------------------------------------------------------------------


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


# The files that install it -------------------------------------------------------------------


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


def test_the_version_is_one(project):
    assert project["version"] == rlhf_tutorial.__version__
