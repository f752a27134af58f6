"""The layout as CONTRIBUTING draws it, and that nothing public lies about unused."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import nbformat
from support import ROOT

PACKAGE = ROOT / "rlhf_tutorial"
MODULES = sorted(PACKAGE.rglob("*.py"))


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text))


def code_of(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def definitions(tree: ast.Module) -> list[str]:
    """Functions, classes and constants at the top of a module, and a class's own methods."""
    names = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        if isinstance(node, ast.ClassDef):
            names += [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
        if isinstance(node, ast.Assign):
            targets = (name for target in node.targets for name in ast.walk(target))
            names += [name.id for name in targets if isinstance(name, ast.Name)]
    return names


def unused(sources: dict[Path, str], elsewhere: str) -> list[str]:
    """Public names of the sources that occur nowhere but where they are defined."""
    defined = Counter(name for text in sources.values() for name in definitions(ast.parse(text)))
    used = words("\n".join(sources.values())) + words(elsewhere)
    return [n for n, times in defined.items() if n[0] != "_" and used[n] <= times]


def test_no_public_name_is_used_nowhere() -> None:
    """Tests do not count: what they alone use is theirs."""
    others = [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    elsewhere = [path.read_text(encoding="utf-8") for path in others]
    elsewhere += [code_of(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    sources = {path: path.read_text(encoding="utf-8") for path in MODULES}
    assert unused(sources, "\n".join(elsewhere)) == []


def test_a_name_that_is_used_nowhere_would_be_found() -> None:
    source = "A = 1\nclass B:\n    def c(self): return A\n    def d(self): return B()\n"
    assert unused({Path("x.py"): source}, "x.c()") == ["d"]


def test_notebooks_use_no_name_with_a_leading_underscore() -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert re.findall(r"\._[a-z]\w*|import _\w+", code_of(path)) == [], path.name


def test_the_map_in_contributing_has_every_module_and_no_other() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = page.split("rlhf_tutorial/\n", 1)[1].split("tests/\n", 1)[0]
    folder, named = "", set()
    for line in drawn.splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == 2:
            folder = found[1] if (found := re.match(r"  (\w+/)", line)) else ""
        named |= {folder + name for name in re.findall(r"\b(?<!`)(\w+\.py)\b", line)}
    there = {path.relative_to(PACKAGE).as_posix() for path in MODULES if path.name != "__init__.py"}
    assert named == there
