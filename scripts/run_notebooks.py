"""Execute the notebooks in order, each from a fresh kernel, with a progress line per cell.

    python scripts/run_notebooks.py                 # into runs/<preset>/, as notebooks and HTML
    python scripts/run_notebooks.py --in-place      # and replace the committed ones
    python scripts/run_notebooks.py 03 05           # only these

The preset comes from RLHF_PRESET (default: smollm2).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
from fingerprint import DATA, PACKAGE, Fingerprint
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from tqdm import tqdm

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.notebook import headline

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ("stats.jsonl", "comparison.csv", "perplexity.json", "results.json")
FOLDED = """{% extends 'lab/index.html.j2' %}
{% block input_group %}{% if 'solution' in cell.metadata.get('tags', []) %}
<details><summary>A solution</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}{% endblock input_group %}"""


def first_line(cell: nbformat.NotebookNode) -> str:
    """The first line of code that says something, to name a cell by."""
    lines = [line.strip() for line in cell.source.splitlines()]
    return next((line for line in lines if line and not line.startswith("#")), "")[:50]


def up_to_date(executed: Path, notebook: Path) -> bool:
    """Whether the executed copy is newer than the notebook and all code and data of the package."""
    if not executed.exists():
        return False
    sources = [notebook, *(p for p in (ROOT / PACKAGE).rglob("*") if p.suffix in (".py", *DATA))]
    return executed.stat().st_mtime > max(p.stat().st_mtime for p in sources)


def execute(path: Path, runs: Path) -> nbformat.NotebookNode:
    """Run one notebook from the notebooks folder; an error in a cell stops the program."""
    notebook = nbformat.read(path, as_version=4)
    codes = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    # Relative to the kernel's folder, so that no absolute path gets into an output.
    os.environ["RLHF_RUNS"] = os.path.relpath(runs, path.parent)
    with tqdm(total=len(codes), desc=path.stem, unit="cell", file=sys.stdout) as bar:
        client = NotebookClient(
            notebook,
            timeout=None,
            coalesce_streams=True,  # of a progress bar only its end
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],  # it warns that a local socket is not encrypted
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_execute=lambda cell, cell_index: bar.set_postfix_str(first_line(cell)),
            on_cell_executed=lambda cell, cell_index, execute_reply: bar.update(),
        )
        client.execute()
        bar.set_postfix_str("done")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: noise in a committed file
    notebook.metadata.pop("widgets", None)
    return notebook


def as_html(notebook: nbformat.NotebookNode) -> str:
    """The notebook as a page, with the solutions folded away, as JupyterLab has them."""
    exporter = HTMLExporter()
    exporter.raw_template = FOLDED
    html, _ = exporter.from_notebook_node(notebook)
    return html


def main() -> None:
    """Execute the chosen notebooks and say where the results are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="only the notebooks that start with these")
    parser.add_argument("--in-place", action="store_true", help="replace the committed notebooks")
    args = parser.parse_args()

    preset = load_preset()
    runs = Path(os.environ.get("RLHF_RUNS", ROOT / "runs")).resolve()
    if args.in_place and not args.numbers:  # what is committed comes from one run of the code
        shutil.rmtree(runs / preset.name, ignore_errors=True)
    run = Run(preset, runs / preset.name)
    paths = sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
    if args.numbers:
        paths = [p for p in paths if p.name.startswith(tuple(args.numbers))]
    run.folder.mkdir(parents=True, exist_ok=True)  # some notebooks leave nothing there themselves
    start = time.perf_counter()
    for path in paths:
        if not args.in_place and up_to_date(run.folder / path.name, path):
            print(f"{path.stem}: already there")
            continue
        try:
            notebook = execute(path, runs)
        except CellExecutionError as error:
            sys.exit(f"{path.name} stopped: {error.ename}: {error.evalue}\n{error.traceback}")
        target = path if args.in_place else run.folder / path.name
        nbformat.write(notebook, target)
        (run.folder / f"{path.stem}.html").write_text(as_html(notebook), encoding="utf-8")
    if args.in_place:
        committed = ROOT / "notebooks" / "results" / preset.name
        committed.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:  # not each notebook leaves each
            if (run.folder / name).exists():
                shutil.copy(run.folder / name, committed / name)
    if args.in_place and not args.numbers:
        (committed / "code.sha256").write_text(Fingerprint().hash() + "\n", encoding="utf-8")
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(paths)} notebooks in {minutes:.1f} minutes: {run.folder}")
    print(headline(run.results()))


if __name__ == "__main__":
    main()
