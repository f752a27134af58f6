"""The notebooks as committed, and as they run: `tiny`, and `dlite` on look-alikes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest
from bs4 import BeautifulSoup
from support import ROOT, lookalikes
from support.scripts import load_script

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.feedback import load_feedback

sys.path.append(str(ROOT / "site"))
import lessons

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RESULTS = ROOT / "notebooks" / "results" / "smollm2"


def code_cells(path: Path) -> list[Any]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


BY_HAND = [path for path in NOTEBOOKS if path.name[2] == "b"]
"""Those on small policies, and the clinic, which reads logs: they load no preset."""


def test_there_are_ten_and_three_without_a_model() -> None:
    numbers = [f"{i:02d}" for i in range(1, 11)]
    assert [p.name[:2] for p in NOTEBOOKS if p not in BY_HAND] == numbers
    assert [p.name[:4] for p in BY_HAND] == ["03b_", "05b_", "08b_"]
    assert [p.name for p in NOTEBOOKS] == sorted(p.name for p in NOTEBOOKS), "the order they run in"


def test_committed_notebook_is_executed_top_to_bottom(path: Path) -> None:
    cells = code_cells(path)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
    assert any(o.output_type != "stream" for c in cells for o in c.outputs)


def test_committed_outputs_hold_no_path_widget_or_stray_warning(path: Path) -> None:
    outputs = json.dumps([c.outputs for c in code_cells(path)])
    assert not re.findall(r"/(?:root|home|work|tmp|Users)/[\w.-]+|[A-Z]:\\\\+Users", outputs)
    assert "widget-view" not in outputs
    assert "Warning" not in outputs
    assert "widgets" not in nbformat.read(path, as_version=4).metadata


def test_every_picture_has_its_caption_as_alternative_text(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    if path.name[:2] in ("09", "10"):  # their committed outputs are from before
        load_script("run_notebooks").describe_pictures(notebook)
    described = {
        index: output.metadata["image/png"].get("alt")
        for index, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    }
    assert described == lessons.captions(notebook) and all(described.values())
    page = BeautifulSoup(load_script("run_notebooks").as_html(notebook), "html.parser")
    assert [picture["alt"] for picture in page.select("img")] == list(described.values())


def test_first_cell_installs_from_the_projects_repository(path: Path) -> None:
    first = code_cells(path)[0].source
    assert first == code_cells(NOTEBOOKS[0])[0].source
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert f'REPOSITORY = "{urls["Repository"]}"' in first


def test_committed_outputs_come_from_the_default_preset(path: Path) -> None:
    if path in BY_HAND:
        assert not any("preset" in c.source for c in code_cells(path))
        return
    text = json.dumps([c.outputs for c in code_cells(path)])
    assert "preset smollm2" in text
    assert "preset tiny" not in text


def test_solutions_are_folded_follow_their_exercise_and_are_right() -> None:
    found = set()
    for notebook in NOTEBOOKS:
        cells = code_cells(notebook)
        for cell, before in zip(cells[1:], cells, strict=False):
            if "solution" not in cell.metadata.get("tags", []):
                continue
            assert (
                cell.metadata["jupyter"]["source_hidden"] and "hide-input" in cell.metadata["tags"]
            )
            if "check(" not in cell.source:  # the solution is used, and folded away with it
                assert "solution" in before.metadata.tags
                continue
            (exercise,) = re.findall(r"check\(\"(\w+)\"", cell.source)
            assert f'check("{exercise}"' in before.source, "the reader's own is the cell before"
            assert cell.outputs[0].data["text/plain"].startswith("Right. ")
            assert before.outputs[0].data["text/plain"].startswith("Not yet. ")
            found.add((notebook, exercise))
    having = {notebook for notebook, _ in found}
    assert having >= {*NOTEBOOKS[:2], *BY_HAND}
    for notebook in having:
        assert len([name for of, name in found if of == notebook]) >= 3
    step = {"full_kl", "rewards_per_token", "gae", "policy_loss"}
    assert step <= {name for _, name in found}, "the heart of a step is written by hand"


def test_guesses_are_asked_for_before_they_are_answered() -> None:
    for notebook in NOTEBOOKS:
        sources = [cell.source for cell in code_cells(notebook)]
        asked = [i for i, source in enumerate(sources) if source.startswith("guess = None")]
        answers = [i for i, source in enumerate(sources) if "reveal(" in source]
        assert len(asked) >= 3
        assert all(any(i < answer for answer in answers) for i in asked)
        assert min(answers) > min(asked)


def test_heads_state_the_readmes_times_and_the_outcomes() -> None:
    """A head may say more, as on what machine."""
    for lesson in lessons.read_lessons(
        ROOT / "notebooks", (ROOT / "README.md").read_text(encoding="utf-8")
    ):
        head = lesson.notebook.cells[0].source
        assert len(lesson.goals) >= 3, lesson.number
        assert f"{lesson.takes} to run" in head, lesson.number


def test_a_page_folds_the_solutions_away() -> None:
    page = load_script("run_notebooks").as_html(nbformat.read(BY_HAND[0], as_version=4))
    folded = re.findall(r"<details><summary>A solution</summary>(.*?)</details>", page, re.DOTALL)
    shown = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert len(folded) >= 3
    assert "gae_solution" in folded[-1].replace("</span>", "") and "gae_solution" not in shown
    assert "my_gae" in shown


def test_committed_results_come_from_this_code() -> None:
    """If this fails after a change that alters results: make render."""
    committed = (RESULTS / "code.sha256").read_text(encoding="utf-8").strip()
    assert committed == load_script("fingerprint").Fingerprint().hash()


def test_the_page_of_results_states_the_committed_ones() -> None:
    script = load_script("update_results")
    assert script.results_section() in script.PAGE.read_text(encoding="utf-8")


def test_the_committed_reading_is_that_of_the_graded_answers() -> None:
    rows = load_feedback(resolve(Bundled("feedback")) / "reading.jsonl")
    reading = json.loads((RESULTS / "reading.json").read_text(encoding="utf-8"))
    again = load_script("reading").report(rows, reading["temperatures"])
    assert json.loads(json.dumps(again)) == reading
    test = load_script("feedback").prompts_of("test")
    assert sorted(row["prompt"] for row in rows) == sorted(test)


def test_the_temperatures_that_are_called_best_are_those_of_the_validation_readings() -> None:
    folder, script = resolve(Bundled("feedback")), load_script("reading")
    best: dict[str, float] = {}
    for path in sorted(folder.glob("temperatures-*.jsonl")):
        best |= script.best_temperatures(load_feedback(path))
    reading = json.loads((RESULTS / "reading.json").read_text(encoding="utf-8"))
    assert reading["temperatures"] == {key: best[key] for key in reading["temperatures"]}


def test_committed_comparison_adds_up_to_the_committed_results() -> None:
    from rlhf_tutorial.evaluation.compare import load_table, summarise

    results = json.loads((RESULTS / "results.json").read_text(encoding="utf-8"))["comparison"]
    table = load_table(RESULTS / "comparison.csv")
    for key, value in summarise(table).items():
        assert results[key] == pytest.approx(value), key
    for key, value in summarise(table, "second").items():
        assert results["second"][key] == pytest.approx(value), key


def run_all(environment: dict[str, str], runs: Path) -> list[Path]:
    """Execute all notebooks in a process of its own, as `make tutorial` does."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RLHF_")}
    if cache := os.environ.get("RLHF_TUTORIAL_CACHE"):
        clean["RLHF_TUTORIAL_CACHE"] = cache
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "run_notebooks.py")],
        env=clean | environment | {"RLHF_RUNS": str(runs)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Win rate of the trained policy" in done.stdout
    folder = runs / environment["RLHF_PRESET"]
    for notebook in NOTEBOOKS:
        assert (folder / notebook.name).exists()
        assert (folder / f"{notebook.stem}.html").exists()
    return [folder / notebook.name for notebook in NOTEBOOKS]


@pytest.mark.slow
def test_all_run_on_tiny(tmp_path: Path) -> None:
    executed = run_all({"RLHF_PRESET": "tiny"}, tmp_path)
    for path in executed:
        assert all(c.execution_count for c in code_cells(path))
    left = {p.name for p in (tmp_path / "tiny").iterdir()}
    assert {"policy", "stats.jsonl", "comparison.csv", "perplexity.json", "results.json"} <= left


@pytest.mark.slow
def test_all_run_on_lookalikes_of_the_original(tmp_path: Path) -> None:
    paths = lookalikes.make(tmp_path / "hub")
    environment = {
        "RLHF_PRESET": "dlite",
        "RLHF_POLICY": str(paths["policy"]),
        "RLHF_REWARD_MODEL": str(paths["reward_model"]),
        "RLHF_SECOND_JUDGE": str(paths["second_judge"]),
        "RLHF_DATA": str(paths["data"]),
        "RLHF_TUTORIAL_CACHE": str(tmp_path / "cache"),  # no course weights: nothing is fetched
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
    }
    run_all(environment, tmp_path / "runs")
    results = json.loads((tmp_path / "runs" / "dlite" / "results.json").read_text())
    assert results["training"]["steps"] > 0
