"""A session: every choice on the disk, back, repeats with swapped sides, and taking up again."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from support import ROOT
from support.labelling import PAIRS, good_side, session

from rlhf_tutorial.errors import DataError
from rlhf_tutorial.human import labelling
from rlhf_tutorial.human.labels import Label, append_label, load_labels


def test_each_choice_is_on_the_disk_at_once_by_the_answers_name(tmp_path: Path) -> None:
    labelled = session(tmp_path)
    for n in range(1, 8):
        labelled.choose(good_side(labelled))
        on_disk = load_labels(tmp_path / "labels.jsonl")
        assert on_disk == labelled.labels and len(on_disk) == n
        assert on_disk[-1].choice == "a" and on_disk[-1].pair == PAIRS[n - 1]
    assert {label.left for label in labelled.labels} == {"a", "b"}
    labelled.choose("left")
    labelled.choose("right")
    left, right = labelled.labels[-2:]
    assert left.choice == left.left and right.choice != right.left
    labelled.choose("tie")
    assert labelled.labels[-1].choice == "tie"


def test_a_tenth_comes_again_later_with_sides_swapped(tmp_path: Path) -> None:
    labelled = session(tmp_path)
    assert labelled.total == 24 + 2
    while labelled.current is not None:
        labelled.choose(good_side(labelled))
    labels = labelled.labels
    repeats = [i for i, label in enumerate(labels) if label.repeat]
    assert repeats == [10, 21] and len(labels) == labelled.done == labelled.total == 26
    for i in repeats:
        (first,) = [
            j for j, label in enumerate(labels[:i])
            if label.pair == labels[i].pair and not label.repeat
        ]  # fmt: skip
        assert i - first > labelling.FORGOTTEN
        assert labels[i].left != labels[first].left
    assert labels[10].pair != labels[21].pair


def test_a_limit_counts_answers_and_no_skipped_pair(tmp_path: Path) -> None:
    labelled = session(tmp_path, limit=5, repeats=False)
    for what in ("skip", "left", "skip", "tie", "right", "left"):
        labelled.choose(what)
    assert (labelled.done, labelled.total) == (4, 5)
    labelled.choose("left")
    assert labelled.current is None and labelled.done == 5
    with pytest.raises(DataError, match="nothing left to choose"):
        labelled.choose("left")


def test_when_all_else_is_skipped_the_total_says_so(tmp_path: Path) -> None:
    labelled = session(tmp_path, pairs=PAIRS[:3], limit=3)
    labelled.choose("skip")
    assert labelled.total == 2
    labelled.choose("left")
    labelled.choose("left")
    assert labelled.current is None


def test_a_word_that_is_no_choice_changes_nothing(tmp_path: Path) -> None:
    labelled = session(tmp_path)
    with pytest.raises(DataError, match="'middle' is no choice: use one of left, right, tie, skip"):
        labelled.choose("middle")
    assert labelled.labels == [] and not labelled.path.exists()


@pytest.mark.parametrize("stop", [0, 3, 10, 11, 15])
def test_another_session_goes_on_where_one_was_killed(stop: int, tmp_path: Path) -> None:
    """Nothing is told to the second session but the file."""
    whole = session(tmp_path / "whole")
    order = []
    while whole.current is not None:
        order.append(whole.current)
        whole.choose(good_side(whole))
    killed = session(tmp_path / "killed")
    shown = []
    for _ in range(stop):
        shown.append(killed.current)
        killed.choose(good_side(killed))
    resumed = session(tmp_path / "killed")
    assert resumed.done == stop
    while resumed.current is not None:
        shown.append(resumed.current)
        resumed.choose(good_side(resumed))
    assert shown == order


def test_a_kill_while_a_line_is_written_costs_that_choice_alone(tmp_path: Path) -> None:
    killed = session(tmp_path)
    for _ in range(3):
        killed.choose("left")
    content = killed.path.read_bytes()
    killed.path.write_bytes(content[:-20])
    resumed = session(tmp_path)
    assert resumed.labels == killed.labels[:2]
    assert resumed.current is not None and resumed.current.pair == killed.labels[2].pair
    resumed.choose("right")
    assert load_labels(resumed.path) == resumed.labels and len(resumed.labels) == 3


def test_back_takes_the_last_choice_back_and_shows_its_pair_as_it_was(tmp_path: Path) -> None:
    labelled = session(tmp_path)
    assert not labelled.back()
    shown = []
    for _ in range(12):  # the eleventh is a repeat
        shown.append(labelled.current)
        labelled.choose(good_side(labelled))
    for n in range(12, 0, -1):
        assert labelled.back()
        assert labelled.current == shown[n - 1]
        assert load_labels(labelled.path) == labelled.labels and len(labelled.labels) == n - 1
    assert not labelled.back()
    again = [labelled.current]
    for _ in range(11):
        labelled.choose("tie")
        again.append(labelled.current)
    assert again == shown


def test_back_after_a_restart_leaves_others_labels_alone(tmp_path: Path) -> None:
    mine, others = session(tmp_path), session(tmp_path, rater="friend")
    mine.choose("left")
    others.choose("right")
    resumed = session(tmp_path)
    assert resumed.back() and not resumed.back()
    assert load_labels(mine.path) == others.labels


def test_a_session_counts_its_own_pairs_rater_and_purpose(tmp_path: Path) -> None:
    session(tmp_path, pairs=PAIRS[:4]).choose("left")
    assert session(tmp_path, pairs=PAIRS[4:]).done == 0
    assert session(tmp_path, rater="friend").done == 0
    assert session(tmp_path, purpose="blind test").done == 0
    assert session(tmp_path).done == 1


def test_the_next_pair_is_chosen_by_what_is_known_among_what_is_left(tmp_path: Path) -> None:
    seen = []

    def last(labels: list, pairs: list) -> int:
        seen.append((len(labels), len(pairs)))
        return len(pairs) - 1

    labelled = session(tmp_path, pairs=PAIRS[:5], next_pair=last)
    while labelled.current is not None:
        labelled.choose("left")
    assert [label.pair for label in labelled.labels] == PAIRS[4::-1]
    assert seen == [(0, 5), (1, 4), (2, 3), (3, 2), (4, 1)]


def test_sides_are_drawn_evenly_from_the_seed(tmp_path: Path) -> None:
    def sides(folder: str, seed: int) -> list[str]:
        labelled = session(tmp_path / folder, seed=seed, repeats=False)
        while labelled.current is not None:
            labelled.choose("tie")
        return [label.left for label in labelled.labels]

    assert sides("one", 0) == sides("again", 0) != sides("two", 1)
    drawn = [side for seed in range(10) for side in sides(f"many {seed}", seed)]
    assert 90 < drawn.count("a") < 150  # of 240; three standard deviations are 23


def test_a_label_that_cannot_be_written_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = session(tmp_path)
    shown = labelled.current

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labelling, "append_label", full)
    with pytest.raises(OSError, match="No space"):
        labelled.choose("left")
    assert labelled.current == shown and labelled.labels == []
    monkeypatch.setattr(labelling, "append_label", append_label)
    labelled.choose("left")
    assert load_labels(labelled.path) == labelled.labels


def test_seconds_are_those_since_the_pair_was_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(labelling.time, "monotonic", lambda: clock[0])
    labelled = session(tmp_path)
    for wait in (2.5, 4.0):
        clock[0] += wait
        labelled.choose("left")
    labelled.back()
    clock[0] += 1.25
    labelled.choose("left")
    assert [label.seconds for label in labelled.labels] == [2.5, 1.25]


def test_a_pair_that_waits_while_its_rater_chooses_elsewhere_makes_nobody_two_raters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two widgets in one notebook: the first still shows a pair when the second is done."""
    clock = [100.0]
    monkeypatch.setattr(labelling.time, "monotonic", lambda: clock[0])
    first = session(tmp_path, pairs=PAIRS[:4])
    second = session(tmp_path, pairs=PAIRS[4:6], purpose="blind test")
    clock[0] += 60
    second.choose("left")
    second.choose("left")
    first.choose("left")
    labels = load_labels(tmp_path / "labels.jsonl")  # no "chose in two places at once"
    assert len(labels) == 3 and labels[2].seconds < 1


def test_a_pair_that_was_answered_in_another_window_is_not_answered_twice(tmp_path: Path) -> None:
    one, other = session(tmp_path), session(tmp_path)
    one.choose("left")
    with pytest.raises(DataError, match="in another window: start this session again"):
        other.choose("right")
    assert load_labels(one.path) == one.labels
    assert session(tmp_path).done == 1


# The page -------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "labelling.md").read_text(encoding="utf-8")


def test_the_page_names_every_key_of_a_label() -> None:
    table = PAGE.split("| key | |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:]))
    assert named == [field.name for field in fields(Label)]


def test_the_pages_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_PRESET", "tiny")
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda _: "t")
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile(code, "labelling.md", "exec"), {})
    assert len(load_labels(tmp_path / "tiny" / "human" / "labels.jsonl", "tiny, untouched")) == 44
