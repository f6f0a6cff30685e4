"""Where latency tables are found: an explicit path, then the user's own, then the shipped ones."""

from __future__ import annotations

from pathlib import Path

from mobilenas.core.resources import shipped, user_data_directory
from mobilenas.errors import DocumentError, MissingDataError
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


def find_table(path: Path | None, device: str, runtime: str, space_key: str, profile_command: str) -> LatencyTable:
    """The table to use: ``path`` if given, else the newest that covers the space on that device and runtime.

    Raises ``MissingDataError`` with ``profile_command`` if there is none.
    """
    if path is not None:
        table = LatencyTable.load(path)
        table.space_card(space_key)
        return table
    found = []
    for root in (user_data_directory() / "latency_tables", shipped("latency_tables")):
        for card in sorted(root.glob("**/card.json")):
            try:
                table = LatencyTable.load(card.parent)
            except DocumentError:
                continue  # a table that cannot be read is not a candidate; naming it by path says what is wrong with it
            if table.card.key.device == device and table.card.key.runtime == runtime:
                if space_key in table.card.spaces:
                    found.append(table)
        if found:
            return max(found, key=lambda table: table.card.created)
    raise MissingDataError(
        f"no latency table of {device} with {runtime} covers the space {space_key}; measure one: {profile_command}"
    )
