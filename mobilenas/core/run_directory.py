"""A run's folder: resolved configuration, environment, metrics, result. Nothing half-written under a final name."""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from mobilenas.core import documents
from mobilenas.core.system import Process, system_errors
from mobilenas.errors import DocumentError, MobileNASError, ResourceError, UsageError

Word = Literal["running", "ok", "failed", "interrupted"]
STATUS, LOCK = "STATUS", ".lock"
"""Files of a folder: how its command stands or ended, and what the command at work holds (it stays empty)."""
LONGEST_REASON = 1000
"""Characters, so that the whole file fits into the block of the disk that a shorter one has already."""
_PROCESS = re.compile(r"process (\d+), boot (\S+), started (\S+)")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` so that a reader (or a power cut) sees the old file or the new one, whole."""
    write_together(path.parent, {path.name: content})


def write_together(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write several files into ``folder``: all are on the disk before the first takes its name, so that a full disk leaves
    every old one. They take their names in the order given.
    """
    temporary: dict[str, str] = {}
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            path = folder / name
            handle, temporary[name] = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary[name], 0o644)
        for name in contents:
            path = folder / name
            os.replace(temporary[name], path)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        for name in temporary.values():
            with suppress(OSError):  # what went wrong before is what has to be told
                Path(name).unlink(missing_ok=True)


def check_is_new(path: Path) -> None:
    """Raise ``UsageError`` if there is something at ``path``."""
    if path.exists():
        raise UsageError(f"{path}: there is something already; name a new folder")


def check_writable(folder: Path) -> None:
    """Raise ``ResourceError`` if nothing could be written into ``folder``, before work is done for it."""
    probe = folder / ".probe"
    write_atomic(probe, "")
    probe.unlink()


class Journal:
    """Append-only JSON lines, each on disk before the next is begun; a torn last line is dropped when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Every whole record written so far; the file is left as it is. Raises ``DocumentError`` for damage before its end."""
        return list(self.lines())

    def lines(self) -> Iterator[dict[str, Any]]:
        """The records one by one: a journal may be larger than any other document, its lines may not."""
        if not self.path.exists():
            return
        for number, line in enumerate(documents.read_lines(self.path), 1):
            where = f"{self.path}:{number}"
            record = documents.parse_json(line, where)
            if not isinstance(record, dict):
                raise DocumentError(f"{where}: expected a JSON object, found {type(record).__name__}")
            yield record

    def _drop_torn_end(self) -> None:
        """Cut off a last line that was not written to its end."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        with open(self.path, "rb+") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            whole = content.rfind(b"\n") + 1
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the records that are not ``wanted``; raises ``DocumentError`` for one that ``wanted`` cannot read."""
        kept = []
        for number, record in enumerate(self.read(), 1):
            try:
                if wanted(record):
                    kept.append(record)
            except (KeyError, TypeError) as error:
                raise DocumentError(f"{self.path}:{number}: lacks what it should hold ({error!r}): remove that line") from error
        if self.path.exists():
            write_atomic(self.path, "".join(map(documents.dump_line, kept)))

    def append(self, record: Any) -> None:
        """Write one record and wait until it is on disk; a torn last line of an earlier process is dropped first.

        Raises ``ResourceError`` if it cannot be written, ``DocumentError`` for a number that is not finite.
        """
        line = documents.dump_line(record)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_torn_end()
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot be written: {error.strerror}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make ``folder`` if need be and hold it alone.

    Raises ``UsageError`` if another process holds it, ``ResourceError`` if it cannot be written.
    """
    lock = _lock(folder)
    while not _is_at(lock, folder):
        os.close(lock)
        lock = _lock(folder)
    try:
        with system_errors():
            yield
    finally:
        os.close(lock)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Hold a folder of records alone. Left without an error it is set aside, so that the same command measures anew."""
    with locked(folder):
        with status_kept(folder):
            yield
        set_aside(folder)


class Status(NamedTuple):
    """How a folder's command stands or ended; ``reason`` says why, where it did not end well."""

    word: Word
    reason: str = ""


@contextmanager
def status_kept(folder: Path) -> Iterator[None]:
    """Keep in STATUS that this process is at work in a folder that it holds, and how it ends.

    Where not even that can be written, the error inside is the one that is raised.
    """
    write_status(folder, "running")
    try:
        with system_errors():
            yield
    except BaseException as error:
        is_stop = isinstance(error, KeyboardInterrupt | SystemExit)
        with suppress(MobileNASError):
            write_status(folder, "interrupted" if is_stop else "failed", "" if is_stop else f"{type(error).__name__}: {error}")
        raise
    write_status(folder, "ok")


def write_status(folder: Path, word: Word, reason: str = "") -> None:
    """Write STATUS: one word, the process that says so, and after a failure why. Raises ``ResourceError``.

    On a full disk the file is overwritten where it lies, which takes no room.
    """
    number, boot, started = Process.own()
    said = reason.encode("utf-8", "backslashreplace").decode()[:LONGEST_REASON]
    text = f"{word}\nprocess {number}, boot {boot}, started {started}\n{said}".rstrip() + "\n"
    try:
        write_atomic(folder / STATUS, text)
    except ResourceError:
        if not _overwritten(folder / STATUS, text.encode()):
            raise


def _overwritten(path: Path, content: bytes) -> bool:
    with suppress(OSError):
        if path.is_file() and not path.is_symlink():
            with open(path, "r+b", buffering=0) as file:
                file.write(content)
                file.truncate()
                os.fsync(file.fileno())
            return True
    return False


def read_status(folder: Path) -> Status | None:
    """Read the status of the command of ``folder``, ``None`` if none was begun there. Raises ``DocumentError``.

    One that is said to be running and is not counts as interrupted.
    """
    path = folder / STATUS
    if not os.path.lexists(path):
        return None
    word, _, rest = documents.read_text(path).partition("\n")
    if word not in get_args(Word):
        raise DocumentError(f"{path}: begins with {word[:100]!r}; it must be one of {', '.join(get_args(Word))}")
    found = _PROCESS.match(rest)
    process = Process(int(found[1]), found[2], found[3]) if found else None
    if word == "running" and not (process and Process.of(process.number) == process) and not _is_held(folder):
        who = f"process {process.number}" if process else "its process"
        return Status("interrupted", f"{who} has ended without a word: it was killed, or could not write any more")
    return Status(word, (rest[found.end() :] if found else rest).strip())  # type: ignore[arg-type]


def _is_held(folder: Path) -> bool:
    """Return whether a process holds ``folder``, even one on another machine that shares the disk."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(lock)


def set_aside(folder: Path) -> None:
    """Give a folder of records, if it is there, a name with the time, so that nothing goes on from them."""
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"))


def _lock(folder: Path) -> int:
    """A descriptor of the folder's lock, held; the folder may have been renamed since it was opened."""
    try:
        _make(folder)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # renamed since it was made
            return _lock(folder)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written: {error.strerror}; name another folder with --output") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UsageError(f"{folder}: another process works in this folder; wait, or name another one") from None
    return lock


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if os.path.lexists(folder) and not folder.is_dir():  # else it was a folder, and is renamed by now
            raise


def _is_at(lock: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), (folder / LOCK).stat())
    except FileNotFoundError:
        return False


class RunDirectory:
    """One folder that a command writes into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = Journal(path / "metrics.jsonl")

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def is_finished(self) -> bool:
        """Whether a command ended here with success. Raises ``DocumentError`` if STATUS is damaged."""
        status = read_status(self.path)
        return status is not None and status.word == "ok"

    def write_document(self, name: str, document: Any) -> Path:
        """Write a JSON document and return its path."""
        write_atomic(self.path / name, documents.dump_json(document))
        return self.path / name

    def read_document(self, name: str) -> Any:
        """Read a JSON document of the run; raises ``DocumentError``."""
        return documents.parse_json(documents.read_text(self.path / name), str(self.path / name))

    @contextmanager
    def running(
        self, config: str, environment: Any, inputs: Mapping[str, str], may_differ: Collection[str] = ()
    ) -> Iterator[RunDirectory]:
        """Lock the folder, record what runs, and leave the outcome in STATUS.

        ``inputs`` name the content of what the run starts from (a table, images); they lead config.toml as comments. One
        that is named as a setting stands for it: the same content may lie elsewhere. Settings and groups of settings that
        ``may_differ`` are those that nothing was done by yet, unless a command ended here with success.
        Raises ``UsageError`` if a process works in the folder, or if it holds another configuration or other inputs.
        """
        config = "".join(f"# {name} {value}\n" for name, value in inputs.items()) + config
        with locked(self.path):
            self._check_same(config, () if self.is_finished else may_differ)
            write_atomic(self.path / "config.toml", config)
            write_atomic(self.path / "command.txt", shlex.join(sys.argv) + "\n")
            self.write_document("environment.json", environment)
            with status_kept(self.path):
                yield self

    def _check_same(self, config: str, may_differ: Collection[str]) -> None:
        """A folder in which nothing was reached yet may take another configuration, any other but for what ``may_differ``."""
        present = self.path / "config.toml"
        if not present.exists() or not (self.is_finished or any(self.checkpoints.rglob("*.json"))):
            return
        before, now = _settings(documents.read_text(present), str(present)), _settings(config, "configuration")
        free = tuple(f"{key}." for key in may_differ)
        compared = sorted(key for key in before.keys() | now.keys() if not f"{key}.".startswith(free))
        changed = [key for key in compared if before.get(key) != now.get(key)]
        if not changed:
            return
        difference = "\n".join(f"  {key}: {before.get(key, 'unset')} -> {now.get(key, 'unset')}" for key in changed)
        raise UsageError(
            f"{self.path}: holds a run with another configuration; name another --output, or remove this folder to begin "
            f"anew\n{difference}"
        )


def _settings(text: str, where: str) -> dict[str, Any]:
    """A configuration as dotted key -> value; the inputs in its leading comments among them."""
    flat: dict[str, Any] = {}

    def add(data: dict[str, Any], prefix: str) -> None:
        for key, value in data.items():
            if isinstance(value, dict):
                add(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    add(documents.parse_toml(text, where), "")
    for line in itertools.takewhile(lambda line: line.startswith("# "), text.splitlines()):
        name, _, value = line[2:].partition(" ")
        flat.pop(name, None)
        flat[f"{name} (content)"] = value
    return flat
