"""The latency of any network from the kernels of one target: measured rows first, then learnt times, then estimates."""

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
from mobilenas.latency.calibration import Calibration, nearest
from mobilenas.latency.prediction import Prediction, conformal_quantile, network_interval
from mobilenas.latency.predictors.kernel import FOLDS, KernelPredictor, shape_of
from mobilenas.latency.predictors.roofline import DeviceRoofline
from mobilenas.latency.store import FoundTables
from mobilenas.latency.table import MOBILE_NETWORKS, LatencyTable, NetworkContext, NetworkScale, TableCard, TableRow

PREDICTOR = "kernel-predictor.skops"
"""File name of a predictor, beside the table that it was learnt from."""
LISTED = 5
"""Kernels that an error names."""
ESTIMATED_AT_MOST = 1 / 3
"""Share of a network's time in kernels that are only estimated, above which nothing is predicted."""
EXTRAPOLATED_AT_MOST = math.log(100)
"""How far beyond the shapes that were learnt from a family still tells what a kernel takes."""


Source = Literal["measured", "predicted", "extrapolated", "estimated"]
"""Where a kernel's time is from: its row; a predictor that was learnt from kernels like it; the same beyond their shapes; the
speed of the device, for a kind of kernel that was never measured or lies far beyond.
"""


class KernelShare(msgspec.Struct, frozen=True):
    """What one kernel adds to a network: ``count`` times ``each_ms``."""

    kernel: Kernel
    count: int
    each_ms: float
    low_ms: float
    high_ms: float
    """Of each: a measured row's interval, or within the factor by which kernels of its kind are predicted wrong."""
    source: Source
    converged: bool | None
    """Whether its row's measurement repeated; ``None`` where there is no row."""

    @property
    def ms(self) -> float:
        """All of them together, in milliseconds."""
        return self.count * self.each_ms

    def spread_of(self, total_ms: float) -> tuple[float, float]:
        """Return how much less and how much more they may take, as fractions of ``total_ms``."""
        return (
            self.count * (self.each_ms - self.low_ms) / total_ms,
            self.count * (self.high_ms - self.each_ms) / total_ms,
        )


class NetworkPrediction(msgspec.Struct, frozen=True):
    """A network's latency from its kernels, the dearest first; shares are of the time."""

    prediction: Prediction
    kernel_sum_ms: float
    """The plain sum of its kernels and of one call, before context and scale."""
    rests_on: str
    """What the number rests on, in one line."""
    session_ms: float
    scale: NetworkScale
    sentinel_ms: float
    """How fast the device is taken to be: what the sentinel took when the networks were measured that gave the scale."""
    calibrated_on: str
    """The networks whose measurements gave scale and interval."""
    calibrated_from_ms: float
    calibrated_to_ms: float
    """Kernel sums of the smallest and of the largest of them, in their context."""
    is_within_calibration: bool
    """Whether the network's sum lies there, and these networks are of all kinds or of its own. If not, the scale is that of the
    nearest of them, and the interval is wider.
    """
    predicted_share_fraction: float
    """Of kernels without a row: predicted, extrapolated or estimated."""
    estimated_share_fraction: float
    """Of kernels that are like none that was measured."""
    not_converged_share_fraction: float
    """Of kernels whose rows were measured but did not repeat."""
    left_out: tuple[str, ...]
    """Tables of the target that were not used, and why."""
    kernels: tuple[KernelShare, ...]


@dataclass(frozen=True)
class TargetKernels:
    """Rows of all ``tables`` of a target, the newest first, and what predicts the kernels that they lack."""

    tables: Sequence[LatencyTable]
    load_predictor: Callable[[], KernelPredictor | None] = lambda: None
    """Called only where rows are lacking; raises ``DocumentError`` for one that is damaged or of another table."""
    left_out: tuple[str, ...] = ()
    """Tables of the target that are not among them, and why."""
    calibrating: LatencyTable | None = None
    """The table whose networks give scale and interval; by default the newest of networks of all kinds, or else of any."""

    @classmethod
    def of(cls, found: FoundTables, calibrating: LatencyTable | None = None) -> TargetKernels:
        """Join the tables that were found, with the newest predictor that lies beside one of them.

        All rows and learnt times are brought to the speed that the device had when ``calibrating`` was measured; tables of a
        much faster or slower device are left out.
        """
        calibrating = calibrating or _newest([table for _, table in found.tables])
        if calibrating is None:
            return cls([table for _, table in found.tables], left_out=found.left_out)
        tables, left_out = _as_fast(found.tables, calibrating.card)

        def load_predictor() -> KernelPredictor | None:
            for folder, table in found.tables:
                if folder in tables and (learnt := predictor_beside(folder, table)):
                    return learnt.times(calibrating.card.sentinel_ms / table.card.sentinel_ms)
            return None

        return cls(list(tables.values()), load_predictor, (*found.left_out, *left_out), calibrating)

    @classmethod
    def nearest(cls, found: FoundTables, kernels: Counter[Kernel]) -> TargetKernels:
        """Join the tables as ``of`` does, calibrated by the measured networks that are nearest to a network of ``kernels``."""
        first = cls.of(found)
        if not first.is_calibrated:
            return first
        calibrating = nearest((table for _, table in found.tables), first.plain_sum_ms(kernels))
        return first if calibrating is first.calibrating else cls.of(found, calibrating)

    @cached_property
    def predictor(self) -> KernelPredictor | None:
        """Learnt from the newest table that one lies beside; read when it is first asked for."""
        return self.load_predictor()

    @cached_property
    def roofline(self) -> DeviceRoofline:
        """Fitted on the rows of all tables when it is first asked for."""
        return DeviceRoofline().fit(self.rows.values())

    @cached_property
    def rows(self) -> Mapping[Kernel, TableRow]:
        """A kernel that several tables have is taken from the newest."""
        return {kernel: row for table in reversed(self.tables) for kernel, row in table.rows.items()}

    @property
    def is_calibrated(self) -> bool:
        """Whether whole networks were measured, which tell how far sums of kernels are off."""
        return self.calibrating is not None or _newest(self.tables) is not None

    def missing(self, kernels: Counter[Kernel]) -> list[Kernel]:
        """Return those without a row."""
        return sorted(kernel for kernel in kernels if kernel not in self.rows)

    def plain_sum_ms(self, kernels: Counter[Kernel]) -> float:
        """Return the sum of kernels, measured or not, in milliseconds, without a call of the runtime."""
        return self._plain_sum_ms(kernels, self._unmeasured(kernels))

    def _plain_sum_ms(self, kernels: Counter[Kernel], unmeasured: Mapping[Kernel, tuple[Prediction, Source]]) -> float:
        return math.fsum(n * (self.rows[k].value_ms if k in self.rows else unmeasured[k][0].ms) for k, n in kernels.items())

    def predict(
        self,
        kernels: Counter[Kernel],
        calibration: Calibration | None = None,
        tried: Mapping[Kernel, str] = MappingProxyType({}),
    ) -> NetworkPrediction:
        """Predict a network's latency, where the target ``is_calibrated`` or a ``calibration`` by similar networks is given.

        ``tried`` are the kernels that were measured just now, with the engine's complaint of those that it refused. Raises
        ``MissingKernelError`` where kernels that are like none that was measured take more than a third of the time.
        """
        found = self.estimate(kernels, calibration)
        if found.estimated_share_fraction > ESTIMATED_AT_MOST:
            raise MissingKernelError(self._refusal(found, tried))
        return found

    def estimate(self, kernels: Counter[Kernel], calibration: Calibration | None = None) -> NetworkPrediction:
        """Predict as ``predict`` does, whatever share of the time is only estimated."""
        calibration = calibration or self._calibration
        card, unmeasured = calibration.table.card, self._unmeasured(kernels)
        shares = self._shares(kernels, unmeasured, card.context)
        total_ms = math.fsum([card.session_ms, *(share.ms for share in shares)])
        plain_ms = card.session_ms + self._plain_sum_ms(kernels, unmeasured)

        def part(*sources: Source) -> float:
            return math.fsum(share.ms for share in shares if share.source in sources) / total_ms

        learnt = part("predicted", "extrapolated")
        ms = calibration.network_ms(total_ms)
        down, up = network_interval(
            calibration=calibration.half_width(total_ms, plain_ms),
            spreads=[share.spread_of(total_ms) for share in shares],
            learnt_fraction=learnt,
            common=self.predictor.common_width_ if learnt and self.predictor else 0.0,
        )
        return NetworkPrediction(
            prediction=Prediction(ms, ms * math.exp(-down), ms * math.exp(up)),
            kernel_sum_ms=plain_ms,
            rests_on=_rests_on(
                {
                    "measured kernels": part("measured") + card.session_ms / total_ms,
                    "kernels predicted from similar ones": part("predicted"),
                    "kernels extrapolated beyond similar ones": part("extrapolated"),
                    "kernels estimated from the speed of the device": part("estimated"),
                },
                calibration,
                total_ms,
            ),
            session_ms=card.session_ms,
            scale=calibration.card.scale,
            sentinel_ms=card.sentinel_ms,
            calibrated_on=calibration.card.space,
            calibrated_from_ms=calibration.from_ms,
            calibrated_to_ms=calibration.to_ms,
            is_within_calibration=calibration.is_within(total_ms),
            predicted_share_fraction=part("predicted", "extrapolated", "estimated"),
            estimated_share_fraction=part("estimated"),
            not_converged_share_fraction=math.fsum(s.ms for s in shares if s.converged is False) / total_ms,
            left_out=self.left_out,
            kernels=tuple(shares),
        )

    def _shares(
        self, kernels: Counter[Kernel], unmeasured: Mapping[Kernel, tuple[Prediction, Source]], context: NetworkContext
    ) -> list[KernelShare]:
        """Return what each kernel adds in its ``context``, the dearest first."""
        shares = []
        for kernel, n in kernels.items():
            row, converged = self.rows.get(kernel), None
            source: Source = "measured"
            if row:
                times, converged = row.in_networks_ms, row.converged
            else:
                found, source = unmeasured[kernel]
                times = (found.ms, found.low_ms, found.high_ms)
            each_ms, low_ms, high_ms = (context.kernel_ms(kernel, ms) for ms in times)
            shares.append(KernelShare(kernel, n, each_ms, low_ms, high_ms, source, converged))
        return sorted(shares, key=lambda share: -share.ms)

    def _unmeasured(self, kernels: Counter[Kernel]) -> dict[Kernel, tuple[Prediction, Source]]:
        """Return the times of the kernels without a row, and where each is from."""
        missing = self.missing(kernels)
        if not missing:
            return {}
        known = [k for k in missing if self.predictor and self.predictor.knows(k)]
        found: dict[Kernel, tuple[Prediction, Source]] = {}
        for kernel, learnt in zip(known, self.predictor.predict(known) if self.predictor else (), strict=True):
            if learnt.distance <= EXTRAPOLATED_AT_MOST:
                found[kernel] = (learnt.prediction, "predicted" if learnt.is_seen else "extrapolated")
        others = [kernel for kernel in missing if kernel not in found]
        if others and not self.rows:
            raise MissingKernelError(f"no kernel of this target was measured, and nothing tells what {others[0].key} takes")
        for kernel, estimate in zip(others, self.roofline.predict(others) if others else (), strict=True):
            found[kernel] = (estimate, "estimated")
        return found

    @cached_property
    def _calibration(self) -> Calibration:
        table = self.calibrating or _newest(self.tables)
        assert table is not None
        return Calibration.of_table(table)

    def _refusal(self, found: NetworkPrediction, tried: Mapping[Kernel, str]) -> str:
        """Say which kernels have no time that is known well enough, and what helps."""
        unknown = [share for share in found.kernels if share.source == "estimated"]
        time_ms = found.session_ms + math.fsum(share.ms for share in found.kernels)
        named = [
            f"{share.kernel.key}, {share.ms / time_ms:.0%}{f' ({tried[share.kernel]})' if tried.get(share.kernel) else ''}"
            for share in unknown[:LISTED]
        ]
        unused = f". Not used: {'; '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{len(unknown)} of {len(found.kernels)} kernels, about {found.estimated_share_fraction:.0%} of the time, were not "
            f"measured and are like none that was; a prediction allows {ESTIMATED_AT_MOST:.0%}. With their shares: "
            f"{'; '.join(named)}{'; ...' if len(unknown) > LISTED else ''}. "
            f"{_what_to_do([share.kernel for share in unknown], tried)}{unused}"
        )


def _rests_on(parts: Mapping[str, float], calibration: Calibration, total_ms: float) -> str:
    """Say in one line what a prediction rests on; ``parts`` are shares of the time."""
    shares = ", ".join(f"{share:.0%} {what}" for what, share in parts.items() if share > 0.0005)
    known = f"{calibration.from_ms:.3g} to {calibration.to_ms:.3g} ms"
    beyond = ""
    if not calibration.is_within(total_ms):
        times = math.exp(calibration.distance(total_ms))
        beyond = f", {times:.1f} times beyond their range" if times > 1.05 else ", networks of another kind"
    return (
        f"{shares} of the time; scaled as {len(calibration.table.networks)} measured networks of {calibration.card.space} "
        f"({known}){beyond}"
    )


def _what_to_do(unknown: Sequence[Kernel], tried: Mapping[Kernel, str]) -> str:
    """About kernels that cannot be predicted; ``tried`` as in ``TargetKernels.predict``."""
    if any(kernel not in tried for kernel in unknown):
        return "Say --profile-missing to measure them"
    unused = [kernel for kernel in unknown if not tried[kernel]]
    parts = []
    if unused:
        parts.append(
            f"{len(unused)} of them were measured just now, but not while the device was as fast as when the networks were: "
            "these rows are not used, and each try measures anew until it is"
        )
    if len(unused) < len(unknown):
        parts.append(
            f"{len(unknown) - len(unused)} of them the engine refuses to run alone, so that no measuring of kernels helps: "
            "mobilenas measure times the whole model"
        )
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
            found = target.estimate(networks[index])
            error = math.log(measured_ms[index] / found.prediction.ms)
            lacking = max(0.0, error**2 - found.prediction.half_width(error) ** 2)
            needed.append(math.sqrt(lacking) / found.predicted_share_fraction if found.predicted_share_fraction else 0.0)
    predictor.common_width_ = conformal_quantile(np.array(needed))
    predictor.learnt_from_ = table.digest
    return predictor


def _newest(tables: Iterable[LatencyTable]) -> LatencyTable | None:
    """Return the newest table with measured networks of all kinds, or else the newest with any."""
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
