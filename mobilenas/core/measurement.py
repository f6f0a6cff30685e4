"""What is measured and how: plans, the samples of a sweep, and the measurement that is made of them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np

from mobilenas.errors import DocumentError, IncompatibleError, UnknownNameError

Estimator = Literal["floor", "median"]
"""What stands for a model's latency: a low one of the sweeps' on a shared host, the median on an owned, idle device."""
Statistic = Literal["floor", "median", "p90"]
"""What a budget can bind."""


Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class MeasurementPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is measured. A *sweep* times every model once, in shuffled order, in a fresh process."""

    name: str
    sweeps: Positive
    """Sweeps of every model, at least."""
    maximum_sweeps: Positive
    """Sweeps that models which have not converged may get."""
    spread_s: NotNegative
    """Time over which the first ``sweeps`` sweeps are spread, in seconds."""
    scale_networks: Count
    """Whole networks that the table's scale is fitted on."""
    test_networks: Count
    """Other whole networks that tell the table's error."""
    lowered_networks: Count
    """Random networks lowered, not measured, to fit the costs of workloads."""
    samples: Positive = 50
    """Timed runs of a model in one sweep, at least."""
    maximum_samples: Positive = 200
    minimum_s: NotNegative = 0.01
    """Timed seconds of a model in one sweep, at least, up to ``maximum_samples``."""
    maximum_s: NotNegative = 0.1
    """Timed seconds after which ten samples of a model are enough: more sweeps tell more than more samples of one."""
    warmup_runs: Count = 3
    """Runs before the timed ones, at least; so is ``warmup_s``."""
    warmup_s: NotNegative = 0.005
    warmup_maximum_s: NotNegative = 0.1
    """When a model whose run times have not settled is timed all the same, and said not to be warm."""
    warmup_tolerance_fraction: NotNegative = 0.02
    """The median of five runs and that of the five before it agree within this where run times have settled."""
    estimator: Estimator = "floor"
    tolerance_fraction: NotNegative = 0.02
    """A model has converged when its floor repeats within this fraction, or its median is known to within it."""
    sentinel_every_s: NotNegative = 0.001
    """Timed seconds of a model after which the sentinel runs again."""
    drift_fraction: NotNegative = 0.15
    """A record does not count if the sentinel beside it was slower or faster than it usually is by more than this."""


PLANS = {
    plan.name: plan
    for plan in (
        MeasurementPlan("quick", 4, 10, 12.0, 15, 10, 150, warmup_maximum_s=0.05, tolerance_fraction=0.03),
        MeasurementPlan("standard", 8, 32, 300.0, 30, 25, 300),
        MeasurementPlan(
            "strict", 16, 64, 900.0, 30, 100, 500, warmup_maximum_s=1.0, tolerance_fraction=0.01, drift_fraction=0.1
        ),
    )
}


def plan_named(name: str) -> MeasurementPlan:
    """The plan called ``name``; raises ``UnknownNameError``."""
    if name not in PLANS:
        raise UnknownNameError("plan", name, PLANS)
    return PLANS[name]


IDLE_FRACTION, IDLE_LOAD = 0.05, 0.06
"""How far two floors of one model, minutes apart, may differ either way on an idle device: one that others use so little."""
SLOWED_BY_LOAD, MOST_SLOWED, MORE_BY_LOAD = 1.8, 1.1, 0.15
"""By how much longer a model may take than undisturbed, as a multiple of the share of the processors that others take and at
most; and how much more it may take at another moment of the same load.
"""
MOST_BY_SPREAD = 0.08
"""How far half the spread of the sweeps may widen the interval: a floor is of the quickest, and a later one is too."""


PositiveMs = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
"""What took no time was not run."""


class SweepRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a runner said of one model in one sweep; times in milliseconds."""

    wall_ms: Annotated[tuple[PositiveMs, ...], msgspec.Meta(min_length=1)]
    cpu_ms: tuple[Annotated[float, msgspec.Meta(ge=0, le=1e12)], ...]
    """Of the calling thread; 0 where that clock is too coarse."""
    sentinel_ms: Annotated[tuple[PositiveMs, ...], msgspec.Meta(min_length=1)]
    """Of a small model, the same for all, that ran between these runs: how fast the device was at that moment."""
    first_ms: PositiveMs
    load_ms: PositiveMs
    peak_memory_mib: Annotated[float, msgspec.Meta(gt=0, le=1e12)] | None
    is_warm: bool | None = None
    """Whether the run times had settled before they were timed; ``None`` where a runner does not say."""
    load_fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """Share of all processors that others took meanwhile; ``None`` where the system does not tell."""

    def __post_init__(self) -> None:
        if len(self.wall_ms) != len(self.cpu_ms):
            raise DocumentError(f"{len(self.wall_ms)} wall_ms need one cpu_ms each, and there are {len(self.cpu_ms)}")

    @property
    def sentinel_floor_ms(self) -> float:
        """The 10th percentile, which neither a disturbance nor a single fast run decides."""
        return float(np.percentile(self.sentinel_ms, 10))


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The latency of one model on one device. ``value_ms`` is the estimator's; ``low_ms`` to ``high_ms`` its interval.

    That of a floor reaches as far up and down as it repeats: the floors of two halves of the sweeps are so far apart, on
    average over the ways to halve them. It holds the floor of endless sweeps about eight to nine times in ten. That of a
    median holds the median of endless sweeps with 95 % confidence, whatever their distribution.
    """

    estimator: Statistic
    value_ms: float
    low_ms: float
    high_ms: float
    wall_floor_ms: float
    wall_median_ms: float
    wall_median_high_ms: float
    """Upper end of the interval of the median over sweeps."""
    wall_p90_ms: float
    wall_p90_bound_ms: float | None
    """With 99 % confidence nine runs in ten take no longer; ``None`` below 64 runs, which cannot say so."""
    cpu_floor_ms: float
    cpu_median_ms: float
    cpu_p90_ms: float
    sentinel_ms: float
    """What the small model beside it usually took: how fast the device was in the sweeps that count."""
    first_ms: float
    load_ms: float
    peak_memory_mib: float | None
    sweeps: int
    """That ``value_ms`` is from: of a floor those in which the device was not slowed."""
    samples: int
    """Runs in all sweeps."""
    slow_fraction: float
    """Share of the runs that took over twice the median."""
    warm_fraction: float
    """Share of the sweeps in which the run times had settled before they were timed, where the runner says so."""
    is_bimodal: bool
    """Whether the sweeps fall into two groups: another core, or another step of the clock."""
    clocks_agree: bool
    """Whether the wall clock's floor and the CPU clock's, as it was reported, are within 10 % of each other and of what reading
    them takes.
    """
    converged: bool
    """Whether ``value_ms`` is known as well as the plan wants."""
    median_converged: bool = False
    """The same of ``wall_median_ms``."""
    load_fraction: float | None = None
    """Share of all processors that others took while it ran, a mean over sweeps; ``None`` where the system does not tell."""
    spread_fraction: float = 0.0
    """How far the slowest sweep's value is above the quickest's, be they counted or not."""
    own_repeatability_fraction: float | None = None
    """How the value repeats, where the interval is wider than that."""

    @property
    def repeatability_fraction(self) -> float:
        """How far the value repeats: the width of the interval above it, unless that holds more."""
        if self.own_repeatability_fraction is not None:
            return self.own_repeatability_fraction
        return self.high_ms / self.value_ms - 1

    def lasting(self) -> Measurement:
        """Return the measurement with the interval in which a later one lies, on the device idle or as busy as it was.

        Sweeps that agree with each other tell nothing of what disturbed them all. So the interval is never narrower than two
        measurements of an idle device differ, reaches further down the more of the processors others took, and further up the
        further the sweeps were apart.
        """
        load = max(0.0, (self.load_fraction or 0.0) - IDLE_LOAD)
        repeats = self.repeatability_fraction
        down = max(repeats, min(MOST_SLOWED, IDLE_FRACTION + SLOWED_BY_LOAD * load))
        up = max(repeats, IDLE_FRACTION + MORE_BY_LOAD * load, min(MOST_BY_SPREAD, self.spread_fraction / 2))
        return msgspec.structs.replace(
            self,
            low_ms=self.value_ms / (1 + down),
            high_ms=self.value_ms * (1 + up),
            own_repeatability_fraction=repeats,
        )

    def agrees_with(self, low_ms: float, high_ms: float) -> bool:
        """Return whether the interval overlaps with another one."""
        return self.low_ms <= high_ms and self.high_ms >= low_ms

    def is_within(self, target_ms: float) -> bool:
        """Whether a budget is met: by the value, or exceeded by no more than it repeats, where it has converged."""
        return self.value_ms <= target_ms * (1 + (self.repeatability_fraction if self.converged else 0.0))

    def of_statistic(self, statistic: Statistic) -> Measurement:
        """The same with another statistic as its value, for budgets that bind it.

        A p90 is the bound that holds with 99 % confidence: it needs no interval above it. Raises ``IncompatibleError`` for
        a floor where the estimator is the median, and for a p90 of too few runs.
        """
        if statistic == self.estimator:
            return self
        if statistic == "median":
            return msgspec.structs.replace(
                self,
                estimator=statistic,
                value_ms=self.wall_median_ms,
                low_ms=self.wall_floor_ms,
                high_ms=self.wall_median_high_ms,
                converged=self.median_converged,
                own_repeatability_fraction=None,
            )
        if statistic == "floor":
            raise IncompatibleError(
                "a device that is measured by its median has no floor: say --budget-statistic median or p90"
            )
        if self.wall_p90_bound_ms is None:
            raise IncompatibleError(
                f"{self.samples} runs bound no p90 (64 do): say a longer --plan, or --budget-statistic {self.estimator}"
            )
        bound_ms = self.wall_p90_bound_ms
        low_ms = min(bound_ms, self.wall_p90_ms)
        return msgspec.structs.replace(
            self, estimator=statistic, value_ms=bound_ms, low_ms=low_ms, high_ms=bound_ms, own_repeatability_fraction=None
        )


class SlowDown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device that became slower for good while it was measured, as one does that throttles."""

    at_s: NotNegative
    """Seconds since the epoch."""
    fraction: NotNegative
    """By how much slower."""
