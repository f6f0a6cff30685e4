"""Where latency tables are found: an explicit path, then the user's own, then the shipped ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from mobilenas.core import documents
from mobilenas.core.resources import shipped, user_data_directory
from mobilenas.core.run_directory import write_together
from mobilenas.errors import DocumentError, IncompatibleError, MissingDataError, UsageError
from mobilenas.latency.table import LatencyTable, TableKey

TABLE_CARD, NETWORK_CARD = "card.json", "network-predictor.json"
"""Files that say what a folder holds: a table, a predictor of whole networks, or both."""
HISTORY = "history"
"""Folder, in that of a table, of the tables that it replaced."""
SINGLE_KERNELS = "kernels"
"""Folder name, beside those of spaces, of the tables that keep what predictions have measured."""


@dataclass(frozen=True)
class FoundTables:
    """Folder and table of all that were found of a target, the newest first, and of the others why they are left out."""

    tables: tuple[tuple[Path, LatencyTable], ...] = ()
    left_out: tuple[str, ...] = ()


def table_folder(key: TableKey, space_key: str) -> Path:
    """Where ``mobilenas profile`` leaves a table unless told otherwise."""
    return user_data_directory() / "latency_tables" / table_layout(key, space_key)


def table_layout(key: TableKey, space_key: str) -> Path:
    """Where a table lies below the folder of all tables."""
    executed = re.sub(r"[^a-z0-9]+", "-", key.provider.replace("ExecutionProvider", "").lower())
    by = "" if executed == "cpu" else f"-{executed}"
    estimator = "" if key.estimator == "floor" else f"-{key.estimator}"
    return Path(key.device) / f"{key.runtime}{by}-{key.precision}-b{key.batch}-t{key.threads}{estimator}" / space_key


def single_kernels_folder(key: TableKey) -> Path:
    """Where the kernels that predictions measure with one version of the engine are kept, a table for each measuring."""
    return table_folder(key, SINGLE_KERNELS) / key.runtime_version


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
    """The table in ``path``; raises ``DocumentError`` if it is damaged, ``IncompatibleError`` if it is of another target, or of
    another version of the engine than ``key`` names (an empty one is open).
    """
    table = LatencyTable.load(path)
    if not same_target(table.card.key, key):
        raise IncompatibleError(
            f"{path} is a latency table of {words_of(table.card.key)}, wanted is one of {words_of(key)} (device, runtime, "
            f"provider, precision, threads, batch, estimator): name another table, or measure one: {table.profile_command()}"
        )
    if key.runtime_version not in ("", table.card.key.runtime_version):
        raise IncompatibleError(
            f"{_other_version(path, table, key)}, and numbers of two engines are never mixed: name another table, or measure "
            f"one: {table.profile_command()}"
        )
    return table


def target_tables(key: TableKey) -> FoundTables:
    """Every table of a target and of the version of its engine; left out are those of other versions or that cannot be read."""
    tables, unread = known_tables()
    of_target = sorted((t for t in tables if same_target(t[1].card.key, key)), key=lambda t: t[1].card.created, reverse=True)
    others = [_other_version(path, table, key) for path, table in of_target if table.card.key != key]
    return FoundTables(tuple(t for t in of_target if t[1].card.key == key), (*others, *map(str, unread)))


class _Claim(msgspec.Struct):
    """What a card of any version says that it is about."""

    key: TableKey
    spaces: dict[str, Any] = msgspec.field(default_factory=dict)
    """Of a table."""
    space: str | None = None
    """Of a predictor of networks."""


def check_replaceable(folder: Path, key: TableKey, space_key: str) -> None:
    """Raise ``UsageError`` if ``folder`` holds a table or predictor of another target or space, which a new one would replace.

    One that cannot be read, or whose card does not say what it is about, may be replaced: ``keep_history`` keeps it.
    """
    for name, kind in ((TABLE_CARD, "latency table"), (NETWORK_CARD, "network predictor")):
        try:
            card = documents.parse_json(documents.read_text(folder / name), str(folder / name))
            claim = documents.convert(card, _Claim, str(folder / name))
        except DocumentError:
            continue
        spaces = sorted({*claim.spaces, *([claim.space] if claim.space else [])})
        if not (same_target(claim.key, key) and spaces == [space_key]):
            raise UsageError(
                f"{folder} holds the {kind} of {words_of(claim.key)} with the space {', '.join(spaces) or 'none'}; written "
                f"would be one of {words_of(key)} with the space {space_key}: name another --output"
            )


def keep_history(folder: Path) -> Path | None:
    """Copy what is in ``folder`` and about to be replaced, byte for byte, below ``folder/history``.

    Where to, or ``None`` if there is neither a table nor a predictor. It need not be readable.
    """
    cards = [folder / name for name in (TABLE_CARD, NETWORK_CARD) if (folder / name).exists()]
    if not cards:
        return None
    kept = folder / HISTORY / max(map(_created, cards)).replace(":", "")
    files = sorted((file for file in folder.iterdir() if file.is_file()), key=lambda file: file in cards)
    write_together(kept, {file.name: documents.read_bytes(file, documents.MAXIMUM_TENSORS_BYTES) for file in files})
    return kept


def _created(card: Path) -> str:
    """When a card says that it was made, or else when its file was last written."""
    try:
        whole = documents.parse_json(documents.read_text(card), str(card))
        return datetime.fromisoformat(whole["created"]).isoformat(timespec="seconds")
    except (DocumentError, KeyError, TypeError, ValueError):
        return datetime.fromtimestamp(card.stat().st_mtime, UTC).isoformat(timespec="seconds")


def last_kept(folder: Path) -> Path:
    """The table that was in ``folder`` before the present one; raises ``MissingDataError`` if it never was another."""
    kept = sorted((folder / HISTORY).glob("*/card.json"))
    if not kept:
        raise MissingDataError(f"{folder} has no history: it was profiled once. Name the two tables to compare")
    return kept[-1].parent


def known_tables() -> tuple[list[tuple[Path, LatencyTable]], list[DocumentError]]:
    """Folder and table of every table that a search looks through, the user's own first; what is wrong with the others."""
    read = [_read(root) for root in table_roots()]
    return [found for tables, _ in read for found in tables], [error for _, errors in read for error in errors]


def table_roots() -> tuple[Path, Path]:
    """Folders below which tables are looked for, the user's own first."""
    return user_data_directory() / "latency_tables", shipped("latency_tables")


def files_named(name: str, root: Path) -> list[Path]:
    """Every file of that name below ``root`` but for those that were replaced."""
    return [path for path in sorted(root.glob(f"**/{name}")) if HISTORY not in path.relative_to(root).parts]


def _read(root: Path) -> tuple[list[tuple[Path, LatencyTable]], list[DocumentError]]:
    """Every table below ``root`` with its folder, and what is wrong with those that cannot be read."""
    tables: list[tuple[Path, LatencyTable]] = []
    errors: list[DocumentError] = []
    for card in files_named("card.json", root):
        try:
            tables.append((card.parent, LatencyTable.load(card.parent)))
        except DocumentError as error:
            errors.append(error)
    return tables, errors


def _other_version(path: Path, table: LatencyTable, key: TableKey) -> str:
    return f"{path} was measured with {key.runtime} {table.card.key.runtime_version}, the device has {key.runtime_version}"


def same_target(a: TableKey, b: TableKey) -> bool:
    """Whether two keys are of one target, in any version of the engine."""
    return msgspec.structs.replace(a, runtime_version="") == msgspec.structs.replace(b, runtime_version="")


def words_of(key: TableKey) -> str:
    """A target as error messages name it."""
    return f"{key.device} {key.runtime} {key.provider} {key.precision} {key.threads} {key.batch} {key.estimator}"
