"""SIGINT and SIGTERM while something may only stop between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """Inside it a first SIGINT or SIGTERM is only noted, so that a step is finished and saved; a second one acts at once.

    ``leave`` raises what the signal asked for: ``KeyboardInterrupt``, or ``SystemExit(143)``. Outside the main thread,
    where signals cannot be caught, nothing is ever requested.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def is_requested(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    def leave(self) -> None:
        """Raise what was asked for; does nothing if nothing was."""
        if self._number is not None:
            raise _exception_of(self._number)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if error is None:
            self.leave()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            raise _exception_of(number)
        self._number = number


def _exception_of(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
