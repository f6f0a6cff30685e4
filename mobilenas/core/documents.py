"""Versioned JSON and TOML documents through one strict converter."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mobilenas.errors import DocumentError, nearest_names

T = TypeVar("T")

MAXIMUM_BYTES = 256 * 1024 * 1024


def read_text(path: Path) -> str:
    """The UTF-8 text of ``path``; raises ``DocumentError`` if it is missing, too large or not UTF-8."""
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise DocumentError(f"{path}: larger than {MAXIMUM_BYTES // 2**20} MiB, which no mobilenas document is")
        return path.read_bytes().decode()
    except OSError as error:
        raise DocumentError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path}: not UTF-8 text (byte {error.start})") from error


def parse_json(text: str, where: str) -> Any:
    """Parse JSON strictly: no duplicate names, no NaN. Raises ``DocumentError`` naming the place."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise DocumentError(f"{where}: the name {name!r} stands twice, with {result[name]!r} and {value!r}")
            result[name] = value
        return result

    def refuse(token: str) -> Any:
        raise DocumentError(f"{where}: {token} is not a JSON number")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise DocumentError(f"{where}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise DocumentError(f"{where}: nested too deeply") from error


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML; raises ``DocumentError`` naming the place."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DocumentError(f"{where}: not TOML: {error}") from error


def convert(data: Any, kind: type[T], where: str) -> T:
    """Convert plain data to a ``msgspec`` struct without coercion; unknown keys are named with the nearest known ones."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message = _with_key(str(error), data, kind)
        raise DocumentError(f"{where}: {message}{_nearest_field(message, kind)}") from error


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


def _replaced(data: Any, path: list[str], value: Any) -> Any:
    return value if not path else {**data, path[0]: _replaced(data[path[0]], path[1:], value)}


def _nearest_field(message: str, kind: type) -> str:
    if "unknown field" not in message:
        return ""
    name = message.split("`")[1]
    near = nearest_names(name, _field_names(kind))
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _field_names(kind: type) -> Iterable[str]:
    """Field names of ``kind`` and of the structs inside it."""
    for field in msgspec.structs.fields(kind):
        yield field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _field_names(field.type)


def dump_json(document: Any) -> str:
    """Pretty, sorted JSON with a final newline: diffable in review."""
    return json.dumps(msgspec.to_builtins(document), indent=2, sort_keys=True, allow_nan=False) + "\n"


def digest(data: Any) -> str:
    """SHA-256 of plain data as canonical JSON: the same for the same values, however they are laid out in a file."""
    plain = msgspec.to_builtins(data)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def check_schema(data: Any, name: str, version: int, where: str) -> dict[str, Any]:
    """Check the ``"schema": "mobilenas/<name>@<version>"`` line of a document and return the rest of its keys."""
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
    raise DocumentError(f"{where}: schema is {found!r}, expected {wanted!r}")
