"""A labelling session without its looks: what is shown next, and what becomes of a choice.

`widget.py` shows it in a notebook, `terminal.py` in a terminal.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..errors import DataError
from .labels import Label, NextPair, Pair, append_label, load_labels, take_back_label

REPEAT_EVERY = 10
"""So many pairs are answered before one of them comes again."""

FORGOTTEN = 4
"""A pair comes again only after so many others, when its answers are less fresh in memory."""


@dataclass(frozen=True)
class Shown:
    """A pair as it is shown."""

    pair: Pair
    left_name: str
    """ "a" or "b": which one stands on the left."""
    repeat: bool = False

    @property
    def prompt(self) -> str:
        return self.pair.prompt

    @property
    def left(self) -> str:
        """The text on the left."""
        return self.pair.a if self.left_name == "a" else self.pair.b

    @property
    def right(self) -> str:
        """The text on the right."""
        return self.pair.b if self.left_name == "a" else self.pair.a


def in_order(labels: list[Label], pairs: list[Pair]) -> int:
    """The first pair that is left."""
    return 0


class Session:
    """One rater's way through some pairs. All that it knows is on the disk, after every choice.

    A session with the same pairs, path, rater and purpose goes on where the last one stopped.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        path: str | Path,
        *,
        policy: str,
        rater: str = "you",
        purpose: str = "train",
        next_pair: NextPair = in_order,
        limit: int | None = None,
        repeats: bool = True,
        seed: int = 0,
    ) -> None:
        """
        Args:
            path: of the file of labels, which may hold others' and of other pairs as well.
            policy: whose answers the pairs are, as `policy_name` has it.
            purpose: "train", or "blind test".
            next_pair: chooses the next pair; by default they come in their order.
            limit: so many pairs are answered, skipped ones not counted; by default all.
            repeats: whether every tenth answer brings an earlier pair again, sides swapped.
            seed: draws the sides, and what comes again.

        Raises:
            DataError: for labels that cannot be used (see `load_labels`).
        """
        self.path, self.policy, self.rater, self.purpose = Path(path), policy, rater, purpose
        self.labels: list[Label] = []
        """This session's, in their order; after a restart those of before as well."""
        self._pairs = list({pair.key: pair for pair in pairs}.values())
        self._next_pair, self._limit, self._repeats, self._seed = next_pair, limit, repeats, seed
        keys = {pair.key for pair in self._pairs}
        for label in load_labels(self.path):
            mine = (label.rater, label.purpose) == (rater, purpose)
            if mine and label.pair.key in keys:
                self.labels.append(label)
        self._show(self._next())

    @property
    def current(self) -> Shown | None:
        """What is to be chosen from; None at the end."""
        return self._current

    @property
    def seconds(self) -> float:
        """Since it is shown."""
        return time.monotonic() - self._since

    @property
    def done(self) -> int:
        """Choices so far, skipped pairs not counted."""
        return len(self._answered) + sum(label.repeat for label in self.labels)

    @property
    def total(self) -> int:
        """Choices at the end, if no other pair is skipped."""
        pairs = len(self._answered) + len(self._left)
        pairs = pairs if self._limit is None else min(self._limit, pairs)
        return pairs + (pairs // REPEAT_EVERY if self._repeats else 0)

    def choose(self, what: str) -> None:
        """Write down "left", "right", "tie" or "skip" of the current pair, and go to the next.

        Raises:
            DataError: for any other word, at the end, or where the rater has chosen between these
                two in another window meanwhile.
            OSError: where it cannot be written: the session stays where it is.
        """
        shown = self._current
        if shown is None:
            raise DataError("every pair has its label: there is nothing left to choose")
        other = "b" if shown.left_name == "a" else "a"
        names = {"left": shown.left_name, "right": other, "tie": "tie", "skip": "skip"}
        if what not in names:
            raise DataError(f"{what!r} is no choice: use one of {', '.join(names)}")
        elsewhere = [
            label
            for label in load_labels(self.path)
            if label.rater == self.rater and label not in self.labels
        ]
        known = {(label.pair.key, label.purpose) for label in elsewhere}
        if not shown.repeat and (shown.pair.key, self.purpose) in known:
            raise DataError("this pair was answered in another window: start this session again")
        now = datetime.now(UTC)
        # A pair may stand there, unlooked at, while its rater chooses in another session.
        waited = [(now - datetime.fromisoformat(label.time)).total_seconds() for label in elsewhere]
        label = Label(
            prompt=shown.prompt,
            a=shown.pair.a,
            b=shown.pair.b,
            left=shown.left_name,
            choice=names[what],
            seconds=round(max(0.0, min([self.seconds, *waited])), 2),
            time=now.isoformat(timespec="milliseconds"),
            rater=self.rater,
            policy=self.policy,
            repeat=shown.repeat,
            purpose=self.purpose,
        )
        append_label(self.path, label)
        self.labels.append(label)
        self._show(self._next())

    def back(self) -> bool:
        """Take the last label back, also from the disk, and show its pair again.

        Returns:
            Whether there was one.
        """
        if not self.labels:
            return False
        last = self.labels[-1]
        take_back_label(self.path, last)
        self.labels.pop()
        self._show(Shown(last.pair, last.left, last.repeat))
        return True

    @property
    def _answered(self) -> list[Label]:
        """Of the labels those of a pair that was answered for the first time."""
        return [label for label in self.labels if label.choice != "skip" and not label.repeat]

    @property
    def _left(self) -> list[Pair]:
        seen = {label.pair.key for label in self.labels}
        return [pair for pair in self._pairs if pair.key not in seen]

    def _show(self, shown: Shown | None) -> None:
        self._current, self._since = shown, time.monotonic()

    def _next(self) -> Shown | None:
        answered, left = self._answered, self._left
        again = {label.pair.key for label in self.labels if label.repeat}
        if self._repeats and len(again) < len(answered) // REPEAT_EVERY:
            old = [label for label in answered[:-FORGOTTEN] if label.pair.key not in again]
            label = random.Random(f"{self._seed} {len(again)}").choice(old)
            return Shown(label.pair, "b" if label.left == "a" else "a", repeat=True)
        if not left or (self._limit is not None and len(answered) >= self._limit):
            return None
        pair = left[self._next_pair(list(self.labels), left)]
        return Shown(pair, random.Random(f"{self._seed} {pair}").choice("ab"))
