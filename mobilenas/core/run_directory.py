"""A run's folder: resolved configuration, environment, metrics, result. Nothing half-written under a final name."""

from __future__ import annotations

import fcntl
import itertools
import json
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from mobilenas.core import documents
from mobilenas.errors import DocumentError, ResourceError, UsageError

Status = Literal["running", "ok", "failed", "interrupted"]


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
            write_atomic(self.path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))

    def append(self, record: Any) -> None:
        """Write one record and wait until it is on disk; a torn last line of an earlier process is dropped first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_end()
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(msgspec.to_builtins(record), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


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
        yield
    finally:
        os.close(lock)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Hold a folder of records alone. Left without an error it is set aside, so that the same command measures anew."""
    with locked(folder):
        yield
        set_aside(folder)


def set_aside(folder: Path) -> None:
    """Give a folder of records, if it is there, a name with the time, so that nothing goes on from them."""
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"))


def _lock(folder: Path) -> int:
    """A descriptor of the folder's lock, held; the folder may have been renamed since it was opened."""
    try:
        _make(folder)
        try:
            lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
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
        return os.path.samestat(os.fstat(lock), (folder / ".lock").stat())
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
        """Whether a command ended here with success."""
        status = self.path / "STATUS"
        return status.exists() and status.read_text(encoding="utf-8").startswith("ok")

    def set_status(self, status: Status, reason: str = "") -> None:
        """Write the STATUS file: one word and, after a failure, why."""
        write_atomic(self.path / "STATUS", f"{status}\n{reason}".rstrip() + "\n")

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
        that is named as a setting stands for it: the same content may lie elsewhere. Settings that ``may_differ`` are those
        that nothing was done by yet, unless a command ended here with success.
        Raises ``UsageError`` if a process works in the folder, or if it holds another configuration or other inputs.
        """
        config = "".join(f"# {name} {value}\n" for name, value in inputs.items()) + config
        with locked(self.path):
            self._check_same(config, () if self.is_finished else may_differ)
            write_atomic(self.path / "config.toml", config)
            write_atomic(self.path / "command.txt", " ".join(sys.argv) + "\n")
            self.write_document("environment.json", environment)
            self.set_status("running")
            try:
                yield self
            except (KeyboardInterrupt, SystemExit):
                self.set_status("interrupted")
                raise
            except BaseException as error:
                self.set_status("failed", f"{type(error).__name__}: {error}")
                raise
            self.set_status("ok")

    def _check_same(self, config: str, may_differ: Collection[str]) -> None:
        """A folder in which nothing was reached yet may take another configuration, any other but for what ``may_differ``."""
        present = self.path / "config.toml"
        if not present.exists() or not (self.is_finished or any(self.checkpoints.rglob("*.json"))):
            return
        before, now = _settings(documents.read_text(present), str(present)), _settings(config, "configuration")
        compared = sorted((before.keys() | now.keys()) - set(may_differ))
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
