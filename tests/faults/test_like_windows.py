"""What Windows does otherwise, done to the code on Linux, as no Windows is at hand.

There an open or mapped file can be neither moved nor deleted, nothing is renamed over what exists,
a console may know no more than cp1252, and paths are of another kind. What `os` and `signal` lack
there is looked for in the code itself: tests/claims/test_portable.py.
"""

from __future__ import annotations

import io
import ntpath
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
from support import ROOT, run_worker
from support.scripts import load_script

from rlhf_tutorial import Run, __main__, presets
from rlhf_tutorial import run as run_module
from rlhf_tutorial.assets import as_source
from rlhf_tutorial.errors import AssetError

linux = pytest.mark.skipif(sys.platform != "linux", reason="open files are read from /proc")


def held_below(path: str) -> list[str]:
    """The files at or below a path that this process has open or mapped."""
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    held = {line.split(maxsplit=5)[5] for line in mapped if len(line.split(maxsplit=5)) == 6}
    for link in Path("/proc/self/fd").iterdir():
        try:
            held.add(os.readlink(link))
        except OSError:  # the one that lists them
            continue
    whole = os.path.realpath(path)
    return [f for f in held if os.path.isfile(f) and (f == whole or f.startswith(f"{whole}/"))]


@pytest.fixture
def like_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renaming and deleting as Windows has them."""

    def guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guard(path: Any, *args: Any, **kwargs: Any) -> Any:
            folder = kwargs.get("dir_fd")
            above = "" if folder is None else os.readlink(f"/proc/self/fd/{folder}")
            targets = [args[0]] if name in ("rename", "replace") else []
            for place in (path, *targets):
                if held := held_below(os.path.join(above, os.fspath(place))):
                    raise PermissionError(13, "[WinError 32] in use", held[0])
            if name == "rename" and os.path.exists(targets[0]):
                raise FileExistsError(17, "[WinError 183] exists", os.fspath(targets[0]))
            return call(path, *args, **kwargs)

        return guard

    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))


@linux
def test_the_simulation_refuses_what_windows_refuses(like_windows: None, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    file = tmp_path / "a" / "b" / "file"
    file.write_text("text", encoding="utf-8")
    with file.open(encoding="utf-8"):
        for act in (file.unlink, lambda: (tmp_path / "a").rename(tmp_path / "c")):
            with pytest.raises(PermissionError, match="in use"):
                act()
    with pytest.raises(FileExistsError):
        file.rename(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "c")
    shutil.rmtree(tmp_path / "c")
    assert not list(tmp_path.iterdir())


@linux
@pytest.mark.slow
def test_a_run_is_stopped_gone_on_with_and_compared(
    like_windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "CHECKPOINT_EVERY", 2)
    preset, folder = run_worker.preset(epochs=1), tmp_path / "Jürgen's course (1)"
    run = Run(preset, folder)
    steps = run.train(run.make_trainer())
    for _ in range(5):
        next(steps)
    steps.close()
    assert list((folder / "checkpoints").iterdir())
    again = Run(preset, folder)
    again.trained_policy()
    assert len(again.stats()) == 12 and not (folder / "checkpoints").exists()
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setitem(presets.PRESETS, "tiny", preset)
    for command in ("compare", "doctor"):
        __main__.main([command, "--preset", "tiny", "--output", str(folder)])
    console.flush()
    told = console.buffer.getvalue().decode("cp1252")
    assert "Mean score on" in told and "The course runs here." in told


def test_a_folder_on_another_drive_is_named_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("run_notebooks")
    with monkeypatch.context() as patched:
        patched.setattr(os, "path", ntpath)
        near = script.seen_from("C:\\course\\notebooks", "C:\\course\\runs")
        far = script.seen_from("C:\\course\\notebooks", "D:\\runs")
    assert (near, far) == ("..\\runs", "D:\\runs")


@pytest.mark.parametrize("name", ["C:\\models\\mine", "models\\mine", "C:/models/mine", ".\\mine"])
def test_a_path_of_windows_is_never_taken_for_a_name_on_the_hub(name: str) -> None:
    with pytest.raises(AssetError, match="neither an existing folder nor a Hub id"):
        as_source(name)


def test_the_commands_of_the_page_are_windows_commands_too() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    scripts = sysconfig.get_path("scripts", "nt_venv", {"base": ".venv"})
    assert f"`{PureWindowsPath(scripts) / 'python'}` for `.venv/bin/python`" in page
    commands = "\n".join(re.findall(r"^```\n(.*?)^```", page, re.M | re.S)).splitlines()
    assert len(commands) >= 9
    for command in commands:  # cmd and PowerShell know these characters otherwise
        assert not re.search(r"['`$&;|\\]|^\w+=", command.split("  #")[0]), command
