"""From preference dialogues to prompts, and from prompts to templated, tokenised queries.

A preference row holds two dialogues, `chosen` and `rejected`, in the form Anthropic's hh-rlhf uses:
turns that start with a blank line and "Human:" or "Assistant:" (Bai et al. 2022, "Training a
Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .assets import Hub, Source, as_source, resolve
from .errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Turn = tuple[str, str]  # ("Human" or "Assistant", text)

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
            `<split>.jsonl` or `<split>.jsonl.gz`.
        data_dir: subfolder of the repository, "helpful-base" for instance; of a local folder only
            if it is there.

    Raises:
        DataError: if the split is missing or cannot be read. AssetError: for an unknown path.
    """
    import datasets

    if isinstance(source, datasets.Dataset):
        return source
    source = as_source(source) if isinstance(source, str) else source
    try:
        if isinstance(source, Hub):
            return datasets.load_dataset(
                source.repo_id, data_dir=data_dir, split=split, revision=source.revision
            )
        folder = resolve(source)
        if data_dir is not None and (folder / data_dir).is_dir():
            folder = folder / data_dir
        for name in (f"{split}.jsonl", f"{split}.jsonl.gz"):
            if (folder / name).exists():
                return datasets.load_dataset("json", data_files=str(folder / name), split="train")
    except Exception as error:  # datasets raises a dozen unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read split {split!r} of {source}: {reason}") from error
    raise DataError(f"{folder} holds neither {split}.jsonl nor {split}.jsonl.gz: check the folder")


@dataclass(frozen=True)
class PromptTemplate:
    """How an instruction is put to a policy, and how its answer is read back.

    Attributes:
        text: with "{instruction}" in it; None for the tokenizer's own chat template, of which only
            the user turn is used: no system message, not even the template's default one.
        end: the string that ends an answer, where that is not the tokenizer's EOS.
    """

    text: str | None = None
    end: str | None = None

    def render(self, tokenizer: PreTrainedTokenizerBase, turns: list[Turn]) -> str:
        """The text of a dialogue that ends with a human turn, ready for the answer.

        A template of text knows instruction and answer only: earlier turns become part of the
        instruction, one per line.
        """
        if self.text is not None:
            return self.text.format(instruction="\n".join(turn for _, turn in turns))
        roles = {"Human": "user", "Assistant": "assistant"}
        messages = [{"role": roles[role], "content": turn} for role, turn in turns]
        return _render_without_system(tokenizer, messages)

    def encode(self, tokenizer: PreTrainedTokenizerBase, turns: list[Turn] | str) -> list[int]:
        """Token ids of the rendered dialogue, or of a single instruction."""
        turns = [("Human", turns)] if isinstance(turns, str) else turns
        return tokenizer(self.render(tokenizer, turns), add_special_tokens=False)["input_ids"]

    def eos_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The tokens that end an answer: EOS, and `end` where that is a single token."""
        ids = [tokenizer.eos_token_id]
        if self.end is not None:
            end = tokenizer.encode(self.end, add_special_tokens=False)
            if len(end) == 1:
                ids.insert(0, end[0])
        return list(dict.fromkeys(ids))

    def decode(self, tokenizer: PreTrainedTokenizerBase, responses: list[Tensor]) -> list[str]:
        """The answers as text, without special tokens and without anything from `end` on."""
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        return [(t if self.end is None else t.split(self.end)[0]).strip() for t in texts]


CHAT = PromptTemplate()
DLITE = PromptTemplate("\n### Instruction:\n{instruction}\n### Response:\n", end="### End")


def _render_without_system(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> str:
    """The chat template's text of the messages alone.

    Many templates put a default system message first when none is given. Rendering with one of our
    own, and taking its text off the front, leaves the messages.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template: give the preset a "
            "template text"
        )
    system = [{"role": "system", "content": "-"}]

    def render(messages: list[dict[str, str]], prompt: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    try:
        prefix, text = render(system, False), render(system + messages, True)
    except Exception:  # templates refuse a system message with errors of their own
        return render(messages, True)
    return text[len(prefix) :] if text.startswith(prefix) else render(messages, True)


@dataclass(frozen=True)
class PromptReport:
    """How many rows became prompts, and why the others did not."""

    rows: int
    kept: int
    no_turns: int = 0
    """Rows that are not text, or lack a human or an assistant turn."""
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
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
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

    if "chosen" not in preferences.column_names:
        raise DataError(
            f"the dataset has no column 'chosen' (it has {', '.join(preferences.column_names)}): "
            "rows must be preference dialogues as in hh-rlhf"
        )
    rows: list[dict[str, Any]] = []
    dropped = dict.fromkeys(("no_turns", "empty", "too_long", "no_room", "beyond_limit"), 0)
    for text in preferences["chosen"]:
        prompt = first_prompt(text) if isinstance(text, str) else None
        if prompt is None:
            dropped["no_turns"] += 1
        elif not prompt:
            dropped["empty"] += 1
        elif len(prompt) >= max_chars:
            dropped["too_long"] += 1
        elif limit is not None and len(rows) == limit:
            dropped["beyond_limit"] += 1
        else:
            ids = template.encode(tokenizer, prompt)
            if context_length is not None and len(ids) + max_new_tokens > context_length:
                dropped["no_room"] += 1
            else:
                rows.append({"query": prompt, "input_ids": ids})
    report = PromptReport(rows=len(preferences), kept=len(rows), **dropped)
    if not rows:
        raise DataError(f"no usable prompt is left: {report}")
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
    """Queries saved with `Dataset.save_to_disk`, with the format they had."""
    import datasets

    queries = datasets.load_from_disk(str(folder))
    queries.set_format("torch", columns=["input_ids"], output_all_columns=True)
    return queries
