"""What no one would write: the parser, the row loader and what takes names from outside, fuzzed.

An input is one text, one row of a file, one damaged file, or one set of arguments. An ordinary run
tries 7,150 of them, 5,400 on parser and loader, and the same ones each time. RLHF_FUZZ=100000
tries more than so many, others each time.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.dialogues import dialogue
from support.models import VOCABULARY
from support.wheels import SOURCE, wheel_bytes

from rlhf_tutorial import __main__ as command_line
from rlhf_tutorial.assets import Bundled, Hub, _extract, as_source, cache_dir, resolve
from rlhf_tutorial.data import (
    first_prompt,
    last_reply,
    load_preferences,
    parse_dialogue,
    prepare_queries,
)
from rlhf_tutorial.dialogues import dialogue_text
from rlhf_tutorial.errors import AssetError, DataError, RewardError, TutorialError
from rlhf_tutorial.presets import OVERRIDES, PRESETS, load_preset
from rlhf_tutorial.scores import checked_scores
from rlhf_tutorial.template import PromptTemplate

pytestmark = pytest.mark.slow

PLANNED = 5_000
ASKED = int(os.environ.get("RLHF_FUZZ", PLANNED))
INPUTS: dict[str, int] = {}
"""How many inputs each test below tries in an ordinary run."""


def fuzz(inputs: int, per_example: int = 1) -> Callable[[Callable[..., None]], Any]:
    """Settings for so many inputs, which an example may hold several of."""

    def decorate(test: Callable[..., None]) -> Any:
        INPUTS[test.__name__] = inputs
        return settings(
            deadline=None,
            database=None,
            derandomize=ASKED == PLANNED,  # an ordinary run does not depend on luck
            max_examples=max(1, inputs * ASKED // PLANNED // per_example),
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )(test)

    return decorate


@contextlib.contextmanager
def only(*kinds: type[Exception]) -> Iterator[None]:
    """Lets through errors of these kinds that say what is wrong in one line, and no others."""
    said = "nothing"
    try:
        yield
    except kinds as error:
        said = str(error)
    assert len(said.splitlines()) == 1


# Dialogues -----------------------------------------------------------------------------------

MARKER = re.compile("\n\n(?:Human|Assistant):")
# Pieces that make markers, halves of markers, and what a careless parser would take for one.
PIECES = [
    "\n\nHuman:", "\n\nAssistant:", "\n\n", "\n", "Human:", "Assistant:", "\n\nHuman", ":", " ",
    "\r\n\r\nHuman:", "\n\nhuman:", "\n\nSystem:", "text", "\u2028", "\x00", "\u00a0", "{}",
]  # fmt: skip


def texts(pieces: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=pieces).map("".join)


TEXT = texts(12)
WORDS = (
    texts(5)
    .map(lambda text: re.sub("\r+\n", "\n", text).strip())
    .filter(lambda text: not MARKER.search(text))
)
TURNS = st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), WORDS), max_size=6)


def rendered(turns: list[tuple[str, str]]) -> str:
    return "".join(f"\n\n{role}: {text}" for role, text in turns)


def opened(text: str) -> str:
    """The text with a blank line before its first word, if that opens a turn, as all others have.

    A system turn can only come first: its marker is told from the word by what stands for it here.
    """
    text = re.sub("\r+\n", "\n", text)
    if re.match(r"\s*(?:Human|Assistant):", text):
        return "\n\n" + text.lstrip()
    return re.sub(r"^\s*System:", "\n\n<System>:", text)


@fuzz(750)
@given(text=TEXT)
def test_any_text_is_parsed_into_turns_and_loses_nothing_but_space(text: str) -> None:
    turns = parse_dialogue(text)
    marker = re.compile("\n\n(?:Human|Assistant|<System>):")
    assert len(turns) == len(marker.findall(opened(text)))
    for i, (role, said) in enumerate(turns):
        assert role in ("Human", "Assistant") or (role, i) == ("System", 0)
        assert said == said.strip() and not MARKER.search(said)
    assert parse_dialogue(rendered(turns)) == turns
    first = marker.search(opened(text))
    spoken = opened(text)[first.start() :].replace("<System>", "System", 1) if first else ""
    assert "".join(rendered(turns).split()) == "".join(spoken.split())


@fuzz(500)
@given(turns=TURNS, before=WORDS)
def test_any_turns_come_back_from_their_dialogue(turns: list[Any], before: str) -> None:
    assume(not MARKER.search("\n\n" + before + "\n\n") and not before.startswith("System:"))
    assert parse_dialogue(before + rendered(turns)) == turns


@fuzz(500)
@given(turns=st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), TEXT), max_size=6))
def test_any_turns_come_back_from_their_text_whatever_they_hold(turns: list[Any]) -> None:
    """Also where what was said holds a marker: as many turns, and not a letter lost."""
    found = parse_dialogue(dialogue_text(turns))
    assert [role for role, _ in found] == [role for role, _ in turns]
    for (_, said), (_, back) in zip(turns, found, strict=True):
        assert back.split() == said.split()


@fuzz(750)
@given(turns=TURNS)
def test_the_prompt_of_any_dialogue_is_its_first_human_turn(turns: list[Any]) -> None:
    prompt, roles = first_prompt(rendered(turns)), {role for role, _ in turns}
    if roles == {"Human", "Assistant"}:
        human = next(text for role, text in turns if role == "Human")
        assert prompt.split() == human.split() and "\n" not in prompt
    else:
        assert prompt is None


@fuzz(750)
@given(turns=TURNS)
def test_the_last_reply_of_any_dialogue_and_what_led_to_it(turns: list[Any]) -> None:
    found = last_reply(rendered(turns))
    answered = [i for i, (role, _) in enumerate(turns) if role == "Assistant"]
    if answered and answered[-1] > 0 and turns[answered[-1]][1]:
        assert found == (turns[: answered[-1]], turns[answered[-1]][1])
    else:
        assert found is None


# Rows ----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=3), values),
    max_leaves=4,
)
ENCODABLE = TEXT.filter(lambda text: text.isascii() or not re.search("[\ud800-\udfff]", text))
GOOD_ROW = st.fixed_dictionaries(
    {"chosen": st.none() | ENCODABLE}, optional={"rejected": st.none() | ENCODABLE}
)


# Objects that are nearly rows; anything in JSON; anything in bytes; a row cut off.
def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


BAD_LINE = st.one_of(
    st.dictionaries(st.sampled_from(["chosen ", "Chosen", "text"]), JSON, max_size=2).map(dumped),
    JSON.filter(lambda value: not isinstance(value, dict)).map(dumped),
    (st.integers() | st.lists(JSON, max_size=2)).map(lambda value: dumped({"chosen": value})),
    st.builds(lambda row, cut: dumped(row)[: -1 - cut], GOOD_ROW, st.integers(0, 8)),
    st.binary(min_size=1, max_size=20).filter(lambda b: b.strip() and b"\n" not in b),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def written(folder: Path, content: bytes, packed: bool) -> Path:
    for name in ("train.jsonl", "train.jsonl.gz"):
        (folder / name).unlink(missing_ok=True)
    path = folder / ("train.jsonl.gz" if packed else "train.jsonl")
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    return path


@fuzz(750, per_example=5)
@given(
    rows=st.lists(GOOD_ROW, min_size=5, max_size=9),
    end=st.sampled_from([b"\n", b"\r\n", b"\n \n"]),
    ascii_only=st.booleans(),
    packed=st.booleans(),
)
def test_any_rows_are_read_as_they_were_written(
    folder: Path, rows: list[Any], end: bytes, ascii_only: bool, packed: bool
) -> None:
    rows = [*rows, {"chosen": dialogue("one is a dialogue, so all are taken for some")}]
    lines = [json.dumps(row, ensure_ascii=ascii_only).encode() for row in rows]
    written(folder, end.join(lines), packed)
    found = load_preferences(folder)
    assert found["chosen"][:] == [row["chosen"] for row in rows]
    assert found.column_names == list(rows[0])


@fuzz(500, per_example=2)
@given(
    rows=st.lists(GOOD_ROW, min_size=1, max_size=4),
    bad=BAD_LINE,
    place=st.integers(0, 4),
    packed=st.booleans(),
)
def test_any_line_that_is_no_row_is_refused_with_its_number(
    folder: Path, rows: list[Any], bad: bytes, place: int, packed: bool
) -> None:
    lines = [json.dumps(row).encode() for row in rows]
    place = min(place, len(lines))
    path = written(folder, b"\n".join([*lines[:place], bad, *lines[place:]]), packed)
    with pytest.raises(DataError) as error:
        load_preferences(folder)
    message = str(error.value)
    assert message.startswith(f"{path}, line {place + 1}: ") and len(message.splitlines()) == 1


@fuzz(500)
@given(content=st.binary(max_size=200) | st.text(max_size=60).map(lambda t: t.encode("utf-16")))
def test_any_bytes_are_rows_or_an_error_in_one_line(folder: Path, content: bytes) -> None:
    for name in ("train.jsonl", "train.jsonl.gz"):
        path = written(folder, b"", packed=False).with_name(name)
        (folder / "train.jsonl").unlink()
        path.write_bytes(content)
        with only(DataError):
            assert len(load_preferences(folder)) > 0


PACKED = gzip.compress(b'{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b"}\n' * 40, mtime=0)


@fuzz(250)
@given(place=st.integers(0, len(PACKED) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_any_damage_to_a_gzip_is_an_error_or_does_no_harm(
    folder: Path, place: int, value: int, cut: bool
) -> None:
    path = written(folder, b"", packed=True)
    damaged = PACKED[:place] if cut else PACKED[:place] + bytes([value]) + PACKED[place + 1 :]
    path.write_bytes(damaged)
    with only(DataError):
        assert len(load_preferences(folder)) == 40, "neither fewer rows nor others"


BARE = PromptTemplate("{instruction}")
SHORT = st.text("ab \n", max_size=9).map(dialogue)


@fuzz(500, per_example=10)
@given(
    texts=st.lists(st.none() | ENCODABLE | SHORT, min_size=10, max_size=14),
    max_chars=st.integers(1, 9),
    limit=st.none() | st.integers(0, 9),
    context_length=st.none() | st.integers(4, 13),
)
def test_every_row_is_kept_or_counted(
    tokenizer: Any, texts: list[Any], max_chars: int, limit: int | None, context_length: int | None
) -> None:
    assume(all(text is None or not re.search("[\ud800-\udfff]", text) for text in texts))
    rows = datasets.Dataset.from_dict(
        {"chosen": texts}, features=datasets.Features({"chosen": datasets.Value("string")})
    )
    chosen = {"max_chars": max_chars, "limit": limit, "context_length": context_length}
    try:
        queries, report = prepare_queries(rows, BARE.bind(tokenizer), max_new_tokens=4, **chosen)
    except DataError as error:
        queries, said = None, str(error)
    if queries is None:
        told = re.fullmatch(r"no .*: 0 prompts from (\d+) rows \(dropped: (.*)\); check .*", said)
        assert int(told[1]) == len(texts) == sum(map(int, re.findall(r"\d+", told[2])))
        return
    counts = dict(vars(report))
    assert counts.pop("rows") == len(texts) == sum(counts.values())
    assert report.kept == len(queries) > 0 and report.not_text == texts.count(None)
    usable = [p for t in texts if t is not None and (p := first_prompt(t)) and len(p) < max_chars]
    for query, ids in zip(queries["query"][:], queries["input_ids"][:], strict=True):
        assert query in usable and min(ids) >= 0 and max(ids) < VOCABULARY
        assert tokenizer.decode(ids) == BARE.bind(tokenizer).render([("Human", query)])
        assert context_length is None or len(ids) + 4 <= context_length
    assert limit is None or report.kept <= limit


@fuzz(150)
@given(text=st.lists(st.sampled_from(["{", "}", "instruction", "!", ".x", ":>9", "[0]", "a"])))
def test_any_template_renders_what_it_is_given_or_is_refused(text: list[str]) -> None:
    with only(DataError):
        template = PromptTemplate("".join(text))
        assert "<{hi}>" in template.bind(None).render([("Human", "<{hi}>")])


# What takes names from outside ----------------------------------------------------------------

# No NUL in the environment or among arguments; the rest as the system would hand it over.
NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
PATHS = st.lists(
    st.sampled_from(["~", "/", "..", "\\", "@", "main", "org", "a" * 300, "%", "\n", "C:", "-"])
    | NAME,
    max_size=5,
).map("".join)  # fmt: skip


@fuzz(500)
@given(name=PATHS | PATHS.map(Path) | st.text(max_size=9), revision=PATHS)
def test_any_name_is_a_path_that_exists_a_hub_id_or_an_error(
    name: str | Path, revision: str
) -> None:
    with only(AssetError):
        source = as_source(name, revision)
        if isinstance(source, Path):
            assert source.exists()
        else:
            assert isinstance(name, str) and re.fullmatch(r"[^\s~\\%@]+", source.repo_id)
            assert source.revision == (name.partition("@")[2] or revision)


@fuzz(150)
@given(name=PATHS, revision=PATHS)
def test_any_source_is_a_path_that_exists_or_an_error(name: str, revision: str) -> None:
    for source in (Path(name), Bundled(name), Hub(name, revision)):
        with only(AssetError):
            assert resolve(source).exists()
    with mock.patch.dict(os.environ, RLHF_TUTORIAL_CACHE=name), only(AssetError):
        assert isinstance(cache_dir(), Path)


@fuzz(250)
@given(
    preset=st.none() | st.sampled_from([*PRESETS, "Tiny"]) | PATHS,
    overrides=st.dictionaries(st.sampled_from([*OVERRIDES.values()]), PATHS | NAME, max_size=3),
)
def test_any_environment_gives_a_preset_or_an_error(preset: str | None, overrides: Any) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RLHF_")}
    named = {} if preset is None else {"RLHF_PRESET": preset}
    with mock.patch.dict(os.environ, clean | named | overrides, clear=True), only(TutorialError):
        found = load_preset()
        assert found.name == (preset or "smollm2")
        for field, variable in OVERRIDES.items():
            kept = getattr(PRESETS[found.name], field)
            assert (getattr(found, field) == kept) or overrides.get(variable)


@fuzz(250)
@given(
    arguments=st.lists(
        st.sampled_from(
            ["train", "prepare", "compare", "--preset", "tiny", "--output", "--help", "--", "--pre"]
        )
        | PATHS,
        max_size=5,
    ),
    preset=PATHS,
)
def test_any_command_line_runs_a_stage_or_stops_with_what_is_wrong(
    arguments: list[str], preset: str
) -> None:
    ran = []
    stages = dict.fromkeys(command_line.STAGES, ran.append)
    out = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"RLHF_PRESET": preset}),
        mock.patch.object(command_line, "STAGES", stages),
        mock.patch("rlhf_tutorial.run.Run", lambda preset, output: preset),
        contextlib.redirect_stderr(out),
        contextlib.redirect_stdout(out),
    ):
        code = "ran"
        try:
            command_line.main(arguments)
        except SystemExit as stop:
            code = stop.code
    if code == "ran":
        (found,) = ran
        assert found.name in PRESETS
    else:
        assert not ran and "Traceback" not in out.getvalue()
        assert (code in (0, 2) and "usage: " in out.getvalue()) or code.startswith("error: ")


PARTS = {"tiny_model/weights/a.json": b"{}" * 50, "tiny_model/weights/sub/b": bytes(90)}
WHEELS = wheel_bytes(PARTS), wheel_bytes(PARTS | {"tiny_model/weights/../c": b"d"})


@fuzz(250)
@given(
    wheel=st.sampled_from(WHEELS),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.just(10**6) | st.integers(0, len(WHEELS[0])),
)
def test_any_damage_to_an_archive_is_an_error_and_writes_nothing_outside(
    tmp_path: Path, wheel: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(wheel)
    for place, value in changes:
        content[place % len(content)] = value
    path, inside = tmp_path / "w.whl", tmp_path / "deep" / "inside"
    shutil.rmtree(inside, ignore_errors=True)
    path.write_bytes(content[:cut])
    with only(AssetError, OSError):  # resolve turns an OSError into an AssetError
        _extract(path, SOURCE, inside)
        assert any(file.is_file() for file in inside.rglob("*"))
    outside = {p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(inside)}
    assert outside == {path}


@fuzz(350)
@given(
    scores=JSON
    | st.lists(st.floats() | st.integers(), max_size=3)
    | st.lists(st.none() | st.text(max_size=2) | st.complex_numbers() | st.booleans(), max_size=3),
    count=st.integers(0, 3),
)
def test_any_scores_are_so_many_finite_numbers_or_refused(scores: Any, count: int) -> None:
    with only(RewardError):
        found = checked_scores(scores, count)
        assert len(found) == count and all(abs(score) < float("inf") for score in found)
        assert found == [float(score) for score in scores]


def test_five_thousand_inputs_and_more_are_tried() -> None:
    assert sum(INPUTS.values()) >= PLANNED
    assert set(INPUTS) == {name for name, test in globals().items() if hasattr(test, "hypothesis")}
