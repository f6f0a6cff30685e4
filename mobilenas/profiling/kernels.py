"""Single kernels on a device: each as two models, whose slope is its row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mobilenas.core.measurement import Measurement, MeasurementPlan
from mobilenas.core.run_directory import Journal, working_in
from mobilenas.core.workload import Kernel
from mobilenas.devices.device import Device
from mobilenas.devices.links import Link
from mobilenas.errors import MissingKernelError, RunnerError
from mobilenas.latency.table import LatencyTable, TableRow
from mobilenas.profiling import fit
from mobilenas.profiling.cards import card_of, row_counts
from mobilenas.runtimes.base import SESSION, PreparedModel, RunSettings, Runtime
from mobilenas.runtimes.measure import MeasureProgress, measure
from mobilenas.runtimes.reports import PROTOCOL


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
    ``sentinel_ms``; by default that which it has.
    """
    models = kernel_models(kernels, runtime)
    measurements, log = measure(models, link, runtime, settings, plan, journal=journal, progress=progress)
    factor = sentinel_ms / log.sentinel_ms if sentinel_ms else 1.0
    return {kernel: row_of(kernel, measurements).times(factor) for kernel in kernels}


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
) -> None:
    """Measure single kernels into a new table below ``folder``: what one measuring found is never mixed with another's.

    Interrupted, the same kernels go on from ``records``. Raises ``MissingKernelError`` naming the kernels that the engine
    refuses to run alone, once the others are kept.
    """
    identity = [PROTOCOL, device.card, runtime.name, settings, plan, [k.identifier for k in kernels]]
    name = hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:12]
    with working_in(records / f"kernels-{name}"):
        accepted, refused = list(kernels), dict[Kernel, str]()
        journal = Journal(records / f"kernels-{name}" / "rows.jsonl")
        while True:
            models = {SESSION: runtime.session_model(), **kernel_models(accepted, runtime)}
            try:
                measurements, log = measure(models, link, runtime, settings, plan, journal=journal, progress=progress)
                break
            except RunnerError as error:
                found = _refused_kernels(accepted, error)
                if not found:
                    raise
                refused |= found
                accepted = [kernel for kernel in accepted if kernel not in found]
        if accepted:
            rows = {kernel: row_of(kernel, measurements) for kernel in accepted}
            card = msgspec.structs.replace(card_of(device, runtime, settings, plan, log, measurements), **row_counts(rows))
            LatencyTable(card, rows, {}, ()).save(folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{name}")
    if refused:
        raise MissingKernelError(
            f"{runtime.name} refuses to run {len(refused)} of {len(kernels)} kernels alone, so that nothing tells their time "
            f"(the rows of the others are kept): {'; '.join(f'{kernel.key}: {why}' for kernel, why in refused.items())}. "
            "Without --profile-missing they are predicted where there were others to learn from"
        )


def _refused_kernels(kernels: Sequence[Kernel], error: RunnerError) -> dict[Kernel, str]:
    """The kernels that an engine would not run alone, with its complaint."""
    names = {_kernel_name(kernel, n): kernel for kernel in kernels for n in (fit.FEW_COPIES, fit.MANY_COPIES)}
    return {names[name]: complaint for name, complaint in error.refused.items() if name in names}


def kernel_models(kernels: Sequence[Kernel], runtime: Runtime) -> dict[str, PreparedModel]:
    """The two models of each kernel, by name."""
    counts = (fit.FEW_COPIES, fit.MANY_COPIES)
    return {_kernel_name(kernel, n): runtime.kernel_model(kernel, n) for kernel in kernels for n in counts}


def row_of(kernel: Kernel, measurements: Mapping[str, Measurement]) -> TableRow:
    """The row of one kernel, from the measurements of its two models."""
    few, many = (measurements[_kernel_name(kernel, n)] for n in (fit.FEW_COPIES, fit.MANY_COPIES))
    return fit.row_from_measurements(kernel, few, many)


def _kernel_name(kernel: Kernel, copies: int) -> str:
    return f"kernel-{kernel.identifier}-{copies}"
