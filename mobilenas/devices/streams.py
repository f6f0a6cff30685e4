"""Child processes whose output is read as it comes, within limits, and which are given up when they fall silent."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from mobilenas.core.documents import MAXIMUM_LINE_BYTES, MAXIMUM_VALUES
from mobilenas.errors import RunnerError

LAST_WORDS = 5
"""Lines of its error output that are kept of a command."""
MAXIMUM_OUTPUT_BYTES = 2**30
"""Of all lines of a command together; there may be ``MAXIMUM_VALUES`` of them."""
MAXIMUM_ANSWER_BYTES = 2**24
"""Of what a command prints that moves no file."""
MAXIMUM_ERROR_BYTES = 2**26
"""Of a command's error output, of which the last ``KEPT_ERROR_BYTES`` are kept."""
KEPT_ERROR_BYTES = 2**20
WATCH_S = 0.5
"""Between two looks at the size of an error output."""
_PIECE_BYTES = 2**20


class Ended(NamedTuple):
    """How a child process ended."""

    exit_code: int | None
    """Negative for a signal; ``None`` where it fell silent and was killed."""
    error_lines: tuple[str, ...]
    """The last lines of its error output."""
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

    An error of ``on_line`` ends it too. Nothing that it started is left running. Raises ``OSError`` if it cannot be started,
    ``RunnerError`` if it prints a line, or in all, more than the limits of this module.
    """
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            list(argv),
            cwd=directory,
            env=dict(environment) if environment is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        with _watched(process, errors, timeout_s, lambda: kill_group(process)) as watch:
            unfinished = ""
            for line in _lines(process.stdout, argv[0]):
                watch.heard_s = time.monotonic()
                if line.endswith(b"\n"):
                    on_line(line[:-1].decode(errors="replace"))
                else:
                    unfinished = line.decode(errors="replace")
            process.wait()
        watch.check(argv[0])
        said = tuple(tail(errors).splitlines())
        return Ended(None if watch.is_expired else process.returncode, said, unfinished)


def answer(
    argv: Sequence[str],
    content: bytes = b"",
    *,
    timeout_s: float,
    limit_bytes: int = MAXIMUM_ANSWER_BYTES,
    directory: Path | None = None,
) -> tuple[int | None, bytes, str]:
    """Run a command with ``content`` as its input; return its exit code, output and the end of its error output.

    The exit code is ``None`` where it took longer than ``timeout_s`` and was killed. The error output is no pipe: what the
    command leaves in the background may hold it. Raises ``OSError`` if it cannot be started, ``RunnerError`` if it prints more
    than ``limit_bytes``.
    """
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            list(argv),
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        feeder = threading.Thread(target=_feed, args=(process, content), daemon=True)
        feeder.start()
        printed = bytearray()
        try:
            with _watched(process, errors, timeout_s, process.kill) as watch:
                while piece := os.read(process.stdout.fileno(), _PIECE_BYTES):
                    printed += piece
                    if len(printed) > limit_bytes:
                        raise RunnerError(f"{argv[0]} printed more than {limit_bytes // 2**20} MiB")
                process.wait()
        finally:
            feeder.join()
        watch.check(argv[0])
        return None if watch.is_expired else process.returncode, bytes(printed), tail(errors)


class _Watch:
    """What a thread sees of a process that it may have to kill."""

    def __init__(self) -> None:
        self.heard_s = time.monotonic()
        self.is_expired = self.is_flooded = False

    def check(self, name: str) -> None:
        """Raise ``RunnerError`` where the process was killed for the size of its error output."""
        if self.is_flooded:
            raise RunnerError(f"{name} printed more than {MAXIMUM_ERROR_BYTES // 2**20} MiB on its error output")


@contextmanager
def _watched(
    process: subprocess.Popen[bytes], errors: IO[bytes], timeout_s: float, kill: Callable[[], None]
) -> Iterator[_Watch]:
    """Kill ``process`` after ``timeout_s`` seconds without a sign of life, for an endless error output, and after an error."""
    watch, ended = _Watch(), threading.Event()

    def look() -> None:
        while (left_s := watch.heard_s + timeout_s - time.monotonic()) > 0:
            if ended.wait(min(left_s, WATCH_S)):
                return
            if os.fstat(errors.fileno()).st_size > MAXIMUM_ERROR_BYTES:
                watch.is_flooded = True
                break
        else:
            watch.is_expired = True
        kill()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield watch
    except BaseException:
        kill()
        raise
    finally:
        ended.set()
        watcher.join()


def _lines(output: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the lines of an output with their ends, the last one perhaps without."""
    size = count = 0
    while line := output.readline(MAXIMUM_LINE_BYTES + 1):
        size, count = size + len(line), count + 1
        if len(line) > MAXIMUM_LINE_BYTES:
            raise RunnerError(f"{name} printed a line of more than {MAXIMUM_LINE_BYTES // 2**20} MiB")
        if size > MAXIMUM_OUTPUT_BYTES or count > MAXIMUM_VALUES:
            raise RunnerError(
                f"{name} printed more than {MAXIMUM_VALUES:,} lines, or {MAXIMUM_OUTPUT_BYTES // 2**20} MiB, and does not end"
            )
        yield line


def _feed(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin is not None
    with suppress(OSError, ValueError), process.stdin:  # a command that reads no more is judged by what it says
        process.stdin.write(content)


def tail(file: IO[bytes], begin: int = 0) -> str:
    """Return what was written into ``file`` after ``begin``, at most the last ``KEPT_ERROR_BYTES``."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(begin, size - KEPT_ERROR_BYTES))
    return file.read(KEPT_ERROR_BYTES).decode(errors="replace")


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
