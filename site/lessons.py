"""The notebooks as pages, and as handouts: what is added to a copy, never to the committed file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import symbols
from nbformat import NotebookNode

WORDS_A_MINUTE, LINES_A_MINUTE = 200, 20
MINUTES_A_LOOK, MINUTES_AN_EXERCISE = 2 / 3, 5
"""For a picture, and for a guess; and for an exercise. By two readers of the course, measured on
none: whoever is new to it takes longer, and whoever skips the code, less."""
REPOSITORY = "https://github.com/rlhf-tutorial/rlhf-tutorial"
COLAB = "https://colab.research.google.com/github/rlhf-tutorial/rlhf-tutorial/blob/main/notebooks"

_ROW = re.compile(
    r"^\| \[(\S+) [^\]]*\]\(notebooks/(\S+)\.ipynb\) \| (.+?) \| \d+ min \| (.+?) \|$", re.M
)
# A line of code that one reads: no import, comment or closing bracket.
_READ = re.compile(r"\s*(?!from |import |#|[)\]}])\S")
# Text in italics from the first letter on. In formulas a star is a star.
_CAPTION = re.compile(r"\*(?!\*)((?:\$[^$]*\$|\*\*[^*]+\*\*|[^*$])+)\*(?!\*)")


@dataclass(frozen=True)
class Lesson:
    """A notebook, and what the course's page says of it."""

    path: Path
    notebook: NotebookNode
    number: str
    teaches: str
    takes: str

    @property
    def title(self) -> str:
        """The heading, with its number."""
        return re.search(r"^# (.+)$", self.notebook.cells[0].source, re.M)[1]

    @property
    def goals(self) -> list[str]:
        """What the notebook promises at its top: "At the end you can", an item each."""
        first = self.notebook.cells[0].source
        if "At the end you can" not in first:
            return []
        return re.findall(r"^- (.+?)[;.]$", first.split("At the end you can")[1], re.M)

    @property
    def minutes(self) -> int:
        """To read it, its code included, in fives; without the exercises."""
        total = 0.0
        for cell in self.notebook.cells:
            if cell.cell_type == "markdown":
                total += len(cell.source.split()) / WORDS_A_MINUTE
            elif not is_solution(cell):
                lines = [line for line in cell.source.splitlines() if _READ.match(line)]
                total += len(lines) / LINES_A_MINUTE
            if cell.cell_type == "code":
                pictures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
                total += (pictures + cell.source.startswith("guess = None")) * MINUTES_A_LOOK
        return max(5, 5 * round(total / 5))

    @property
    def exercise_minutes(self) -> int:
        """What its exercises take on top."""
        return MINUTES_AN_EXERCISE * sum(
            cell.source.count("**Exercise") for cell in self.notebook.cells
        )

    @property
    def has_solutions(self) -> bool:
        """Whether there are exercises with their solutions folded away."""
        return any(is_solution(cell) for cell in self.notebook.cells)


def is_solution(cell: NotebookNode) -> bool:
    """Whether the cell is tagged as an exercise's solution."""
    return "solution" in cell.metadata.get("tags", [])


def read_lessons(folder: Path, readme: str) -> list[Lesson]:
    """The notebooks of a folder in their order, each with its row of README's table.

    Raises:
        ValueError: a notebook without a row.
    """
    rows = {name: (number, teaches, takes) for number, name, teaches, takes in _ROW.findall(readme)}
    lessons = []
    for path in sorted(folder.glob("*.ipynb")):
        if path.stem not in rows:
            raise ValueError(f"{path.name} has no row in README's table of notebooks: add one")
        notebook = nbformat.read(path, as_version=4)
        lessons.append(Lesson(path, notebook, *rows[path.stem]))
    return lessons


def captions(notebook: NotebookNode) -> dict[int, str]:
    """Of each cell that shows a picture, by index: the caption, as plain text.

    The caption is what stands in italics at the top of the next text after the picture; without
    one, what the picture's own metadata call it.
    """
    found = {}
    for index, cell in enumerate(notebook.cells):
        pictures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if not pictures:
            continue
        after = (c.source for c in notebook.cells[index + 1 :] if c.cell_type == "markdown")
        caption = _CAPTION.match(next(after, ""))
        own = pictures[0].get("metadata", {}).get("image/png", {}).get("alt", "")
        found[index] = plain(caption[1]) if caption else own
    return found


def plain(text: str) -> str:
    """Markdown with formulas as words on one line."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for symbol, said in {r"\approx": "about", r"\|": "||", r"\,": " ", "^*": " star"}.items():
        text = text.replace(symbol, said)
    text = re.sub(r"\\(?:mathrm|text|bar|hat)?\b\s*", "", text)
    return " ".join(re.sub(r"[$`*{}\\]", "", text).split())


def as_page(
    lesson: Lesson, last_run: str, keys: dict[str, str], card: dict[str, tuple[str, str]]
) -> NotebookNode:
    """The copy that the site shows.

    Args:
        last_run: when and with what its outputs were made, in a few words.
        keys: the numbers of `step` that have an entry in the glossary, with their anchors.
        card: the symbols with their places on the card, as `symbols.read_card` has them.
    """
    notebook = nbformat.from_dict(lesson.notebook)
    alternative = captions(notebook)
    met: set[str] = set()
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = with_links(cell.source, keys)
            new = [s for s in symbols.first_uses(cell.source, card) if s not in met]
            met.update(new)
            if new:
                links = (f"[${card[s][0]}$](../docs/symbols.md#{card[s][1]})" for s in new)
                cell.source += f"\n\n{{.aside}}\nOn the card of symbols: {', '.join(links)}"
        else:
            fold(cell)
            for output in cell.outputs:
                show_as_code(output)
            if index in alternative:
                width = first_width(cell)
                image = {"alt": alternative[index]} | ({"width": width} if width else {})
                cell.metadata.setdefault("mystnb", {})["image"] = image
    title, _, rest = notebook.cells[0].source.partition("\n")
    notebook.cells[0].source = f"{title}\n\n{bar(lesson, last_run)}\n{rest}"
    return notebook


def bar(lesson: Lesson, last_run: str) -> str:
    """The line under the title: how long, of when, and where to get it."""
    name = lesson.path.name
    return (
        "{.lesson}\n"
        f"**{lesson.minutes} minutes** to read · {lesson.takes} to run · {last_run} · "
        f"{{download}}`download <../originals/{name}>` · [open in Colab]({COLAB}/{name})\n"
    )


def fold(cell: NotebookNode) -> None:
    """Fold away what a reader need not see at first: the set-up, and the solutions."""
    tags = cell.metadata.get("tags", [])
    if is_solution(cell):
        prompt = "Solution"
    elif cell.source.startswith(("REPOSITORY = ", "from rlhf_tutorial import Run, load_preset")):
        prompt, tags = "Set-up", [*tags, "hide-input"]
    else:
        return
    cell.metadata["tags"] = tags
    cell.metadata["mystnb"] = {
        "code_prompt_show": f"{prompt}: show",
        "code_prompt_hide": f"{prompt}: hide",
    }


def show_as_code(output: NotebookNode) -> None:
    """Source that a cell displays as a code block: Sphinx colours it in the light and the dark."""
    data = output.get("data", {})
    if "text/latex" in data and 'class="highlight"' in data.get("text/html", ""):
        code = data["text/plain"].strip("\n")
        output["data"] = {"text/markdown": f"```python\n{code}\n```", "text/plain": code}


def first_width(cell: NotebookNode) -> str | None:
    """The width in pixels at which the notebook shows its picture."""
    for output in cell.outputs:
        if width := output.get("metadata", {}).get("image/png", {}).get("width"):
            return f"{width}px"
    return None


def with_links(text: str, keys: dict[str, str]) -> str:
    """Text in which every number of `step` leads to its entry in the glossary."""

    def link(match: re.Match[str]) -> str:
        key = match[1]
        return f"[`{key}`](../docs/metrics.md#{keys[key]})" if key in keys else match[0]

    return re.sub(r"(?<![\[`])`([\w/]+)`(?![\]`])", link, text)


def handout(notebook: NotebookNode) -> NotebookNode:
    """The notebook for a class: exercises without solutions, and nothing run yet."""
    notebook = nbformat.from_dict(notebook)
    notebook.cells = [cell for cell in notebook.cells if not is_solution(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook
