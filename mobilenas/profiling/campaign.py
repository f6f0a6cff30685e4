"""A profiling campaign: one space on one device becomes a latency table; interrupted, it goes on where it stopped."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from mobilenas import network, onnx_model
from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import ESTIMATOR, Measurement, MeasurementPlan, detect_environment
from mobilenas.core.run_directory import Journal, locked, write_atomic
from mobilenas.core.workload import Kernel
from mobilenas.devices.device import Device
from mobilenas.devices.links import Link
from mobilenas.latency.table import (
    LatencyTable,
    NetworkRow,
    SpaceCard,
    TableCard,
    TableKey,
    TableRow,
)
from mobilenas.profiling import fit
from mobilenas.runtimes.base import PROTOCOL, PreparedModel, RunSettings, Runtime
from mobilenas.runtimes.measure import MeasureProgress, measure
from mobilenas.spaces.base import SearchSpace

SESSION = "session"
SECONDS_PER_NETWORK_SWEEP, SECONDS_PER_KERNEL_SWEEP = 0.15, 0.03
"""For the estimate of a dry run only: loading and timing one network, and the two models of one kernel."""
EXPECTED_KERNELS = 150


@dataclass(frozen=True)
class CampaignProgress:
    """Told as the campaign goes: its stage in words, and how many of how many are done."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Campaign:
    """Everything that decides what is measured. ``root`` holds one folder per campaign."""

    space: SearchSpace
    device: Device
    runtime: Runtime
    settings: RunSettings
    plan: MeasurementPlan
    root: Path
    seed: int = 0

    @property
    def name(self) -> str:
        """Hash of device, runtime, settings, space, plan and seed: the same command finds the same campaign."""
        identity = [
            self.device.card,
            self.runtime.name,
            self.settings,
            self.space.name,
            self.space.options,
            self.plan,
            self.seed,
        ]
        return hashlib.sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where the campaign keeps what it has measured."""
        return self.root / self.name

    @cached_property
    def networks(self) -> tuple[tuple[Architecture, ...], tuple[Architecture, ...], tuple[Architecture, ...]]:
        """Networks that fit the scale, test the table, and are only lowered; all distinct, half of each kind of draw."""
        generator = random.Random(f"{self.name}/networks")
        wanted = [self.plan.scale_networks, self.plan.test_networks, self.plan.lowered_networks]
        found: dict[Architecture, None] = {}
        for _ in range(20 * sum(wanted)):
            if len(found) == sum(wanted):
                break
            found[self._draw(generator)] = None
        drawn = list(found)
        first, second = wanted[0], wanted[0] + wanted[1]
        return tuple(drawn[:first]), tuple(drawn[first:second]), tuple(drawn[second:])

    def _draw(self, generator: random.Random) -> Architecture:
        """A random network; every second one favours a few options, as searched networks do, and spans the space."""
        if generator.random() < 0.5:
            return self.space.random_architecture(generator)
        favour: dict[str, float] = {}
        probabilities = {}
        for decision in self.space.decisions:
            logits = [favour.setdefault(option, generator.gauss(0, 3)) + generator.gauss(0, 1) for option in decision.options]
            probabilities[decision.name] = torch.tensor(logits, dtype=torch.float64).softmax(0)
        return self.space.decode(probabilities)

    def describe(self) -> dict[str, Any]:
        """The plan in numbers, for a dry run; kernels are known only after lowering, so their number is typical."""
        measured = self.plan.scale_networks + self.plan.test_networks
        sweep_s = measured * SECONDS_PER_NETWORK_SWEEP + EXPECTED_KERNELS * SECONDS_PER_KERNEL_SWEEP
        return {
            "campaign": str(self.folder),
            "space": self.space.key,
            "workloads": len(self.space.workloads()),
            "networks_measured": measured,
            "networks_lowered": self.plan.lowered_networks,
            "sweeps": self.plan.sweeps,
            "maximum_sweeps": self.plan.maximum_sweeps,
            "estimated_s": round(
                0.06 * self.plan.lowered_networks + 0.5 * measured + max(self.plan.spread_s, sweep_s * self.plan.sweeps)
            ),
        }

    @contextmanager
    def running(self) -> Iterator[Campaign]:
        """Hold the campaign's folder alone; raises ``UsageError`` if another process works in it.

        Left without an error it sets the finished campaign aside, so that the same command measures anew; the records
        are kept.
        """
        with locked(self.folder):
            yield self
            self.folder.rename(self.folder.with_name(f"{self.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"))

    def run(self, progress: Callable[[CampaignProgress], None] = lambda _: None) -> LatencyTable:
        """Lower, measure, fit. Raises ``DeviceError`` and ``MeasurementError`` kinds; what was measured stays."""
        scale_networks, test_networks, lowered_only = self.networks
        measured_networks = scale_networks + test_networks
        write_atomic(self.folder / "campaign.json", documents.dump_json(self.describe()))
        with self.device.open() as link:
            kernels = self._lower([*measured_networks, *lowered_only], link, progress)
            distinct = sorted(set().union(*kernels))
            models = self._models(distinct, measured_networks, progress)

            def on_sweep(p: MeasureProgress) -> None:
                waiting = f", next in {p.wait_s:.0f} s" if p.wait_s else ""
                progress(CampaignProgress(f"{p.text}{waiting}", p.done, p.total))

            measurements, hello = measure(
                models,
                link,
                self.runtime,
                self.settings,
                self.plan,
                journal=Journal(self.folder / "rows.jsonl"),
                seed=self.seed,
                progress=on_sweep,
            )
        return self._table(distinct, kernels, measurements, hello)

    def _lower(
        self, networks: Sequence[Architecture], link: Link, progress: Callable[[CampaignProgress], None]
    ) -> list[Counter[Kernel]]:
        """Kernels of every network; written down at the end, so that a campaign that goes on skips this."""
        path = self.folder / "lowered.json"
        if path.exists():
            stored = documents.convert(documents.parse_json(documents.read_text(path), str(path)), LoweredNetworks, str(path))
            return stored.counts(networks)

        def on_done(count: int) -> None:
            progress(CampaignProgress("lowering", count, len(networks)))

        models = []
        for index, architecture in enumerate(networks):
            progress(CampaignProgress("composing", index, len(networks)))
            models.append(onnx_model.compose(self.space.blueprint(architecture)))
        kernels = self.runtime.kernels(models, link, self.settings, on_done)
        write_atomic(path, documents.dump_json(LoweredNetworks.from_counts(networks, kernels)))
        return kernels

    def _models(
        self,
        kernels: Sequence[Kernel],
        networks: Sequence[Architecture],
        progress: Callable[[CampaignProgress], None],
    ) -> dict[str, PreparedModel]:
        models = {SESSION: self.runtime.session_model(), **_kernel_models(kernels, self.runtime)}
        for index, architecture in enumerate(networks):
            progress(CampaignProgress("exporting", index, len(networks)))
            models[architecture.fingerprint] = self.runtime.prepare(network_for_timing(self.space, architecture), self.settings)
        return models

    def _table(
        self,
        distinct: Sequence[Kernel],
        kernels: Sequence[Counter[Kernel]],
        measurements: dict[str, Measurement],
        hello: dict[str, Any],
    ) -> LatencyTable:
        rows = {kernel: _row(kernel, measurements) for kernel in distinct}
        session_ms = measurements[SESSION].value_ms
        kernel_sums = np.array([math.fsum(n * rows[kernel].value_ms for kernel, n in c.items()) for c in kernels])
        scale_networks, test_networks, lowered_only = self.networks
        networks = [
            _network_row(self.space, architecture, role, measurements[architecture.fingerprint], float(total))
            for role, members, sums in (
                ("scale", scale_networks, kernel_sums),
                ("test", test_networks, kernel_sums[len(scale_networks) :]),
            )
            for architecture, total in zip(members, sums + session_ms, strict=False)
        ]
        everything = [*scale_networks, *test_networks, *lowered_only]
        costs = fit.fit_workload_costs(
            [self.space.workloads_of(a) for a in everything], kernel_sums, sorted(self.space.workloads())
        )
        space_card = _space_card(self.space, networks, costs.error)
        engine = str(hello.get("engine_version", "unknown"))
        card = TableCard(
            origin="measured",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            key=TableKey(
                device=self.device.card.name,
                runtime=self.runtime.name,
                runtime_version=engine,
                provider=self.settings.provider,
                precision=self.settings.precision,
                threads=self.settings.threads,
                batch=self.settings.batch,
            ),
            plan=self.plan,
            estimator=ESTIMATOR,
            protocol=PROTOCOL,
            environment=detect_environment(_versions(hello)),
            session_ms=session_ms,
            rows=len(rows),
            rows_not_converged=sum(not row.converged for row in rows.values()),
            pooled_scale=float(np.median([row.measured_ms / row.kernel_sum_ms for row in networks if row.role == "scale"])),
            spaces={self.space.key: space_card},
        )
        return LatencyTable(card, rows, {self.space.key: costs}, tuple(networks))


class LoweredNetworks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which kernels each network is made of, as a campaign writes it down."""

    kernels: tuple[Kernel, ...]
    networks: dict[str, dict[str, int]]
    """Fingerprint -> position in ``kernels`` (as text) -> count."""

    @classmethod
    def from_counts(cls, networks: Sequence[Architecture], counts: Sequence[Counter[Kernel]]) -> LoweredNetworks:
        """Pack the kernels of every network."""
        kernels = tuple(sorted(set().union(*counts)))
        position = {kernel: str(index) for index, kernel in enumerate(kernels)}
        packed = [{position[kernel]: n for kernel, n in sorted(c.items())} for c in counts]
        return cls(kernels, dict(zip((a.fingerprint for a in networks), packed, strict=True)))

    def counts(self, networks: Sequence[Architecture]) -> list[Counter[Kernel]]:
        """Unpack the kernels of ``networks``."""
        return [Counter({self.kernels[int(index)]: n for index, n in self.networks[a.fingerprint].items()}) for a in networks]


def network_for_timing(space: SearchSpace, architecture: Architecture) -> bytes:
    """The ONNX model of an untrained network whose activations have the range of a trained one."""
    module = network.initialise_for_timing(space.build(architecture), space.image_shape)
    exported = onnx_model.onnx_from_module(module, [torch.zeros(space.image_shape)])
    return bytes(onnx_model.slim(exported).SerializeToString())


def measure_kernels(
    kernels: Sequence[Kernel],
    link: Link,
    runtime: Runtime,
    settings: RunSettings,
    plan: MeasurementPlan,
    journal: Journal,
    progress: Callable[[MeasureProgress], None] = lambda _: None,
) -> dict[Kernel, TableRow]:
    """Rows of single kernels, measured as a campaign does it."""
    measurements, _ = measure(
        _kernel_models(kernels, runtime), link, runtime, settings, plan, journal=journal, progress=progress
    )
    return {kernel: _row(kernel, measurements) for kernel in kernels}


def _kernel_models(kernels: Sequence[Kernel], runtime: Runtime) -> dict[str, PreparedModel]:
    counts = (fit.FEW_COPIES, fit.MANY_COPIES)
    return {_kernel_name(kernel, n): runtime.kernel_model(kernel, n) for kernel in kernels for n in counts}


def _row(kernel: Kernel, measurements: Mapping[str, Measurement]) -> TableRow:
    few, many = (measurements[_kernel_name(kernel, n)] for n in (fit.FEW_COPIES, fit.MANY_COPIES))
    return fit.row_from_measurements(kernel, few, many)


def _kernel_name(kernel: Kernel, copies: int) -> str:
    return f"kernel-{kernel.identifier}-{copies}"


def _network_row(
    space: SearchSpace, architecture: Architecture, role: Any, measurement: Measurement, kernel_sum_ms: float
) -> NetworkRow:
    return NetworkRow(
        architecture=architecture,
        role=role,
        measured_ms=measurement.value_ms,
        low_ms=measurement.low_ms,
        high_ms=measurement.high_ms,
        kernel_sum_ms=kernel_sum_ms,
        madds=space.madds(architecture),
        sweeps=measurement.sweeps,
        converged=measurement.converged,
    )


def _space_card(space: SearchSpace, networks: Sequence[NetworkRow], workload_error: Any) -> SpaceCard:
    """Scale and baseline are fitted on the networks of role "scale", all errors are on those of role "test"."""

    def columns(role: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = [row for row in networks if row.role == role]
        return (
            np.array([row.kernel_sum_ms for row in chosen]),
            np.array([float(row.madds) for row in chosen]),
            np.array([row.measured_ms for row in chosen]),
        )

    sums, madds, measured = columns("scale")
    scale, offset_ms = fit.fit_scale(sums, measured)
    a, b = fit.fit_madds_baseline(madds, measured)
    sums, madds, measured = columns("test")
    tested = [row for row in networks if row.role == "test"]
    return SpaceCard(
        space=space.name,
        options=space.options,
        scale=scale,
        offset_ms=offset_ms,
        table_error=fit.error_report(scale * sums + offset_ms, measured),
        workload_error=workload_error,
        madds_baseline_error=fit.error_report(a * madds + b, measured),
        repeatability_fraction=float(np.mean([row.high_ms / row.measured_ms - 1 for row in tested])),
    )


def _versions(hello: dict[str, Any]) -> dict[str, str]:
    return {
        "mobilenas": version("mobilenas"),
        "torch": str(torch.__version__),
        "runner": str(hello.get("runner", "unknown")),
        "runner_python": str(hello.get("python", "unknown")),
        "engine": str(hello.get("engine_version", "unknown")),
    }
