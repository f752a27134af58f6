"""Execute the notebooks in order, each from a fresh kernel, with a line for each.

    python scripts/run_notebooks.py                 # into runs/<preset>/, as notebooks and HTML
    python scripts/run_notebooks.py --in-place      # and replace the committed ones
    python scripts/run_notebooks.py 03 05           # only these

The preset comes from RLHF_PRESET (default: smollm2).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import nbformat
from fingerprint import DATA, PACKAGE, Fingerprint
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from tqdm import tqdm

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.doctor import examine, report
from rlhf_tutorial.notebook import headline

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "site"))
from lessons import captions  # noqa: E402

RESULTS = ("stats.jsonl", "comparison.csv", "perplexity.json", "results.json")
MINUTES = {
    "01": 0.5,
    "02": 1,
    "03": 1,
    "03b": 0.1,
    "04": 1.5,
    "05": 7,
    "05b": 0.5,
    "06": 1.5,
    "07": 3,
    "08": 3,
    "08b": 1.5,
    "09": 6,
    "10": 12,
}
"""On two cores with bfloat16 arithmetic, with the default preset: the README's table in numbers."""
FOLDED = """{% extends 'lab/index.html.j2' %}
{% block input_group %}{% if 'solution' in cell.metadata.get('tags', []) %}
<details><summary>A solution</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}{% endblock input_group %}
{% block data_png scoped %}{% set alt = output | get_metadata('alt', 'image/png') %}
{%- set begin = '<img alt="' ~ (alt | escape_html) ~ '" ' if alt else '<img ' %}
{{- super() | replace('<img ', begin, 1) }}{% endblock data_png %}"""


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


def announcement(paths: list[Path], run: Run) -> str:
    """What will happen, how long it takes, and what may go otherwise on this machine."""
    number = "1 notebook" if len(paths) == 1 else f"{len(paths)} notebooks"
    lines = [f"Running {number} with the preset {run.preset.name}."]
    if run.preset.name == "smollm2" and paths:
        minutes = sum(MINUTES[path.stem.split("_")[0]] for path in paths)
        lines[0] += f" On two cores with bfloat16 arithmetic that takes {minutes:.0f} minutes."
    lines.append(
        f"Notebooks, pages and results go to {run.folder}; nothing is opened. Ctrl-C stops, and "
        "the same command goes on from there."
    )
    minded = [finding for finding in examine(run.preset, run.folder) if finding.verdict != "ok"]
    width = shutil.get_terminal_size().columns
    told = "\n".join(textwrap.fill(line, width) for line in lines)
    return f"{told}\n\n{report(minded, width)}\n" if minded else f"{told}\n"


def seen_from(folder: str | Path, place: str | Path) -> str:
    """A place relative to the kernel's folder, so that no absolute path gets into an output.

    As it is where there is no such path: on another drive of Windows.
    """
    try:
        return os.path.relpath(place, folder)
    except ValueError:
        return str(place)


@contextmanager
def progress(name: str, cells: int) -> Iterator[tqdm]:
    """A line that a terminal draws anew; in a file or a pipe it is written once."""
    if sys.stdout.isatty():
        form = "{desc} {n_fmt}/{total_fmt} {elapsed}{postfix}"
        with tqdm(
            total=cells, desc=name, bar_format=form, dynamic_ncols=True, file=sys.stdout
        ) as bar:
            yield bar
            bar.set_postfix_str("done")
    else:
        print(f"{name}: ", end="", flush=True)
        start = time.perf_counter()
        yield tqdm(total=cells, disable=True)
        print(f"{cells} cells in {tqdm.format_interval(time.perf_counter() - start)}", flush=True)


def execute(path: Path, runs: Path) -> nbformat.NotebookNode:
    """Run one notebook from the notebooks folder; an error in a cell stops the program."""
    notebook = nbformat.read(path, as_version=4)
    codes = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    os.environ["RLHF_RUNS"] = seen_from(path.parent, runs)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # or a kernel warns of debuggers, at times
    with progress(path.stem, len(codes)) as bar:
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
        # Not in this thread, where nbclient would answer Ctrl-C itself, and not leave a cell the
        # time to save its work.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(client.execute)
            try:
                while not wait([running], timeout=1).done:
                    bar.refresh()  # a cell may take minutes
            except KeyboardInterrupt:
                if client.km is not None and client.km.has_kernel:
                    asyncio.run(client.km.interrupt_kernel())
                wait([running])
                raise
            running.result()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: noise in a committed file
    notebook.metadata.pop("widgets", None)
    describe_pictures(notebook)
    return notebook


def describe_pictures(notebook: nbformat.NotebookNode) -> None:
    """Give each picture its caption as alternative text, for whoever does not see it."""
    for index, caption in captions(notebook).items():
        for output in notebook.cells[index].outputs:
            if "image/png" in output.get("data", {}):
                output.metadata.setdefault("image/png", {})["alt"] = caption


def as_html(notebook: nbformat.NotebookNode) -> str:
    """The notebook as a page: solutions folded away, as JupyterLab has them, pictures described."""
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
    ready = [
        path for path in paths if not args.in_place and up_to_date(run.folder / path.name, path)
    ]
    print(announcement([path for path in paths if path not in ready], run), flush=True)
    for path in paths:
        if path in ready:
            print(f"{path.stem}: already there")
            continue
        try:
            notebook = execute(path, runs)
        except CellExecutionError as error:
            trace = error.traceback if sys.stderr.isatty() else strip_ansi(error.traceback)
            sys.exit(f"\n{path.name} stopped: {error.ename}: {error.evalue}\n{trace}")
        except DeadKernelError:
            sys.exit(
                f"\n{path.name} stopped: its kernel died, most often for want of memory: close "
                "other programs; the same command goes on from there"
            )
        except KeyboardInterrupt:
            sys.exit(f"\n{path.name} was stopped; the same command goes on from there")
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
