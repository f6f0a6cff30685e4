"""Rows of tables as CSV: one column a field; a field that is a struct, tuple or mapping is written as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.workload import Kernel
from mobilenas.errors import DocumentError

T = TypeVar("T", bound=msgspec.Struct)

LISTED = 20
"""Rows that an error names."""


def csv_from_rows(kind: type[msgspec.Struct], rows: Iterable[msgspec.Struct]) -> str:
    """Write rows with one column a field; a field that is a struct, tuple or mapping is written as JSON."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in msgspec.structs.fields(kind)]
    writer.writerow(names)
    for row in rows:
        values = msgspec.to_builtins(row)
        writer.writerow([_cell(values[name]) for name in names])
    return buffer.getvalue()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, order="sorted").decode()


def rows_from_csv(
    kind: type[T],
    text: str,
    path: Path,
    value_ms: Callable[[T], float],
    wrong_with: Callable[[T], str | None] = lambda row: None,
) -> list[T]:
    """Parse the rows of a file; raises ``DocumentError`` naming all that are wrong, and duplicates with their values.

    ``wrong_with`` says how a row contradicts itself.
    """
    documents.check_count(text, ",\n", str(path))
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    rows: dict[Hashable, T] = {}
    wrong: list[str] = []
    lines = _lines(text, path)
    if not lines:
        raise DocumentError(f"{path}: empty; expected at least a line with the columns {', '.join(fields)}")
    for number, cells in lines:
        if number == 1:
            if cells != list(fields):
                raise DocumentError(f"{path}, line 1: columns are {', '.join(cells)}; expected {', '.join(fields)}")
            continue
        values = {
            name: cell if _is_text(kind_of) else _value(cell)
            for (name, kind_of), cell in zip(fields.items(), cells, strict=False)
        }
        where = f"line {number}{_name(fields, values)}"
        try:
            if len(cells) != len(fields):
                raise DocumentError(f"{where}: {len(cells)} cells, expected {len(fields)}")
            row = documents.convert(values, kind, where)
        except DocumentError as error:
            wrong.append(str(error))
            continue
        before = rows.setdefault(_subject(row), row)
        if words := wrong_with(row):
            wrong.append(f"{where}: {words}")
        if before is not row:
            wrong.append(f"{where}: stands twice, with {value_ms(before)} and {value_ms(row)} ms; keep one")
    if wrong:
        raise DocumentError(
            f"{path}: {len(wrong)} of the rows are wrong (times are milliseconds, from 0 to 10000 for a kernel and from 0.0001 "
            f"to 1e6 for a network): {'; '.join(wrong[:LISTED])}"
            f"{'; ...' if len(wrong) > LISTED else ''}"
        )
    return list(rows.values())


def _lines(text: str, path: Path) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text))
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DocumentError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _value(cell: str) -> Any:
    """Parse a cell as JSON; other text is returned as it is, for the converter to reject."""
    try:
        return documents.parse_json(cell, "cell")
    except DocumentError:
        return cell


def _subject(row: msgspec.Struct) -> Hashable:
    """Return the row's subject: its kernel, whatever the order of its attributes, its workload in its space, or its network."""
    kernel = getattr(row, "kernel", None)
    if isinstance(kernel, Kernel):
        attributes = json.dumps(json.loads(kernel.attributes), sort_keys=True)
        return msgspec.structs.replace(kernel, attributes=attributes)
    return tuple(getattr(row, name) for name in ("space", "workload", "architecture") if hasattr(row, name))


def _name(fields: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Format the row's subject, if that much of it can be read."""
    for name in ("kernel", "workload", "architecture"):
        if name in values:
            try:
                found = documents.convert(values[name], fields[name], name)
            except DocumentError:
                return ""
            return f", {found.fingerprint if isinstance(found, Architecture) else found.key}"
    return ""


def _is_text(kind: Any) -> bool:
    return kind is str or getattr(kind, "__origin__", None) is Literal
