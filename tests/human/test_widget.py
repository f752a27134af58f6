"""The widget by its buttons, as a click sends it, and the terminal by scripted answers."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from support.labelling import PAIRS, good_side, session

from rlhf_tutorial.errors import TutorialError
from rlhf_tutorial.human import labelling, widget
from rlhf_tutorial.human.labelling import Session
from rlhf_tutorial.human.labels import Pair, load_labels
from rlhf_tutorial.human.terminal import label_in_terminal
from rlhf_tutorial.human.widget import LabellingWidget, start_labelling


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabellingWidget:
    """A widget whose reader takes a second for each pair."""
    monkeypatch.setattr(Session, "seconds", 1.0)
    return LabellingWidget(session(tmp_path))


def text_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_a_click_is_a_label_on_the_disk_and_the_next_pair(shown: LabellingWidget) -> None:
    path = shown.session.path
    for n in range(5):
        assert text_of(shown.prompt.value) == f"Prompt {n}?"
        left, right = (text_of(shown.texts[side].value) for side in ("left", "right"))
        assert {left, right} == {f"LeftGood answer {n}.", f"RightBad answer {n}."} or {
            left, right} == {f"LeftBad answer {n}.", f"RightGood answer {n}."}  # fmt: skip
        assert text_of(shown.status.value) == f"{n} of 26" and shown.progress.value == n
        shown.buttons[good_side(shown.session)].click()
        assert [label.choice for label in load_labels(path)] == ["a"] * (n + 1)
    shown.buttons["tie"].click()
    shown.buttons["skip"].click()
    assert [label.choice for label in load_labels(path)][5:] == ["tie", "skip"]
    assert shown.progress.value == 6 and text_of(shown.status.value) == "6 of 25"


def test_back_is_there_after_the_first_choice(shown: LabellingWidget) -> None:
    assert shown.buttons["back"].disabled
    shown.buttons["left"].click()
    assert not shown.buttons["back"].disabled
    shown.buttons["back"].click()
    assert shown.buttons["back"].disabled and text_of(shown.prompt.value) == "Prompt 0?"
    assert load_labels(shown.session.path) == []


def test_at_the_end_the_widget_says_how_it_went_and_back_still_works(
    shown: LabellingWidget,
) -> None:
    for _ in range(26):
        shown.buttons[good_side(shown.session)].click()
    told = text_of(shown.prompt.value)
    assert "26 choices" in told and "2 of 2 times, 100%" in told and "labels.jsonl" in told
    assert shown.answers.layout.display == "none" and shown.buttons["tie"].disabled
    shown.buttons["left"].click()  # hidden, and without effect
    assert len(load_labels(shown.session.path)) == 26
    shown.buttons["back"].click()
    assert shown.answers.layout.display is None and not shown.buttons["tie"].disabled
    assert len(load_labels(shown.session.path)) == 25


def test_the_second_click_of_a_double_click_is_no_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(labelling.time, "monotonic", lambda: clock[0])
    shown = LabellingWidget(session(tmp_path))
    clock[0] = 5.0
    shown.buttons["left"].click()
    clock[0] = 5.2
    shown.buttons["left"].click()
    assert len(shown.session.labels) == 1
    clock[0] = 5.2 + widget.DOUBLE_CLICK
    shown.buttons["left"].click()
    assert len(shown.session.labels) == 2


def test_text_is_shown_as_text(tmp_path: Path) -> None:
    pair = Pair("<b>Is 1 < 2?</b>", "<script>alert(1)</script>", "  ")
    shown = LabellingWidget(session(tmp_path, pairs=[pair]))
    html = shown.prompt.value + shown.texts["left"].value + shown.texts["right"].value
    assert "<b>" not in html and "<script>" not in html and "(empty)" in html
    assert text_of(shown.prompt.value) == pair.prompt


def test_a_full_disk_is_told_and_the_pair_stays(
    shown: LabellingWidget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labelling, "append_label", full)
    shown.buttons["left"].click()
    assert "Not written down (No space left on device)" in shown.status.value
    assert text_of(shown.prompt.value) == "Prompt 0?" and shown.session.labels == []
    shown.session.path.unlink(missing_ok=True)
    monkeypatch.undo()
    monkeypatch.setattr(Session, "seconds", 1.0)
    shown.buttons["left"].click()
    shown.session.path.write_text("", encoding="utf-8")  # somebody emptied it
    shown.buttons["back"].click()
    assert "no such label any more" in shown.status.value


def test_only_what_ipywidgets_7_and_8_have_in_common_is_used() -> None:
    source = Path(widget.__file__).read_text(encoding="utf-8")
    used = set(re.findall(r"widgets\.(\w+)\(", source))
    assert used == {"HTML", "Button", "VBox", "HBox", "IntProgress", "Layout"}
    assert "icon" not in source and "layout.gap" not in source and "gap=" not in source


# The terminal ---------------------------------------------------------------------------------


class Scripted:
    """What a reader types, and what is said."""

    def __init__(self, *typed: str) -> None:
        self.typed, self.said = list(typed), ""

    def ask(self, question: str) -> str:
        self.said += question
        if not self.typed:
            raise EOFError
        return self.typed.pop(0)

    def say(self, text: str) -> None:
        self.said += text + "\n"


def run(labelled: Session, *typed: str) -> str:
    reader = Scripted(*typed)
    label_in_terminal(labelled, reader.ask, reader.say)
    return reader.said


def test_the_terminal_takes_letters_and_words(tmp_path: Path) -> None:
    labelled = session(tmp_path)
    said = run(labelled, "l", " RIGHT ", "what?", "", "t", "s", "q")
    choices = [label.choice for label in load_labels(labelled.path)]
    assert choices[2:] == ["tie", "skip"]
    assert [label.choice == label.left for label in labelled.labels[:2]] == [True, False]
    assert "1 of 26   Prompt 0?" in said and "4 of 25" not in said.split("Prompt 3?")[0]
    assert "Stopped at 3 of 25" in said


def test_the_terminal_goes_back_and_ends_with_the_report(tmp_path: Path) -> None:
    labelled = session(tmp_path, pairs=PAIRS[:2])
    said = run(labelled, "b", "t", "b", "l", "r")
    assert "This is the first pair." in said
    assert [label.choice for label in labelled.labels] != ["tie", "tie"]
    assert "2 choices, 0 of them ties; 0 pairs skipped." in said
    assert run(labelled).startswith("\n2 choices")


@pytest.mark.parametrize("stop", [EOFError, KeyboardInterrupt])
def test_leaving_the_terminal_keeps_what_was_chosen(stop: type, tmp_path: Path) -> None:
    typed = iter(["t", "t"])

    def ask(_: str) -> str:
        for word in typed:
            return word
        raise stop

    label_in_terminal(session(tmp_path), ask, lambda text: None)
    assert len(load_labels(tmp_path / "labels.jsonl")) == 2
    assert session(tmp_path).done == 2


def test_the_terminal_shows_no_control_characters(tmp_path: Path) -> None:
    pair = Pair("p", "red \x1b[31m text\nsecond line", "word " * 40)
    said = run(session(tmp_path, pairs=[pair]))
    assert "\x1b" not in said and "second line" in said
    assert max(map(len, said.splitlines())) <= 100


def test_a_full_disk_ends_the_terminal_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labelling, "append_label", full)
    with pytest.raises(TutorialError, match="No space left on device.*all earlier labels are"):
        run(session(tmp_path), "l")


def test_without_a_notebook_the_terminal_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "q")
    assert start_labelling(session(tmp_path)) is None
    assert "Stopped at 0 of 26" in capsys.readouterr().out
