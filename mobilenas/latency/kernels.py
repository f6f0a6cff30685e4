"""What is known of one target's kernels, and from it the latency of any network: measured rows first, then learnt ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from mobilenas.core.workload import Kernel
from mobilenas.errors import MissingKernelError
from mobilenas.latency.prediction import Prediction, conformal_factor
from mobilenas.latency.predictors.kernel import KernelPredictor
from mobilenas.latency.store import FoundTables
from mobilenas.latency.table import MOBILE_NETWORKS, LatencyTable, SpaceCard, TableRow

PREDICTOR = "kernel-predictor.skops"
"""File name of a predictor, beside the table that it was learnt from."""
LISTED = 5
"""Kernels that an error names."""


class KernelShare(msgspec.Struct, frozen=True):
    """What one kernel adds to a network: ``count`` times ``each_ms``, measured or predicted."""

    kernel: Kernel
    count: int
    each_ms: float
    source: Literal["measured", "predicted", "extrapolated"]

    @property
    def ms(self) -> float:
        """All of them together."""
        return self.count * self.each_ms


class NetworkPrediction(msgspec.Struct, frozen=True):
    """A network's latency from its kernels, the dearest first; shares are of the time."""

    prediction: Prediction
    session_ms: float
    kernel_sum_ms: float
    scale: float
    offset_ms: float
    calibrated_on: str
    """The networks whose measurements gave scale and interval."""
    predicted_share_fraction: float
    left_out: tuple[str, ...]
    """Tables of the target that were not used, and why."""
    kernels: tuple[KernelShare, ...]


@dataclass(frozen=True)
class TargetKernels:
    """Rows of all ``tables`` of a target, the newest first, and a predictor for what they lack."""

    tables: Sequence[LatencyTable]
    predictor: KernelPredictor | None = None

    left_out: tuple[str, ...] = ()
    """Tables of the target that are not among them, and why."""

    @classmethod
    def of(cls, found: FoundTables) -> TargetKernels:
        """The tables that were found with the newest predictor that lies beside one of them. Times are joined as they are:
        tables of a device that was faster or slower than when the networks were measured are left out.

        Raises ``DocumentError`` for a predictor that is damaged, or was learnt from another table than it lies beside.
        """
        tables, left_out = _as_fast(found.tables)
        predictors = [(folder / PREDICTOR, table) for folder, table in tables if (folder / PREDICTOR).exists()]
        predictor = KernelPredictor.load(*predictors[0]) if predictors else None
        return cls([table for _, table in tables], predictor, (*found.left_out, *left_out))

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
        self, kernels: Counter[Kernel], extrapolate: bool = False, calibration: tuple[LatencyTable, SpaceCard] | None = None
    ) -> NetworkPrediction:
        """A network's latency, where the target ``is_calibrated`` or a table with its card of similar networks is given.

        Raises ``MissingKernelError`` for kernels that were not measured and cannot be predicted.
        """
        calibrating, card = calibration or self._calibration()
        cold_ms_per_mib = calibrating.card.cold_weights_ms_per_mib
        shares = sorted(self._shares(kernels, cold_ms_per_mib, extrapolate), key=lambda share: -share.ms)
        session_ms = calibrating.card.session_ms
        total_ms = math.fsum([session_ms, *(share.ms for share in shares)])
        predicted = math.fsum(share.ms for share in shares if share.source != "measured") / total_ms
        ms = card.predict(total_ms).ms
        learnt = self.predictor.network_factor_ if self.predictor else 1.0
        width = math.hypot(math.log(card.interval_factor), predicted * math.log(learnt))
        return NetworkPrediction(
            prediction=Prediction.within(ms, math.exp(width)),
            session_ms=session_ms,
            kernel_sum_ms=total_ms,
            scale=card.scale,
            offset_ms=card.offset_ms,
            calibrated_on=card.space,
            predicted_share_fraction=predicted,
            left_out=self.left_out,
            kernels=tuple(shares),
        )

    def _shares(self, kernels: Counter[Kernel], cold_ms_per_mib: float, extrapolate: bool) -> list[KernelShare]:
        missing = self.missing(kernels)
        known = [k for k in missing if self.predictor and self.predictor.knows(k)]
        seen = {k for k in known if self.predictor and self.predictor.has_seen(k)}
        refused = [k for k in missing if k not in (known if extrapolate else seen)]
        if refused:
            beyond = sum(k in known for k in refused)
            unused = f". Not used: {'; '.join(self.left_out)}" if self.left_out else ""
            raise MissingKernelError(
                f"{len(refused)} of {len(kernels)} kernels were not measured and cannot be predicted"
                f"{f', {beyond} of them since they lie beyond the shapes that were learnt from' if beyond else ''}: "
                f"{'; '.join(k.key for k in refused[:LISTED])}{'; ...' if len(refused) > LISTED else ''}. Say "
                f"--profile-missing to measure them{', or --extrapolate' if beyond == len(refused) else ''}{unused}"
            )
        learnt = dict(zip(missing, self.predictor.predict(missing), strict=True)) if self.predictor and missing else {}
        shares = []
        for kernel, n in kernels.items():
            cold_ms = cold_ms_per_mib * kernel.weight_mib
            if kernel in self.rows:
                shares.append(KernelShare(kernel, n, self.rows[kernel].value_ms + cold_ms, "measured"))
            else:
                source: Literal["predicted", "extrapolated"] = "predicted" if kernel in seen else "extrapolated"
                shares.append(KernelShare(kernel, n, learnt[kernel].ms + cold_ms, source))
        return shares

    def _calibration(self) -> tuple[LatencyTable, SpaceCard]:
        """The card of networks of all kinds with its table, or else one of all networks that were measured."""
        calibrating = _calibrating(self.tables)
        assert calibrating is not None
        for card in calibrating.card.spaces.values():
            if card.space == MOBILE_NETWORKS:
                return calibrating, card
        cards = [card for table in self.tables for card in table.card.spaces.values()]
        networks = [row for table in self.tables for row in table.networks]
        scale = float(np.median([row.measured_ms / row.kernel_sum_ms for row in networks if row.role == "scale"]))
        sums = np.array([row.kernel_sum_ms for row in networks if row.role == "test"])
        measured = np.array([row.measured_ms for row in networks if row.role == "test"])
        pooled = msgspec.structs.replace(
            cards[0],
            space=", ".join(dict.fromkeys(card.space for card in cards)),
            scale=scale,
            offset_ms=0.0,
            interval_factor=conformal_factor(scale * sums, measured),
        )
        return calibrating, pooled


def _calibrating(tables: Iterable[LatencyTable]) -> LatencyTable | None:
    """The newest with networks of all kinds, or else the newest with any."""
    with_networks = [table for table in tables if table.networks]
    of_all_kinds = [t for t in with_networks if any(card.space == MOBILE_NETWORKS for card in t.card.spaces.values())]
    return next(iter((*of_all_kinds, *with_networks)), None)


def _as_fast(tables: Sequence[tuple[Path, LatencyTable]]) -> tuple[list[tuple[Path, LatencyTable]], list[str]]:
    """Those during which the device was as fast as during the calibrating one, and of the others why they are left out."""
    calibrating = _calibrating(table for _, table in tables)
    if calibrating is None:
        return list(tables), []
    usual_ms, limit = calibrating.card.sentinel_ms, 1 + calibrating.card.plan.drift_fraction
    kept, left_out = [], []
    for folder, table in tables:
        ratio = table.card.sentinel_ms / usual_ms
        if 1 / limit <= ratio <= limit:
            kept.append((folder, table))
        else:
            left_out.append(
                f"{folder} was measured while the device was {'slower' if ratio > 1 else 'faster'}: its sentinel took "
                f"{table.card.sentinel_ms:.4g} ms, {usual_ms:.4g} ms when the networks were measured ({ratio:.2f} times; "
                f"the plan {calibrating.card.plan.name} allows {limit:.2f}): measure again when it is as fast"
            )
    return kept, left_out
