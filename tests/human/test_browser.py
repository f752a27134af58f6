"""The widget in a real browser: JupyterLab, Debian's chromium, a mouse, a keyboard, a dead kernel.

With RLHF_SCREENSHOTS=FOLDER it leaves there what it looks like, narrow and wide, light and dark.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support import ROOT

from rlhf_tutorial.human.labels import load_labels

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 240_000
"""Milliseconds, for a machine that is busy with other things."""

CELL = """
from support.labelling import PAIRS
from rlhf_tutorial.human.labelling import Session
from rlhf_tutorial.human.labels import Pair
from rlhf_tutorial.human.widget import start_labelling
long = " It goes on for a while, as answers do, and lists two things:\\n\\n1. one\\n2. " + "x" * 70
pairs = [Pair(pair.prompt, pair.a + long, pair.b) for pair in PAIRS]
session = Session(pairs, "labels.jsonl", policy="tiny, untouched", limit=10, repeats=False)
start_labelling(session)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """A JupyterLab on this machine alone, in a folder with one notebook; its address."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.strip())])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / "label.ipynb")
    quiet = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}', encoding="utf-8"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}", "--ServerApp.disable_check_xsrf=True",
    ]  # fmt: skip
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(PATIENCE // 500):
                try:
                    urllib.request.urlopen(f"{address}/api").close()
                    break
                except OSError:
                    assert server.poll() is None, (tmp_path / "lab.log").read_text()
                    time.sleep(0.5)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A tab of a browser that has never been used."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            headless=True,
            timeout=PATIENCE,
            args=FLAGS,
            viewport={"width": 1280, "height": 800},
        )
        tab = browser.new_page()
        tab.set_default_timeout(PATIENCE)
        yield tab
        browser.close()


def run_cell(page: Any) -> None:
    """As soon as the kernel is there: before, what is typed may go nowhere."""
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.locator(".jp-Notebook .jp-CodeCell").first.click()
    page.keyboard.press("Control+Enter")


def wait_for(page: Any, done: int) -> None:
    """Until the page says how many choices there are; then until a choice is no double click."""
    page.get_by_text(f"{done} of 10", exact=True).wait_for()
    page.wait_for_timeout(400)


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("RLHF_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def look_at_the_dark_theme(lab: str, page: Any, tmp_path: Path) -> None:
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    (settings / "themes.jupyterlab-settings").write_text(
        '{"theme": "JupyterLab Dark"}', encoding="utf-8"
    )
    page.goto(f"{lab}/lab/tree/label.ipynb?reset")
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.keyboard.press("Control+b")
    run_cell(page)
    page.get_by_role("button", name="Left is better").wait_for()
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(1000)
        screenshot(page, f"{width}-dark")


def kernel_of(address: str) -> str:
    with urllib.request.urlopen(f"{address}/api/kernels") as answer:
        (kernel,) = json.load(answer)
    return str(kernel["id"])


def kill_kernel(tmp_path: Path, address: str) -> None:
    """The process itself, with no chance to tidy up."""
    connection = f"kernel-{kernel_of(address)}.json"
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if connection in line:
            os.kill(int(folder.name), signal.SIGKILL)
            return
    raise AssertionError("the kernel is not there")


def test_ten_pairs_by_mouse_and_keyboard_and_a_kernel_that_dies(
    lab: str, page: Any, tmp_path: Path
) -> None:
    path = tmp_path / "notebooks" / "labels.jsonl"
    page.goto(f"{lab}/lab/tree/label.ipynb")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.keyboard.press("Control+b")  # away with the list of files
    run_cell(page)

    # By mouse: each wish is what the button says of the text that stands over it.
    for done in range(4):
        wait_for(page, done)
        good = page.locator(".jp-OutputArea .widget-html").filter(has_text="Good answer").last
        side = "Left" if good.inner_text().startswith("Left") else "Right"
        page.get_by_role("button", name=f"{side} is better").click()
    wait_for(page, 4)
    labels = load_labels(path)
    assert [label.choice for label in labels] == ["a"] * 4
    screenshot(page, "1280-light")

    # By keyboard: Tab goes from left to right, tie, skip and back, and the focus stays where it is.
    page.get_by_role("button", name="Left is better").focus()
    page.keyboard.press("Enter")
    wait_for(page, 5)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    wait_for(page, 6)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wait_for(page, 7)
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # back
    wait_for(page, 6)
    page.get_by_role("button", name="Tie").focus()
    page.keyboard.press("Enter")
    wait_for(page, 7)
    labels = load_labels(path)
    sides = [label.choice == label.left for label in labels[4:6]]
    assert sides == [True, False] and labels[6].choice == "tie"

    # The kernel dies, another starts, the cell runs again.
    before = path.read_bytes()
    kill_kernel(tmp_path, lab)
    page.wait_for_timeout(1000)
    old = kernel_of(lab)
    request = urllib.request.Request(f"{lab}/api/kernels/{old}/restart", method="POST", data=b"")
    urllib.request.urlopen(request).close()
    # Only now the page: one that sees the restart may take the kernel for dead, and wait in vain.
    page.goto(f"{lab}/lab/tree/label.ipynb?reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.keyboard.press("Control+b")
    run_cell(page)
    wait_for(page, 7)
    assert path.read_bytes() == before

    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(500)
    left, right = (page.get_by_role("button", name=f"{side} is better").bounding_box()
                   for side in ("Left", "Right"))  # fmt: skip
    assert right["y"] > left["y"] + left["height"], "below each other where it is narrow"
    screenshot(page, "400-light")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.wait_for_timeout(500)
    left, right = (page.get_by_role("button", name=f"{side} is better").bounding_box()
                   for side in ("Left", "Right"))  # fmt: skip
    assert right["x"] > left["x"] + left["width"], "side by side where it is wide"
    for done in range(7, 10):
        page.get_by_role("button", name="Right is better").click()
        if done < 9:
            wait_for(page, done + 1)
    page.get_by_text(re.compile("Done, and kept in")).wait_for()
    screenshot(page, "1280-light-done")
    labels = load_labels(path)
    assert len(labels) == 10 and path.read_bytes().startswith(before)
    assert [label.prompt for label in labels] == [f"Prompt {n}?" for n in range(10)]

    if os.environ.get("RLHF_SCREENSHOTS"):  # no more is tested, but looked at
        page.get_by_role("button", name="Back").click()
        wait_for(page, 9)
        look_at_the_dark_theme(lab, page, tmp_path)
