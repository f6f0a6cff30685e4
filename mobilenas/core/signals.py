"""SIGINT, SIGTERM and SIGUSR1 while something may only stop between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Inside it a first signal of ``STOPPING`` is only noted, so that a step is finished and saved; a second one acts at once.

    ``leave`` raises what the signal asked for: ``KeyboardInterrupt``, or ``SystemExit(143)``. SIGUSR1 is what Slurm can send
    before a job's time is up. Outside the main thread,
    where signals cannot be caught, nothing is ever requested.
    """

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that has come, 0 where none has."""
        self._previous: dict[int, Any] = {}

    def leave(self, number: int | None = None) -> None:
        """Raise what was asked for, here or by a signal ``number`` elsewhere; does nothing if nothing was."""
        asked = self.number if number is None else number
        if asked:
            raise _exception_of(asked)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if error is None:
            self.leave()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise _exception_of(number)
        self.number = number


def catch_terminations() -> None:
    """Have SIGTERM and SIGUSR1 raise ``SystemExit(143)`` in the main thread, as SIGINT raises ``KeyboardInterrupt``."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _raise)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of ``STOPPING`` back at the end: libraries install their own, below Python, when they are started."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise _exception_of(number)


def _exception_of(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
