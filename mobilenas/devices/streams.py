"""A child process whose lines are read as they come, and which is given up when it falls silent."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LAST_WORDS = 5
"""Lines of its error output that are kept of a command."""


class Ended(NamedTuple):
    """How a child process ended."""

    exit_code: int | None
    """Negative for a signal; ``None`` where it fell silent and was killed."""
    error_lines: tuple[str, ...]
    """All it said on its error output."""
    unfinished: str = ""
    """What it printed last, if no end of the line came: of a connection that broke, half a line."""

    @property
    def last_words(self) -> str:
        """The end of its error output."""
        return "\n".join(self.error_lines[-LAST_WORDS:])


def stream(
    argv: Sequence[str],
    *,
    timeout_s: float,
    on_line: Callable[[str], None],
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a command and hand each whole line it prints to ``on_line``; kill it after ``timeout_s`` seconds without one.

    An error of ``on_line`` ends it too. Nothing that it started is left running. Raises ``OSError`` if it cannot be started.
    """
    expired, ended = threading.Event(), threading.Event()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            list(argv),
            cwd=directory,
            env=dict(environment) if environment is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        heard_s = time.monotonic()

        def watch() -> None:
            while (left_s := heard_s + timeout_s - time.monotonic()) > 0:
                if ended.wait(left_s):
                    return
            expired.set()
            _kill(process)

        watcher = threading.Thread(target=watch)
        watcher.start()
        unfinished = ""
        try:
            assert process.stdout is not None
            for line in process.stdout:
                heard_s = time.monotonic()
                if line.endswith("\n"):
                    on_line(line[:-1])
                else:
                    unfinished = line
            process.wait()
        except BaseException:
            _kill(process)
            raise
        finally:
            ended.set()
            watcher.join()
        errors.seek(0)
        return Ended(None if expired.is_set() else process.returncode, tuple(errors.read().splitlines()), unfinished)


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
