"""What is known of one target's kernels, and from it the latency of any network: measured rows first, then learnt ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec
import numpy as np

from mobilenas.core.workload import Kernel
from mobilenas.errors import MissingKernelError
from mobilenas.latency.prediction import Prediction, conformal_quantile, network_width
from mobilenas.latency.predictors.kernel import BEYOND, FOLDS, KernelPredictor, shape_of
from mobilenas.latency.store import FoundTables
from mobilenas.latency.table import MOBILE_NETWORKS, LatencyTable, NetworkContext, NetworkScale, SpaceCard, TableCard, TableRow

PREDICTOR = "kernel-predictor.skops"
"""File name of a predictor, beside the table that it was learnt from."""
LISTED = 5
"""Kernels that an error names."""


Source = Literal["measured", "predicted", "extrapolated"]


class KernelShare(msgspec.Struct, frozen=True):
    """What one kernel adds to a network: ``count`` times ``each_ms``, measured or predicted."""

    kernel: Kernel
    count: int
    each_ms: float
    low_ms: float
    high_ms: float
    """Of each: a measured row's interval, or within the factor by which its family is predicted wrong."""
    source: Source
    converged: bool | None
    """Whether its row's measurement repeated; ``None`` where there is no row."""

    @property
    def ms(self) -> float:
        """All of them together."""
        return self.count * self.each_ms


class NetworkPrediction(msgspec.Struct, frozen=True):
    """A network's latency from its kernels, the dearest first; shares are of the time."""

    prediction: Prediction
    session_ms: float
    kernel_sum_ms: float
    scale: NetworkScale
    sentinel_ms: float
    """How fast the device is taken to be: what the sentinel took when the networks were measured that gave the scale."""
    calibrated_on: str
    """The networks whose measurements gave scale and interval."""
    calibrated_from_ms: float
    calibrated_to_ms: float
    """Kernel sums of the smallest and of the largest of them."""
    is_within_calibration: bool
    """Whether the network's sum lies there, and these networks are of all kinds or of its own. Beyond, its interval is as wide
    as if the calibration's factor were its square.
    """
    predicted_share_fraction: float
    not_converged_share_fraction: float
    """Of kernels whose rows were measured but did not repeat."""
    left_out: tuple[str, ...]
    """Tables of the target that were not used, and why."""
    kernels: tuple[KernelShare, ...]


Calibration = tuple[LatencyTable, SpaceCard, list[float]]
"""A table, one of its cards with scale and interval, and the kernel sums (ms) of the networks that these are from."""


@dataclass(frozen=True)
class TargetKernels:
    """Rows of all ``tables`` of a target, the newest first, and a predictor for what they lack."""

    tables: Sequence[LatencyTable]
    load_predictor: Callable[[], KernelPredictor | None] = lambda: None
    """Called only where rows are lacking; raises ``DocumentError`` for one that is damaged or of another table."""
    left_out: tuple[str, ...] = ()
    """Tables of the target that are not among them, and why."""

    @classmethod
    def of(cls, found: FoundTables, calibrating: LatencyTable | None = None) -> TargetKernels:
        """The tables that were found with the newest predictor that lies beside one of them. All rows and learnt times are
        brought to the speed that the device had when ``calibrating`` was measured, by default the networks that are; tables of
        a much faster or slower one are left out.
        """
        calibrating = calibrating or _calibrating(table for _, table in found.tables)
        if calibrating is None:
            return cls([table for _, table in found.tables], left_out=found.left_out)
        tables, left_out = _as_fast(found.tables, calibrating.card)

        def load_predictor() -> KernelPredictor | None:
            for folder, table in found.tables:
                if folder in tables and (learnt := predictor_beside(folder, table)):
                    return learnt.times(calibrating.card.sentinel_ms / table.card.sentinel_ms)
            return None

        return cls(list(tables.values()), load_predictor, (*found.left_out, *left_out))

    @cached_property
    def predictor(self) -> KernelPredictor | None:
        """Learnt from the newest table that one lies beside; read when it is first asked for."""
        return self.load_predictor()

    @cached_property
    def rows(self) -> Mapping[Kernel, TableRow]:
        """A kernel that several tables have is taken from the newest."""
        return {kernel: row for table in reversed(self.tables) for kernel, row in table.rows.items()}

    @property
    def is_calibrated(self) -> bool:
        """Whether whole networks were measured, which tell how far sums of kernels are off."""
        return any(table.networks for table in self.tables)

    def missing(self, kernels: Counter[Kernel]) -> list[Kernel]:
        """Those without a row."""
        return sorted(kernel for kernel in kernels if kernel not in self.rows)

    def predict(
        self,
        kernels: Counter[Kernel],
        extrapolate: bool = False,
        calibration: Calibration | None = None,
        tried: Mapping[Kernel, str] = MappingProxyType({}),
    ) -> NetworkPrediction:
        """A network's latency, where the target ``is_calibrated`` or a table with its card of similar networks is given.

        ``tried`` are the kernels that were measured just now, with the engine's complaint of those that it refused. Raises
        ``MissingKernelError`` for kernels that were not measured and cannot be predicted.
        """
        table, card, sums_ms = calibration or self._calibration
        shares = sorted(self._shares(kernels, table.card.context, extrapolate, tried), key=lambda share: -share.ms)
        session_ms = table.card.session_ms
        total_ms = math.fsum([session_ms, *(share.ms for share in shares)])
        predicted = math.fsum(share.ms for share in shares if share.source != "measured") / total_ms
        room = math.exp(BEYOND)
        is_of_its_kind = calibration is not None or card.space == MOBILE_NETWORKS
        is_within = is_of_its_kind and min(sums_ms) / room <= total_ms <= max(sums_ms) * room
        width = network_width(
            calibration=math.log(card.interval_factor) * (1 if is_within else 2),
            spreads=[share.count * (share.high_ms - share.each_ms) / total_ms for share in shares],
            learnt_fraction=predicted,
            common=self.predictor.common_width_ if predicted and self.predictor else 0.0,
        )
        return NetworkPrediction(
            prediction=Prediction.within(card.predict(total_ms).ms, math.exp(width)),
            session_ms=session_ms,
            kernel_sum_ms=total_ms,
            scale=card.scale,
            sentinel_ms=table.card.sentinel_ms,
            calibrated_on=card.space,
            calibrated_from_ms=min(sums_ms),
            calibrated_to_ms=max(sums_ms),
            is_within_calibration=is_within,
            predicted_share_fraction=predicted,
            not_converged_share_fraction=math.fsum(s.ms for s in shares if s.converged is False) / total_ms,
            left_out=self.left_out,
            kernels=tuple(shares),
        )

    def _shares(
        self, kernels: Counter[Kernel], context: NetworkContext, extrapolate: bool, tried: Mapping[Kernel, str]
    ) -> list[KernelShare]:
        missing = self.missing(kernels)
        predictor = self.predictor if missing else None
        known = [k for k in missing if predictor and predictor.knows(k)]
        learnt = dict(zip(known, predictor.predict(known), strict=True)) if predictor else {}
        unknown = [k for k in missing if k not in learnt or not (learnt[k].is_seen or extrapolate)]
        if unknown:
            beyond = sum(k in learnt for k in unknown)
            named = [f"{k.key}{f' ({tried[k]})' if tried.get(k) else ''}" for k in unknown[:LISTED]]
            unused = f". Not used: {'; '.join(self.left_out)}" if self.left_out else ""
            raise MissingKernelError(
                f"{len(unknown)} of {len(kernels)} kernels were not measured and cannot be predicted"
                f"{f', {beyond} of them since they lie beyond the shapes that were learnt from' if beyond else ''}: "
                f"{'; '.join(named)}{'; ...' if len(unknown) > LISTED else ''}. "
                f"{_what_to_do(unknown, tried, can_extrapolate=beyond == len(unknown))}{unused}"
            )
        shares = []
        for kernel, n in kernels.items():
            row, converged = self.rows.get(kernel), None
            source: Source = "measured"
            if row:
                times, converged = row.in_networks_ms, row.converged
            else:
                found, source = learnt[kernel].prediction, "predicted" if learnt[kernel].is_seen else "extrapolated"
                times = (found.ms, found.low_ms, found.high_ms)
            each_ms, low_ms, high_ms = (context.kernel_ms(kernel, ms) for ms in times)
            shares.append(KernelShare(kernel, n, each_ms, low_ms, high_ms, source, converged))
        return shares

    @cached_property
    def _calibration(self) -> Calibration:
        """The card of networks of all kinds with its table, or else the newest of any; and the kernel sums of its networks."""
        table = _calibrating(self.tables)
        assert table is not None
        cards = sorted(table.card.spaces.values(), key=lambda card: card.space != MOBILE_NETWORKS)
        return table, cards[0], [row.kernel_sum_ms for row in table.networks]


def _what_to_do(unknown: Sequence[Kernel], tried: Mapping[Kernel, str], can_extrapolate: bool) -> str:
    """About kernels that cannot be predicted; ``tried`` as in ``TargetKernels.predict``."""
    if any(kernel not in tried for kernel in unknown):
        return f"Say --profile-missing to measure them{', or --extrapolate' if can_extrapolate else ''}"
    unused = [kernel for kernel in unknown if not tried[kernel]]
    parts = []
    if unused:
        parts.append(
            f"{len(unused)} of them were measured just now, but not while the device was as fast as when the networks were: "
            "these rows are not used, and each try measures anew until it is"
        )
    if len(unused) < len(unknown):
        parts.append(f"{len(unknown) - len(unused)} of them the engine refuses to run alone: no measuring helps")
    if can_extrapolate:
        parts.append("Say --extrapolate to predict them all the same")
    return ". ".join(parts)


def predictor_beside(folder: Path, table: LatencyTable) -> KernelPredictor | None:
    """What was learnt from the table in ``folder``, if anything was; raises ``DocumentError`` if it cannot be used."""
    path = folder / PREDICTOR
    return KernelPredictor.load(path, table) if path.exists() else None


def learn(table: LatencyTable, networks: Sequence[Counter[Kernel]], measured_ms: np.ndarray) -> KernelPredictor:
    """A predictor from the rows of ``table``, and from whole networks how wrong it is, which took ``measured_ms`` ``(n,)``.

    The networks are parted into folds. Those of a fold are predicted from rows of other shapes than any of their kernels have,
    as if they had been drawn after all was measured; kernels of families with too few rows left count as measured. What their
    intervals lack is the ``common_width_``. A family's factors and the start of its fit are those of all rows.
    """
    predictor = KernelPredictor().fit(table.rows.values())
    needed = []
    for fold in range(min(FOLDS, len(networks))):
        members = range(fold, len(networks), FOLDS)
        shapes = {shape_of(kernel) for index in members for kernel in networks[index]}
        others = {kernel: row for kernel, row in table.rows.items() if shape_of(kernel) not in shapes}
        without = predictor.refitted(others.values())
        without.common_width_ = 0.0
        unknown = {kernel: row for kernel, row in table.rows.items() if not without.knows(kernel)}
        target = TargetKernels([replace(table, rows={**others, **unknown})], lambda without=without: without)
        for index in members:
            found = target.predict(networks[index], extrapolate=True)
            error = math.log(measured_ms[index] / found.prediction.ms)
            lacking = max(0.0, error**2 - math.log(found.prediction.high_ms / found.prediction.ms) ** 2)
            needed.append(math.sqrt(lacking) / found.predicted_share_fraction if found.predicted_share_fraction else 0.0)
    predictor.common_width_ = conformal_quantile(np.array(needed))
    predictor.learnt_from_ = table.digest
    return predictor


def _calibrating(tables: Iterable[LatencyTable]) -> LatencyTable | None:
    """The newest with networks of all kinds, or else the newest with any."""
    with_networks = [table for table in tables if table.networks]
    of_all_kinds = [t for t in with_networks if any(card.space == MOBILE_NETWORKS for card in t.card.spaces.values())]
    return next(iter((*of_all_kinds, *with_networks)), None)


def _as_fast(tables: Sequence[tuple[Path, LatencyTable]], calibrating: TableCard) -> tuple[dict[Path, LatencyTable], list[str]]:
    """The tables with their rows at the speed that the device had during the calibrating one.

    Those during which it was much slower or faster are left out, with the reason: not all kernels move by the same factor.
    Rows that are medians are brought there too: within a table they are as they were timed, and from one table to another the
    device's speed moves them as it moves floors. What networks tell of rows holds in their own table only.
    """
    usual_ms, limit = calibrating.sentinel_ms, 1 + calibrating.plan.drift_fraction
    kept, left_out = dict[Path, LatencyTable](), []
    for folder, table in tables:
        ratio = table.card.sentinel_ms / usual_ms
        if 1 / limit <= ratio <= limit:
            rows = {kernel: row.times(1 / ratio) for kernel, row in table.rows.items()}
            alone = {kernel: msgspec.structs.replace(row, network_factor=1.0) for kernel, row in rows.items()}
            kept[folder] = replace(table, rows=rows if table.card == calibrating else alone)
        else:
            left_out.append(
                f"{folder} was measured while the device was {'slower' if ratio > 1 else 'faster'}: its sentinel took "
                f"{table.card.sentinel_ms:.4g} ms, {usual_ms:.4g} ms when the networks were measured ({ratio:.2f} times; "
                f"the plan {calibrating.plan.name} allows {limit:.2f}): measure again when it is as fast"
            )
    return kept, left_out
