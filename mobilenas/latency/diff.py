"""What has moved between two latency tables of the same thing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from mobilenas.errors import IncompatibleError
from mobilenas.latency.table import LatencyTable

SMALLEST_MS = 1e-4
"""Rows below a tenth of a microsecond are noise: they count as common, but no ratio is taken of them."""


class Move(msgspec.Struct, frozen=True):
    """One kernel's change; ``ratio`` is after over before."""

    kernel: str
    before_ms: float
    after_ms: float
    ratio: float


class TableDifference(msgspec.Struct, frozen=True):
    """Two tables compared; ``moves`` holds every kernel of which a ratio can be taken, the largest change first."""

    before: str
    """Folder of the earlier table."""
    before_created: str
    key: dict[str, tuple[str, str]]
    common: int
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    median_ratio: float
    moved_fraction: float
    """Share of the kernels that moved by more than 10 %."""
    scales: dict[str, tuple[float, float]]
    moves: tuple[Move, ...]


def difference(before: Path, after: Path) -> TableDifference:
    """Compare two tables; raises ``DocumentError`` kinds, and ``IncompatibleError`` if they have no kernel in common."""
    old, new = LatencyTable.load(before), LatencyTable.load(after)
    keys = [msgspec.to_builtins(table.card.key) for table in (old, new)]
    common = sorted(old.rows.keys() & new.rows.keys())
    moves = []
    for kernel in common:
        pair = old.rows[kernel].value_ms, new.rows[kernel].value_ms
        if min(pair) >= SMALLEST_MS:
            moves.append(Move(kernel.key, *pair, pair[1] / pair[0]))
    if not moves:
        raise IncompatibleError(f"{before} and {after} have no kernel in common: they are not about the same networks")
    ratios = np.array([move.ratio for move in moves])
    spaces = old.card.spaces.keys() & new.card.spaces.keys()
    return TableDifference(
        before=str(before),
        before_created=old.card.created,
        key={name: (str(value), str(keys[1][name])) for name, value in keys[0].items() if value != keys[1][name]},
        common=len(common),
        only_before=tuple(kernel.key for kernel in sorted(old.rows.keys() - new.rows.keys())),
        only_after=tuple(kernel.key for kernel in sorted(new.rows.keys() - old.rows.keys())),
        median_ratio=float(np.median(ratios)),
        moved_fraction=float((np.abs(np.log(ratios)) > np.log(1.1)).mean()),
        scales={f"scale of {key}": (old.card.spaces[key].scale, new.card.spaces[key].scale) for key in sorted(spaces)},
        moves=tuple(sorted(moves, key=lambda move: -abs(np.log(move.ratio)))),
    )
