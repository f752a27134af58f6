"""Errors that a reader is to see: one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from rlhf_tutorial.errors import TutorialError


def one_line(error: pytest.ExceptionInfo[Any]) -> str:
    """The message, which must have one line."""
    message = str(error.value)
    assert message and "\n" not in message
    return message


@contextlib.contextmanager
def refused(kind: type[TutorialError], *parts: str) -> Iterator[None]:
    """The block ends in just this kind of error: one short line that holds all the parts."""
    with pytest.raises(kind) as error:
        yield
    message = str(error.value)
    assert type(error.value) is kind
    assert len(message.splitlines()) == 1 and len(message) < 600, message
    for part in parts:
        assert part in message
