"""Preference data in any of its forms to prompts, and prompts to templated, tokenised queries.

Whatever rows look like, `load_preferences` gives them one form: dialogues as text, which
`dialogues.py` describes. Rows as in Anthropic's hh-rlhf have it already and stay as they are: two
dialogues, `chosen` and `rejected`. All others get a column `prompt`, the dialogue up to the answer,
beside those two as far as there are answers. docs/data.md shows each form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .assets import Source, as_source
from .dialogues import (
    Turn,
    dialogue_text,
    first_prompt,
    last_reply,
    message_turns,
    opens_with_a_turn,
    parse_dialogue,
    query_text,
)
from .errors import DataError, reason
from .rows import Columns, check_columns, load_saved, pick_split, read_rows
from .template import BoundTemplate

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

__all__ = [
    "PromptReport",
    "dialogues_of",
    "first_prompt",
    "last_reply",
    "load_preferences",
    "load_queries",
    "parse_dialogue",
    "preference_pairs",
    "prepare_queries",
]


def load_preferences(
    source: Source | str | Dataset | DatasetDict | Sequence[Mapping[str, Any]],
    split: str = "train",
    data_dir: str | None = None,
    *,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """One split of a preference dataset, as dialogues.

    Args:
        source: a `datasets.Dataset`, a `DatasetDict`, a list of rows, a Hub id ("org/name" or
            "org/name@revision"), a file (JSON lines, JSON, CSV, parquet; packed with gzip or not),
            a folder that holds `<split>.jsonl` or the like, or what `save_to_disk` left. Of a local
            file every line must be a row.
        split: "train" also finds "train_prefs", as in UltraFeedback; one file is "train".
        data_dir: subfolder of the repository, "helpful-base" for instance; of a local folder only
            if it is there.
        token, cache_dir: for the download from the Hub.

    Returns:
        Rows with text dialogues as they are, a `Dataset` even the very same; of a file the columns
        of the first row that hold text and nothing else. Rows of any other form as `prompt`,
        `chosen`, `rejected`, those of them that there are. What cannot be read is null there, and
        a prompt that is not there "".

    Raises:
        DataError: if the split is missing or cannot be read, or no column is one that is known.
        AssetError: for an unknown path.
    """
    import datasets

    if isinstance(source, datasets.DatasetDict):
        return _as_dialogues(pick_split(source, split, "the DatasetDict"), "the data set")
    if isinstance(source, datasets.Dataset):
        return _as_dialogues(source, "the data set")
    if isinstance(source, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise DataError(
            "a streamed data set has no end to count on: take the rows you want from it, as "
            "Dataset.from_list(list(data.take(1000)))"
        )
    if isinstance(source, (list, tuple)):
        names = dict.fromkeys(name for row in source for name in row)
        columns = {name: [row.get(name) for row in source] for name in names}
        return _as_dialogues(columns, "the list of rows")
    place: Any = as_source(source) if isinstance(source, (str, Path)) else source
    rows = read_rows(place, split, data_dir, token, cache_dir)
    return _as_dialogues(rows, str(getattr(place, "repo_id", place)))


# Forms ---------------------------------------------------------------------------------------

_WHOLE = ("messages", "conversations")
"""Columns that hold a dialogue from its first to its last word."""

_QUESTIONS = ("question", "instruction", "query", "input")
"""What other libraries call a prompt."""


def _as_dialogues(rows: Dataset | Columns, where: str) -> Dataset:
    """Rows of any form as dialogues in text; those that are so already stay as they are."""
    import datasets

    names = rows.column_names if isinstance(rows, datasets.Dataset) else list(rows)
    check_columns(names, where)
    answer = next((n for n in ("chosen", "completion", *_WHOLE) if n in names), None)
    wanted = [n for n in ("prompt", answer, "rejected", "label") if n in names]
    columns: Columns = {str(name): _values(rows, str(name)) for name in wanted}
    if _are_converted(columns):
        return rows if isinstance(rows, datasets.Dataset) else _text_columns(columns)
    if "prompt" in columns or answer != "chosen" or not _are_dialogues(columns):
        asked = next((n for n in _QUESTIONS if n in names), None)
        if "prompt" not in columns and answer in ("chosen", "completion") and asked is not None:
            _check_question(_values(rows, asked), columns[answer], asked, where)
        return _converted(columns, answer)
    return rows if isinstance(rows, datasets.Dataset) else _text_columns(rows)


def _check_question(questions: list[Any], answers: list[Any], name: str, where: str) -> None:
    """Raise DataError for answers in text that do not hold their question, in a column of its own.

    What two answers happen to begin with would be taken for the prompt.
    """
    for question, answer in zip(questions, answers, strict=True):
        texts = isinstance(question, str) and isinstance(answer, str)
        if texts and question.strip() not in answer:
            raise DataError(
                f"{where} has answers to what stands in the column {name!r}: rename it to 'prompt'"
            )


def _values(rows: Dataset | Columns, name: str) -> list[Any]:
    try:
        return list(rows[name][:])
    except UnicodeDecodeError as error:
        raise DataError(
            f"the column {name!r} is not UTF-8 ({reason(error)}): save the data in that encoding"
        ) from error


def _are_converted(columns: Columns) -> bool:
    """Whether the columns are those of `_converted`, so that there is nothing left to do."""
    if "prompt" not in columns or not set(columns) <= {"prompt", "chosen", "rejected"}:
        return False
    sides = [columns[name] for name in columns if name != "prompt"] or [columns["prompt"]]
    return all(
        _goes_on(prompt, answer)
        for answers in sides
        for prompt, answer in zip(columns["prompt"], answers, strict=True)
    )


def _goes_on(prompt: Any, answer: Any) -> bool:
    """Whether both are dialogues in text as they are written here, and one begins the other."""
    if not prompt:
        return prompt in (None, "") and not answer
    if not isinstance(prompt, str) or prompt.endswith("Assistant:"):
        return False
    began = prompt.startswith(("\n\nHuman: ", "\n\nAssistant: ", "\n\nSystem: "))
    return began and (answer is None or (isinstance(answer, str) and answer.startswith(prompt)))


def _are_dialogues(columns: Columns) -> bool:
    """Whether `chosen` holds dialogues in text, or nothing that could be made into some."""
    if any(message_turns(value) is not None for value in columns["chosen"]):
        return False
    texts = [value for value in columns["chosen"] if isinstance(value, str)]
    return any(parse_dialogue(text) for text in texts) or not ("rejected" in columns and texts)


def _text_columns(columns: Columns) -> Dataset:
    """Those of the columns that hold text and nothing else."""
    import datasets

    kept = {
        name: values
        for name, values in columns.items()
        if all(value is None or isinstance(value, str) for value in values)
    }
    text = datasets.Features({name: datasets.Value("string") for name in kept})
    return datasets.Dataset.from_dict(kept, features=text)


def _converted(columns: Columns, answer: str | None) -> Dataset:
    """`prompt`, `chosen` and `rejected` as text, the latter two if there are such columns.

    Args:
        answer: the column of what is, or holds, the wanted answer.
    """
    rows = []
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        good = None if answer is None else row[answer]
        if answer == "completion" and row.get("label", True) in (False, "False", "false", "0"):
            good = None  # of an unpaired preference the answer that was not liked
        rows.append(_converted_row(row.get("prompt"), good, row.get("rejected")))
    kept = {"prompt": True, "chosen": answer is not None, "rejected": "rejected" in columns}
    return _text_columns(
        {name: [row[i] for row in rows] for i, name in enumerate(kept) if kept[name]}
    )


def _converted_row(prompt: Any, chosen: Any, rejected: Any) -> tuple[str | None, ...]:
    """The three as text: null for what cannot be read, "" for a prompt that is not there."""
    explicit = _prompt_turns(prompt)
    if explicit is None and isinstance(chosen, str) and isinstance(rejected, str):
        split = _split_texts(chosen, rejected)
        if (explicit := _prompt_turns(split[0])) is not None:
            _, chosen, rejected = split
    good, bad = (_answer_turns(side, explicit, prompt) for side in (chosen, rejected))
    if good is not None and (explicit is None or good[: len(explicit)] != explicit):
        explicit = _shared_prompt(good, bad)
    readable = good is not None or any(isinstance(side, str) for side in (prompt, chosen))
    text = dialogue_text(explicit) if explicit else "" if readable else None
    return text, *(None if turns is None else dialogue_text(turns) for turns in (good, bad))


def _prompt_turns(prompt: Any) -> list[Turn] | None:
    """The turns of a prompt, of which a human's is the last; None for anything else."""
    if isinstance(prompt, str):
        plain = [("Human", prompt.strip())] if prompt.strip() else []
        turns = parse_dialogue(prompt) if opens_with_a_turn(prompt) else plain
    else:
        turns = message_turns(prompt) or []
    if turns and turns[-1] == ("Assistant", ""):  # prompts that end in "Assistant:"
        turns.pop()
    return turns if turns and turns[-1][0] == "Human" else None


def _answer_turns(answer: Any, prompt: list[Turn] | None, given: Any) -> list[Turn] | None:
    """The dialogue up to the end of the answer; None where there is none.

    The answer may be alone, or hold the prompt as well: as a dialogue in text, or as messages.

    Args:
        prompt: its turns, None without one.
        given: the prompt as it stands in the row.
    """
    if isinstance(answer, str):
        turns = parse_dialogue(answer) if opens_with_a_turn(answer) else []
        if prompt is None or turns[: len(prompt)] == prompt:
            return turns or None
        alone = turns if turns and turns[0][0] == "Assistant" else [("Assistant", answer.strip())]
        return prompt + alone
    turns = message_turns(answer) or []
    if not turns or prompt is None:
        return turns or None
    # UltraFeedback has the prompt as text beside messages that begin with it.
    whole = isinstance(given, str) and turns[0][0] != "Assistant"
    return turns if whole or turns[: len(prompt)] == prompt else prompt + turns


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """TRL's implicit prompt: the words with which both texts begin, and what is left of each.

    Dialogues in text are left whole, without a prompt.
    """
    if opens_with_a_turn(chosen) or opens_with_a_turn(rejected):
        return "", chosen, rejected
    words = (re.finditer(r"\s*\S+", text) for text in (chosen, rejected))
    end = 0
    for one, other in zip(*words, strict=False):
        if one[0] != other[0]:
            break
        end = one.end()
    if not chosen[end:].strip() or not rejected[end:].strip():  # nothing tells prompt from answer
        end = 0
    return chosen[:end], chosen[end:], rejected[end:]


def _shared_prompt(chosen: list[Turn], rejected: list[Turn] | None) -> list[Turn]:
    """The turns before the two dialogues part; without a second one, before the last answer."""
    if rejected is None or chosen == rejected:
        parting = max((i for i, turn in enumerate(chosen) if turn[0] == "Assistant"), default=0)
    else:
        pairs = enumerate(zip(chosen, rejected, strict=False))
        shorter = min(len(chosen), len(rejected))
        parting = next((i for i, (one, other) in pairs if one != other), shorter)
    while parting and chosen[parting - 1][0] != "Human":
        parting -= 1
    return chosen[:parting]


def dialogues_of(preferences: Dataset, column: str = "chosen") -> list[str | None]:
    """The texts of a column; DataError where the data hold prompts alone."""
    if column not in preferences.column_names:
        raise DataError(
            f"the data have no answers in a column {column!r} (they have "
            f"{', '.join(preferences.column_names)}): prompts alone serve PPO and nothing else"
        )
    return list(preferences[column][:])


def preference_pairs(preferences: Dataset) -> tuple[list[dict[str, str]], str]:
    """What a judge is trained on, and in words how many rows it comes from.

    Args:
        preferences: rows of any form that `load_preferences` takes.

    Returns:
        Dictionaries of `prompt`, `chosen` and `rejected`: the query as `prepare_queries` gives it,
        and the two answers at which the dialogues part.

    Raises:
        DataError: if there is no column of rejected answers, or no pair is left.
    """
    preferences = _as_dialogues(preferences, "the data set")
    sides = [dialogues_of(preferences, column) for column in ("chosen", "rejected")]
    pairs: list[dict[str, str]] = []
    for row in zip(*sides, strict=True):
        good, bad = (parse_dialogue(text) if isinstance(text, str) else [] for text in row)
        prompt = _shared_prompt(good, bad) if good != bad else []
        answers = [turns[len(prompt)] for turns in (good, bad) if len(turns) > len(prompt)]
        if prompt and [role for role, _ in answers] == ["Assistant", "Assistant"]:
            (_, chosen), (_, rejected) = answers
            pairs.append({"prompt": query_text(prompt), "chosen": chosen, "rejected": rejected})
    dropped = len(preferences) - len(pairs)
    counts = f"{len(pairs):,} pairs from {len(preferences):,} rows" + (
        f" (dropped: {dropped:,} without one prompt and two different answers)" if dropped else ""
    )
    if not pairs:
        raise DataError(f"no usable pair is left: {counts}; check the data")
    return pairs, counts


# Queries -------------------------------------------------------------------------------------


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
    max_chars: int | None = 100,
    limit: int | None = None,
    max_new_tokens: int = 16,
    context_length: int | None = None,
    multi_turn: bool = False,
) -> tuple[Dataset, PromptReport]:
    """Drop the responses, keep the prompts: the dataset that PPO trains on.

    Of a dialogue in text the prompt is its first human turn, on one line. Rows with a prompt of
    their own keep it whole, with all its turns and its system message.

    Args:
        preferences: rows of any form that `load_preferences` takes.
        max_chars: prompts must be shorter than this many characters; None for any length.
        limit: keep the first so many.
        max_new_tokens: room that a response needs.
        context_length: of the policy, in tokens; not checked without.
        multi_turn: of a dialogue in text take all that was said before its last reply.

    Returns:
        Rows of `query` (the bare instruction; a prompt of several turns as a dialogue in text) and
        `input_ids` (templated, as a torch tensor), and the count of what was dropped.

    Raises:
        DataError: if no column is known or no prompt is left.
    """
    import datasets

    preferences = _as_dialogues(preferences, "the data set")
    of_its_own = "prompt" in preferences.column_names
    texts = _values(preferences, "prompt" if of_its_own else "chosen")
    rows: list[dict[str, Any]] = []
    reasons = ("not_text", "no_turns", "empty", "too_long", "no_room", "beyond_limit")
    dropped = dict.fromkeys(reasons, 0)
    for text in texts:
        if not isinstance(text, str):
            dropped["not_text"] += 1
            continue
        turns = parse_dialogue(text) if of_its_own else _turns_to_answer(text, multi_turn)
        prompt = query_text(turns)
        if not turns:
            dropped["no_turns"] += 1
        elif not turns[-1][1]:
            dropped["empty"] += 1
        elif max_chars is not None and len(prompt) >= max_chars:
            dropped["too_long"] += 1
        elif limit is not None and len(rows) == limit:
            dropped["beyond_limit"] += 1
        else:
            ids = template.encode(turns)
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


def _turns_to_answer(dialogue: str, multi_turn: bool) -> list[Turn]:
    """What of a dialogue in text is put to the policy; nothing where nobody asked and answered."""
    if multi_turn:
        turns, _ = last_reply(dialogue) or ([], "")
        return turns if turns and turns[-1][0] == "Human" else []
    prompt = first_prompt(dialogue)
    return [] if prompt is None else [("Human", prompt)]


def load_queries(folder: str | Path) -> Dataset:
    """Queries saved with `Dataset.save_to_disk`, with the format they had.

    Raises DataError where the folder is missing, incomplete or altered.
    """
    queries = load_saved(folder, "delete that folder, and the prompts are made again")
    queries.set_format("torch", columns=["input_ids"], output_all_columns=True)
    return queries
