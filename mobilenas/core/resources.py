"""Where shipped tables and runners are, and where this user's data goes: the one door to both."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from mobilenas.errors import ResourceError, UsageError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """The folder ``latency_tables`` or ``export``: the wheel's copy inside the package, else the checkout's own."""
    for candidate in (_PACKAGE / "_shipped" / folder, _PACKAGE.parent / folder):
        if candidate.is_dir():
            return candidate
    raise ResourceError(
        f"the shipped folder {folder!r} is neither inside the installed package nor beside it ({_PACKAGE}): reinstall mobilenas"
    )


def in_checkout(folder: str) -> Path:
    """The checkout's own ``folder``, to write to; raises ``UsageError`` for a package that is installed without one."""
    found = _PACKAGE.parent / folder
    if not found.is_dir():
        raise UsageError(f"mobilenas runs from {_PACKAGE}, which has no {folder} beside it: say where with --output")
    return found


def user_data_directory() -> Path:
    """Campaigns, tables and device cards of this user; ``MOBILENAS_HOME`` names another place."""
    override = os.environ.get("MOBILENAS_HOME")
    return Path(override) if override else Path(platformdirs.user_data_dir("mobilenas"))
