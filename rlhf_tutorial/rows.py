"""Rows from where they lie: JSON lines, JSON, CSV, parquet, folders, `save_to_disk`, the Hub.

What is in a row is no business of this module, but for `KEYS`: a file none of whose columns is
there is refused with the line at which that shows.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .assets import Hub, Source, resolve
from .dialogues import message_turns
from .errors import DataError, is_lfs_pointer, reason

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Columns = dict[str, list[Any]]

KEYS = ("chosen", "prompt", "messages", "conversations")
"""One of these columns is what a row is about."""

FORMS = (
    "'chosen' and 'rejected' as in hh-rlhf, or as lists of messages; 'prompt' with them as text or "
    "messages; 'prompt' alone or with 'completion'; 'messages'"
)
"""The forms that rows may have, in words: see docs/data.md."""

TEXTS = ("prompt", "chosen", "rejected", "completion", "messages", "conversations")
"""Columns that hold text, or a list of messages."""

EXTENSIONS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv", ".csv.gz")

_OTHER_SPLITS = re.compile(r"(^|[^a-z])(test|valid|val|dev|eval)([^a-z]|idation|uation|$)")
"""Names of files that are no training data, in small letters: hh_test.jsonl too."""


def read_rows(
    source: Source,
    split: str,
    data_dir: str | None,
    token: str | None,
    cache_dir: str | Path | None,
) -> Dataset | Columns:
    """The rows of one split, from the Hub or a local path.

    Raises:
        DataError: if the split is missing, or a file cannot be read.
        AssetError: for an unknown path.
    """
    if isinstance(source, Hub):
        return _read_hub(source, split, data_dir, token, cache_dir)
    path = _place(source, data_dir)
    return _read_saved(path, split) if _is_saved(path) else _read_files(_files_of(path, split))


def content_hash(source: Source, split: str, data_dir: str | None) -> str | None:
    """The sha256 of the files that a split is read from; None on the Hub, where revisions tell.

    Raises:
        DataError: if the split is missing. AssetError: for an unknown path.
    """
    if isinstance(source, Hub):
        return None
    path, digest = _place(source, data_dir), hashlib.sha256()
    # `datasets` leaves files of its own, cache-*.arrow, beside those that were saved.
    saved = (p for p in sorted(path.rglob("*.arrow")) if not p.name.startswith("cache-"))
    for part in saved if _is_saved(path) else _files_of(path, split):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _place(source: Source, data_dir: str | None) -> Path:
    """The file or folder of a local source, or the subfolder if that is there."""
    path = resolve(source)
    return path / data_dir if data_dir is not None and (path / data_dir).is_dir() else path


def _is_saved(path: Path) -> bool:
    """Whether `save_to_disk` made the folder."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def pick_split(parts: Mapping[str, Dataset], split: str, name: str) -> Dataset:
    """One part of a `DatasetDict`; UltraFeedback calls them train_prefs and test_prefs."""
    for known in (split, f"{split}_prefs"):
        if known in parts:
            return parts[known]
    raise DataError(f"{name} has no split {split!r}: it has {', '.join(parts)}")


def check_columns(names: list[str], where: str) -> None:
    """Raise DataError, naming the columns and the forms, unless one of `KEYS` is among them."""
    if not set(KEYS) & set(names):
        raise DataError(
            f"{where} has no column 'chosen', 'prompt' or 'messages' (it has {', '.join(names)}): "
            f"rename its columns; the forms are {FORMS}"
        )


# The Hub, and what `datasets` saved ----------------------------------------------------------


def _read_hub(
    source: Hub, split: str, data_dir: str | None, token: str | None, cache_dir: str | Path | None
) -> Dataset:
    import datasets

    def load(name: str) -> Dataset:
        return datasets.load_dataset(
            source.repo_id,
            data_dir=data_dir,
            split=name,
            revision=source.revision,
            token=token,
            cache_dir=cache_dir,
        )

    try:
        try:
            return load(split)
        except ValueError as error:
            if f"{split}_prefs" not in str(error):  # "Unknown split "train". Should be one of ..."
                raise
            return load(f"{split}_prefs")
    except Exception as error:  # datasets raises a dozen unrelated types
        raise DataError(
            f"cannot read split {split!r} of {source.repo_id!r}, which is no folder here, from the "
            f"Hub at revision {source.revision!r} ({type(error).__name__}: {reason(error)}): check "
            "the names and the free space, go online once, or give a local folder"
        ) from error


def load_saved(folder: str | Path, otherwise: str) -> Dataset | DatasetDict:
    """What `save_to_disk` left in a folder.

    Args:
        otherwise: what to do if it cannot be loaded, for the reader of the DataError.
    """
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets, pyarrow and json, each with its own
        raise DataError(
            f"cannot load the data set saved in {folder} ({type(error).__name__}: {reason(error)}):"
            f" {otherwise}"
        ) from error


def _read_saved(folder: Path, split: str) -> Dataset:
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` left."""
    import datasets

    saved = load_saved(folder, "save it again")
    if isinstance(saved, datasets.DatasetDict):
        return pick_split(saved, split, str(folder))
    if split != "train":
        raise DataError(
            f"{folder} holds one data set, which is taken as 'train': for {split!r} save a "
            "DatasetDict with both"
        )
    return saved


# Files ---------------------------------------------------------------------------------------


def _extension(path: Path) -> str | None:
    """The one of `EXTENSIONS` that the name ends with."""
    return next((e for e in EXTENSIONS if path.name.lower().endswith(e)), None)


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file() and _extension(path))


def _file_for(path: Path, split: str) -> Path:
    """The file itself, if it can be this split: the one asked for is "train" by default."""
    if _extension(path) is None:
        raise DataError(
            f"{path} is of no known kind: give one that ends with {_listed(EXTENSIONS)}"
        )
    if split == "train" or path.name.startswith(split):
        return path
    raise DataError(
        f"{path} is one file, which is taken as 'train': for {split!r} give a folder that holds "
        f"both, as train.jsonl and {split}.jsonl"
    )


def _files_of(folder: Path, split: str) -> list[Path]:
    """The files of a split: `<split>.jsonl`, its numbered parts, or a subfolder of that name.

    The first such name counts, in the folder and then in `data`, as a clone of a repository of the
    Hub has it. Files of which none is named after a split are all "train". In place of a folder
    there may be one file.
    """
    if folder.is_file():
        return [_file_for(folder, split)]
    for name in (split, f"{split}_prefs"):
        for place in (folder, folder / "data"):
            for extension in EXTENSIONS:
                if (place / f"{name}{extension}").exists():
                    return [place / f"{name}{extension}"]
                part = re.compile(rf"{re.escape(name)}[-_.]?\d[-\w]*{re.escape(extension)}")
                if parts := [path for path in _data_files(place) if part.fullmatch(path.name)]:
                    return parts
            if parts := _data_files(place / name):
                return parts
    there = _data_files(folder)
    if split == "train" and there and not any(_OTHER_SPLITS.search(p.name.lower()) for p in there):
        return there
    found = _listed([path.name for path in sorted(folder.glob("*"))]) or "nothing"
    raise DataError(
        f"{folder} holds neither {split}.jsonl nor {split}.jsonl.gz, .json, .csv or .parquet (it "
        f"holds {found}): check the folder"
    )


def _listed(names: Any) -> str:
    return ", ".join(list(names)[:8]) + (", ..." if len(names) > 8 else "")


def _read_files(paths: list[Path]) -> Columns:
    """The rows of some files after each other, as columns of the first row's names."""
    rows = [row for path in paths for row in _read_file(path)]
    return {name: [row.get(name) for row in rows] for name in rows[0]}


def _read_file(path: Path) -> list[dict[str, Any]]:
    """The rows of one file, at least one; what is wrong with it is said with its line."""
    if is_lfs_pointer(path):
        raise DataError(f"{path} is a git-lfs pointer, not the data: run `git lfs pull` there")
    extension = str(_extension(path)).removesuffix(".gz")
    if extension == ".parquet":
        rows = _read_parquet(path)
    elif extension == ".csv":
        rows = _read_csv(path)
    elif extension == ".json" and _first_byte(path) == b"[":
        rows = _read_json(path)
    else:
        rows = _read_lines(path)
    if not rows:
        raise DataError(f"{path} holds no rows: fetch it again, or give another folder")
    return rows


def _opened(path: Path) -> IO[bytes]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rb")


def _first_byte(path: Path) -> bytes:
    """The first that is no space; none where the file cannot be read, which is told later."""
    try:
        with _opened(path) as file:
            return file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except (OSError, EOFError, zlib.error):
        return b""


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines, strictly.

    `datasets` would read it too, but takes text that is not UTF-8 for granted, guesses at dates and
    mixed types, and does not survive a line that says "null".
    """
    rows: list[dict[str, Any]] = []
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):  # noqa: B007 (it is told below)
                if line.strip():
                    rows.append(_checked(_parsed(line), rows))
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(f"{path} cannot be read past line {number}", error) from error
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}") from error
    return rows


def _damaged(what: str, error: Exception) -> DataError:
    return DataError(
        f"{what} ({reason(error)}): it is damaged, cut short or out of reach, so fetch it again"
    )


def _read_json(path: Path) -> list[dict[str, Any]]:
    """A file that is one JSON array of rows."""
    rows: list[dict[str, Any]] = []
    try:
        with _opened(path) as file:
            content = file.read()
        for row in _parsed(content):
            rows.append(_checked(row, rows))
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(f"{path} cannot be read", error) from error
    except ValueError as error:
        raise DataError(f"{path}, row {len(rows)}: {error}") from error
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """A table of text; messages stand in it as JSON, or as Python writes lists."""
    try:
        with _opened(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            names, *lines = csv.reader(text, strict=True)
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a table ({type(error).__name__}: {reason(error)}): save it "
            "as UTF-8 with commas and quotes, or as JSON lines"
        ) from error
    rows: list[dict[str, Any]] = []
    for cells in filter(None, lines):  # without empty lines
        try:
            if len(cells) != len(names):
                raise ValueError(
                    f"it has {len(cells)} cells for {len(names)} columns: put quotes around text "
                    "that holds a comma"
                )
            row = dict(zip(names, map(_cell, cells), strict=True))
            rows.append(_checked(row, rows))
        except ValueError as error:
            raise DataError(f"{path}, row {len(rows)}: {error}") from error
    return rows


def _cell(text: str) -> Any:
    """What a cell holds: a list of messages where it can be read as one, else its text."""
    if text.lstrip().startswith("[{"):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                if message_turns(value := read(text)) is not None:
                    return value
    return text


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read as parquet ({reason(error)}): it is damaged or cut short, so "
            "fetch it again"
        ) from error
    try:
        return [_checked(row, rows[:1] if i else []) for i, row in enumerate(rows)]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


# Rows ----------------------------------------------------------------------------------------


def _parsed(text: bytes) -> Any:
    """What a line (or a file) of JSON holds; ValueError says what is wrong and what to do."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8: save the file in that encoding") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"it is not JSON ({error.msg}, column {error.colno}): mend or delete the line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise ValueError(f"it is not JSON ({reason(error)}): mend or delete the line") from error


def _checked(row: Any, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """The row, if it is one that can be understood; ValueError says what is wrong with it.

    What the first row is about, the later ones must have too.
    """
    keys = [name for name in KEYS if not earlier or name in earlier[0]]
    if not isinstance(row, dict) or not set(keys[:1] if earlier else keys) & set(row):
        found = f"it has {list(row)[:5]}" if isinstance(row, dict) else "it is no object"
        raise ValueError(f"{keys[0]!r} is missing ({found}): the forms of rows are {FORMS}")
    for name, value in row.items():
        messages = isinstance(value, list) and value and all(map(_is_message, value))
        if name in TEXTS and not (value is None or isinstance(value, str) or messages):
            raise ValueError(
                f"{name!r} is of type {type(value).__name__}: make it text or null, or a list of "
                "messages {role, content}"
            )
        try:
            text = json.dumps(value, ensure_ascii=False, default=str) if name in TEXTS else value
            f"{name}{text if isinstance(text, str) else ''}".encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name!r} holds half a character (a lone surrogate): mend or delete the line"
            ) from error
    return row


def _is_message(value: Any) -> bool:
    """Whether it is meant for a message, of whatever role and content."""
    return isinstance(value, dict) and ("role" in value or "from" in value)
