"""From preference dialogues to prompts, and from prompts to templated, tokenised queries.

A preference row holds two dialogues, `chosen` and `rejected`, in the form Anthropic's hh-rlhf uses:
turns that start with a blank line and "Human:" or "Assistant:" (Bai et al. 2022, "Training a
Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback").
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .assets import Hub, Source, as_source, resolve
from .errors import DataError, reason
from .template import BoundTemplate, Turn

if TYPE_CHECKING:
    from datasets import Dataset


_TURN = re.compile(r"\n\n(Human|Assistant):")


def parse_dialogue(text: str) -> list[Turn]:
    """Split a dialogue into its turns, texts stripped. Text before the first turn is left out."""
    pieces = _TURN.split(text)
    return [(role, turn.strip()) for role, turn in zip(pieces[1::2], pieces[2::2], strict=True)]


def first_prompt(text: str) -> str | None:
    """The first human turn on one line, or None if the dialogue has no human and assistant turn."""
    turns = parse_dialogue(text)
    humans = [turn for role, turn in turns if role == "Human"]
    if not humans or not any(role == "Assistant" for role, _ in turns):
        return None
    return humans[0].replace("\n", " ").strip()


def load_preferences(
    source: Source | str | Dataset, split: str = "train", data_dir: str | None = None
) -> Dataset:
    """One split of a preference dataset.

    Args:
        source: a `datasets.Dataset` (returned as it is), a Hub id, or a local folder that holds
            `<split>.jsonl` or `<split>.jsonl.gz`. Of a local file every line must be a row; the
            columns kept are those of the first row that hold text and nothing else.
        data_dir: subfolder of the repository, "helpful-base" for instance; of a local folder only
            if it is there.

    Raises:
        DataError: if the split is missing, cannot be read, or has no column `chosen`.
        AssetError: for an unknown path.
    """
    import datasets

    if isinstance(source, datasets.Dataset):
        return source
    source = as_source(source) if isinstance(source, str) else source
    if isinstance(source, Hub):
        return _load_from_hub(source, split, data_dir)
    folder = resolve(source)
    if data_dir is not None and (folder / data_dir).is_dir():
        folder = folder / data_dir
    for name in (f"{split}.jsonl", f"{split}.jsonl.gz"):
        if (folder / name).exists():
            return _read_rows(folder / name)
    raise DataError(f"{folder} holds neither {split}.jsonl nor {split}.jsonl.gz: check the folder")


def _load_from_hub(source: Hub, split: str, data_dir: str | None) -> Dataset:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.repo_id, data_dir=data_dir, split=split, revision=source.revision
        )
    except Exception as error:  # datasets raises a dozen unrelated types
        raise DataError(
            f"cannot read split {split!r} of {source.repo_id!r}, which is no folder here, from the "
            f"Hub at revision {source.revision!r} ({type(error).__name__}: {reason(error)}): check "
            "the names and the free space, go online once, or give a local folder"
        ) from error
    _check_columns(rows, source.repo_id)
    return rows


def _check_columns(rows: Dataset, name: str) -> None:
    if "chosen" not in rows.column_names:
        raise DataError(
            f"{name} has no column 'chosen' (it has {', '.join(rows.column_names)}): "
            "rows must be preference dialogues as in hh-rlhf"
        )


def _read_rows(path: Path) -> Dataset:
    """A file of JSON lines, strictly: what is wrong with it is said with its line.

    `datasets` would read it too, but takes text that is not UTF-8 for granted, guesses at dates and
    mixed types, and does not survive a line that says "null".
    """
    import datasets

    rows: list[dict[str, Any]] = []
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007 (it is told below)
                if line.strip():
                    rows.append(_parse_row(line))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read past line {number} ({reason(error)}): it is damaged, cut short "
            "or out of reach, so fetch it again"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}") from error
    if not rows:
        raise DataError(f"{path} holds no rows: fetch it again, or give another folder")
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    columns = {
        name: values
        for name, values in columns.items()
        if all(value is None or isinstance(value, str) for value in values)
    }
    text = datasets.Features({name: datasets.Value("string") for name in columns})
    return datasets.Dataset.from_dict(columns, features=text)


def _parse_row(line: bytes) -> dict[str, Any]:
    """The row on a line of JSON; ValueError says what is wrong with it and what to do."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8: save the file in that encoding") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"it is not JSON ({error.msg}, column {error.colno}): mend or delete the line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise ValueError(f"it is not JSON ({reason(error)}): mend or delete the line") from error
    if not isinstance(row, dict) or "chosen" not in row:
        found = f"it has {list(row)[:5]}" if isinstance(row, dict) else "it is no object"
        raise ValueError(
            f"'chosen' is missing ({found}): rows must be preference dialogues as in hh-rlhf"
        )
    for name, value in row.items():
        if name in ("chosen", "rejected") and not (value is None or isinstance(value, str)):
            raise ValueError(f"{name!r} is of type {type(value).__name__}: make it text or null")
        try:
            f"{name}{value if isinstance(value, str) else ''}".encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name!r} holds half a character (a lone surrogate): mend or delete the line"
            ) from error
    return row


@dataclass(frozen=True)
class PromptReport:
    """How many rows became prompts, and why the others did not."""

    rows: int
    kept: int
    not_text: int = 0
    """Rows whose `chosen` is null, or no text."""
    no_turns: int = 0
    """Rows that lack a human or an assistant turn."""
    empty: int = 0
    """Rows whose first human turn is empty."""
    too_long: int = 0
    """Prompts of `max_chars` characters or more."""
    no_room: int = 0
    """Queries that leave no room for a response in the policy's context."""
    beyond_limit: int = 0
    """Usable prompts after the first `limit`."""

    def __str__(self) -> str:
        dropped = {
            "without text": self.not_text,
            "without a human and an assistant turn": self.no_turns,
            "empty": self.empty,
            "too long": self.too_long,
            "with no room for a response": self.no_room,
            "beyond the number asked for": self.beyond_limit,
        }
        reasons = ", ".join(f"{n:,} {why}" for why, n in dropped.items() if n)
        return f"{self.kept:,} prompts from {self.rows:,} rows" + (
            f" (dropped: {reasons})" if reasons else ""
        )


def prepare_queries(
    preferences: Dataset,
    template: BoundTemplate,
    *,
    max_chars: int = 100,
    limit: int | None = None,
    max_new_tokens: int = 16,
    context_length: int | None = None,
) -> tuple[Dataset, PromptReport]:
    """Drop the responses, keep the prompts: the dataset that PPO trains on.

    Args:
        preferences: rows with a column `chosen`.
        max_chars: prompts must be shorter than this many characters.
        limit: keep the first so many.
        max_new_tokens: room that a response needs.
        context_length: of the policy, in tokens; not checked without.

    Returns:
        Rows of `query` (the bare instruction) and `input_ids` (templated, as a torch tensor), and
        the count of what was dropped.

    Raises:
        DataError: if the column is missing or no prompt is left.
    """
    import datasets

    _check_columns(preferences, "the dataset")
    try:
        texts = preferences["chosen"][:]
    except UnicodeDecodeError as error:
        raise DataError(
            f"the column 'chosen' is not UTF-8 ({reason(error)}): save the data in that encoding"
        ) from error
    rows: list[dict[str, Any]] = []
    reasons = ("not_text", "no_turns", "empty", "too_long", "no_room", "beyond_limit")
    dropped = dict.fromkeys(reasons, 0)
    for text in texts:
        prompt = first_prompt(text) if isinstance(text, str) else None
        if not isinstance(text, str):
            dropped["not_text"] += 1
        elif prompt is None:
            dropped["no_turns"] += 1
        elif not prompt:
            dropped["empty"] += 1
        elif len(prompt) >= max_chars:
            dropped["too_long"] += 1
        elif limit is not None and len(rows) == limit:
            dropped["beyond_limit"] += 1
        else:
            ids = template.encode(prompt)
            if context_length is not None and len(ids) + max_new_tokens > context_length:
                dropped["no_room"] += 1
            else:
                rows.append({"query": prompt, "input_ids": ids})
    report = PromptReport(rows=len(preferences), kept=len(rows), **dropped)
    if not rows:
        raise DataError(
            f"no usable prompt is left: {report}; check the data, max_chars and max_new_tokens"
        )
    queries = datasets.Dataset.from_list(rows)
    queries.set_format("torch", columns=["input_ids"], output_all_columns=True)
    return queries, report


def last_reply(text: str) -> tuple[list[Turn], str] | None:
    """The dialogue up to its last assistant turn, and that turn; None where there is none."""
    turns = parse_dialogue(text)
    while turns and turns[-1][0] != "Assistant":
        turns.pop()
    if len(turns) < 2 or not turns[-1][1]:
        return None
    return turns[:-1], turns[-1][1]


def load_queries(folder: str | Path) -> Dataset:
    """Queries saved with `Dataset.save_to_disk`, with the format they had.

    Raises DataError where the folder is missing, incomplete or altered.
    """
    import datasets

    try:
        queries = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets, pyarrow and json, each with its own
        raise DataError(
            f"cannot load the prompts saved in {folder} ({type(error).__name__}: {reason(error)}): "
            "delete that folder, and they are made again"
        ) from error
    queries.set_format("torch", columns=["input_ids"], output_all_columns=True)
    return queries
