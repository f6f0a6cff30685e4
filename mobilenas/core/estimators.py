"""From the samples of sweeps to a measurement: floors, medians, their intervals, and what makes them doubtful."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.stats import beta, binom

from mobilenas.core.measurement import Estimator, Measurement, SlowDown, SweepRecord
from mobilenas.errors import MeasurementError

CLOCK_READING_MS = 0.002
"""Reading the wall clock takes CPU time too: what the CPU clock may show more."""
MEDIAN_CONFIDENCE, BOUND_CONFIDENCE = 0.95, 0.99
MODES_APART, SMALLER_MODE = 0.05, 0.2
"""Two groups of sweeps are two modes: so far apart, relatively, and the smaller with at least that share of the sweeps."""
CHANGE_SIGNIFICANCE, PERMUTATIONS, FEWEST_SENTINELS = 0.01, 2000, 6
LOW_SHARE, FEWEST_LOW = 0.25, 2
"""The floor is the mean of the lowest sweeps: of this share, and so many at least. Alone the least is not to be trusted."""
HALVINGS = 252
"""Ways to halve the sweeps that are tried: as many as there are of ten."""


def measurement_from_records(
    records: Sequence[SweepRecord],
    tolerance_fraction: float,
    use_cpu_clock: bool = True,
    estimator: Estimator = "floor",
    sentinel_ms: float | None = None,
    drift_fraction: float = math.inf,
    fewest_sweeps: int = 2,
) -> Measurement:
    """What the sweeps say together. Nothing is deleted but what a clock cannot have shown.

    The floor, for shared hosts: of each sweep the least wall time, or the 10th percentile of CPU time where that is less, as
    it is when every run was interrupted; of the sweeps the mean of the lowest quarter. Only sweeps count beside which the
    sentinel was neither slower nor faster than ``sentinel_ms`` (by default what it usually took in these sweeps) by more than
    ``drift_fraction``; where none is left, all count, and the floor has not converged however well they agree. Left out as
    clock errors are CPU samples under 0.9 of the wall minimum, and wall samples in which the thread would have computed for
    longer than they lasted: a wall clock that was set back.

    The median, for a device that one owns: of all sweeps' medians of wall time, as they are; two modes never converge. The
    other statistics of wall time are of all sweeps too.

    Neither converges on fewer than ``fewest_sweeps`` that count. ``use_cpu_clock`` must be off where several threads work,
    since the CPU clock is the calling thread's. Raises ``MeasurementError`` for no records or a sample that is not a
    positive finite number.
    """
    if not records:
        raise MeasurementError("no sweep of this model was recorded: nothing to estimate from")
    walls = [np.asarray(record.wall_ms) for record in records]
    for wall in walls:
        if wall.size == 0 or not np.all(np.isfinite(wall)) or wall.min() <= 0:
            raise MeasurementError("a sweep holds no samples, or a wall time that is not a positive number")
    cpus = [np.asarray(record.cpu_ms) for record in records]
    cpu_seen = min(float(np.percentile(cpu, 10)) for cpu in cpus)
    if use_cpu_clock:
        walls = [possible_ms(wall, cpu) for wall, cpu in zip(walls, cpus, strict=True)]
    wall_floors = np.array([wall.min() for wall in walls])
    cpus = [cpu[cpu >= 0.9 * wall_floors.min()] for cpu in cpus]
    cpu_floors = np.array([np.percentile(cpu, 10) if cpu.size else np.inf for cpu in cpus])
    medians = [float(np.median(wall)) for wall in walls]
    median, (median_low, median_high) = float(np.median(medians)), median_interval(medians)
    median_converged = (
        len(records) >= fewest_sweeps
        and _is_known(len(medians))
        and (median_high - median_low) / 2 <= tolerance_fraction * median
        and not is_bimodal(medians)
    )
    beside = np.array([record.sentinel_floor_ms for record in records])
    if sentinel_ms is None:
        sentinel_ms = usual_sentinel_ms(beside)
    if estimator == "median":
        sweeps, each = len(records), np.asarray(medians)
        value, low, high, converged = median, median_low, median_high, median_converged
    else:
        floors = each = np.minimum(wall_floors, cpu_floors) if use_cpu_clock else wall_floors
        limit = 1 + drift_fraction
        quiet = floors[(beside <= sentinel_ms * limit) & (beside >= sentinel_ms / limit)]
        sweeps = len(quiet) or len(records)
        value = float(_low(quiet if len(quiet) else floors))
        repeatability = _repeatability_fraction(quiet if len(quiet) else floors)
        low, high = value / (1 + repeatability), value * (1 + repeatability)
        converged = len(quiet) >= max(2, fewest_sweeps) and repeatability <= tolerance_fraction
    all_wall = np.concatenate(walls)
    all_cpu = np.concatenate(cpus) if any(cpu.size for cpu in cpus) else all_wall
    loads = [record.load_fraction for record in records if record.load_fraction is not None]
    memory = [record.peak_memory_mib for record in records if record.peak_memory_mib is not None]
    return Measurement(
        estimator=estimator,
        value_ms=value,
        low_ms=low,
        high_ms=high,
        wall_floor_ms=float(wall_floors.min()),
        wall_median_ms=median,
        wall_median_high_ms=median_high,
        wall_p90_ms=float(np.percentile(all_wall, 90)),
        wall_p90_bound_ms=percentile_bound(all_wall, 0.9),
        cpu_floor_ms=float(cpu_floors.min() if np.isfinite(cpu_floors).any() else wall_floors.min()),
        cpu_median_ms=float(np.median(all_cpu)),
        cpu_p90_ms=float(np.percentile(all_cpu, 90)),
        sentinel_ms=sentinel_ms,
        first_ms=min(record.first_ms for record in records),
        load_ms=min(record.load_ms for record in records),
        peak_memory_mib=max(memory) if memory else None,
        sweeps=sweeps,
        samples=int(all_wall.size),
        slow_fraction=float((all_wall > 2 * np.median(all_wall)).mean()),
        warm_fraction=float(np.mean([record.is_warm is not False for record in records])),
        is_bimodal=is_bimodal(medians),
        clocks_agree=bool(abs(wall_floors.min() - cpu_seen) <= 0.1 * value + CLOCK_READING_MS),
        converged=bool(converged),
        median_converged=median_converged,
        load_fraction=float(np.mean(loads)) if loads else None,
        spread_fraction=float(each.max() / each.min() - 1),
    )


def usual_sentinel_ms(beside_ms: Sequence[float] | np.ndarray) -> float:
    """What the sentinel takes when the device is not disturbed, from what it took beside each record: the lower quartile."""
    return float(np.quantile(beside_ms, 0.25))


def possible_ms(wall_ms: np.ndarray, cpu_ms: np.ndarray) -> np.ndarray:
    """The wall times that are no shorter than the CPU times within them; all of them where none is left."""
    kept = wall_ms[wall_ms >= 0.9 * cpu_ms - CLOCK_READING_MS]
    return kept if kept.size else wall_ms


def _repeatability_fraction(values: np.ndarray) -> float:
    """How far apart the estimates of two halves of the sweeps are, relatively: the mean over ``HALVINGS``.

    That is nearly twice the error of the estimate from all of them. Of an odd number one sweep is left out.
    """
    half = len(values) // 2
    if half == 0:
        return 1.0
    shuffled = values[_orders(len(values))]
    first, second = _low(shuffled[:, :half]), _low(shuffled[:, half : 2 * half])
    return float(np.mean(np.maximum(first, second) / np.minimum(first, second)) - 1)


def _low(values: np.ndarray) -> np.ndarray:
    """The mean of the lowest of the last axis."""
    count = max(FEWEST_LOW, math.ceil(LOW_SHARE * values.shape[-1]))
    return np.asarray(np.sort(values, axis=-1)[..., :count].mean(axis=-1))


@cache
def _orders(count: int) -> np.ndarray:
    """``(HALVINGS, count)``: random orders of ``count`` sweeps, the same each time."""
    return np.random.default_rng(0).permuted(np.tile(np.arange(count), (HALVINGS, 1)), axis=1)


def median_interval(values: Sequence[float], confidence: float = MEDIAN_CONFIDENCE) -> tuple[float, float]:
    """Between which of ``values`` the median of what they were drawn from lies, with at least ``confidence``.

    The order statistics ``l`` and ``n + 1 - l`` for the largest ``l`` with ``2 P(Bin(n, 1/2) < l) <= 1 - confidence``; with
    fewer than six values the least and the largest, which hold it less often.
    """
    ordered = sorted(values)
    outside = max(1, int(binom.ppf((1 - confidence) / 2, len(ordered), 0.5)))
    return ordered[outside - 1], ordered[-outside]


def _is_known(sweeps: int) -> bool:
    """Whether the least and the largest of so many medians hold the true one with ``MEDIAN_CONFIDENCE``."""
    return 2 * 0.5**sweeps <= 1 - MEDIAN_CONFIDENCE


def percentile_bound(samples_ms: np.ndarray, share: float, confidence: float = BOUND_CONFIDENCE) -> float | None:
    """A time that at least ``share`` of all runs keep, with ``confidence``; ``None`` where there are too few samples.

    The early-stopping estimate of MLPerf's LoadGen: ``t`` is the largest number of slow runs so that
    ``I_share(q - t, t + 1) <= 1 - confidence`` (regularised incomplete beta function); of ``q`` samples the ``t - 1`` slowest
    are dropped, and the largest that is left is the bound. For a share of 0.9 it takes 64 samples, of 0.99 662.
    """
    q = len(samples_ms)
    slow = np.arange(1, q)
    allowed = slow[beta.cdf(share, q - slow, slow + 1) <= 1 - confidence] if q > 1 else slow
    return float(np.sort(samples_ms)[q - allowed.max()]) if allowed.size else None


def is_bimodal(values: Sequence[float]) -> bool:
    """Whether the values fall into two groups ``MODES_APART``, of two or more each, the smaller ``SMALLER_MODE`` of all."""
    ordered = np.sort(np.asarray(values))
    fewest = max(2, math.ceil(SMALLER_MODE * len(ordered)))
    if len(ordered) < 2 * fewest:
        return False
    gaps = ordered[1:] / ordered[:-1] - 1
    return bool((gaps[fewest - 1 : len(gaps) - fewest + 1] > MODES_APART).any())


def slow_down(sentinels: Sequence[tuple[float, float]], least_fraction: float) -> SlowDown | None:
    """When a model that is timed again and again became slower by ``least_fraction`` or more; ``None`` if it never did.

    ``sentinels`` are seconds since the epoch with milliseconds, in order.

    The change point of the cumulative sum of log times (Page 1954; Taylor 2000), which counts where fewer than one in a
    hundred random orders of the same times reach as far.
    """
    if len(sentinels) < FEWEST_SENTINELS:
        return None
    logs = np.log([ms for _, ms in sentinels])
    centred = logs - logs.mean()

    def reach(values: np.ndarray) -> np.ndarray:
        return np.asarray(-np.cumsum(values, axis=-1)[..., :-1])

    sums = reach(centred)
    change = int(sums.argmax())
    fraction = float(np.exp(np.median(logs[change + 1 :]) - np.median(logs[: change + 1])) - 1)
    if fraction < least_fraction:
        return None
    generator = np.random.default_rng(0)
    orders = generator.permuted(np.tile(centred, (PERMUTATIONS, 1)), axis=1)
    if (reach(orders).max(axis=1) >= sums[change] - 1e-12).mean() >= CHANGE_SIGNIFICANCE:
        return None
    return SlowDown(sentinels[change + 1][0], fraction)
