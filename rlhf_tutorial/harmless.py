"""Settings of other libraries that can be left out: those that ask for nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


def asks_nothing(value: Any) -> bool:
    """None, False, 0, and what is empty."""
    if value is None or isinstance(value, (bool, int, float)):
        return not value
    return isinstance(value, (str, Mapping, list, tuple, set)) and not len(value)


def without_harmless(
    given: Mapping[str, Any],
    refused: Mapping[str, str],
    without_effect: Mapping[str, str],
) -> dict[str, Any]:
    """The settings that are to be looked at.

    Left out are those of `refused` that ask for nothing, and all of `without_effect`, with a line
    in the log where another library would have done something.

    Args:
        refused, without_effect: names of settings, and why.
    """
    kept = dict(given)
    for name in [*refused, *without_effect]:
        if name in kept and asks_nothing(kept[name]):
            del kept[name]
    for name in without_effect.keys() & kept.keys():
        logger.info("%s=%r is left out: %s", name, kept.pop(name), without_effect[name])
    return kept
