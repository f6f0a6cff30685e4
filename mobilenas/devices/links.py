"""Links: how files and commands reach a device. One contract; this host is the first implementation."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from mobilenas.errors import DeviceTimeoutError, LinkError, RunnerError


class Link(ABC):
    """An open connection to a device, used as a context manager.

    On entry it owns an empty working directory on the device; names given to ``push``, ``pull`` and ``run`` are relative
    to it; on exit the directory is gone. Arguments are lists: nothing is ever parsed by a shell.
    """

    @property
    @abstractmethod
    def python(self) -> str:
        """The Python interpreter on the device that has the engine installed."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @abstractmethod
    def push(self, source: Path, name: str) -> None:
        """Copy a host file to ``name`` on the device; raises ``LinkError``."""

    @abstractmethod
    def push_bytes(self, content: bytes, name: str) -> None:
        """Write ``content`` to ``name`` on the device; raises ``LinkError``."""

    @abstractmethod
    def pull_bytes(self, name: str) -> bytes:
        """The content of ``name`` on the device; raises ``LinkError``."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete ``name`` on the device if it is there."""

    @abstractmethod
    def run(self, argv: Sequence[str], *, timeout_s: float, on_line: Callable[[str], None]) -> None:
        """Run a command there and hand each line it prints to ``on_line`` as it comes.

        Raises ``DeviceTimeoutError`` after ``timeout_s`` seconds without a line and ``RunnerError`` (argv, exit code, last
        lines of its error output) if it does not end with 0.
        """


class LocalLink(Link):
    """This host: the working directory is a temporary folder, commands are child processes."""

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="mobilenas-"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def python(self) -> str:
        import sys

        return sys.executable

    def push(self, source: Path, name: str) -> None:
        try:
            shutil.copyfile(source, self._directory / name)
        except OSError as error:
            raise LinkError(f"cannot copy {source} to {name} on this host: {error.strerror}") from error

    def push_bytes(self, content: bytes, name: str) -> None:
        try:
            (self._directory / name).write_bytes(content)
        except OSError as error:
            raise LinkError(f"cannot write {name} on this host: {error.strerror}") from error

    def pull_bytes(self, name: str) -> bytes:
        try:
            return (self._directory / name).read_bytes()
        except OSError as error:
            raise LinkError(f"cannot read {name} on this host: {error.strerror}") from error

    def remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def run(self, argv: Sequence[str], *, timeout_s: float, on_line: Callable[[str], None]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        expired, ended = threading.Event(), threading.Event()
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
            subprocess.Popen(
                list(argv),
                cwd=self._directory,
                env=environment,
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
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    heard_s = time.monotonic()
                    on_line(line.rstrip("\n"))
                process.wait()
            except BaseException:
                _kill(process)
                raise
            finally:
                ended.set()
                watcher.join()
            errors.seek(0)
            tail = "\n".join(errors.read().splitlines()[-5:])
        if expired.is_set():
            raise DeviceTimeoutError(f"{' '.join(argv)}: nothing said for {timeout_s:.0f} s on this host; killed")
        if process.returncode != 0:
            outcome = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
            raise RunnerError(f"{' '.join(argv)} ended with {outcome} on this host; its last words:\n{tail}")


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
