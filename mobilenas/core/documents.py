"""Versioned JSON and TOML documents through one strict converter."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import math
import os
import re
import reprlib
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from mobilenas.core.memory import free_memory_bytes
from mobilenas.errors import DocumentError, ResourceError, nearest_hint

T = TypeVar("T")

LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Numbers of errors that tell of the machine, not of the file that was to be read."""
MAXIMUM_BYTES = 64 * 2**20
"""Of a document: text that is read as a whole."""
MAXIMUM_TENSORS_BYTES = 8 * 2**30
"""Of a file of weights, or of the tensors of a checkpoint."""
MAXIMUM_MODEL_BYTES = 16 * 2**30
"""Of an ONNX model with the files of its weights."""
MAXIMUM_LINE_BYTES = 16 * 1024 * 1024
MAXIMUM_TOML_CHARACTERS = 1024 * 1024
MAXIMUM_VALUES = 1_000_000
MAXIMUM_DEPTH = 64
_CHUNK_BYTES = 2**20

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 100
_short = _shortener.repr


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a document; raises ``DocumentError`` as ``read_bytes`` does, and for what is not UTF-8."""
    with opened(path, MAXIMUM_BYTES) as file:
        return _all_of(file, path, MAXIMUM_BYTES).decode()


def read_bytes(path: Path, maximum_bytes: int) -> bytes:
    """Return the content of ``path``: the one door to files of all kinds, with ``read_text`` and ``read_lines``.

    Raises ``DocumentError`` for what is missing, no regular file (a folder, a pipe, a device), unreadable, or larger than
    ``maximum_bytes`` or than the memory that is free now; of a file that is too large nothing is read.
    """
    with opened(path, maximum_bytes) as file:
        return _all_of(file, path, maximum_bytes)


def read_lines(path: Path) -> Iterator[str]:
    """The whole lines of ``path``, without their ends, one by one; what follows the last end is left out.

    Raises ``DocumentError`` as ``read_text`` does, but for a line that is too large and for too many of them: together they may
    be larger than any document.
    """
    with opened(path, None) as file:
        for number in itertools.count(1):
            line = file.readline(MAXIMUM_LINE_BYTES + 1)
            if len(line) > MAXIMUM_LINE_BYTES:
                raise DocumentError(f"{path}:{number}: longer than {MAXIMUM_LINE_BYTES // 2**20} MiB, which no line of ours is")
            if not line.endswith(b"\n"):
                return
            if number > MAXIMUM_VALUES:
                raise DocumentError(f"{path}: holds more than {MAXIMUM_VALUES:,} values, which no mobilenas document does")
            yield line[:-1].decode()


@contextmanager
def opened(path: Path, maximum_bytes: int | None) -> Iterator[IO[bytes]]:
    """Open a regular file of at most ``maximum_bytes`` for reading; raises ``DocumentError`` as ``read_bytes`` does.

    Nothing waits for the other end of a pipe, and no device is opened. ``None`` is for a file that is never read as a whole.
    """
    try:
        _check_regular(path, _stat(path))
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            _check_regular(path, found := os.fstat(file.fileno()))
            if maximum_bytes is not None:
                check_size(path, found.st_size, maximum_bytes)
            yield file
    except OSError as error:
        if error.errno in LACKING:  # the file is not to blame
            raise ResourceError(f"{path}: cannot be read: {error.strerror}") from error
        raise DocumentError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path}: not UTF-8 text (byte {error.start})") from error


def check_size(path: Path, size: int, maximum_bytes: int) -> None:
    """Raise ``DocumentError`` if ``size`` bytes are over the limit of their kind, or over what memory is free now."""
    if size > maximum_bytes:
        raise DocumentError(
            f"{path}: larger than {maximum_bytes / 2**20:,.0f} MiB ({size / 2**20:,.0f} MiB), the most that is read of its kind"
        )
    free = free_memory_bytes() if size > MAXIMUM_BYTES else None
    if free is not None and size > free:
        raise DocumentError(f"{path}: {size / 2**20:,.0f} MiB, and this machine has {free / 2**20:,.0f} MiB of memory free now")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except ValueError as error:  # a name that no file can have, as with a zero byte in it
        raise DocumentError(f"{str(path)!r}: cannot be read: {error}") from error


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise DocumentError(f"{path}: cannot be read: not a regular file")


def _all_of(file: IO[bytes], path: Path, maximum_bytes: int) -> bytes:
    """Read an open file to its end, also one that grows or does not report its size."""
    data = file.read(os.fstat(file.fileno()).st_size)
    while more := file.read(_CHUNK_BYTES):
        data += more
        check_size(path, len(data), maximum_bytes)
    return data


def parse_json(text: str, where: str) -> Any:
    """Parse JSON strictly: no duplicate names, no NaN, nothing that ``check_values`` refuses.

    Raises ``DocumentError`` naming the place.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise DocumentError(f"{where}: the name {name!r} stands twice, with {_short(result[name])} and {_short(value)}")
            result[name] = value
        return result

    def refuse(token: str) -> Any:
        raise DocumentError(f"{where}: {token} is not a JSON number")

    check_count(text, ",[{", where)
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise DocumentError(f"{where}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except DocumentError:
        raise
    except (RecursionError, ValueError) as error:
        raise DocumentError(f"{where}: {_too_much(error)}") from error
    check_values(value, where)
    return value


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML without what ``check_values`` refuses; raises ``DocumentError`` naming the place."""
    if len(text) > MAXIMUM_TOML_CHARACTERS:
        raise DocumentError(f"{where}: larger than {MAXIMUM_TOML_CHARACTERS // 2**20} MiB, which no configuration is")
    try:
        value = tomllib.loads(f"{text}\n")  # so that an error in the last line has a place
    except tomllib.TOMLDecodeError as error:
        raise DocumentError(f"{where}: not TOML: {error}{_toml_lines(text, str(error))}") from error
    except (RecursionError, ValueError) as error:
        raise DocumentError(f"{where}: {_too_much(error)}") from error
    check_values(value, where)
    return value


def check_count(text: str, separators: str, where: str) -> None:
    """Raise ``DocumentError`` for more values than any document of ours holds, before one object is built of them."""
    if sum(map(text.count, separators)) > MAXIMUM_VALUES:
        raise DocumentError(f"{where}: holds more than {MAXIMUM_VALUES:,} values, which no mobilenas document does")


def check_values(value: Any, where: str, place: str = "$", depth: int = 0) -> None:
    """Raise ``DocumentError`` for what could not be written down again: numbers that are not finite or have more than 64
    bits, text that is not Unicode; and for deeper nesting than ours.
    """
    if depth > MAXIMUM_DEPTH:
        raise DocumentError(f"{where}: nested too deeply: over {MAXIMUM_DEPTH} levels")
    if isinstance(value, dict):
        for key, inside in value.items():
            check_values(key, where, f"{place} (a name)", depth)
            check_values(inside, where, f"{place}.{key}", depth + 1)
    elif isinstance(value, list):
        for index, inside in enumerate(value):
            check_values(inside, where, f"{place}[{index}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise DocumentError(f"{where}: the number at {place} is {value}; it must be finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise DocumentError(f"{where}: the number at {place}, {_short(value)}, has more than 64 bits")
    elif isinstance(value, str) and not is_unicode(value):
        raise DocumentError(f"{where}: the text at {place}, {_short(value)}, is not Unicode: it holds half a character")


def is_unicode(text: str) -> bool:
    """Whether ``text`` is whole characters: no halves of pairs, as JSON escapes and undecodable file names make them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_much(error: Exception) -> str:
    return f"nested too deeply: over {MAXIMUM_DEPTH} levels" if isinstance(error, RecursionError) else "a number is too long"


def _toml_lines(text: str, message: str) -> str:
    """The line that ``message`` is about and, where its key stands twice, the one before it."""
    found = re.search(r"\(at line (\d+), ", message)
    if found is None:
        return ""
    *before, line = text.splitlines()[: int(found[1])] or [""]
    said = f": {_short(line.strip())}"
    for other in reversed(before if "overwrite" in message else []):
        if other.lstrip().startswith("["):
            break
        if other.partition("=")[0].strip() == line.partition("=")[0].strip():
            return f"{said}, after {_short(other.strip())}"
    return said


def convert(data: Any, kind: type[T], where: str) -> T:
    """Convert plain data to a ``msgspec`` struct without coercion; unknown keys are named with the nearest known ones."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message = _with_key(str(error), data, kind)
        hint = f"{_found(message, data)}{_nearest_field(message, kind)}{_choices(message, kind)}"
        raise DocumentError(f"{where}: {message}{hint}") from error


def _with_key(message: str, data: Any, kind: type) -> str:
    """``message`` with the key that it leaves out as ``[...]``, where a mapping of any keys is below plain names."""
    found = re.search(r"`\$((?:\.\w+)*)\[\.\.\.\]", message)
    if found is None:
        return message
    path = found[1].split(".")[1:]
    mapping = functools.reduce(lambda inside, name: inside[name], path, data)
    for key in mapping if isinstance(mapping, dict) else ():
        try:
            msgspec.convert(_replaced(data, path, {key: mapping[key]}), kind)
        except msgspec.ValidationError as error:
            if str(error) == message:
                return message.replace("[...]", f".{key}", 1)
    return message


def _found(message: str, data: Any) -> str:
    """The value that ``message`` expects to be another."""
    place = re.search(r"^Expected .* at `\$(.+)`$", message)
    if place is None:
        return ""
    try:
        for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", place[1]):
            data = data[name or int(index)]
    except (KeyError, IndexError, TypeError):
        return ""
    return f", found {_short(data)}"


def _replaced(data: Any, path: list[str], value: Any) -> Any:
    return value if not path else {**data, path[0]: _replaced(data[path[0]], path[1:], value)}


def _nearest_field(message: str, kind: type) -> str:
    if "unknown field" not in message:
        return ""
    name = message.split("`")[1]
    return nearest_hint(name, _field_names(kind))


def _choices(message: str, kind: type) -> str:
    """Format the allowed values of a field, where ``message`` rejects another one."""
    place = re.search(r"^Invalid enum value .* at `\$\.([\w.]+)`$", message)
    if place is None:
        return ""
    found: Any = msgspec.inspect.type_info(kind)
    for name in place[1].split("."):
        found = next((field.type for field in getattr(found, "fields", ()) if field.encode_name == name), None)
    others = [each for each in getattr(found, "types", [found]) if not isinstance(each, msgspec.inspect.NoneType)]
    if len(others) != 1 or not isinstance(others[0], msgspec.inspect.LiteralType):
        return ""
    return f"; available: {', '.join(map(str, others[0].values))}"


def _field_names(kind: type) -> Iterable[str]:
    """Field names of ``kind`` and of the structs inside it."""
    for field in msgspec.structs.fields(kind):
        yield field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _field_names(field.type)


def dump_json(document: Any) -> str:
    """Return pretty, sorted JSON with a final newline: diffable in review.

    Raises ``DocumentError`` naming the first number that is not finite, before anything is written.
    """
    return _dumped(document, indent=2, sort_keys=True) + "\n"


def dump_line(record: Any) -> str:
    """Return one line of a journal, with its end; raises as ``dump_json``."""
    return _dumped(record) + "\n"


def digest(data: Any) -> str:
    """SHA-256 of plain data as canonical JSON: the same for the same values, however they are laid out in a file.

    Raises as ``dump_json``.
    """
    return hashlib.sha256(_dumped(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _dumped(document: Any, **layout: Any) -> str:
    plain = msgspec.to_builtins(document)
    try:
        return json.dumps(plain, allow_nan=False, **layout)
    except ValueError as error:
        place, value = next(_not_finite(plain, "$"), ("$", error))
        raise DocumentError(f"the number at {place} is {value}; only finite numbers are written down") from error


def _not_finite(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield place and value of each number that is not finite."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _not_finite(inside, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, inside in enumerate(value):
            yield from _not_finite(inside, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, value


def check_schema(data: Any, name: str, version: int, where: str, renew: Callable[[], str] | None = None) -> dict[str, Any]:
    """Check the ``"schema": "mobilenas/<name>@<version>"`` line of a document and return the rest of its keys.

    ``renew`` says how one that an older mobilenas wrote is made anew.
    """
    if not isinstance(data, dict):
        raise DocumentError(f"{where}: expected a JSON object, found {type(data).__name__}")
    found = data.get("schema")
    wanted = f"mobilenas/{name}@{version}"
    if found == wanted:
        return {key: value for key, value in data.items() if key != "schema"}
    prefix = f"mobilenas/{name}@"
    if isinstance(found, str) and found.startswith(prefix) and found[len(prefix) :].isdigit():
        if int(found[len(prefix) :]) > version:
            raise DocumentError(f"{where}: {found} was written by a newer mobilenas; this one reads {wanted}: upgrade")
        if renew is not None:
            raise DocumentError(f"{where}: {found} was written by an older mobilenas; this one reads {wanted}: {renew()}")
    raise DocumentError(f"{where}: schema is {found!r}, expected {wanted!r}")
