"""Dialogues: the turns of one, and the text that holds them.

The text is that of Anthropic's hh-rlhf: a blank line and "Human:" or "Assistant:" open a turn (Bai
et al. 2022, "Training a Helpful and Harmless Assistant with Reinforcement Learning from Human
Feedback"). Here a dialogue may also begin with "System:", for data that has such a turn.
"""

from __future__ import annotations

import re
from typing import Any

Turn = tuple[str, str]  # ("Human", "Assistant" or, first of all, "System"; text)

# At the very start of a text no blank line is needed: many data sets are stripped.
_START = re.compile(r"\s*(Human|Assistant|System):")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_HELD = re.compile(r"\n+(?=\n(?:Human|Assistant):)")
_ROLES = {"user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant"}
_ROLES |= {"system": "System"}


def _unix(text: str) -> str:
    """Line ends as Unix has them; as often as this is done, it changes nothing more."""
    return re.sub(r"\r+\n", "\n", text) if "\r" in text else text


def parse_dialogue(text: str) -> list[Turn]:
    """Split a dialogue into its turns, texts stripped. Text before the first turn is left out.

    Windows' line ends are read as any other.
    """
    text = _unix(text)
    if start := _START.match(text):
        pieces = [start[1], *_TURN.split(text[start.end() :])]
    else:
        pieces = _TURN.split(text)[1:]
    return [(role, turn.strip()) for role, turn in zip(pieces[::2], pieces[1::2], strict=True)]


def dialogue_text(turns: list[Turn]) -> str:
    """The text that `parse_dialogue` reads as these turns.

    A blank line before what looks like a marker within a turn becomes a single line end, since it
    would open another turn.
    """
    texts = [(role, _HELD.sub("", _unix(text))) for role, text in turns]
    return "".join(f"\n\n{role}: {text.strip()}" for role, text in texts)


def first_prompt(text: str) -> str | None:
    """The first human turn on one line, or None if the dialogue has no human and assistant turn."""
    turns = parse_dialogue(text)
    humans = [turn for role, turn in turns if role == "Human"]
    if not humans or not any(role == "Assistant" for role, _ in turns):
        return None
    return humans[0].replace("\n", " ").strip()


def last_reply(text: str) -> tuple[list[Turn], str] | None:
    """The dialogue up to its last assistant turn, and that turn; None where there is none."""
    turns = parse_dialogue(text)
    while turns and turns[-1][0] != "Assistant":
        turns.pop()
    if len(turns) < 2 or not turns[-1][1]:
        return None
    return turns[:-1], turns[-1][1]


def opens_with_a_turn(text: str) -> bool:
    """Whether the text is a dialogue from its first word on."""
    return _START.match(text) is not None


def query_text(turns: list[Turn]) -> str:
    """A prompt as one text: a lone human turn bare, several turns as a dialogue."""
    if len(turns) == 1 and turns[0][0] == "Human":
        return turns[0][1]
    return dialogue_text(turns)


def query_turns(query: str) -> list[Turn]:
    """The turns of what `query_text` gave; any other text is a human turn as it stands."""
    is_dialogue = query.startswith("\n\n") and opens_with_a_turn(query)
    return parse_dialogue(query) if is_dialogue else [("Human", query)]


def message_turns(messages: Any) -> list[Turn] | None:
    """The turns of a list of messages; None for anything else.

    A message is {"role", "content"}, or {"from", "value"} as ShareGPT has it; content may be a list
    of parts of text. An empty system message is left out. Messages of tools, images, and a system
    message that is not the first are nothing that a dialogue here could hold.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        return None
    turns: list[Turn] = []
    for message in messages:
        if not isinstance(message, dict):
            return None
        role = _ROLES.get(str(message.get("role") or message.get("from")))
        text = _text_of(message["content"] if "content" in message else message.get("value"))
        if role is None or text is None or (role == "System" and turns):
            return None
        if role != "System" or text:
            turns.append((role, text))
    return turns


def _text_of(content: Any) -> str | None:
    """The text of a message's content, stripped; None where it holds something else."""
    if isinstance(content, (list, tuple)):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    return _unix(content).strip() if isinstance(content, str) else None
