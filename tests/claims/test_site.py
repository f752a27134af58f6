"""The site: what its pages are made of, and, in a browser without a network, what they look like.

`make site` installs what builds it; what is missing here is said where a test is skipped. The built
folder is looked at as a reader has it: from the disk, by file:// addresses.
"""

from __future__ import annotations

import ast
import html
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import jinja2
import nbformat
import pytest
from filelock import FileLock
from support import ROOT

import rlhf_tutorial
from rlhf_tutorial.errors import AssetError
from rlhf_tutorial.ppo import PPOConfig
from rlhf_tutorial.ppo import math as equations

sys.path.append(str(ROOT / "site"))
import facts
import film_data
import lessons
import mathjax
import symbols

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RESULTS = ROOT / "notebooks" / "results" / "smollm2"
SYMBOLS = (ROOT / "docs" / "symbols.md").read_text(encoding="utf-8")


def own_functions() -> dict[str, Any]:
    """The functions of ppo/math.py, by name."""
    of = inspect.getmembers(equations, inspect.isfunction)
    return {name: function for name, function in of if function.__module__ == equations.__name__}


# What pages are made of ------------------------------------------------------------------------


def test_the_card_of_symbols_has_every_function_and_quantity_of_the_equations() -> None:
    on_card = set(re.findall(r"`(\w+)`", SYMBOLS))
    wanted = set(own_functions())
    for function in own_functions().values():
        wanted |= set(inspect.signature(function).parameters)
    assert wanted - on_card == {"dim", "shift_mean"}, "how a mean is taken is no quantity"
    settings = {"PPOTrainer", "PPOConfig", *PPOConfig.__dataclass_fields__}
    assert on_card - wanted - settings == {"masked_mean", "masked_var"} - wanted


def test_a_symbol_is_known_with_what_it_wears_and_never_by_a_part_of_it() -> None:
    def used(text: str) -> list[str]:
        known = {"d", "c", r"\pi", r"\pi_\textref", r"\mathcalL", "V_t^\\textold", "z"}
        return symbols.first_uses(text, known)

    assert used(r"$\log\pi - \log\pi_{\text{ref}}$ and $\pi$") == [r"\pi", r"\pi_\textref"]
    assert used(r"$\mathcal L_\text{policy}$, $d_i$, $\hat d$, $\text{d c}$") == [r"\mathcalL"]
    assert used("$$\n\\begin{cases} V_t^\\text{old} \\end{cases}\n$$") == ["V_t^\\textold"]
    assert used("`$d$`, 5$ and 6$, \n```\n$z$\n```") == []


def test_symbols_are_linked_to_the_card_where_a_notebook_uses_them_first() -> None:
    placed = symbols.with_anchors(SYMBOLS)
    anchors = re.findall(r"\$\]\{#([\w-]+)\}", placed)
    assert len(anchors) == len({anchor.lower() for anchor in anchors}) >= 60
    assert re.sub(r"\[(\$[^$]+\$)\]\{#[\w-]+\}", r"\1", placed) == SYMBOLS
    for lesson in lessons.read_lessons(
        ROOT / "notebooks", (ROOT / "README.md").read_text(encoding="utf-8")
    ):
        card = symbols.read_card(SYMBOLS, lesson.number)
        page = lessons.as_page(lesson, "", {}, card)
        text = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
        links = re.findall(r"symbols\.md#([\w-]+)\)", text)
        assert links and len(set(links)) == len(links) and set(links) <= set(anchors)
    by_hand = symbols.read_card(SYMBOLS, "03")
    assert by_hand[r"\sigma"][1].startswith("symbol-3-") and "W" not in by_hand


def test_the_last_run_is_when_the_outputs_came_and_not_when_the_text_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git")
    path = tmp_path / "notebooks" / "01.ipynb"
    path.parent.mkdir()
    assert facts.git(tmp_path, "init") != ""
    for day, output, text in (("01", "a", "x"), ("02", "b", "x"), ("03", "b", "y")):
        cells = [{"source": text}, {"source": "f()", "outputs": [{"text": output}]}]
        path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
        facts.git(tmp_path, "add", ".")
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2026-02-{day}T12:00:00")
        name = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        assert facts.git(tmp_path, *name, "commit", "-m", day) != ""
    assert facts.outputs_since(path, tmp_path) == "2026-02-02"
    path.write_text(json.dumps({"cells": []}), encoding="utf-8")
    assert facts.outputs_since(path, tmp_path) == ""  # not committed yet


def test_the_last_run_names_the_processor_only_where_it_was_recorded() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    course = {one.number: one for one in lessons.read_lessons(ROOT / "notebooks", readme)}
    results = facts.read_json(RESULTS / "results.json")
    unknown, known = results | {"processor": ""}, results | {"processor": "Abacus 9"}
    assert facts.last_run(course["05"], known, ROOT).endswith(", CPU, Abacus 9")
    assert facts.last_run(course["05"], unknown, ROOT).endswith(", CPU")
    del unknown["processor"]
    assert facts.last_run(course["05"], unknown, ROOT).endswith(", CPU")
    by_hand = facts.last_run(course["03b"], known, ROOT)  # which no preset ran
    assert "Python 3" in by_hand and "Abacus" not in by_hand and "CPU" not in by_hand


def test_the_page_of_the_library_has_every_public_name_and_every_equation() -> None:
    page = (ROOT / "site" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. (?:auto\w+|py:data):: (\w+)", page, re.M))
    assert documented == set(rlhf_tutorial.__all__) | set(own_functions()) | {"RunningMoments"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_of_a_notebook_has_a_caption_with_a_number(path: Path) -> None:
    notebook, chapter = nbformat.read(path, as_version=4), path.stem.split("_")[0].lstrip("0")
    captions = lessons.captions(notebook)
    for number, (index, caption) in enumerate(captions.items(), start=1):
        where = f"{path.name}, cell {notebook.cells[index].id}: {caption!r}"
        assert caption.startswith(f"Figure {chapter}.{number}: "), where
        assert notebook.cells[index + 1].source.startswith("*Figure"), f"{where} is not next to it"
        assert len(caption.split()) >= 7, where
        assert not re.search(r"[$\\*`]|\]\(", caption), where
    told = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert told.count("*Figure") == len(captions), "a caption without a picture"
    numbers = {f"{chapter}.{number}" for number in range(1, len(captions) + 1)}
    assert set(re.findall(r"\bfigure (\d+b?\.\d+)", told)) <= numbers, "a figure that is not there"


def test_captions_are_found_and_said_in_words() -> None:
    def picture(**metadata: Any) -> Any:
        data = {"image/png": "x"}
        output = nbformat.v4.new_output("display_data", data, metadata={"image/png": metadata})
        return nbformat.v4.new_code_cell("f()", outputs=[output])

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        picture(),
        nbformat.v4.new_code_cell("a table"),
        nbformat.v4.new_markdown_cell(
            r"*Figure: the [optimum](x.md) $\pi^*$, `kl`, $\log 2 \approx 0.69$.* And more."
        ),
        picture(alt="said by itself"),
        nbformat.v4.new_markdown_cell("**Bold** is no caption."),
    ]
    assert lessons.captions(notebook) == {
        0: "Figure: the optimum pi star, kl, log 2 about 0.69.",
        3: "said by itself",
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_handout_has_the_exercises_no_solution_and_nothing_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    handed = lessons.handout(notebook)
    left_out = [cell for cell in notebook.cells if lessons.is_solution(cell)]
    assert len(handed.cells) == len(notebook.cells) - len(left_out)
    assert not any(cell.get("outputs") for cell in handed.cells)
    code = "\n".join(cell.source for cell in handed.cells if cell.cell_type == "code")
    for cell in left_out:
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.FunctionDef):
                assert not re.search(rf"\b{node.name}\b", code), f"{node.name} is used later"
    assert nbformat.read(path, as_version=4) == notebook, "the notebook itself is left alone"


def test_lessons_have_readmes_words_and_a_time_that_grows_with_the_text() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    course = lessons.read_lessons(ROOT / "notebooks", readme)
    assert [lesson.path for lesson in course] == NOTEBOOKS
    by_number = {lesson.number: lesson for lesson in course}
    assert len(by_number["03b"].goals) == 5 and by_number["03b"].has_solutions
    for number in ("01", "02"):
        assert len(by_number[number].goals) == 4 and by_number[number].has_solutions
    for lesson in course:
        head, more = lesson.notebook.cells[0].source, lesson.exercise_minutes
        assert f"{lesson.minutes} minutes to read" in head, f"{lesson.number}: {lesson.minutes}"
        assert not more or f"{more} more for the exercises" in head, f"{lesson.number}: {more}"
        assert lesson.minutes <= 40, f"{lesson.number} is too long for one sitting"
    with pytest.raises(ValueError, match=r"01_prompts.ipynb has no row"):
        lessons.read_lessons(ROOT / "notebooks", "")


def test_readme_has_the_readers_time_as_the_heads_add_it_up() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"\(notebooks/(\S+)\.ipynb\) \|.*\| (\d+) min \|", readme))
    minutes = {}
    for path in NOTEBOOKS:
        head = nbformat.read(path, as_version=4).cells[0].source
        parts = re.findall(r"(\d+) (?:minutes to read|more for the exercises)", head)
        clicks = 10 * ("and ten for your clicks" in head)
        minutes[path.stem] = sum(map(int, parts)) + clicks
    assert {name: int(time) for name, time in told.items()} == minutes
    assert 11.5 <= sum(minutes.values()) / 60 < 12.25 and "some twelve hours" in readme
    of_the_machine = re.findall(r"^\| (?:notebooks )?[\d to]+ \| (\d+) \|", readme, re.M)
    assert sum(map(int, of_the_machine)) == 39 and "some 39 minutes" in readme


def test_the_landing_pages_grades_rise_and_are_the_readmes() -> None:
    levers = facts.levers(json.loads((RESULTS / "reading.json").read_text(encoding="utf-8")))
    grades = [lever["grade"] for lever in levers]
    assert grades == sorted(grades) and len(grades) == 3
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    for grade in grades:
        assert re.search(rf"\b{grade:.2f}\b", table), grade


def test_the_landing_page_shows_four_levers_and_folds_what_notebook_one_asks_for() -> None:
    reading = json.loads((RESULTS / "reading.json").read_text(encoding="utf-8"))
    cheap = facts.cheap_levers(reading)
    assert len(cheap) == 4 and facts.levers(reading)[0]["grade"] < cheap[0]["grade"]
    assert reading["temperatures"]["untouched"] == 0.3 and "0.3" in cheap[1]["what"]
    page = (ROOT / "site" / "index.md").read_text(encoding="utf-8")
    section = re.search(r"^{% macro graded.*?^```$", page, re.M | re.S)
    assert section is not None
    levers = {"levers": facts.levers(reading), "cheap_levers": cheap}
    shown = jinja2.Template(section[0]).render(levers)
    open_, folded = shown.split("<details", 1)
    for lever in cheap:
        grade = f"{lever['grade']:.2f}"
        assert f" {grade}</td>" in folded and grade not in open_


def test_the_film_shows_what_the_trainings_say() -> None:
    (course, *_) = films = film_data.films()
    assert len(films) >= 2
    for film in films:
        for run in film["runs"]:
            for frame in run["looks"]:
                assert len(frame["answers"]) == len(film["queries"])
                assert len(frame["means"]) == len(film["judges"]) == len(frame["scores"])
                openings = [
                    " ".join(re.findall(r"[\w']+", a.lower())[:2]) for a in frame["answers"]
                ]
                assert frame["share"] == pytest.approx(
                    openings.count(frame["opening"]) / len(openings), abs=1e-4
                )
    committed = json.loads(
        (ROOT / "rlhf_tutorial/bundled/trainings/default-0.json").read_text(encoding="utf-8")
    )
    last, shown = committed["looks"][-1], course["runs"][course["opens"]]["looks"][-1]
    assert shown["answers"] == last["answers"] and shown["step"] == last["step"]
    assert shown["means"][0] == pytest.approx(sum(last["scores"]["first"]) / 96, abs=1e-3)


def test_the_film_goes_over_kl_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every group in order, whatever is committed; the first group opens at the default run."""
    trainings = film_data.committed_trainings()
    course_only = {k: v for k, v in trainings.items() if not k.startswith("kl-")}
    other = {"kl-0.1, seed 0": trainings["default, seed 0"] | {"arm": "kl-0.1"}}
    monkeypatch.setattr(film_data, "committed_trainings", lambda: other | course_only)
    course, *others = film_data.films()
    weights = [run["weight"] for run in course["runs"]]
    assert weights == [0.1, 0.05, 0.05, 0.05]
    assert course["runs"][0]["name"] == "KL weight 0.1, seed 0"
    assert course["opens"] == 1 and course["runs"][1]["name"] == "KL weight 0.05, seed 0"
    assert {run["weight"] for run in others[-1]["runs"]} == {0.05, 0.0}
    for film in [course, *others]:
        shown = [run["weight"] for run in film["runs"]]
        assert shown == sorted(shown, reverse=True), film["name"]
        names = [run["name"] for run in film["runs"]]
        assert len(set(names)) == len(names)
        for name, weight in zip(names, shown, strict=True):
            assert name.split(",")[0] == f"KL weight {weight:g}"


def test_the_citation_names_the_licence_and_the_place() -> None:
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "Apache-2.0" and citation["url"] == lessons.REPOSITORY
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = f"## {citation['version']} ({citation['date-released']})"
    assert citation["version"] == rlhf_tutorial.__version__ and released in changelog


def test_a_tarball_of_another_content_is_not_used(tmp_path, monkeypatch) -> None:
    other = tmp_path / "mathjax.tgz"
    other.write_bytes(b"something else")
    monkeypatch.setenv("RLHF_TUTORIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mathjax, "URL", other.as_uri())
    with pytest.raises(AssetError, match="another sha256"):
        mathjax.tarball()
    assert not list((tmp_path / "cache").glob("*"))
    monkeypatch.setattr(mathjax, "URL", (tmp_path / "nowhere.tgz").as_uri())
    with pytest.raises(AssetError, match="could not be fetched"):
        mathjax.tarball()


# The built site ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built folder: one build for all the workers of pytest-xdist."""
    for module in ("myst_nb", "sphinx_book_theme", "sphinx_design", "playwright"):
        pytest.importorskip(module, reason=f"{module} is not installed: run `make site`")
    try:
        mathjax.tarball()
    except AssetError as error:
        pytest.skip(str(error))
    base = tmp_path_factory.getbasetemp()  # with pytest-xdist a worker's own, in the session's
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            command = [sys.executable, str(ROOT / "site" / "make.py"), str(shared)]
            before = os.times()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            after = os.times()
            # Of the processor, so that a busy machine fails nothing; it is one process.
            seconds = sum(after[2:4]) - sum(before[2:4])
            assert seconds < 120, f"make site takes {seconds:.0f} seconds"
    return shared / "site"


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


@pytest.mark.slow
def test_every_page_and_every_link_within_the_site_is_there(site: Path) -> None:
    names = {page.relative_to(site).with_suffix("").as_posix() for page in pages(site)}
    sources = [*(ROOT / "docs").glob("*.md"), *NOTEBOOKS]
    assert {s.relative_to(ROOT).with_suffix("").as_posix() for s in sources} <= names
    anchors = {
        page: set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))
        for page in pages(site)
        if "_static" not in page.parts
    }
    for page in anchors:
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding="utf-8")):
            address, anchor = urldefrag(html.unescape(link))
            if re.match(r"(https?|mailto|data|javascript):", address):
                continue
            target = (page.parent / unquote(address.split("?")[0])).resolve() if address else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor and target in anchors:
                assert unquote(anchor) in anchors[target], f"{page.name}: {link}"


@pytest.mark.slow
def test_nothing_but_links_for_the_reader_leads_elsewhere(site: Path) -> None:
    loads = r'<(?:script|img|iframe|source|video|audio)[^>]* src="(?:https?:)?//|<link[^>]*href="https?://'
    for page in pages(site):
        assert not re.findall(loads, page.read_text(encoding="utf-8")), page


@pytest.mark.slow
def test_the_glossary_can_be_linked_to_and_notebooks_do(site: Path) -> None:
    glossary = (site / "docs" / "metrics.html").read_text(encoding="utf-8")
    assert 'id="ppo-policy-clipfrac"' in glossary
    step = (site / "notebooks" / "04_ppo_by_hand.html").read_text(encoding="utf-8")
    assert 'href="../docs/metrics.html#objective-kl"' in step
    assert 'href="../docs/symbols.html#symbol-varepsilon"' in step


@pytest.mark.slow
def test_solutions_are_folded(site: Path) -> None:
    page = (site / "notebooks" / "03b_policy_gradient.html").read_text(encoding="utf-8")
    assert page.count("Solution: show") == 6
    assert "raise NotImplementedError" not in page.split("Solution: show")[1].split("</details>")[0]


# In a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install -y chromium")
    api = pytest.importorskip("playwright.sync_api", reason="run `make site`")
    flags = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += "disable-component-update disable-sync"
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[f"--{flag}" for flag in flags.split()]
        )
        yield started
        started.close()


class Reader:
    """A page of the browser without a network, and what went wrong in it."""

    def __init__(self, browser: Any, site: Path, width: int = 1280, **context: Any) -> None:
        self.site, self.wrong = site, []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.context.set_default_timeout(180_000)  # for machines that are busy
        self.page = self.context.new_page()
        self.page.route(re.compile(r"^(?!file:|data:|blob:)"), self.refuse)
        self.page.on("requestfailed", lambda request: self.wrong.append(f"failed {request.url}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error {error}"))
        self.page.on("console", self.heard)

    def refuse(self, route: Any) -> None:
        self.wrong.append(f"asked for {route.request.url}")
        route.abort()

    def heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console: {message.text}")

    def open(self, name: str | Path, query: str = "") -> Any:
        """The page, its formulas typeset and its pictures there."""
        self.page.goto((self.site / name).as_uri() + query)
        self.page.evaluate("window.MathJax?.startup?.promise")
        self.page.evaluate(
            "[...document.images].forEach(i => i.loading = 'eager');"
            "Promise.all([...document.images].map(i => i.decode().catch(() => 0)))"
        )
        return self.page


@pytest.fixture
def read(browser: Any, site: Path) -> Iterator[Any]:
    opened = []

    def start(width: int = 1280, **context: Any) -> Reader:
        opened.append(Reader(browser, site, width, **context))
        return opened[-1]

    yield start
    for reader in opened:
        reader.context.close()


LOOK = """() => ({
  formulas: [...document.querySelectorAll('span.math, div.math')].length,
  typeset: [...document.querySelectorAll('span.math mjx-container, div.math mjx-container')].length,
  bad: [...document.querySelectorAll('mjx-merror')].map(e => e.textContent),
  raw: (() => {
    const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (node.parentElement.closest('pre, code, script, style, mjx-container')) continue;
      if (/\\\\\\(|\\\\\\[|\\$\\$/.test(node.data)) found.push(node.data);
    }
    return found;
  })(),
  broken: [...document.images].filter(i => i.naturalWidth === 0).map(i => i.src),
  mute: [...document.images].filter(i => !i.alt.trim()).map(i => i.src),
  width: document.documentElement.scrollWidth,
  wide: [...document.querySelectorAll('main *')].filter(e => {
    if (document.documentElement.scrollWidth <= innerWidth) return false;
    for (let up = e.parentElement; up; up = up.parentElement)
      if (/auto|scroll|hidden/.test(getComputedStyle(up).overflowX)) return false;
    return e.getBoundingClientRect().right > innerWidth + 1;
  }).slice(0, 3).map(e => e.outerHTML.slice(0, 120)),
  title: [...document.querySelectorAll('h1')].filter(e => e.checkVisibility()).length,
  lang: document.documentElement.lang,
})"""


@pytest.mark.slow
def test_all_pages_without_a_network_at_400_pixels(read: Any, site: Path) -> None:
    """Narrow is the harder case; what is typeset, loaded and said does not depend on the width."""
    reader, formulas = read(width=400), 0
    for path in pages(site):
        if "_static" in path.parts or "_modules" in path.parts:
            continue
        found = reader.open(path.relative_to(site)).evaluate(LOOK)
        name = path.relative_to(site)
        assert found["formulas"] == found["typeset"] and not found["bad"], (name, found["bad"])
        assert not found["raw"], (name, found["raw"][:2])
        assert not found["broken"] and not found["mute"], (name, found)
        assert found["width"] <= 400, (name, found["wide"])
        assert found["title"] == 1 and found["lang"] == "en", name
        assert not reader.wrong, (name, reader.wrong)
        formulas += found["formulas"]
    assert formulas > 300


@pytest.mark.slow
def test_a_notebook_at_1280_pixels_in_the_light_and_in_the_dark(read: Any) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        reader = read(color_scheme=scheme)
        page = reader.open("notebooks/04_ppo_by_hand.html")
        assert page.evaluate(LOOK)["width"] <= 1280
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for selector in ("main p", "main pre", "main table td"):
            assert contrast(page, selector) >= 4.5, (scheme, selector)
        assert not reader.wrong
    assert grounds[0] != grounds[1]


def contrast(page: Any, selector: str) -> float:
    """The contrast of text on its ground, as WCAG 2.1 defines it (section 1.4.3)."""
    pair = page.evaluate(
        """selector => {
          const element = document.querySelector(selector);
          const rgb = text => text.match(/[\\d.]+/g).map(Number);
          let ground = element;
          while (ground && rgb(getComputedStyle(ground).backgroundColor)[3] === 0)
            ground = ground.parentElement;
          const style = getComputedStyle;
          const colours = [style(element).color, style(ground).backgroundColor];
          return colours.map(rgb);
        }""",
        selector,
    )

    def luminance(colour: list[float]) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (value / 255 for value in colour[:3])
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, pair))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
def test_search_finds_clip_fraction(read: Any) -> None:
    reader = read()
    page = reader.open("search.html", "?q=clip+fraction")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").all_text_contents()
    assert any("PPO" in title for title in found), found
    assert not reader.wrong


@pytest.mark.slow
def test_the_keyboard_is_enough(read: Any) -> None:
    """The first stop skips the navigation; from there the text's links come in order, visibly."""
    page = read().open("index.html")
    page.keyboard.press("Tab")
    assert "main" in page.evaluate(
        "document.activeElement.getAttribute('href') ?? document.activeElement.textContent"
    )
    seen = []
    for _ in range(120):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.href ?? ''"))
        if seen[-1].endswith("notebooks/06_before_and_after.html") and page.evaluate(
            "document.activeElement.closest('main') !== null"
        ):
            break
    else:
        pytest.fail(f"the landing page's links are not reached by Tab: {seen}")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_the_film_moves(read: Any, width: int) -> None:
    reader = read(width=width)
    page = reader.open("film.html")
    films = film_data.films()

    def answers() -> list[str]:
        return page.locator("#film .answers li span").all_text_contents()

    first = films[0]["runs"][films[0]["opens"]]
    assert answers() == first["looks"][0]["answers"][:6]
    page.focus("#film-step")
    page.keyboard.press("End")
    assert answers() == first["looks"][-1]["answers"][:6]
    assert f"{first['looks'][-1]['means'][0]:.2f}" in page.inner_text("#film .numbers")
    page.click("#film-more")
    assert answers() == first["looks"][-1]["answers"][6:12]
    (pushed,) = (i for i, f in enumerate(films) if f["name"].endswith("and a gold"))
    page.select_option("#film-group", str(pushed))
    page.focus("#film-run")
    page.keyboard.press("End")
    page.focus("#film-step")
    page.keyboard.press("End")
    last = films[pushed]["runs"][-1]
    weight = page.locator("#film .numbers div", has_text="KL weight")
    assert weight.locator("dd").inner_text() == f"{last['weight']:g}" == "0"
    assert answers() == last["looks"][-1]["answers"][:6]
    shown = page.inner_text("#film")
    assert last["looks"][-1]["opening"] in shown and last["name"] in shown
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not reader.wrong


def test_no_session_of_a_teachers_plan_is_too_long_and_the_landing_page_counts_the_plans() -> None:
    course = lessons.read_lessons(ROOT / "notebooks", (ROOT / "README.md").read_text("utf-8"))
    template = jinja2.Template((ROOT / "site" / "teachers.md").read_text("utf-8"))
    plans = template.render(lessons=course).split("## Plans")[1].split("## ")[0]
    headings = r"^\*\*(\w+) sessions?(?: of two hours|, 90 minutes):"
    _, *parts = re.split(headings, plans, flags=re.M)
    planned = dict(zip(map(str.lower, parts[::2]), parts[1::2], strict=True))
    landing = (ROOT / "site" / "index.md").read_text(encoding="utf-8")
    (promised,) = re.findall(r"Plans for ([\w, ]+) sessions", landing)
    assert re.findall(r"\w+", promised.replace(" and ", " ")) == list(planned)
    one = re.findall(r"^\| (\d+) \|", planned["one"], re.M)
    assert sum(map(int, one)) == 90
    two: list[int] = []
    for session, minutes in re.findall(r"^\| (\d?) ?\| (\d+) \|", planned["two"], re.M):
        two += [0] if session else []
        two[-1] += int(minutes)
    assert two == [120, 120]
    for number, plan in (("five", planned["five"]), ("seven", planned["seven"])):
        rows = re.findall(r"^\| (\d) \| ([\w, ]+) \| (\d+) \+ (\d+) \|", plan, re.M)
        assert [int(row[0]) for row in rows] == list(range(1, {"five": 6, "seven": 8}[number]))
        for _, named, reading, exercises in rows:
            assert int(reading) + int(exercises) <= 120, (number, named)
            of = [one for one in course if one.number.lstrip("0") in named.split(", ")]
            assert sum(one.minutes for one in of) == int(reading), "the notebooks that are named"


def test_the_teachers_exercises_are_the_notebooks() -> None:
    page = (ROOT / "site" / "teachers.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (\w+) \| [^|]+ \| (\d), `(\w+)` \| [^|]+ \|$", page, re.M)
    assert len(named) == 12
    for number, place, exercise in named:
        (path,) = (p for p in NOTEBOOKS if p.name.lstrip("0").startswith(f"{number}_"))
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if not lessons.is_solution(cell))
        assert re.findall(r'check\("(\w+)"', code)[int(place) - 1] == exercise, number
