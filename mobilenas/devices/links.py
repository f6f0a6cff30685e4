"""Links: how files and commands reach a device. One contract; this host is the first implementation."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from mobilenas.core import documents
from mobilenas.core.resources import shipped
from mobilenas.devices.streams import stream
from mobilenas.errors import CrashError, DeviceError, DeviceTimeoutError, LinkError, ResourceError

CLOCK_PROGRAM, SYSTEM_FILES, CLOCK_TIMEOUT_S = "device_clock.py", "/sys", 20.0


class Link(ABC):
    """An open connection to a device, used as a context manager.

    On entry it owns an empty working directory on the device; names given to ``push``, ``pull``, ``remove`` and ``run`` are
    relative to it; on exit the directory is gone. Arguments are lists: nothing that a user says is ever parsed by a shell.
    Where ``governor`` is named, the device's processors have it from entry to exit.
    """

    def __init__(self) -> None:
        self.governor: str | None = None
        self._kept: set[str] = set()
        self._clock_before: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._kept.clear()
        self.open()
        try:
            if self.governor is not None:
                self._clock_before = self._set_clock({"*": self.governor})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if self._clock_before:
                self._set_clock(self._clock_before)
        except DeviceError:
            if error is None:  # what went wrong before is what has to be told
                raise
        finally:
            self._clock_before = {}
            self.close()

    def _set_clock(self, governors: Mapping[str, str]) -> dict[str, str]:
        """Set the governor of each processor, by its path below /sys or of all; return those that were others before.

        Raises ``DeviceError`` with what the device says against it.
        """
        self.push({CLOCK_PROGRAM: (shipped("export") / "runners" / CLOCK_PROGRAM).read_bytes()})
        lines: list[str] = []
        argv = [self.python, CLOCK_PROGRAM, SYSTEM_FILES, msgspec.json.encode(governors).decode()]
        try:
            self.run(argv, timeout_s=CLOCK_TIMEOUT_S, on_line=lines.append)
        except CrashError as error:
            complaint = str(error).splitlines()[-1]
            raise DeviceError(
                f"device.governor is {self.governor!r}, and the device says: {complaint}. Set it by hand there, as root, and "
                "leave device.governor out"
            ) from None
        return documents.convert(documents.parse_json(lines[-1], CLOCK_PROGRAM), dict[str, str], CLOCK_PROGRAM)

    def keep(self, models: Iterable[Sequence[bytes]], suffixes: Sequence[str]) -> list[str]:
        """Push what the device does not have yet under names made of the content; return those of each model's first file.

        The files of a model differ in their suffix only. So a model that is timed in many sweeps travels once. Raises
        ``LinkError``.
        """
        names, missing = [], {}
        for files in models:
            parts = b"".join(hashlib.sha256(content).digest() for content in files)
            stem = hashlib.sha256(parts).hexdigest()[:32]
            names.append(f"{stem}{suffixes[0]}")
            if names[-1] not in self._kept:
                missing.update({f"{stem}{suffix}": content for content, suffix in zip(files, suffixes, strict=False)})
        self.push(missing)
        self._kept.update(missing)
        return names

    def place(self, folder: Path, names: Sequence[str]) -> str:
        """Make files of ``folder`` readable for a program on the device; return the folder there. Raises ``LinkError``."""
        below = next((name for name in names if "/" in name or os.sep in name), None)
        if below is not None:
            raise LinkError(f"{folder / below}: only files that lie in one folder with their model travel to a device")
        missing = [name for name in names if name not in self._kept]
        for name in missing:
            try:
                self.push({name: (folder / name).read_bytes()})
            except OSError as error:
                raise LinkError(f"{folder / name}: cannot be read: {error.strerror}") from error
        self._kept.update(missing)
        return "."

    def remove(self, names: Iterable[str]) -> None:
        """Delete files on the device if they are there."""
        gone = list(names)
        self._kept.difference_update(gone)
        self.delete(gone)

    @property
    @abstractmethod
    def python(self) -> str:
        """The Python interpreter on the device that has the engine installed."""

    @abstractmethod
    def open(self) -> None:
        """Make the working directory; raises ``LinkError``."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing on the device."""

    @abstractmethod
    def push(self, files: Mapping[str, bytes]) -> None:
        """Write each content under its name on the device; raises ``LinkError``."""

    @abstractmethod
    def pull(self, name: str) -> bytes:
        """The content of ``name`` on the device; raises ``LinkError``."""

    @abstractmethod
    def delete(self, names: Sequence[str]) -> None:
        """What ``remove`` does there."""

    @abstractmethod
    def run(self, argv: Sequence[str], *, timeout_s: float, on_line: Callable[[str], None]) -> None:
        """Run a command there and hand each line it prints to ``on_line`` as it comes.

        Raises ``DeviceTimeoutError`` after ``timeout_s`` seconds without a line, ``RunnerError`` (argv, exit code, last
        lines of its error output) if it does not end with 0, and ``LostLinkError`` where the connection broke under it.
        """


class LocalLink(Link):
    """This host: the working directory is a temporary folder, commands are child processes."""

    def open(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="mobilenas-"))

    def close(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def python(self) -> str:
        return sys.executable

    def place(self, folder: Path, names: Sequence[str]) -> str:
        """Return the folder itself: the files are on this host already."""
        return str(folder)

    def push(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            try:
                (self._directory / name).write_bytes(content)
            except OSError as error:
                raise ResourceError(f"{self._directory / name}: cannot be written: {error.strerror}") from error

    def pull(self, name: str) -> bytes:
        try:
            return (self._directory / name).read_bytes()
        except OSError as error:
            raise LinkError(f"cannot read {name} on this host: {error.strerror}") from error

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            (self._directory / name).unlink(missing_ok=True)

    def run(self, argv: Sequence[str], *, timeout_s: float, on_line: Callable[[str], None]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = stream(argv, timeout_s=timeout_s, on_line=on_line, directory=self._directory, environment=environment)
        if ended.unfinished and ended.exit_code == 0:
            on_line(ended.unfinished)
        check_ended(argv, ended.exit_code, ended.last_words, timeout_s, "this host")


def check_ended(argv: Sequence[str], exit_code: int | None, last_words: str, timeout_s: float, where: str) -> None:
    """Raise what ``Link.run`` promises for a command that ended so; ``None``: it was given up, negative: by a signal."""
    command = " ".join(argv)
    if exit_code is None:
        raise DeviceTimeoutError(f"{command}: nothing said for {timeout_s:.0f} s on {where}; killed")
    if exit_code != 0:
        outcome = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        words = f"; its last words:\n{last_words}" if last_words else ""
        raise CrashError(f"{command} ended with {outcome} on {where}{words}")
