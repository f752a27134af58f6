"""What `make tutorial` says and how it looks: at a terminal of any width, and in a log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial import Run, load_preset

script = load_script("run_notebooks")

COURSE = """
import os, pathlib, sys
sys.path.insert(0, {scripts!r})
import run_notebooks as script
folder = pathlib.Path({folder!r})
script.ROOT = folder
script.examine = lambda preset, folder: []
sys.argv = ["run_notebooks.py"]
script.main()
"""


def made_up(folder: Path, course: dict[str, list[str]]) -> list[str]:
    """The command that runs notebooks of these names and cells."""
    (folder / "notebooks").mkdir()
    (folder / "rlhf_tutorial").mkdir()
    for name, cells in course.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    return [sys.executable, "-c", COURSE.format(scripts=str(ROOT / "scripts"), folder=str(folder))]


@pytest.fixture
def course(tmp_path: Path) -> list[str]:
    """The command that runs two made-up notebooks, of which the second one fails."""
    lines = [f"a_name_that_is_rather_long_for_a_terminal_{i} = {i}" for i in range(12)]
    return made_up(tmp_path, {"01_fine": lines, "02_ill": ["1 / 0"]})


def surroundings(folder: Path) -> dict[str, str]:
    """The preset is tiny, and a browser that were opened would leave a file.

    The width is the terminal's: a COLUMNS of the shell that runs the tests would go before it.
    """
    browser = f"{sys.executable} -c \"open(r'{folder / 'opened'}', 'w')\" %s"
    changed = {"RLHF_PRESET": "tiny", "RLHF_RUNS": str(folder / "runs"), "BROWSER": browser}
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return {**inherited, **changed, "PYTHONPATH": str(ROOT)}


def at_a_terminal(command: list[str], columns: int, environment: dict[str, str]) -> str:
    """All that the command writes to a terminal of so many columns."""
    import fcntl  # Windows has none of these
    import pty
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    written = b""
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment):
        os.close(its)
        while True:
            try:
                some = os.read(ours, 65536)
            except OSError:  # Linux's way to say that nobody writes to it any more
                break
            if not some:
                break
            written += some
    os.close(ours)
    return written.decode()


def until_the_error(text: str) -> str:
    """Without the traceback and the message, whose lines are IPython's."""
    return text.split("02_ill.ipynb stopped")[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
@pytest.mark.parametrize("columns", [40, 200])
def test_no_line_is_wider_than_the_terminal(
    course: list[str], columns: int, tmp_path: Path
) -> None:
    shown = at_a_terminal(course, columns, surroundings(tmp_path))
    drawn = re.split(r"[\r\n]+", until_the_error(shown))
    paths = [line for line in drawn if str(tmp_path) in line]
    assert max(len(line) for line in drawn if line not in paths) <= columns
    # One line for each notebook: it is drawn anew from its beginning, and ended once.
    assert len(re.findall(r"01_fine \d+/12", shown)) >= 2
    assert len(re.findall(r"01_fine [^\r\n]*\r?\n", shown)) == 1
    assert "\x1b[A" not in shown
    assert re.search(r"02_ill.ipynb stopped: ZeroDivisionError: division by zero", shown)
    assert not (tmp_path / "opened").exists()


@pytest.mark.slow
def test_a_log_has_one_line_for_each_notebook(course: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        course, env=surroundings(tmp_path), capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 1
    assert "\r" not in done.stdout + done.stderr and "\x1b" not in done.stdout + done.stderr
    first, *_ = done.stdout.split("\n\n")
    assert "Running 2 notebooks with the preset tiny." in first
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"01_fine: 12 cells in \d\d:\d\d", lines[-2])
    assert lines[-1].startswith("02_ill: ")
    assert "02_ill.ipynb stopped: ZeroDivisionError: division by zero" in done.stderr
    assert (tmp_path / "runs" / "tiny" / "01_fine.html").exists()
    again = subprocess.run(
        course, env=surroundings(tmp_path), capture_output=True, encoding="utf-8", check=False
    )
    assert "Running 1 notebook with the preset tiny." in again.stdout
    assert "01_fine: already there" in again.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent there")
def test_ctrl_c_ends_in_one_line(tmp_path: Path) -> None:
    waiting = "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(600)"
    command = made_up(tmp_path, {"01_long": [waiting]})
    with subprocess.Popen(
        command,
        env=surroundings(tmp_path),
        stdout=-1,
        stderr=-1,
        encoding="utf-8",
        # A shell that runs the tests in the background has SIGINT ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while process.poll() is None and not (tmp_path / "notebooks" / "begun").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 1
    assert told.strip().startswith("01_long.ipynb was stopped") and "\n" not in told.strip()


def test_the_time_is_told_for_the_default_preset_and_the_notebooks_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "examine", lambda *_: [])
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    told = " ".join(script.announcement(paths, Run(load_preset("smollm2"), tmp_path)).split())
    total = sum(script.MINUTES.values())
    assert f"with bfloat16 arithmetic that takes {total:.0f} minutes" in told
    assert "nothing is opened" in told and str(tmp_path) in told.replace(" ", "")
    one = script.announcement([paths[0]], Run(load_preset("tiny"), tmp_path / "tiny"))
    assert "1 notebook" in one and "minutes" not in one


def test_the_times_are_those_of_the_readmes_table() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+) [^|]*\|(?: [^|]*\|){2} ([\w ]+) \|$", page, re.MULTILINE)
    words = {"seconds": 0.1, "half a minute": 0.5, "one and a half minutes": 1.5}
    numbers = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    for number, word in enumerate(f"{numbers}fifteen sixteen".split(), start=1):
        words[f"{word} minute{'s' if number > 1 else ''}"] = number
    assert {name: words[told] for name, told in rows} == script.MINUTES
    parts = re.findall(r"^\| (?:notebooks )?[\d to]+ \| (\d+) \| [^|]*\|$", page, re.MULTILINE)
    assert sum(map(int, parts)) == round(sum(script.MINUTES.values()))
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    page = " ".join(page.split())
    *early, last = map(int, parts)
    assert f"they took {sum(early) + last}: {sum(early)} for 01 to 09, and {last} for 10" in page
    assert {p.stem.split("_")[0] for p in script.ROOT.glob("notebooks/*.ipynb")} == {
        *script.MINUTES
    }
