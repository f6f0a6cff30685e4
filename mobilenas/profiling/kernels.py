"""Single kernels on a device: each as two models, whose slope is its row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from mobilenas.core.measurement import Measurement, MeasurementPlan
from mobilenas.core.run_directory import Journal, working_in
from mobilenas.core.workload import Kernel
from mobilenas.devices.device import Device
from mobilenas.devices.links import Link
from mobilenas.errors import RunnerError
from mobilenas.latency.table import LatencyTable, TableRow
from mobilenas.profiling import fit
from mobilenas.profiling.cards import card_of, examine, row_counts
from mobilenas.runtimes.base import SESSION, PreparedModel, RunSettings, Runtime
from mobilenas.runtimes.measure import MeasureProgress, SweepLog, measure
from mobilenas.runtimes.reports import PROTOCOL

_PREFIX = "kernel-"


class MeasuredKernels(NamedTuple):
    """What was measured, the log that it comes from, and of kernels that the engine would not run alone its complaint."""

    measurements: dict[str, Measurement]
    log: SweepLog
    refused: dict[Kernel, str]


def measure_accepted(
    kernels: Sequence[Kernel],
    others: Mapping[str, PreparedModel],
    link: Link,
    runtime: Runtime,
    settings: RunSettings,
    plan: MeasurementPlan,
    *,
    journal: Journal,
    seed: int = 0,
    progress: Callable[[MeasureProgress], None] = lambda _: None,
    on_refused: Callable[[Mapping[Kernel, str]], None] = lambda _: None,
) -> MeasuredKernels:
    """Measure ``others``, which are compared, and the kernels but for those that the engine refuses to run alone.

    Nothing is measured where it refuses all.
    ``on_refused`` is told of these at once, and may raise.
    """
    refused: dict[Kernel, str] = {}
    while True:
        accepted = [kernel for kernel in kernels if kernel not in refused]
        models = {**others, **kernel_models(accepted, runtime)}
        try:
            measurements, log = measure(
                models, link, runtime, settings, plan, journal=journal, seed=seed, compared=others.keys(), progress=progress
            )
            return MeasuredKernels(measurements, log, refused)
        except RunnerError as error:
            found = _refused_kernels(accepted, error)
            if not found:
                raise
            on_refused(found)
            refused |= found
            if len(refused) == len(kernels):
                return MeasuredKernels({}, SweepLog.resume(journal), refused)


def allow_none(refused: Mapping[Kernel, str]) -> None:
    """Raise ``RunnerError`` that names kernels which the engine refuses to run alone, for those who need them all."""
    raise RunnerError(f"the engine refuses to run {len(refused)} kernels alone: {words_of_refused(refused)}")


def words_of_refused(refused: Mapping[Kernel, str]) -> str:
    """Kernels, each with the engine's complaint."""
    return "; ".join(f"{kernel.key}: {complaint}" for kernel, complaint in refused.items())


def measure_kernels(
    kernels: Sequence[Kernel],
    link: Link,
    runtime: Runtime,
    settings: RunSettings,
    plan: MeasurementPlan,
    journal: Journal,
    progress: Callable[[MeasureProgress], None] = lambda _: None,
    sentinel_ms: float | None = None,
) -> dict[Kernel, TableRow]:
    """Rows of single kernels, measured as a campaign does it, at the speed of the device at which the sentinel takes
    ``sentinel_ms``; by default that which it has. Raises ``RunnerError`` naming kernels that the engine refuses to run alone.
    """
    measurements, log, _ = measure_accepted(
        kernels, {}, link, runtime, settings, plan, journal=journal, progress=progress, on_refused=allow_none
    )
    factor = sentinel_ms / log.sentinel_ms if sentinel_ms else 1.0
    return {kernel: row_of(kernel, measurements, runtime).times(factor) for kernel in kernels}


def keep_kernels(
    kernels: Sequence[Kernel],
    folder: Path,
    records: Path,
    device: Device,
    link: Link,
    runtime: Runtime,
    settings: RunSettings,
    plan: MeasurementPlan,
    progress: Callable[[MeasureProgress], None] = lambda _: None,
) -> dict[Kernel, str]:
    """Measure single kernels into a new table below ``folder``: what one measuring found is never mixed with another's.

    Interrupted, the same kernels go on from ``records``. Returns the kernels that the engine refuses to run alone, of which
    nothing is kept, with its complaint.
    """
    identity = [PROTOCOL, device.card.identity, runtime.name, settings, plan, [k.identifier for k in kernels]]
    name = hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:12]
    campaign = records / f"kernels-{name}"
    with working_in(campaign):
        environment, doubts = examine(runtime, link, settings, "warn", campaign)
        journal = Journal(campaign / "rows.jsonl")
        others = {SESSION: runtime.session_model()}
        measurements, log, refused = measure_accepted(
            kernels, others, link, runtime, settings, plan, journal=journal, progress=progress
        )
        rows = {kernel: row_of(kernel, measurements, runtime) for kernel in kernels if kernel not in refused}
        if rows:
            card = card_of(device, runtime, settings, plan, log, measurements)
            card = msgspec.structs.replace(card, environment=environment, doubts=doubts, **row_counts(rows))
            LatencyTable(card, rows, {}, ()).save(folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{name}")
    return refused


def _refused_kernels(kernels: Sequence[Kernel], error: RunnerError) -> dict[Kernel, str]:
    """The kernels that an engine would not run alone, with its complaint."""
    by_identifier = {kernel.identifier: kernel for kernel in kernels}
    found = {name.removeprefix(_PREFIX).rpartition("-")[0]: complaint for name, complaint in error.refused.items()}
    return {by_identifier[identifier]: complaint for identifier, complaint in found.items() if identifier in by_identifier}


def kernel_models(kernels: Sequence[Kernel], runtime: Runtime) -> dict[str, PreparedModel]:
    """The two models of each kernel, by name."""
    return {_kernel_name(kernel, n): runtime.kernel_model(kernel, n) for kernel in kernels for n in runtime.copies(kernel)}


def row_of(kernel: Kernel, measurements: Mapping[str, Measurement], runtime: Runtime) -> TableRow:
    """The row of one kernel, from the measurements of its two models."""
    counts = runtime.copies(kernel)
    few, many = (measurements[_kernel_name(kernel, n)] for n in counts)
    return fit.row_from_measurements(kernel, few, many, counts)


def _kernel_name(kernel: Kernel, copies: int) -> str:
    return f"{_PREFIX}{kernel.identifier}-{copies}"
