"""Where latency tables are found: an explicit path, then the user's own, then the shipped ones."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mobilenas.core.resources import shipped, user_data_directory
from mobilenas.errors import DocumentError, IncompatibleError, MissingDataError, UsageError
from mobilenas.latency.table import LatencyTable, TableKey


def table_folder(key: TableKey, space_key: str) -> Path:
    """Where ``mobilenas profile`` leaves a table unless told otherwise."""
    return (
        user_data_directory()
        / "latency_tables"
        / key.device
        / f"{key.runtime}-{key.precision}-b{key.batch}-t{key.threads}"
        / space_key
    )


def find_table(path: Path | None, key: TableKey, space_key: str, profile_command: str) -> LatencyTable:
    """The table to use: ``path`` if given, else the newest for ``key`` (in any version of the engine) with the space.

    Raises ``IncompatibleError`` if the table at ``path`` is of another target, ``DocumentError`` if it is damaged or
    lacks the space, ``MissingDataError`` with ``profile_command`` if no table is found.
    """
    if path is not None:
        table = load_target_table(path, key)
        table.space_card(space_key)
        return table
    unread: list[DocumentError] = []
    for root in table_roots():
        tables, errors = _read(root)
        unread += errors
        found = [t for _, t in tables if same_target(t.card.key, key) and space_key in t.card.spaces]
        if found:
            return max(found, key=lambda table: table.card.created)
    also = f" ({len(unread)} tables cannot be read; the first: {unread[0]})" if unread else ""
    raise MissingDataError(
        f"no latency table of {words_of(key)} covers the space {space_key}; measure one: {profile_command}{also}"
    )


def load_target_table(path: Path, key: TableKey) -> LatencyTable:
    """The table in ``path``; raises ``IncompatibleError`` if it is of another target, ``DocumentError`` if it is damaged."""
    table = LatencyTable.load(path)
    if not same_target(table.card.key, key):
        raise IncompatibleError(
            f"{path} is a latency table of {words_of(table.card.key)}, wanted is one of {words_of(key)} (device, runtime, "
            f"provider, precision, threads, batch): name another table, or measure one: {table.profile_command()}"
        )
    return table


def target_tables(key: TableKey) -> list[tuple[Path, LatencyTable]]:
    """Folder and table of every table of a target, the newest first; those of another version of the engine are left out."""
    tables, _ = known_tables()
    found = sorted((t for t in tables if same_target(t[1].card.key, key)), key=lambda t: t[1].card.created, reverse=True)
    return [t for t in found if t[1].card.key == found[0][1].card.key]


def check_replaceable(folder: Path, key: TableKey, space_key: str) -> None:
    """Raise ``UsageError`` if ``folder`` holds a table of another target or space, which a new one would overwrite."""
    if not (folder / "card.json").exists():
        return
    card = LatencyTable.load(folder).card
    if not (same_target(card.key, key) and set(card.spaces) == {space_key}):
        raise UsageError(
            f"{folder} holds the latency table of {words_of(card.key)} with the space {', '.join(card.spaces)}; written would "
            f"be one of {words_of(key)} with the space {space_key}: name another --output"
        )


def known_tables() -> tuple[list[tuple[Path, LatencyTable]], list[DocumentError]]:
    """Folder and table of every table that a search looks through, the user's own first; what is wrong with the others."""
    read = [_read(root) for root in table_roots()]
    return [found for tables, _ in read for found in tables], [error for _, errors in read for error in errors]


def table_roots() -> tuple[Path, Path]:
    """Folders below which tables are looked for, the user's own first."""
    return user_data_directory() / "latency_tables", shipped("latency_tables")


def _read(root: Path) -> tuple[list[tuple[Path, LatencyTable]], list[DocumentError]]:
    """Every table below ``root`` with its folder, and what is wrong with those that cannot be read."""
    tables: list[tuple[Path, LatencyTable]] = []
    errors: list[DocumentError] = []
    for card in sorted(root.glob("**/card.json")):
        try:
            tables.append((card.parent, LatencyTable.load(card.parent)))
        except DocumentError as error:
            errors.append(error)
    return tables, errors


def same_target(a: TableKey, b: TableKey) -> bool:
    """Whether two keys are of one target, in any version of the engine."""
    return msgspec.structs.replace(a, runtime_version="") == msgspec.structs.replace(b, runtime_version="")


def words_of(key: TableKey) -> str:
    """A target as error messages name it."""
    return f"{key.device} {key.runtime} {key.provider} {key.precision} {key.threads} {key.batch}"
