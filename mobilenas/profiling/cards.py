"""What a table says of itself: device, versions, errors on networks kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.environment import Environment, Gate, check_environment, environment_from_hello
from mobilenas.core.measurement import Estimator, Measurement, MeasurementPlan
from mobilenas.core.run_directory import Journal
from mobilenas.core.workload import Kernel
from mobilenas.devices.device import Device
from mobilenas.devices.links import Link
from mobilenas.errors import MeasurementError
from mobilenas.latency.prediction import conformal_factor
from mobilenas.latency.table import (
    ErrorReport,
    MeasuredNetwork,
    ModelFlags,
    NetworkContext,
    NetworkRole,
    NetworkRow,
    NetworkScale,
    SpaceCard,
    TableCard,
    TableKey,
    TableRow,
)
from mobilenas.profiling import fit
from mobilenas.profiling.networks import NetworkSource
from mobilenas.runtimes.base import SESSION, RunSettings, Runtime
from mobilenas.runtimes.measure import SweepLog
from mobilenas.runtimes.reports import PROTOCOL

STARTS = "starts.jsonl"


def key_of(device: Device, runtime: Runtime, settings: RunSettings, plan: MeasurementPlan, log: SweepLog) -> TableKey:
    """What numbers measured so are of."""
    return TableKey(
        device=device.card.name,
        runtime=runtime.name,
        runtime_version=str(log.hello.get("engine_version", "unknown")),
        **msgspec.to_builtins(settings),
        estimator=plan.estimator,
    )


def examine(
    runtime: Runtime, link: Link, settings: RunSettings, gate: Gate, campaign: Path
) -> tuple[Environment, tuple[str, ...]]:
    """The device before anything was measured, and what spoke against it whenever ``campaign`` was begun or gone on with.

    The campaign's folder keeps how it was each time. Raises ``MeasurementError`` as ``gate`` says, for earlier times too.
    """
    environment = environment_from_hello(runtime.hello(link, settings))
    check_environment(environment, gate)
    starts = Journal(campaign / STARTS)
    before = [documents.convert(start, Environment, str(starts.path)) for start in starts.lines()]
    try:
        for one in before:
            check_environment(one, gate)
    except MeasurementError as error:
        raise MeasurementError(f"{campaign} was begun when it was not fit; move it away to measure anew ({error})") from error
    starts.append(environment)
    found = [*before, environment]
    busiest_last = sorted(found, key=lambda one: one.load_average[0])
    doubts = {doubt.partition(" (")[0]: doubt for one in busiest_last for doubt in check_environment(one, gate)}
    return complete(found[0]), tuple(doubts.values())


def complete(environment: Environment) -> Environment:
    """With the versions of this host's side."""
    versions = {"mobilenas": version("mobilenas"), "torch": str(torch.__version__), **environment.versions}
    return msgspec.structs.replace(environment, versions=versions)


def card_of(
    device: Device,
    runtime: Runtime,
    settings: RunSettings,
    plan: MeasurementPlan,
    log: SweepLog,
    measurements: Mapping[str, Measurement],
) -> TableCard:
    """Where rows come from: what was asked for, and what the runner said. No row and no network is known yet."""
    environment = complete(log.environment)
    return TableCard(
        origin="measured",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        key=key_of(device, runtime, settings, plan, log),
        plan=plan,
        protocol=PROTOCOL,
        environment=environment,
        environment_after=environment,
        doubts=(),
        slow_down=log.slow_down(plan),
        session_ms=measurements[SESSION].value_ms,
        sentinel_ms=log.sentinel_ms,
        rows=0,
        rows_not_converged=0,
        flags=_flags(measurements, settings),
        context=NetworkContext(),
        spaces={},
    )


def _flags(measurements: Mapping[str, Measurement], settings: RunSettings) -> ModelFlags:
    found = [measurement for name, measurement in measurements.items() if name != SESSION]
    return ModelFlags(
        models=len(found),
        bimodal=sum(m.is_bimodal for m in found),
        clocks_disagree=sum(not m.clocks_agree for m in found) if settings.threads == 1 else 0,
        not_warm=sum(m.warm_fraction <= 0.5 for m in found),
        disturbed=sum(m.slow_fraction > 0.1 for m in found),
    )


def row_counts(rows: Mapping[Kernel, TableRow]) -> dict[str, int]:
    """What a card says of its rows."""
    return {"rows": len(rows), "rows_not_converged": sum(not row.converged for row in rows.values())}


def measured_network(architecture: Architecture, measurement: Measurement) -> MeasuredNetwork:
    """What a document keeps of a network's measurement."""
    return MeasuredNetwork(
        architecture=architecture,
        measured_ms=measurement.value_ms,
        low_ms=measurement.low_ms,
        high_ms=measurement.high_ms,
        sweeps=measurement.sweeps,
        converged=measurement.converged,
        median_ms=measurement.wall_median_ms,
        p90_ms=measurement.wall_p90_bound_ms,
    )


def network_row(
    architecture: Architecture, role: NetworkRole, measurement: Measurement, kernel_sum_ms: float, madds: int
) -> NetworkRow:
    """A measured network beside the sum of its kernels."""
    measured = msgspec.structs.asdict(measured_network(architecture, measurement))
    return NetworkRow(**measured, role=role, kernel_sum_ms=kernel_sum_ms, madds=madds)


def space_card(
    source: NetworkSource,
    scale: NetworkScale,
    scale_spread_fraction: float,
    left_out_ms: np.ndarray,
    networks: Sequence[NetworkRow],
    workload_error: ErrorReport | None,
    estimator: Estimator,
) -> SpaceCard:
    """Scale and baseline are fitted on the networks of role "scale", all errors are on those of role "test".

    The interval is of both, each predicted without itself: ``left_out_ms`` are those of role "scale" (cross-conformal
    prediction: Vovk 2015; Barber et al., AoS 2021). Twice as many tell it twice as surely.
    """

    def columns(role: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = [row for row in networks if row.role == role]
        return (
            np.array([row.kernel_sum_ms for row in chosen]),
            np.array([float(row.madds) for row in chosen]),
            np.array([row.measured_ms for row in chosen]),
        )

    _, madds, scaled = columns("scale")
    a, b = fit.fit_madds_baseline(madds, scaled)
    sums, madds, measured = columns("test")
    tested = [row for row in networks if row.role == "test"]
    predicted = scale.network_ms(sums)
    return SpaceCard(
        space=source.name,
        options=source.options,
        scale=scale,
        scale_spread_fraction=scale_spread_fraction,
        interval_factor=conformal_factor(np.concatenate([predicted, left_out_ms]), np.concatenate([measured, scaled])),
        table_error=ErrorReport.of(predicted, measured),
        workload_error=workload_error,
        madds_baseline_error=ErrorReport.of(a * madds + b, measured),
        repeatability_fraction=float(np.mean([row.high_ms / row.measured_ms - 1 for row in tested])),
        statistics=fit.fit_statistics([row for row in networks if row.role == "scale"], tested, predicted, estimator),
    )
