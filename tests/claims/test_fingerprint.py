"""What `scripts/fingerprint.py` covers: on a made-up package, and on a copy of this one."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.scripts import load_script

script = load_script("fingerprint")
Fingerprint, NotFollowed = script.Fingerprint, script.NotFollowed

FILES = {
    "__init__.py": '''
"""A package."""
import importlib

_HOME = {"train": "training", "Config": "settings", "spare": "spare"}


def __getattr__(name):
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
''',
    "settings.py": '''
from dataclasses import dataclass

RATE, SPARE = 0.1, 0.2


@dataclass(frozen=True)
class Config:
    """Settings."""

    rate: float = RATE
    """How fast."""
    seed: int = 0
    unset: str | None


class Clock:
    tick = 1

    def now(self):
        return self.tick
''',
    "training.py": '''
"""Training."""

from __future__ import annotations

import logging
import numpy as np

from . import checks
from .settings import Clock, Config

logger = logging.getLogger(__name__)
DAMPING = 3


def often(times):
    """A decorator."""
    return lambda function: function


@often(times=2)
def train(config: Config, steps: int = 4, *, loud=False) -> list[float]:
    """A history."""
    from .measures import mean

    checks.positive(steps)
    history = []
    for rule in range(steps):  # not the function of that name
        logger.info("step %s", rule)
        history.append(np.sqrt(config.rate * rule) / DAMPING)
    return [mean(history), Clock().now()]


def rule(x):
    return x + 5
''',
    "checks.py": """
import logging

logger = logging.getLogger(__name__)


def positive(x):
    logger.debug("is it?")
    if x < 1:
        raise ValueError("too small")
    return x and even(x - 1)


def even(x):
    return x == 0 or not positive(x)


def unused(x):
    return x
""",
    "measures.py": """
def mean(values):
    return sum(values) / len(values)
""",
    "lessons.py": '''
import inspect

LEVEL = 1


def show_source(function):
    print(inspect.getsource(function))


def lesson(x):
    """What a reader is to learn."""
    return _halved(x)  # by halves


def _halved(x):
    return x / 2


class Course:
    """Lessons."""

    length = 9

    def first(self):
        """The first."""
        return 1

    def last(self):
        return self.length  # at last
''',
    "spare.py": "def spare():\n    return 0\n",
    "figures/__init__.py": "from .curve import curve\n",
    "figures/curve.py": '''
from .style import INK, widened


def _scaled(values):
    return [value * 2 for value in values]


def _smoothed(values):
    return [value / 3 for value in values]


def curve(values):
    """A curve."""
    return _scaled(_smoothed(_scaled(values))), widened(INK)
''',
    "figures/style.py": """
INK = "#222222"


def widened(colour):
    return colour, 2
""",
}
CELLS = [
    "import json\n\nfrom rlhf_tutorial import Config, figures, train\n"
    "from rlhf_tutorial.lessons import Course, lesson, show_source",
    "history = train(Config())\njson.dumps(history)",
    "figures.curve(history)",
    "show_source(lesson)\nshow_source(Course.last)",
    "figures.curve.__doc__",
    "'Done.'",
]
NOTEBOOK, DATA = "../notebooks/01_all.ipynb", "bundled/rows.jsonl"


def notebook(cells: list[str]) -> str:
    rows = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    text = {"cell_type": "markdown", "source": ["# Words\n"]}
    return json.dumps({"cells": [text, *rows]})


def write(root: Path, *changes: tuple[str, str, str]) -> Path:
    """The made-up package, its notebook and its data, with (file, old text, new text) replaced."""
    files = FILES | {DATA: '{"a": 1}\n', "bundled/README.md": "A card.\n"}
    cells = list(CELLS)
    for name, old, new in changes:
        if name == NOTEBOOK:
            assert any(old in cell for cell in cells)
            cells = [cell.replace(old, new) for cell in cells]
        else:
            assert old in files.get(name, ""), (name, old)
            files[name] = files.get(name, "").replace(old, new)
    for name, text in {**files, NOTEBOOK: notebook(cells)}.items():
        path = root / "rlhf_tutorial" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def parts(path: Path, *changes: tuple[str, str, str]) -> list[Any]:
    return Fingerprint(write(path, *changes)).parts


HALVED = "\n\ndef _halved(x):\n    return x / 2\n"
EVEN = "\n\ndef even(x):\n    return x == 0 or not positive(x)\n"
POSITIVE = """def positive(x):
    logger.debug("is it?")
    if x < 1:
        raise ValueError("too small")
    return x and even(x - 1)
"""

SAME = {
    "a private helper has another name": [("figures/curve.py", "_smoothed", "_evened")],
    "a public helper has another name": [
        ("figures/style.py", "widened", "broadened"),
        ("figures/curve.py", "widened", "broadened"),
    ],
    "a definition that cells name has another name": [
        ("__init__.py", '"train"', '"learn"'),
        ("training.py", "def train", "def learn"),
        (NOTEBOOK, "train", "learn"),
    ],
    "a class and a constant have other names": [
        ("settings.py", "Clock", "Watch"),
        ("training.py", "Clock", "Watch"),
        ("training.py", "DAMPING", "DIVISOR"),
    ],
    "a helper stands in another module": [
        ("lessons.py", HALVED, ""),
        ("lessons.py", "import inspect\n", "import inspect\nfrom .measures import _halved\n"),
        ("measures.py", "def mean", f"{HALVED}\n\ndef mean"),
    ],
    "a helper stands in another module, which is imported whole": [
        ("figures/curve.py", "from .style import INK, widened", "from . import style"),
        ("figures/curve.py", "widened(INK)", "style.widened(style.INK)"),
    ],
    "a package binds a module of its own": [
        ("figures/__init__.py", "from .curve", "from . import style\nfrom .curve"),
        ("figures/curve.py", "from .style import INK, widened", "from . import style"),
        ("figures/curve.py", "widened(INK)", "style.widened(style.INK)"),
    ],
    "functions that log and that need each other stand in another module": [
        ("checks.py", POSITIVE, ""),
        ("checks.py", EVEN, ""),
        ("training.py", "from . import checks\n", ""),
        ("training.py", "checks.positive", "positive"),
        ("training.py", "def rule", f"{EVEN}\n\n{POSITIVE}\n\ndef rule"),
    ],
    "functions stand in another order": [
        ("checks.py", POSITIVE, ""),
        ("checks.py", EVEN, f"{EVEN}\n\n{POSITIVE}"),
    ],
    "an import stands at the top": [
        ("training.py", "    from .measures import mean\n", ""),
        (
            "training.py",
            "from . import checks\n",
            "from . import checks\nfrom .measures import mean\n",
        ),
    ],
    "imports are written otherwise": [
        ("training.py", "import numpy as np", "from numpy import sqrt"),
        ("training.py", "np.sqrt", "sqrt"),
        ("training.py", "from . import checks\n", "import rlhf_tutorial.checks as checking\n"),
        ("training.py", "checks.positive", "checking.positive"),
        (NOTEBOOK, "import json", "from json import dumps as text"),
        (NOTEBOOK, "json.dumps", "text"),
        (NOTEBOOK, "from rlhf_tutorial import Config, figures, train", "import rlhf_tutorial as r"),
        (NOTEBOOK, "history = train(Config())", "history = r.train(r.Config())"),
        (NOTEBOOK, "figures.curve", "r.figures.curve"),
    ],
    "there is a new function": [
        ("checks.py", "def unused", "def new():\n    return 1\n\n\ndef unused")
    ],
    "what is not used is another": [
        ("settings.py", "0.2", "0.3"),
        ("checks.py", "    return x\n", "    return 7\n"),
        ("spare.py", "return 0", "return 1"),
    ],
    "what has the name of a local is another": [("training.py", "return x + 5", "return x + 6")],
    "a comment is another": [
        ("training.py", "# not the function of that name", "# the step"),
        ("lessons.py", "def _halved", "# One in two.\ndef _halved"),
        (NOTEBOOK, "history = ", "# All of it.\nhistory = "),
    ],
    "a docstring of what is not shown is another": [
        ("training.py", '"""A history."""', '"""The numbers of each step."""'),
        ("training.py", '"""Training."""', '"""How to train."""'),
        ("settings.py", '"""How fast."""', '"""The rate."""'),
        ("settings.py", '"""Settings."""', '"""All settings."""'),
        ("lessons.py", '"""The first."""', '"""Number one."""'),
        ("lessons.py", '"""Lessons."""', '"""All lessons."""'),
    ],
    "there is a docstring": [("measures.py", "(values):", '(values):\n    """The mean."""')],
    "type hints are others": [
        ("training.py", "config: Config, steps: int = 4", "config: Clock, steps=4"),
        ("training.py", "history = []", "history: list[float] = []"),
        ("training.py", "DAMPING = 3", "DAMPING: int = 3"),
        ("settings.py", "rate: float", "rate: int"),
        ("settings.py", "tick = 1", "tick: int = 1"),
        ("measures.py", "def mean(values):", "def mean(values: list[float]) -> float:"),
    ],
    "a card is another": [("bundled/README.md", "A card", "Another card")],
}

DIFFERENT = {
    "a number": [("measures.py", "len(values)", "len(values) - 1")],
    "a number behind a re-export": [("figures/curve.py", "value * 2", "value * 4")],
    "a number behind a module": [("checks.py", "x < 1", "x < 2")],
    "a number in a class": [("settings.py", "return self.tick", "return self.tick + 1")],
    "a default": [("training.py", "steps: int = 4", "steps: int = 5")],
    "a default of a keyword": [("training.py", "loud=False", "loud=True")],
    "a decorator's argument": [("training.py", "times=2", "times=3")],
    "a library's decorator": [("settings.py", "frozen=True", "frozen=False")],
    "a decorator": [("training.py", "function: function", "function: None")],
    "a class attribute": [("settings.py", "tick = 1", "tick = 2")],
    "a field's default": [("settings.py", "seed: int = 0", "seed: int = 1")],
    "a field's name": [("settings.py", "unset:", "missing:")],
    "a field that is none any more": [("settings.py", "seed: int = 0", "seed = 0")],
    "the order of fields": [
        (
            "settings.py",
            "    seed: int = 0\n    unset: str | None\n",
            "    unset: str | None\n    seed: int = 0\n",
        )
    ],
    "a constant": [("training.py", "DAMPING = 3", "DAMPING = 4")],
    "a constant beside another": [("settings.py", "0.1", "0.15")],
    "a constant's type": [("training.py", "DAMPING = 3", "DAMPING = 3.0")],
    "a constant changed further down": [
        ("training.py", "def often", "DAMPING += 1\n\n\ndef often")
    ],
    "a constant of a figure": [("figures/style.py", "#222222", "#333333")],
    "a base class": [("settings.py", "class Clock:", "class Clock(Config):")],
    "an attribute's name": [("training.py", ".now()", ".rate()")],
    "a function of a library": [("training.py", "np.sqrt", "np.cbrt")],
    "a library": [("training.py", "import numpy as np", "import torch as np")],
    "a library in a cell": [(NOTEBOOK, "import json", "import yaml as json")],
    "the order of calls": [("figures/curve.py", "_scaled(_smoothed(", "_smoothed(_scaled(")],
    "which of two is called again": [
        ("figures/curve.py", "(_scaled(values)", "(_smoothed(values)")
    ],
    "the function behind a name": [
        ("training.py", "from .measures import mean", "from .checks import unused as mean")
    ],
    "where a lazy name is from": [
        ("__init__.py", '"train": "training"', '"train": "spare"'),
        ("spare.py", "def spare", "train = None\n\n\ndef spare"),
    ],
    "a local that is none any more": [
        ("training.py", "for rule in", "for step in"),
    ],
    "a default with the name of the parameter": [
        ("training.py", "def rule", "loud = 2\n\n\ndef rule"),
        ("training.py", "loud=False", "loud=loud"),
    ],
    "a code cell": [(NOTEBOOK, "train(Config())", "train(Config(), 2)")],
    "what a cell shows": [(NOTEBOOK, "figures.curve(history)", "figures.curve(history);")],
    "a text that a cell shows": [(NOTEBOOK, "Done.", "Over.")],
    "the order of cells": [
        (NOTEBOOK, "figures.curve(history)", "figures.other"),
        (NOTEBOOK, "figures.curve.__doc__", "figures.curve(history)"),
        (NOTEBOOK, "figures.other", "figures.curve.__doc__"),
    ],
    "data": [(DATA, "1", "2")],
    "a docstring that is shown with its function": [("lessons.py", "is to learn", "learns")],
    "a comment that is shown": [("lessons.py", "# by halves", "# in halves")],
    "a comment of a method that is shown": [("lessons.py", "# at last", "# finally")],
    "a name in a text that is shown": [("lessons.py", "_halved", "_half")],
    "a docstring that a cell shows": [("figures/curve.py", '"""A curve."""', '"""Curves."""')],
}


def test_a_run_is_like_another(tmp_path: Path) -> None:
    assert parts(tmp_path / "a") == parts(tmp_path / "b")


@pytest.mark.parametrize("name", SAME)
def test_it_stays_when(name: str, tmp_path: Path) -> None:
    assert parts(tmp_path / "after", *SAME[name]) == parts(tmp_path / "before")


@pytest.mark.parametrize("name", DIFFERENT)
def test_it_changes_with(name: str, tmp_path: Path) -> None:
    before, after = write(tmp_path / "before"), write(tmp_path / "after", *DIFFERENT[name])
    assert Fingerprint(before).hash() != Fingerprint(after).hash()


def test_it_reaches_what_the_cells_need_and_no_more(tmp_path: Path) -> None:
    reached = Fingerprint(write(tmp_path)).reached
    assert sorted(reached) == sorted(
        f"rlhf_tutorial.{target}"
        for target in [
            "settings:Config",
            "settings:RATE",
            "settings:Clock",
            "training:train",
            "training:often",
            "training:DAMPING",
            "checks:positive",
            "checks:even",
            "measures:mean",
            "lessons:show_source",
            "lessons:lesson",
            "lessons:_halved",
            "lessons:Course",
            "figures.curve:curve",
            "figures.curve:_scaled",
            "figures.curve:_smoothed",
            "figures.style:INK",
            "figures.style:widened",
        ]
    )


def test_a_module_that_is_used_as_a_value_counts_whole(tmp_path: Path) -> None:
    as_value = ("training.py", "checks.positive(steps)", "vars(checks)['positive'](steps)")
    before = Fingerprint(write(tmp_path / "before", as_value))
    assert "rlhf_tutorial.checks:unused" in before.reached
    other = ("checks.py", "    return x\n", "    return 7\n")
    assert Fingerprint(write(tmp_path / "after", as_value, other)).hash() != before.hash()


ERRORS = {
    "a cell imports what is not there": [
        [(NOTEBOOK, "import Config,", "import Confih,")],
        "01_all.ipynb: there is no Confih in rlhf_tutorial",
    ],
    "a cell imports from a module that is not there": [
        [(NOTEBOOK, "rlhf_tutorial.lessons", "rlhf_tutorial.lesson")],
        "01_all.ipynb: there is no .* in rlhf_tutorial.lesson$",
    ],
    "a cell uses what is not there": [
        [(NOTEBOOK, "figures.curve(", "figures.curves(")],
        "01_all.ipynb, code cell 3: there is no curves in rlhf_tutorial.figures",
    ],
    "a module imports what is not there": [
        [("figures/curve.py", "import INK, widened", "import INK, wide as widened")],
        r"figures.curve:curve: there is no wide in rlhf_tutorial.figures.style",
    ],
    "a function imports what is not there": [
        [("training.py", "import mean", "import mean, median")],
        "training:train: there is no median in rlhf_tutorial.measures",
    ],
    "a function uses what is not there": [
        [("training.py", "checks.positive", "checks.negative")],
        "training:train: there is no negative in rlhf_tutorial.checks",
    ],
    "a lazy name is not there": [
        [("__init__.py", '"settings"', '"training2"')],
        "there is no Config in rlhf_tutorial.training2",
    ],
    "a function imports by a text": [
        [("measures.py", "return", "importlib.import_module('x')\n    return"),
         ("measures.py", "def mean", "import importlib\n\n\ndef mean")],
        "measures:mean: importlib.import_module does not say",
    ],
    "a star": [
        [("training.py", "from . import checks", "from .checks import *")],
        r"training.py: .*: from .checks import \*",
    ],
    "a name is two things": [
        [("training.py", "DAMPING = 3", "from .settings import RATE as DAMPING\nDAMPING = 3")],
        "training:train: DAMPING may be rlhf_tutorial.settings:RATE or rlhf_tutorial.training:",
    ],
    "an import that may fail": [
        [("training.py", "import numpy as np", "try:\n    import numpy as np\nfinally:\n    pass")],
        "training.py: neither a plain import nor a definition: try:",
    ],
    "a module does something": [
        [("spare.py", "def spare", "print(1)\n\n\ndef spare")],
        r"spare.py: neither a plain import nor a definition: print\(1\)",
    ],
    "what is shown is not clear": [
        [(NOTEBOOK, "show_source(lesson)", "for f in [lesson]:\n    show_source(f)")],
        "01_all.ipynb, code cell 4: cannot tell what is shown by f",
    ],
    "what is shown of a class is no method": [
        [(NOTEBOOK, "show_source(lesson)", "show_source(Course.length)")],
        "01_all.ipynb, code cell 4: cannot tell what is shown by Course.length",
    ],
    "what is shown is a constant": [
        [(NOTEBOOK, "Course, lesson,", "Course, LEVEL,"),
         (NOTEBOOK, "show_source(lesson)", "show_source(LEVEL)")],
        "01_all.ipynb, code cell 4: cannot tell what is shown by LEVEL",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_it_stops_when(name: str, tmp_path: Path) -> None:
    changes, message = ERRORS[name]
    with pytest.raises(NotFollowed, match=message):
        Fingerprint(write(tmp_path, *changes))


# This package ----------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> Path:
    """The package and the notebooks."""
    shutil.copytree(source / "rlhf_tutorial", target / "rlhf_tutorial")
    (target / "notebooks").mkdir()
    for path in (source / "notebooks").glob("*.ipynb"):
        shutil.copy(path, target / "notebooks")
    return target


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is now, also if someone edits it meanwhile."""
    return copy(ROOT, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def real(source: Path) -> Any:
    return Fingerprint(source)


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    return copy(source, tmp_path)


def texts(part: Any) -> Iterator[str]:
    """All texts in nested lists and tuples."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, (list, tuple)):
        for inner in part:
            yield from texts(inner)


@pytest.mark.slow
def test_a_copy_has_the_same(real: Any, copied: Path) -> None:
    assert Fingerprint(copied).hash() == real.hash()


def test_it_has_the_text_of_all_that_the_notebooks_show(real: Any) -> None:
    covered, shown = set(texts(real.parts)), 0
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for name in re.findall(r"show_source\((\w+)\)", path.read_text(encoding="utf-8")):
            target = real.bound(path.name, name, real.names[path.name][name])
            module, _, own = target.partition(":")
            function = getattr(importlib.import_module(module), own)
            assert inspect.getsource(function) in covered, name
            shown += 1
    assert shown > 5


@pytest.mark.slow
def test_a_figures_helper_may_have_another_name(real: Any, copied: Path) -> None:
    helper = next(t for t in real.reached if re.search(r"\.figures\..*:_[a-z]", t)).split(":")[1]
    for path in (copied / "rlhf_tutorial" / "figures").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(rf"\b{helper}\b", "_quite_another", text), encoding="utf-8")
    renamed = Fingerprint(copied)
    assert any(target.endswith(":_quite_another") for target in renamed.reached)
    assert renamed.hash() == real.hash()


@pytest.mark.slow
def test_the_definitions_of_the_figures_may_stand_in_another_order(real: Any, copied: Path) -> None:
    for path in (copied / "rlhf_tutorial" / "figures").glob("[a-z]*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        functions = [s for s in body if isinstance(s, ast.FunctionDef)]
        others = [s for s in body if not isinstance(s, ast.FunctionDef)]
        module = ast.Module([*others, *reversed(functions)], [])
        path.write_text(ast.unparse(module), encoding="utf-8")
    assert Fingerprint(copied).hash() == real.hash()


def functions(tree: Any, module: str) -> dict[str, ast.FunctionDef]:
    """The functions at the top level of a module, by their targets."""
    body = ast.parse(tree.files[module].read_text(encoding="utf-8")).body
    return {f"{module}:{s.name}": s for s in body if isinstance(s, ast.FunctionDef)}


@pytest.mark.slow
@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("which", [0.1, 0.5, 0.9])
def test_what_is_reached_decides_and_nothing_else(
    reached: bool, which: float, real: Any, source: Path, copied: Path
) -> None:
    """One more statement at the end of a function."""
    found = {k: f for module in real.files for k, f in functions(real, module).items()}
    chosen = [target for target in found if (target in real.reached) == reached]
    assert len(chosen) > (150 if reached else 3)
    target = chosen[int(which * len(chosen))]
    path = copied / real.files[target.partition(":")[0]].relative_to(source)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines.insert(found[target].end_lineno, "    assert 1\n")
    path.write_text("".join(lines), encoding="utf-8")
    assert (Fingerprint(copied).hash() != real.hash()) == reached, target


def test_the_program_prints_the_hash_or_what_is_reached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Fingerprint()
    for arguments, printed in (([], [real.hash()]), (["--list"], real.reached)):
        monkeypatch.setattr("sys.argv", ["fingerprint.py", *arguments])
        script.main()
        assert capsys.readouterr().out.splitlines() == printed
