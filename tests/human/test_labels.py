"""Labels on the disk: what is written is read, whatever happened to the file in between."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.assets import Hub
from rlhf_tutorial.errors import DataError, ModelError
from rlhf_tutorial.human.labels import (
    Label,
    Pair,
    append_label,
    labels_path,
    load_labels,
    load_pairs,
    policy_name,
    take_back_label,
    untouched_pairs,
)

TINY = replace(load_preset("tiny"), prompts=16)
FIRST = Label(
    prompt="Name a\u2028fruit.",
    a="An apple.\n",
    b="Ein Apfel \u00e4",
    left="b",
    choice="a",
    seconds=2.5,
    time="2026-01-01T10:00:10+00:00",
    rater="you",
    policy="tiny, untouched",
)
SECOND = replace(FIRST, prompt="Name a tree.", choice="tie", time="2026-01-01T10:00:20+00:00")


def written(path: Path, *labels: Label) -> Path:
    for label in labels:
        append_label(path, label)
    return path


def test_labels_come_back_as_they_were_one_object_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "human" / "labels.jsonl", FIRST, SECOND)
    assert load_labels(path) == [FIRST, SECOND]
    lines = path.read_bytes().decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [asdict(FIRST), asdict(SECOND)]
    assert lines[-1] == ""
    assert load_labels(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("left", [1, 40, -3])
def test_a_last_line_cut_short_costs_that_line_alone(
    left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "labels.jsonl", FIRST)
    whole = path.read_bytes()
    append_label(path, SECOND)
    path.write_bytes(path.read_bytes()[: len(whole) + left if left > 0 else left])
    with caplog.at_level(logging.WARNING):
        assert load_labels(path) == [FIRST]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: line 2 is cut short and left out; the rest is kept"
    ]
    append_label(path, SECOND)
    assert load_labels(path) == [FIRST, SECOND]


def test_a_line_whose_end_alone_was_cut_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.jsonl", FIRST)
    path.write_bytes(path.read_bytes()[:-1])
    append_label(path, SECOND)
    assert load_labels(path) == [FIRST, SECOND]


def test_a_file_cut_within_a_letter_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.jsonl", SECOND, FIRST)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex("\u00e4".encode()) + 1])
    assert load_labels(path) == [SECOND]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": "left"}, "line 2: choice is 'left': mend it to one of a, b, tie, skip"),
        ({"left": "right"}, "line 2: left is 'right': mend it to one of a, b"),
        ({"time": "noon"}, "line 2: time is 'noon'"),
        ({"time": "2026-01-01T10:00:10"}, "with its zone"),
        ({"time": "0001-01-01T00:00:00+00:00"}, "line 2: time is '0001-01-01"),  # no second before
        ({"seconds": -1.0}, "and seconds -1.0"),
        ({"seconds": float("nan")}, "and seconds nan"),
        ({"seconds": True}, "line 2: 'seconds' is True"),
        ({"rater": 5}, "line 2: 'rater' is 5"),
        ({"repeat": "no"}, "line 2: 'repeat' is 'no'"),
    ],
)
def test_what_is_no_label_is_told_in_one_line_and_the_file_stays(
    change: dict, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "labels.jsonl", FIRST, replace(SECOND, **change))
    before = path.read_bytes()
    with pytest.raises(DataError) as raised:
        load_labels(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert path.read_bytes() == before


def test_a_line_without_a_field_or_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"prompt": "p"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 1 has no 'a'"):
        load_labels(path)
    path.write_text("\n[1]\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 is no label"):
        load_labels(path)
    with pytest.raises(DataError, match="cannot read"):
        load_labels(tmp_path)


def test_labels_of_another_policy_are_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.jsonl", FIRST, replace(SECOND, policy="org/other, untouched"))
    assert len(load_labels(path)) == 2
    assert len(load_labels(path, [FIRST.policy, "org/other, untouched"])) == 2
    with pytest.raises(DataError, match="1 of 2 labels are about answers of 'org/other"):
        load_labels(path, FIRST.policy)


def test_two_raters_under_one_name_are_noticed(tmp_path: Path) -> None:
    at_once = replace(SECOND, seconds=12.0)  # began before the first was chosen
    with pytest.raises(DataError, match="'you' chose in two places at once"):
        load_labels(written(tmp_path / "at_once.jsonl", FIRST, at_once))
    # Whichever is called a: another run of the sampler may have the answers the other way round.
    swapped = replace(FIRST, a=FIRST.b, b=FIRST.a, time=SECOND.time)
    with pytest.raises(DataError, match="'you' answered a pair twice"):
        load_labels(written(tmp_path / "twice.jsonl", FIRST, swapped))
    for number, fine in enumerate(
        (
            replace(swapped, repeat=True),
            replace(swapped, rater="friend"),
            replace(swapped, purpose="blind test"),
            replace(swapped, choice="skip"),
            replace(at_once, rater="friend"),
            replace(SECOND, seconds=10.5),  # a clock that was set by half a second
        )
    ):
        assert load_labels(written(tmp_path / f"{number}.jsonl", FIRST, fine)) == [FIRST, fine]


def test_a_label_is_taken_back_and_every_other_byte_stays(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.jsonl", FIRST)
    path.write_bytes(path.read_bytes() + b'{"prompt": "cut')
    damaged = path.read_bytes()
    append_label(path, SECOND)
    take_back_label(path, SECOND)
    assert path.read_bytes() == damaged + b"\n"
    with pytest.raises(DataError, match="no such label any more"):
        take_back_label(path, SECOND)
    assert load_labels(path) == [FIRST]


def test_a_label_is_taken_back_however_its_line_is_written(tmp_path: Path) -> None:
    """Another program may have written the file anew."""
    path = written(tmp_path / "labels.jsonl", SECOND)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(FIRST), sort_keys=True) + "\r\n")
    take_back_label(path, FIRST)
    assert load_labels(path) == [SECOND]


def test_of_two_equal_lines_the_last_is_taken_back(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.jsonl", FIRST, SECOND, FIRST)
    take_back_label(path, FIRST)
    assert load_labels(path) == [FIRST, SECOND]


# Pairs ----------------------------------------------------------------------------------------


def test_untouched_pairs_are_different_answers_to_training_prompts_and_stay(tmp_path: Path) -> None:
    run = Run(TINY, tmp_path)
    pairs = untouched_pairs(run, 18, seed=1)
    assert len(pairs) == 18 and all(pair.a != pair.b for pair in pairs)
    prompts = [pair.prompt for pair in pairs]
    assert set(prompts) == set(run.queries("train")["query"]), "16 prompts, all before any again"
    assert len({pair.key for pair in pairs}) == 18

    def refuse(*_: object) -> None:
        raise AssertionError("sampled again")

    run.load_policy = refuse  # type: ignore[method-assign]
    assert untouched_pairs(run, 18, seed=1) == pairs
    assert untouched_pairs(Run(TINY, tmp_path / "elsewhere"), 18, seed=1) == pairs
    assert untouched_pairs(Run(TINY, tmp_path / "elsewhere"), 18, seed=2) != pairs


def test_pairs_are_answers_at_the_runs_temperature(tmp_path: Path) -> None:
    """Nearly cold, both answers to a prompt are the same, and there is no pair."""
    cold = replace(TINY, ppo={**TINY.ppo, "temperature": 1e-4})
    with pytest.raises(DataError, match="raise the preset's temperature"):
        untouched_pairs(Run(cold, tmp_path), 4)


def test_damaged_pairs_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "p", "a": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="delete it, and others are drawn"):
        load_pairs(path)
    assert Pair("p", "x", "y").key == Pair("p", "y", "x").key != Pair("q", "x", "y").key


def test_a_policy_is_named_by_its_source_and_once_trained_by_its_weights(tmp_path: Path) -> None:
    run = Run(TINY, tmp_path)
    assert policy_name(run) == "tiny, untouched"
    other = Run(replace(TINY, policy=Hub("org/name")), tmp_path / "other")
    assert policy_name(other) == "org/name, untouched"
    policy = run.load_policy()
    policy.save_pretrained(tmp_path / "policy")
    name = policy_name(run, tmp_path / "policy")
    policy.v_head.weight.data.add_(1)
    policy.save_pretrained(tmp_path / "again")
    assert name.startswith("tiny, trained (")
    assert policy_name(run, tmp_path / "again") != name
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    with pytest.raises(ModelError, match="no weights in .*pickled"):
        policy_name(run, pickled)
    names = set()
    for content in (b"one", b"two"):
        (pickled / "pytorch_model.bin").write_bytes(content)
        names.add(policy_name(run, pickled))
    assert len(names) == 2
    assert labels_path(run) == tmp_path / "human" / "labels.jsonl"
