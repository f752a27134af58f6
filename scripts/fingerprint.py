"""A hash of all that the outputs of the notebooks depend on, and of nothing else.

    python scripts/fingerprint.py           # the hash
    python scripts/fingerprint.py --list    # the definitions of the package that it covers

`run_notebooks.py --in-place` leaves the hash beside the results, and a test compares: notebooks
whose outputs come from other code are noticed, and those whose outputs would be the same need not
be run again. It covers the notebooks' code cells, every definition of the package that they reach,
the source of what they show, and the bundled data. Code is read, not imported.

Where a definition stands and what it is called decides nothing. It counts as its syntax tree
without comments, docstrings, type hints and imports; in it each definition of the package is a
number, its place in the order in which they are reached. What cannot be followed is an error.
"""

from __future__ import annotations

import argparse
import ast
import dis
import hashlib
import inspect
import json
from collections.abc import Iterable
from importlib.util import resolve_name
from itertools import chain
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, DATA = "rlhf_tutorial", (".jsonl", ".safetensors", ".json")
IMPORTS = (ast.Import, ast.ImportFrom)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
COMPUTE_NOTHING = {"annotation", "returns", "ctx", "kind", "type_comment"}
GET_LOGGER = "logging.getLogger(__name__)"  # each module's own, and all the same


class NotFollowed(Exception):
    """What the fingerprint would have to cover and cannot."""


def marked(body: list[ast.stmt]) -> list[ast.stmt]:
    """The code with two marks on each name: the `line` it is on, and whether it is looked up
    `beyond` the functions and classes around it, which the compiler knows.
    """
    nodes = [node for statement in body for node in ast.walk(statement)]
    for number, node in enumerate(nodes, start=1):  # in place of the line, to know a node again by
        node.line, node.lineno = getattr(node, "lineno", 0), number
        node.end_lineno, node.col_offset, node.end_col_offset = number, 0, 0
    codes, beyond = [compile(ast.Module(body, []), "", "exec", optimize=0)], set()
    for code in codes:
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        kinds = ("_GLOBAL", "_NAME") if code is codes[0] else ("_GLOBAL", "LOAD_NAME")
        steps = dis.get_instructions(code)
        beyond |= {step.positions.lineno for step in steps if step.opname.endswith(kinds)}
    for node in nodes:
        node.beyond = node.lineno in beyond
    return body


def apart(statement: ast.stmt) -> list[ast.stmt]:
    """One statement for each name, where the names have nothing to do with each other."""
    match statement:
        case ast.If(ast.Name("TYPE_CHECKING"), body):
            return [part for inner in body for part in apart(inner)]
        case ast.Import(names):
            return [ast.Import([name]) for name in names]
        case ast.ImportFrom(module, names, level):
            return [ast.ImportFrom(module, [name], level) for name in names]
        case ast.Assign([ast.Tuple(names)], ast.Tuple(values)) if len(names) == len(values):
            return [ast.Assign([name], value) for name, value in zip(names, values, strict=True)]
        case ast.Assign([ast.Name(name)], value) if ast.unparse(value) == GET_LOGGER:
            return [ast.ImportFrom("logging", [ast.alias("getLogger", name)], 0)]
        case ast.Expr(ast.Constant()) | ast.Pass():
            return []
    return [statement]


def bindings(statements: Iterable[ast.AST], place: str) -> dict[str, list[Any]]:
    """The names that code at top level binds, each with its imports and what defines it."""
    found: dict[str, list[Any]] = {}
    for part in (part for statement in statements for part in apart(statement)):
        module = ast.fix_missing_locations(ast.Module([part], []))
        steps = list(dis.get_instructions(compile(module, place, "exec")))
        names = [step.argval for step in steps if step.opname == "STORE_NAME"]
        hidden = not isinstance(part, IMPORTS) and "IMPORT_NAME" in {s.opname for s in steps}
        program = isinstance(part, ast.If) and "__name__" in ast.unparse(part.test)
        if hidden or not (names or program):  # nor does `from x import *` bind names
            code = ast.unparse(part).splitlines()[0]
            raise NotFollowed(f"{place}: neither a plain import nor a definition: {code}")
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(part)
    return found


class Fingerprint(ast.NodeVisitor):
    """Reads the cells, then what they reach, and what that reaches, into `parts`.

    A target is what a name stands for: "module:name" for a definition of the package, a module of
    the package, or the full name of something from another library, as "numpy.linalg.norm".
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.parts: list[Any] = []
        self.reached: list[str] = []
        self.files: dict[str, Path] = {}
        self.names: dict[str, dict[str, list[Any]]] = {}  # of a module, or of a notebook
        for path in sorted((root / PACKAGE).rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            module = module.removesuffix(".__init__")
            body = marked(ast.parse(path.read_text(encoding="utf-8"), str(path)).body)
            names = self.names[module] = bindings(body, str(path))
            if "__getattr__" in names and "_HOME" in names:  # names that are imported when used
                for name, home in ast.literal_eval(names["_HOME"][0].value).items():
                    names[name] = [ast.ImportFrom(home, [ast.alias(name)], 1)]
            self.files[module] = path
        for path in sorted((root / "notebooks").glob("*.ipynb")):
            self.add_notebook(path)
        for target in self.reached:  # which grows meanwhile
            self.add_target(target)
        for path in sorted((root / PACKAGE / "bundled").rglob("*")):
            if path.suffix in DATA:
                self.parts.append(hashlib.sha256(path.read_bytes()).hexdigest())

    def hash(self) -> str:
        return hashlib.sha256(repr(self.parts).encode()).hexdigest()

    def add_notebook(self, path: Path) -> None:
        """The cells of a notebook, which share what they import."""
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        bodies = [ast.parse(source, path.name).body for source in sources]
        self.module = self.place = path.name
        self.names[path.name] = self.imports(marked([*chain(*bodies)]))
        for number, (source, body) in enumerate(zip(sources, bodies, strict=True), start=1):
            self.place = f"{path.name}, code cell {number}"
            silent = source.rstrip().endswith(";")  # its last value is not shown
            self.parts.append(("cell", silent, self.reduced(body)))

    def add_target(self, target: str) -> None:
        """A definition; or a module that is used as a value, which counts with all its names."""
        self.place = target
        self.module, _, name = target.partition(":")
        if name:
            statements = self.names[self.module][name]
            for statement in statements:
                statement.name = ""  # its number stands for it
            self.parts.append(self.reduced(statements))
        else:
            below = {m.rpartition(".")[2] for m in self.files if m.rpartition(".")[0] == target}
            names = sorted({*self.names[target], *below})
            self.parts.append([(name, self.mention(self.find(target, name))) for name in names])

    # What a name stands for --------------------------------------------------------------------

    def find(self, home: str, name: str) -> str:
        """The target of `from home import name`."""
        if home.split(".")[0] != PACKAGE:
            return f"{home}.{name}"
        if parts := self.names.get(home, {}).get(name):
            return self.bound(home, name, parts)
        if f"{home}.{name}" in self.files:
            return f"{home}.{name}"
        raise NotFollowed(f"{self.place}: there is no {name} in {home}")

    def bound(self, module: str, name: str, parts: list[Any]) -> str:
        """The target of a name that these statements of the module bind."""
        is_package = module in self.files and self.files[module].stem == "__init__"
        package, targets = module if is_package else module.rpartition(".")[0], set()
        for part in parts:
            if isinstance(part, ast.ImportFrom):
                home = resolve_name("." * part.level + (part.module or ""), package)
                inside = f"{home}.{part.names[0].name}"
                own = home == module and inside in self.files  # a package binds its own modules
                targets.add(inside if own else self.find(home, part.names[0].name))
            elif isinstance(part, ast.Import):
                home, _, last = part.names[0].name.rpartition(".")
                whole = self.find(home, last) if home else last
                targets.add(whole if part.names[0].asname else whole.split(".")[0])
            else:
                targets.add(f"{module}:{name}")
        if len(targets) > 1:
            raise NotFollowed(f"{self.place}: {name} may be {' or '.join(sorted(targets))}")
        return targets.pop()

    def imports(self, statements: list[ast.stmt]) -> dict[str, list[Any]]:
        """The names that are imported anywhere in the code; all are to exist."""
        nodes = (node for statement in statements for node in ast.walk(statement))
        found = bindings((node for node in nodes if isinstance(node, IMPORTS)), self.place)
        for name, parts in found.items():
            self.bound(self.module, name, parts)
        return found

    def target(self, node: ast.AST) -> str | None:
        """What a name, or a name with attributes, stands for; None for a local or built-in one."""
        if isinstance(node, ast.Name):
            known = self.names[self.module] if node.beyond else {}
            parts = known.get(node.id) or self.local.get(node.id)
            return parts and self.bound(self.module, node.id, parts)
        of = self.target(node.value) if isinstance(node, ast.Attribute) else None
        if not of or ":" in of or (of in self.files and node.attr.startswith("__")):
            return None
        return self.find(of, node.attr)

    def definition(self, node: ast.AST) -> tuple[str, ast.AST] | None:
        """The module and the statement of what an expression names; a method by its class."""
        if ":" in (target := self.target(node) or ""):
            module, _, name = target.partition(":")
            return module, self.names[module][name][-1]
        if isinstance(node, ast.Attribute) and (owner := self.definition(node.value)):
            for part in getattr(owner[1], "body", []):
                if getattr(part, "name", None) == node.attr:
                    return owner[0], part
        return None

    def source(self, node: ast.AST) -> str:
        """The text of what an expression names, as `inspect.getsource` gives it."""
        module, found = self.definition(node) or ("", None)
        if not isinstance(found, DEFINITIONS):
            raise NotFollowed(f"{self.place}: cannot tell what is shown by {ast.unparse(node)}")
        lines = self.files[module].read_text(encoding="utf-8").splitlines(keepends=True)
        first = min(part.line for part in (found, *found.decorator_list))
        return "".join(inspect.getblock(lines[first - 1 :]))

    # Code as what it computes: nested tuples, lists, numbers and texts -------------------------

    def reduced(self, statements: list[ast.stmt]) -> Any:
        """The statements of a cell or of a definition."""
        self.local = self.imports(statements)
        return self.visit([s.value if isinstance(s, ast.Expr) else s for s in statements])

    def visit(self, node: Any) -> Any:
        """Of lists without imports (their uses count), texts for the reader, and bare hints."""
        if not isinstance(node, list):
            return super().visit(node) if isinstance(node, ast.AST) else node
        kept = []
        for item in node:
            match item:
                case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant()):
                    continue
                case ast.AnnAssign(value=None):
                    continue
            kept.append(self.visit(item))
        return kept

    def generic_visit(self, node: ast.AST) -> Any:
        fields = [(key, value) for key, value in ast.iter_fields(node) if value not in (None, [])]
        fields = [(key, self.visit(v)) for key, v in fields if key not in COMPUTE_NOTHING]
        return type(node).__name__, fields

    def mention(self, target: str) -> Any:
        """A definition or module of the package by its number, all else by its full name."""
        if target == "importlib.import_module":
            raise NotFollowed(f"{self.place}: {target} does not say what it imports")
        if ":" not in target and target not in self.files:
            return "library", target
        if target not in self.reached:
            self.reached.append(target)
        return "package", self.reached.index(target)

    def visit_Name(self, node: ast.Name) -> Any:
        target = self.target(node)
        return self.mention(target) if target else node.id

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if target := self.target(node):
            return self.mention(target)
        in_cell = self.module not in self.files
        shown = self.definition(node.value) if in_cell and node.attr == "__doc__" else None
        return self.generic_visit(node), shown and ast.get_docstring(shown[1], clean=False)

    def visit_Call(self, node: ast.Call) -> Any:
        """Of a function that shows source, also the texts that it shows."""
        called, shown = self.definition(node.func), []
        if called and "getsource" in ast.unparse(called[1]):
            shown = [*node.args, *(keyword.value for keyword in node.keywords)]
        return self.generic_visit(node), [self.source(argument) for argument in shown]

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        """With the names that have a hint, if that may make fields of them."""
        hinted = [s.target.id for s in node.body if isinstance(s, ast.AnnAssign)]
        return self.generic_visit(node), hinted if node.decorator_list or node.bases else []

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        return self.generic_visit(ast.Assign([node.target], node.value))


def main() -> None:
    """Print the hash, or what it covers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="the definitions that it covers")
    args = parser.parse_args()
    fingerprint = Fingerprint()
    print("\n".join(fingerprint.reached) if args.list else fingerprint.hash())


if __name__ == "__main__":
    try:
        main()
    except NotFollowed as error:
        raise SystemExit(f"no fingerprint: {error}") from None
