"""Labelling in a terminal, or wherever there are no widgets."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from ..errors import TutorialError, reason
from .agreement import report
from .labelling import Session

KEYS = {"l": "left", "r": "right", "t": "tie", "s": "skip", "b": "back", "q": "stop"}


def label_in_terminal(
    session: Session,
    ask: Callable[[str], str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Ask for one choice after the other, until all are made or you stop.

    Args:
        ask: as `input`, which it is by default. say: as `print`.
    """
    ask = ask or input  # looked up now: in a notebook it is the kernel's
    question = ", ".join(f"{key} = {word}" for key, word in KEYS.items()) + ": "
    while (shown := session.current) is not None:
        say(f"\n{session.done + 1} of {session.total}   {_wrapped(shown.prompt, '')}")
        say(f"\n  LEFT\n{_wrapped(shown.left)}\n\n  RIGHT\n{_wrapped(shown.right)}\n")
        word = ""
        while not word:
            try:
                given = ask(question).strip().lower()
            except (EOFError, KeyboardInterrupt):
                given = "q"
            word = KEYS.get(given) or (given if given in KEYS.values() else "")
        if word == "stop":
            say(f"\nStopped at {session.done} of {session.total}: start again to go on from there.")
            return
        try:
            if word != "back":
                session.choose(word)
            elif not session.back():
                say("This is the first pair.")
        except OSError as error:
            raise TutorialError(
                f"cannot write {session.path} ({reason(error)}): mend that and start again; all "
                "earlier labels are there"
            ) from error
    say("\n" + report(session.labels))


def _wrapped(text: str, indent: str = "  | ") -> str:
    """The text in lines of at most 88 characters, without what would steer the terminal."""
    shown = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    lines = [textwrap.wrap(line, 88) or [""] for line in shown.strip().split("\n")]
    return "\n".join(indent + part for parts in lines for part in parts)
