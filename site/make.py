"""Build the course's site into build/site: `make site`, or `python site/make.py [BUILD]`.

Pages are put together in build/site-source from the notebooks, docs/ and the pages beside this
file; Sphinx makes HTML of them. Nothing is executed, and the result needs neither network nor
server: open build/site/index.html.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import jinja2
import nbformat
import yaml
from sphinx.cmd.build import build_main

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
sys.path[:0] = [str(SITE), str(ROOT)]

import facts  # noqa: E402
import film_data  # noqa: E402
import lessons  # noqa: E402
import mathjax  # noqa: E402
import symbols  # noqa: E402

from rlhf_tutorial.errors import TutorialError  # noqa: E402
from rlhf_tutorial.studies.committed import committed_three, widest_swing  # noqa: E402

BUILD = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "build"
SOURCE = BUILD / "site-source"
OUTPUT = BUILD / "site"
RESULTS = ROOT / "notebooks" / "results" / "smollm2"
PAGES = ["docs/*.md", "rlhf_tutorial/bundled/**/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
ROW = re.compile(r"^\| `((?:objective|ppo|tokens|time|env)/[\w/]+)` \|.*$", re.M)
LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")


def main() -> int:
    """Put the pages together and build them; returns Sphinx's exit status."""
    for folder in (SOURCE, OUTPUT):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        assemble()
    except TutorialError as error:
        print(error, file=sys.stderr)
        return 1
    options = ["-b", "html", "-W", "--keep-going", "-q", "-d", str(SOURCE / ".doctrees")]
    status = build_main([*options, str(SOURCE), str(OUTPUT)])
    if status == 0:
        print(f"The site is in {OUTPUT}: open index.html there")
    return status


def assemble() -> None:
    """Everything that Sphinx reads, in SOURCE, laid out as the repository is."""
    shutil.copytree(SITE / "static", SOURCE / "static")
    shutil.copytree(ROOT / "images", SOURCE / "images")
    shutil.copy(SITE / "conf.py", SOURCE)
    mathjax.unpack(SOURCE / "static" / "mathjax")
    film_data.write(SOURCE / "static" / "film-data.js")

    course = lessons.read_lessons(ROOT / "notebooks", read(ROOT / "README.md"))
    results = facts.read_json(RESULTS / "results.json")
    last_runs = {lesson.number: facts.last_run(lesson, results, ROOT) for lesson in course}
    on_card = read(ROOT / "docs" / "symbols.md")
    keys = {key: key.replace("/", "-") for key in ROW.findall(read(ROOT / "docs" / "metrics.md"))}

    for path in (path for pattern in PAGES for path in sorted(ROOT.glob(pattern))):
        text = read(path)
        if path.name == "metrics.md":
            text = as_glossary(text, keys)
        elif path.name == "symbols.md":
            text = symbols.with_anchors(text)
        elif path.parent.name == "docs":
            text = lessons.with_links(text, keys)
        write(path.relative_to(ROOT), text)
    for lesson in course:
        name = lesson.path.name
        card = symbols.read_card(on_card, lesson.number)
        page = lessons.as_page(lesson, last_runs[lesson.number], keys, card)
        write(f"notebooks/{name}", nbformat.writes(page))
        write(f"originals/{name}", read(lesson.path))
        if lesson.has_solutions:
            write(f"handouts/{name}", nbformat.writes(lessons.handout(lesson.notebook)))

    three, reading = committed_three(), facts.read_json(RESULTS / "reading.json")
    told = {
        "lessons": course,
        "colab": lessons.COLAB,
        "last_runs": last_runs,
        "results": results,
        "three": three,
        "opening": widest_swing(three),
        "levers": facts.levers(reading),
        "cheap_levers": facts.cheap_levers(reading),
        "citation": yaml.safe_load(read(ROOT / "CITATION.cff")),
        "cards": [p.relative_to(ROOT).as_posix()[:-3] for p in sorted(ROOT.glob(PAGES[1]))],
    }
    for path in sorted(SITE.glob("*.md")):
        template = jinja2.Template(read(path), undefined=jinja2.StrictUndefined)
        write(path.name, template.render(told))
    copy_what_pages_link_to()


def copy_what_pages_link_to() -> None:
    """Files of the repository that a page leads to and that are no page: they come along."""
    for page in [*SOURCE.rglob("*.md"), *SOURCE.glob("notebooks/*.ipynb")]:
        for link in LINK.findall(read(page)):
            place = (page.parent / link).resolve()
            if place.is_relative_to(SOURCE) and not place.exists():
                origin = ROOT / place.relative_to(SOURCE)
                if origin.is_file():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(origin, place)


def as_glossary(page: str, keys: dict[str, str]) -> str:
    """The tables of docs/metrics.md as a list that a narrow screen has room for.

    Each number of `step` is a term that one can link to; formula, healthy and outside explain it.
    """

    def entry(match: re.Match[str]) -> str:
        key, *cells = match[0].strip("| ").split(" | ")
        named = zip(("Formula", "Healthy", "Outside"), cells, strict=True)
        explained = "\n".join(f": *{name}:* {cell}" for name, cell in named)
        return f"[{key}]{{#{keys[match[1]]}}}\n{explained}\n"

    page = re.sub(r"^\| key \|.*\n\| --- .*\n", "", page, flags=re.M)
    return ROW.sub(entry, page)


def read(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8")


def write(place: str | Path, text: str) -> None:
    """A file below SOURCE."""
    path = SOURCE / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
