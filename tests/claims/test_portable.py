"""What Windows would stumble over: read off the code, as no Windows is at hand."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import pytest
from support import ROOT

# What a reader runs; the long studies in scripts/ were made on Linux.
FILES = [*sorted((ROOT / "rlhf_tutorial").rglob("*.py")), ROOT / "scripts" / "run_notebooks.py"]
NOT_TEXT = ("os.open", "archive.open", "Image.open", "webbrowser.open")
POSIX_ONLY = {
    "os": {"fork", "kill", "killpg", "getuid", "geteuid", "mkfifo", "sched_getaffinity", "setsid"},
    "signal": {"SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "alarm", "pthread_kill", "setitimer"},
}
POSIX_MODULES = {"fcntl", "termios", "pty", "resource", "pwd", "grp"}
TEXT = {"read_text": 0, "write_text": 1}
"""Methods of Path that take an encoding, and at which place if not by name."""


def name_of(node: ast.AST) -> str:
    return ast.unparse(node)


def findings(source: str) -> Iterator[str]:
    """What does not work on Windows, or works otherwise there, each with its line."""
    tree = ast.parse(source)
    asked = set(re.findall(r'hasattr\((\w+), "(\w+)"\)', source))
    for node in ast.walk(tree):
        said = None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = node.value.id
            if node.attr in POSIX_ONLY.get(module, ()) and (module, node.attr) not in asked:
                said = f"{module}.{node.attr}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
            said = ", ".join(sorted(POSIX_MODULES & names))
        if isinstance(node, ast.Call):
            keywords = {keyword.arg for keyword in node.keywords}
            function = node.func
            method = function.attr if isinstance(function, ast.Attribute) else None
            if method in TEXT and len(node.args) <= TEXT[method] and "encoding" not in keywords:
                if "json.dumps" in name_of(node):  # which is ASCII
                    continue
                said = f"{method} without encoding"
            if name_of(function) not in NOT_TEXT and "open" in (name_of(function), method):
                modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
                modes += [k.value.value for k in node.keywords if k.arg == "mode"]
                binary = any(re.fullmatch("[rwxa+]*b[rwxa+]*", str(mode)) for mode in modes)
                if not binary and "encoding" not in keywords:
                    said = f"{name_of(function)} without encoding"
            if keywords & {"text", "universal_newlines"} and not keywords & {"encoding", "errors"}:
                said = f"{name_of(function)} with text and neither encoding nor errors"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            right = node.right
            if isinstance(right, ast.Constant) and str(right.value).startswith("/"):
                said = f"a path joined by hand: {name_of(node)}"
        if said:
            yield f"line {node.lineno}: {said}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_windows_lacks(path: Path) -> None:
    assert list(findings(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.fork()",
        "import signal\nsignal.SIGKILL",
        "import fcntl",
        "from resource import getrusage",
        "path.read_text()",
        "path.write_text('a')",
        "open('a')",
        "path.open('w')",
        "subprocess.run(command, text=True)",
        "folder + '/file'",
    ],
)
def test_it_would_be_found(code: str) -> None:
    assert len(list(findings(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        'import os\nif hasattr(os, "fork"): os.fork()',
        "path.read_text(encoding='utf-8')",
        "path.write_text('a', encoding='utf-8')",
        "path.open('rb')",
        "open(path, mode='wb')",
        "folder / 'file'",
    ],
)
def test_what_is_fine_is_let_through(code: str) -> None:
    assert list(findings(code)) == []


def test_every_file_name_is_one_on_windows_too() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    names = listed.stdout.splitlines() or [p.relative_to(ROOT).as_posix() for p in FILES]
    for name in names:
        for part in name.split("/"):
            assert not re.search(r'[<>:"\\|?*\x00-\x1f]', part) and part[-1] not in ". ", name
            assert not PureWindowsPath(part).is_reserved(), name
        assert len(name) < 120, name  # with a home folder before it, Windows' 260 hold
    lower = [name.lower() for name in names]
    assert len(set(lower)) == len(lower), "two names differ in case alone"
