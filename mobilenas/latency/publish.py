"""A measured table under the name of a kind of device, for others: no longer of the host that it was measured on."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec

from mobilenas.core.run_directory import check_is_new
from mobilenas.devices.device import LOCAL
from mobilenas.errors import DocumentError, UsageError
from mobilenas.latency.store import table_layout
from mobilenas.latency.table import LatencyTable


def publish(table: Path, name: str, root: Path) -> Path:
    """Write the table in ``table`` below ``root`` as one of the device ``name``, whose folder is returned.

    The host's own name stands nowhere else in a table. What was learnt from the table is not published: it is of the table's
    digest and of the host. Raises ``DocumentError`` for a table that is damaged, was not measured or is not of one space,
    ``UsageError`` for a name that could be a host's, or where there is a table already.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or name.startswith(LOCAL):
        raise UsageError(
            f"--name {name!r}: a device is named by lower-case letters and digits with single hyphens between them, as "
            f"pixel-6 or ryzen-5-3600, and not {LOCAL!r}, which is whatever host one works on"
        )
    found = LatencyTable.load(table)
    if found.card.origin != "measured":
        raise DocumentError(f"{table}: its origin is {found.card.origin!r}; only what mobilenas profile measured is published")
    if len(found.card.spaces) != 1:
        spaces = ", ".join(found.card.spaces) or "none"
        raise DocumentError(f"{table}: covers the spaces {spaces}; a table that is published covers one")
    key = msgspec.structs.replace(found.card.key, device=name)
    folder = root / table_layout(key, *found.card.spaces)
    check_is_new(folder)
    replace(found, card=msgspec.structs.replace(found.card, key=key)).save(folder)
    return folder
