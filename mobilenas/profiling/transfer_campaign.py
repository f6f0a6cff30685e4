"""A new device from a few measured networks and the tables of other targets: no kernel of it is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mobilenas.core.architecture import Architecture
from mobilenas.core.environment import Gate
from mobilenas.core.measurement import Measurement, MeasurementPlan
from mobilenas.core.run_directory import Journal, working_in
from mobilenas.core.workload import Workload
from mobilenas.devices.device import Device
from mobilenas.errors import DocumentError, UsageError
from mobilenas.latency.network_card import NetworkCard, Proxy, WorkloadCost
from mobilenas.latency.network_model import NetworkModel
from mobilenas.latency.prediction import conformal_factor
from mobilenas.latency.predictors.network import NetworkPredictor
from mobilenas.latency.predictors.transfer import DeviceTransfer, choose_networks
from mobilenas.latency.store import words_of
from mobilenas.latency.table import ErrorReport, LatencyTable
from mobilenas.profiling import fit
from mobilenas.profiling.campaign import LIKELY_SWEEPS, SECONDS_PER_NETWORK_SWEEP, CampaignProgress
from mobilenas.profiling.cards import complete, examine, key_of, measured_network
from mobilenas.profiling.learn import linear_stand_in, random_networks
from mobilenas.profiling.networks import network_for_timing
from mobilenas.runtimes.base import RunSettings, Runtime
from mobilenas.runtimes.measure import SweepLog, measure
from mobilenas.runtimes.reports import PROTOCOL
from mobilenas.spaces.base import SearchSpace

FEWEST_NETWORKS = 5
"""The fewest that docs/benchmarks/transfer.md has figures of; each is also predicted from the others."""
POOL = 300
"""Random networks that those to measure are chosen from."""


@dataclass(frozen=True)
class TransferCampaign:
    """Everything that decides what is measured. ``proxies`` are tables of other targets with the space, one a target.

    Raises ``UsageError`` for fewer than ``FEWEST_NETWORKS`` networks.
    """

    space: SearchSpace
    device: Device
    runtime: Runtime
    settings: RunSettings
    plan: MeasurementPlan
    root: Path
    proxies: Sequence[LatencyTable]
    count: int
    seed: int = 0
    gate: Gate = "warn"

    def __post_init__(self) -> None:
        if self.count < FEWEST_NETWORKS:
            raise UsageError(f"--transfer from {self.count} networks: say --measure-networks {FEWEST_NETWORKS} or more, as 10")

    @property
    def folder(self) -> Path:
        """Where the campaign keeps what it has measured; named by all that decides which networks are chosen."""
        proxies = sorted(table.digest for table in self.proxies)
        identity = [
            PROTOCOL,
            self.device.card.identity,
            self.runtime.name,
            self.settings,
            self.space.key,
            self.plan,
            proxies,
            self.count,
            self.seed,
        ]
        return self.root / f"transfer-{hashlib.sha256(msgspec.json.encode(identity, order='sorted')).hexdigest()[:12]}"

    def describe(self) -> dict[str, Any]:
        """The plan in numbers, for a dry run."""
        sweep_s = self.count * SECONDS_PER_NETWORK_SWEEP
        return {
            "campaign": str(self.folder),
            "networks_of": self.space.key,
            "networks_measured": self.count,
            "proxies": ", ".join(f"{t.card.key.device} {t.card.key.runtime} {t.card.key.threads}" for t in self.proxies),
            "sweeps": self.plan.sweeps,
            "maximum_sweeps": self.plan.maximum_sweeps,
            "estimated_s": round(0.5 * self.count + max(self.plan.spread_s, LIKELY_SWEEPS * self.plan.sweeps * sweep_s)),
        }

    @contextmanager
    def running(self) -> Iterator[TransferCampaign]:
        """As ``Campaign.running``."""
        with working_in(self.folder):
            yield self

    @cached_property
    def pool(self) -> list[Architecture]:
        """Random networks of the space, but for those that the tangent of some proxy puts at no time at all.

        One with a negative offset does that to networks far smaller than all that it was fitted on. Raises
        ``DocumentError`` naming the proxy that leaves the fewest where too few are left.
        """
        drawn = list(random_networks(self.space, POOL, self.seed))
        known = self.proxies_ms(self.counts_of(drawn)) > 0
        kept = [architecture for architecture, row in zip(drawn, known, strict=True) if row.all()]
        if len(kept) < self.count:
            worst = self.proxies[int(known.sum(axis=0).argmin())].card
            raise DocumentError(
                f"{len(kept)} of {len(drawn)} networks of {self.space.key} take longer than nothing by all proxies, too few to "
                f"measure {self.count}; the table of {words_of(worst.key)} has a scale of "
                f"curvature {worst.spaces[self.space.key].scale.curvature:.3g}: profile it again or remove it"
            )
        return kept

    @cached_property
    def proxy_costs(self) -> np.ndarray:
        """``(P, 1 + W)``: a constant and a cost per workload, sorted, in milliseconds, that each proxy's networks take."""
        workloads = sorted(self.space.workloads())
        rows = []
        for table in self.proxies:
            scale, costs_ms = table.space_card(self.space.key).scale, table.costs_ms(self.space.key, workloads)
            constant_ms = scale.slope * table.card.session_ms + scale.offset_ms
            rows.append([constant_ms, *(scale.slope * costs_ms[w] for w in workloads)])
        return np.array(rows)

    def counts_of(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """``(N, W)``: how often each network runs each workload, sorted."""
        workloads = sorted(self.space.workloads())
        counts = [self.space.workloads_of(a) for a in architectures]
        return np.array([[c[w] for w in workloads] for c in counts], dtype=float)

    def proxies_ms(self, counts: np.ndarray) -> np.ndarray:
        """``(N, P)``: what networks of these workloads take on each proxy, by its table."""
        return np.asarray(self.proxy_costs[:, 0] + counts @ self.proxy_costs[:, 1:].T)

    @cached_property
    def chosen(self) -> np.ndarray:
        """Rows of the pool that are measured: those that tell most of the others."""
        counts = self.counts_of(self.pool)
        return choose_networks(counts, self.proxies_ms(counts), self.count)

    def run(self, progress: Callable[[CampaignProgress], None] = lambda _: None) -> NetworkModel:
        """Measure and fit. Raises ``DeviceError`` and ``MeasurementError`` kinds; what was measured stays."""
        networks = [self.pool[row] for row in self.chosen]
        with self.device.open() as link:
            environment, doubts = examine(self.runtime, link, self.settings, self.gate, self.folder)
            models = {}
            for index, architecture in enumerate(networks):
                progress(CampaignProgress("exporting", index, len(networks)))
                model = network_for_timing(self.space, architecture)
                models[architecture.fingerprint] = self.runtime.prepare(model, self.settings)
            measurements, log = measure(
                models,
                link,
                self.runtime,
                self.settings,
                self.plan,
                journal=Journal(self.folder / "rows.jsonl"),
                seed=self.seed,
                compared=models.keys(),
                progress=lambda p: progress(CampaignProgress.of_sweep(p)),
            )
        learnt = self._model(networks, [measurements[a.fingerprint] for a in networks], log)
        return replace(learnt, card=msgspec.structs.replace(learnt.card, environment=environment, doubts=doubts))

    def _model(self, networks: Sequence[Architecture], measurements: Sequence[Measurement], log: SweepLog) -> NetworkModel:
        counts = self.counts_of(self.pool)
        proxies_ms = self.proxies_ms(counts)
        measured_ms = np.array([m.value_ms for m in measurements])
        measured = tuple(measured_network(a, m) for a, m in zip(networks, measurements, strict=True))
        transfer = DeviceTransfer().fit(counts, proxies_ms, self.chosen, measured_ms)
        held_out_ms = leave_one_out(counts, proxies_ms, self.chosen, measured_ms)
        predictor = self._added_up(transfer, counts)
        costs = linear_stand_in(self.space, predictor, self.seed)
        card = NetworkCard(
            origin="transferred",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            key=key_of(self.device, self.runtime, self.settings, self.plan, log),
            space=self.space.key,
            options=self.space.options,
            plan=self.plan,
            environment=complete(log.environment),
            doubts=(),
            slow_down=log.slow_down(self.plan),
            sentinel_ms=log.sentinel_ms,
            networks=len(networks),
            error=ErrorReport.of(held_out_ms, measured_ms),
            interval_factor=conformal_factor(held_out_ms, measured_ms),
            statistics=fit.fit_statistics(measured, measured, held_out_ms, self.plan.estimator),
            workload_error=costs.error,
            costs=tuple(WorkloadCost(w, cost_ms) for w, cost_ms in costs.costs_ms.items()),
            table=None,
            measured=measured,
            proxies=tuple(
                Proxy(table.card.key, table.digest, float(weight))
                for table, weight in zip(self.proxies, transfer.proxy_weights_, strict=True)
            ),
        )
        return NetworkModel(card, predictor, self.space)

    def _added_up(self, transfer: DeviceTransfer, counts: np.ndarray) -> NetworkPredictor:
        """The fitted transfer as costs of options: it is linear in the workloads, as the proxies' tables are."""
        typical = counts.mean(axis=0)
        moved = np.vstack([typical, typical + np.eye(len(typical))])
        at_typical, *beside = transfer.predict(moved, self.proxies_ms(moved))
        each_ms = np.array(beside) - at_typical
        ones = [self.space.option_costs(_only(self.space, w)).fixed for w in sorted(self.space.workloads())]
        bias_ms = float(at_typical - typical @ each_ms + np.array(ones) @ each_ms)
        return NetworkPredictor.linear(self.space.workloads_of_options() @ each_ms, bias_ms, transfer.floor_ms_)


def leave_one_out(counts: np.ndarray, proxies_ms: np.ndarray, measured_rows: np.ndarray, measured_ms: np.ndarray) -> np.ndarray:
    """``(n,)``: each measured network as transferred from the others; arguments as of ``DeviceTransfer.fit``."""
    predicted = np.empty_like(measured_ms)
    for index, row in enumerate(measured_rows):
        others = np.arange(len(measured_rows)) != index
        transfer = DeviceTransfer().fit(counts, proxies_ms, measured_rows[others], measured_ms[others])
        predicted[index] = transfer.predict(counts[[row]], proxies_ms[[row]])[0]
    return predicted


def _only(space: SearchSpace, workload: Workload) -> dict[Workload, float]:
    return {other: float(other == workload) for other in space.workloads()}
