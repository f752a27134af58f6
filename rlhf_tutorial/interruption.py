"""Stopping a long run without losing work: Ctrl-C, a notebook's stop button, SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interruption:
    """Holds back a wish to stop until the work is at a point where it can be taken up again.

    Within, the first SIGINT or SIGTERM only sets `asked_for` while `busy()` work is under way, at
    whose end it saves and stops; at any other time it does so at once. A second one stops without
    saving. Outside the main thread, which alone gets signals, nothing is held back.
    """

    def __init__(
        self, save: Callable[[], Any], any_process: Callable[[bool], bool] | None = None
    ) -> None:
        """
        Args:
            save: leaves the work where it can be taken up again.
            any_process: where several processes save together: of whether this one was asked to
                stop, whether any of them was. They then stop at the end of busy work only.
        """
        self.asked_for: int | None = None
        self._save, self._any_process, self._busy = save, any_process, False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # A signal that is ignored (under nohup, say) stays ignored, and a handler that
                # Python did not install (None) is left alone.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Around work that must not be torn apart."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        asked = self.asked_for is not None
        if self._any_process(asked) if self._any_process else asked:
            self._stop()

    def between(self, steps: Iterator[Any]) -> Iterator[Any]:
        """The steps, each of them busy work: a wish to stop waits until one is complete."""
        while True:
            with self.busy():
                step = next(steps, None)
                if step is None:
                    break
            yield step

    def _stop(self) -> None:
        """Save, and let the signal do what it would have done."""
        self._save()
        number = self.asked_for or signal.SIGTERM  # None if only another process was asked
        self.__exit__()
        signal.raise_signal(number)
        self.asked_for = None  # if the earlier handler did not stop the process
        self.__enter__()

    def _asked(self, number: int, _: object) -> None:
        twice, self.asked_for = self.asked_for is not None, number
        if twice:
            self.__exit__()
            signal.raise_signal(number)
        elif not self._busy and self._any_process is None:
            self._stop()
