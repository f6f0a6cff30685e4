"""What is measured, how, and where: plans, samples, measurements with their estimator, and the environment."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from mobilenas.errors import MeasurementError, UnknownNameError

ESTIMATOR = "floor"
"""Name of the estimator below, written into every table card."""

WALL_CLOCK_LIMIT_MS = 2.0
"""Runs shorter than this fit into a scheduler's time slice: their wall-clock minimum is undisturbed on a shared host."""


CLOCK_READING_MS = 0.002
"""Reading the wall clock takes CPU time too: what the CPU clock may show more."""


class MeasurementPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is measured. A *sweep* times every model once, in shuffled order, in a fresh process."""

    name: str
    sweeps: int
    """Sweeps of every model, at least."""
    maximum_sweeps: int
    """Sweeps that models which have not converged may get."""
    spread_s: float
    """Time over which the first ``sweeps`` sweeps are spread, in seconds."""
    scale_networks: int
    """Whole networks that the table's scale is fitted on."""
    test_networks: int
    """Other whole networks that tell the table's error."""
    lowered_networks: int
    """Random networks lowered, not measured, to fit the costs of workloads."""
    samples: int = 50
    """Timed runs of a model in one sweep, at least."""
    maximum_samples: int = 200
    minimum_s: float = 0.01
    """Timed seconds of a model in one sweep, at least, up to ``maximum_samples``."""
    maximum_s: float = 1.0
    """Timed seconds after which ten samples of a model are enough."""
    warmup_runs: int = 3
    warmup_s: float = 0.005
    tolerance_fraction: float = 0.02
    """A model has converged when its floor repeats within this fraction."""
    drift_fraction: float = 0.15
    """A sweep whose sentinel is slower than the best one by more than this does not count."""


PLANS = {
    plan.name: plan
    for plan in (
        MeasurementPlan("quick", 4, 10, 12.0, 15, 10, 150, tolerance_fraction=0.03),
        MeasurementPlan("standard", 8, 16, 300.0, 15, 25, 300),
        MeasurementPlan("strict", 16, 32, 900.0, 15, 100, 500, tolerance_fraction=0.01, drift_fraction=0.1),
    )
}


def plan_named(name: str) -> MeasurementPlan:
    """The plan called ``name``; raises ``UnknownNameError``."""
    if name not in PLANS:
        raise UnknownNameError("plan", name, PLANS)
    return PLANS[name]


class SweepRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a runner said of one model in one sweep; times in milliseconds."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    first_ms: float
    load_ms: float
    peak_memory_mib: float | None


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The latency of one model on one device. ``value_ms`` is the estimator's; ``low_ms`` to ``high_ms`` its interval.

    The floor cannot be over-estimated by less than nothing, so the interval starts at the value and its width is the
    repeatability: how much higher the floor of half the sweeps would have been, on average over all halvings.
    """

    estimator: str
    value_ms: float
    low_ms: float
    high_ms: float
    wall_floor_ms: float
    wall_median_ms: float
    wall_p90_ms: float
    cpu_floor_ms: float
    cpu_median_ms: float
    cpu_p90_ms: float
    first_ms: float
    load_ms: float
    peak_memory_mib: float | None
    sweeps: int
    samples: int
    clocks_agree: bool
    """Whether the wall clock's floor and the CPU clock's, as it was reported, are within 10 % of each other."""
    converged: bool

    @property
    def repeatability_fraction(self) -> float:
        """Width of the interval relative to the value."""
        return self.high_ms / self.value_ms - 1

    def is_within(self, target_ms: float) -> bool:
        """Whether a budget is met: by the value, or exceeded by no more than it repeats, where it has converged."""
        return self.value_ms <= target_ms * (1 + (self.repeatability_fraction if self.converged else 0.0))


def measurement_from_records(
    records: Sequence[SweepRecord], tolerance_fraction: float, use_cpu_clock: bool = True
) -> Measurement:
    """The floor over sweeps, as measured to be best on shared hosts.

    Below 2 ms: the minimum of wall time. Above: the 10th percentile of each sweep's CPU time, and of those the minimum.
    Left out as clock errors are CPU samples under 0.9 of the wall minimum, and wall samples in which the thread would have
    computed for longer than they lasted: a wall clock that was set back. ``use_cpu_clock`` must be off where several threads
    work, since the CPU clock is the calling thread's. Raises ``MeasurementError`` for no records or a sample that is not a
    positive finite number.
    """
    if not records:
        raise MeasurementError("no sweep of this model was recorded: nothing to estimate from")
    walls = [np.asarray(record.wall_ms) for record in records]
    for wall in walls:
        if wall.size == 0 or not np.all(np.isfinite(wall)) or wall.min() <= 0:
            raise MeasurementError("a sweep holds no samples, or a wall time that is not a positive number")
    if use_cpu_clock:
        walls = [possible_ms(wall, np.asarray(record.cpu_ms)) for wall, record in zip(walls, records, strict=True)]
    wall_floor = float(min(wall.min() for wall in walls))
    cpus = [np.asarray(record.cpu_ms) for record in records]
    cpu_seen = min(float(np.percentile(cpu, 10)) for cpu in cpus)
    cpus = [accepted for cpu in cpus if (accepted := cpu[cpu >= 0.9 * wall_floor]).size]
    cpu_floors = [float(np.percentile(cpu, 10)) for cpu in cpus] or [wall_floor]
    if wall_floor < WALL_CLOCK_LIMIT_MS or not use_cpu_clock:
        floors = [float(wall.min()) for wall in walls]
    else:
        floors = cpu_floors
    value = min(floors)
    repeatability = _repeatability_fraction(floors)
    all_wall = np.concatenate(walls)
    all_cpu = np.concatenate(cpus) if cpus else all_wall
    memory = [record.peak_memory_mib for record in records if record.peak_memory_mib is not None]
    return Measurement(
        estimator=ESTIMATOR,
        value_ms=value,
        low_ms=value,
        high_ms=value * (1 + repeatability),
        wall_floor_ms=wall_floor,
        wall_median_ms=float(np.median(all_wall)),
        wall_p90_ms=float(np.percentile(all_wall, 90)),
        cpu_floor_ms=min(cpu_floors),
        cpu_median_ms=float(np.median(all_cpu)),
        cpu_p90_ms=float(np.percentile(all_cpu, 90)),
        first_ms=min(record.first_ms for record in records),
        load_ms=min(record.load_ms for record in records),
        peak_memory_mib=max(memory) if memory else None,
        sweeps=len(records),
        samples=int(all_wall.size),
        clocks_agree=abs(wall_floor - cpu_seen) <= 0.1 * value,
        converged=len(records) > 1 and repeatability <= tolerance_fraction,
    )


def possible_ms(wall_ms: np.ndarray, cpu_ms: np.ndarray) -> np.ndarray:
    """The wall times that are no shorter than the CPU times within them; all of them where none is left."""
    kept = wall_ms[wall_ms >= 0.9 * cpu_ms - CLOCK_READING_MS]
    return kept if kept.size else wall_ms


def _repeatability_fraction(floors: Sequence[float]) -> float:
    """Mean over all ways to halve the sweeps of how far the worse half's minimum lies above the better one's.

    Of ``n`` sorted floors the better half holds the least; the worse half of size ``h`` has the ``k``-th as its minimum
    in ``C(n - 1 - k, h - 1)`` of the ``C(n - 1, h)`` cases.
    """
    ordered = sorted(floors)
    n = len(ordered)
    if n < 2:
        return 1.0
    half, others = n // 2, ordered[1:]
    ways = [math.comb(len(others) - 1 - k, half - 1) for k in range(len(others))]
    return sum(w * floor for w, floor in zip(ways, others, strict=True)) / sum(ways) / ordered[0] - 1


class Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of a machine while something was measured on it."""

    machine: str
    system: str
    cpu_model: str
    cpu_count: int
    governor: str | None
    frequencies_mhz: tuple[float, ...]
    temperatures_celsius: tuple[float, ...]
    load_average: tuple[float, float, float]
    versions: dict[str, str]


def detect_environment(versions: Mapping[str, str]) -> Environment:
    """Read this host's state; what the system does not tell stays empty."""
    cpuinfo = _read("/proc/cpuinfo") or ""
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    clocks = [float(line.partition(":")[2]) for line in cpuinfo.splitlines() if line.startswith("cpu MHz")]
    zones = sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))
    temperatures = [text for zone in zones if (text := _read(str(zone)))]
    return Environment(
        machine=platform.machine(),
        system=platform.platform(),
        cpu_model=models[0] if models else platform.processor() or "unknown",
        cpu_count=os.cpu_count() or 1,
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        frequencies_mhz=tuple(clocks),
        temperatures_celsius=tuple(int(text) / 1000 for text in temperatures),
        load_average=os.getloadavg(),
        versions=dict(versions),
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
