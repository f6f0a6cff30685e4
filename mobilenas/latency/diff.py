"""What has moved between two latency tables of the same thing, once the device's own speed is divided out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from mobilenas.core.measurement import SlowDown
from mobilenas.errors import IncompatibleError
from mobilenas.latency.table import LatencyTable, TableCard, TableRow

SMALLEST_MS = 1e-4
"""Rows below a tenth of a microsecond are noise: they count as common, but no ratio is taken of them."""
MOVED_FRACTION = 0.1
"""Change of a row that counts as one, where it is beyond the intervals of both."""


class Move(msgspec.Struct, frozen=True):
    """One kernel's change; ``ratio`` is after over before."""

    kernel: str
    before_ms: float
    after_ms: float
    ratio: float
    net_ratio: float
    """What is left of it had the device been as fast as before, by the sentinel."""
    converged: bool
    """In both tables."""
    moved: bool
    """By more than a tenth, net, and beyond the intervals of both rows, which have converged."""


class TableDifference(msgspec.Struct, frozen=True):
    """Two tables compared, earlier before later in each pair; ``moves`` holds every kernel of which a ratio can be taken, the
    largest net change first.
    """

    before: str
    """Folder of the earlier table."""
    before_created: str
    key: dict[str, tuple[str, str]]
    surroundings: dict[str, tuple[str, str]]
    """What else differs: plan, machine, versions."""
    doubts: tuple[tuple[str, ...], tuple[str, ...]]
    slow_downs: tuple[SlowDown | None, SlowDown | None]
    sentinel_ms: tuple[float, float]
    """How fast the device was."""
    common: int
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    median_ratio: float
    median_net_ratio: float
    converged: int
    """Kernels, of those with a ratio, that converged in both."""
    moved_fraction: float
    """Share of these that moved."""
    scales: dict[str, tuple[float, float]]
    moves: tuple[Move, ...]


def difference(before: Path, after: Path) -> TableDifference:
    """Compare two tables; raises ``DocumentError`` kinds, and ``IncompatibleError`` if they have no kernel in common."""
    old, new = LatencyTable.load(before), LatencyTable.load(after)
    speed_ratio = new.card.sentinel_ms / old.card.sentinel_ms
    common = sorted(old.rows.keys() & new.rows.keys())
    pairs = [(old.rows[kernel], new.rows[kernel]) for kernel in common]
    moves = [_move(a, b, speed_ratio) for a, b in pairs if min(a.value_ms, b.value_ms) >= SMALLEST_MS]
    if not moves:
        raise IncompatibleError(f"{before} and {after} have no kernel in common: they are not about the same networks")
    converged = sum(move.converged for move in moves)
    spaces = old.card.spaces.keys() & new.card.spaces.keys()
    return TableDifference(
        before=str(before),
        before_created=old.card.created,
        key=_changed(msgspec.to_builtins(old.card.key), msgspec.to_builtins(new.card.key)),
        surroundings=_changed(_surroundings(old.card), _surroundings(new.card)),
        doubts=(old.card.doubts, new.card.doubts),
        slow_downs=(old.card.slow_down, new.card.slow_down),
        sentinel_ms=(old.card.sentinel_ms, new.card.sentinel_ms),
        common=len(common),
        only_before=tuple(kernel.key for kernel in sorted(old.rows.keys() - new.rows.keys())),
        only_after=tuple(kernel.key for kernel in sorted(new.rows.keys() - old.rows.keys())),
        median_ratio=float(np.median([move.ratio for move in moves])),
        median_net_ratio=float(np.median([move.net_ratio for move in moves])),
        converged=converged,
        moved_fraction=sum(move.moved for move in moves) / max(1, converged),
        scales={
            f"scale of {key}": (old.card.spaces[key].scale.factor, new.card.spaces[key].scale.factor) for key in sorted(spaces)
        },
        moves=tuple(sorted(moves, key=lambda move: -abs(np.log(move.net_ratio)))),
    )


def _move(old: TableRow, new: TableRow, speed_ratio: float) -> Move:
    net = new.times(1 / speed_ratio)
    net_ratio, converged = net.value_ms / old.value_ms, old.converged and new.converged
    apart = net.low_ms > old.high_ms or net.high_ms < old.low_ms
    moved = converged and apart and abs(np.log(net_ratio)) > np.log(1 + MOVED_FRACTION)
    ratio = new.value_ms / old.value_ms
    return Move(old.kernel.key, old.value_ms, new.value_ms, ratio, net_ratio, converged, bool(moved))


def _surroundings(card: TableCard) -> dict[str, object]:
    found = card.environment
    machine = {"machine": found.machine, "system": found.system, "cpu": found.cpu_model, "cores": found.cpu_count}
    return {"plan": card.plan.name, **machine, "governor": found.governor, **found.versions}


def _changed(old: dict[str, object], new: dict[str, object]) -> dict[str, tuple[str, str]]:
    names = dict.fromkeys([*old, *new])
    return {name: (str(old.get(name)), str(new.get(name))) for name in names if old.get(name) != new.get(name)}
