import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from mobilenas.core.estimators import is_bimodal, measurement_from_records, median_interval, percentile_bound, slow_down
from mobilenas.core.measurement import Measurement, SweepRecord
from mobilenas.errors import IncompatibleError, MeasurementError


def record(
    wall: list[float],
    cpu: list[float] | None = None,
    memory: float | None = None,
    load: float = 7.0,
    sentinel: tuple[float, ...] = (0.1,),
) -> SweepRecord:
    return SweepRecord(tuple(wall), tuple(wall if cpu is None else cpu), sentinel, 9.0, load, memory)


def estimate(*records: SweepRecord, use_cpu_clock: bool = True, sentinel_ms: float | None = None) -> Measurement:
    return measurement_from_records(records, 0.02, use_cpu_clock, sentinel_ms=sentinel_ms)


def median_of(*medians: float) -> Measurement:
    """Sweeps of three runs each, with these medians."""
    return measurement_from_records([record([0.9 * m, m, 3 * m]) for m in medians], 0.02, estimator="median")


def test_undisturbed_runs_take_the_least_wall_time_of_each_sweep() -> None:
    walls = [1.2, 1.0, 1.5], [1.1, 1.3, 1.01]
    found = estimate(*(record(wall) for wall in walls))
    assert found.value_ms == pytest.approx(1.005)
    assert found.wall_floor_ms == 1.0
    assert found.high_ms == pytest.approx(1.005 * 1.01)
    assert found.low_ms == pytest.approx(1.005 / 1.01)
    assert found.wall_median_ms == pytest.approx(np.median([np.median(wall) for wall in walls]))
    assert found.wall_p90_ms == pytest.approx(np.percentile(walls, 90))
    assert (found.sweeps, found.samples, found.estimator) == (2, 6, "floor")
    assert found.converged
    assert found.clocks_agree


def test_interrupted_runs_take_the_tenth_percentile_of_cpu_time() -> None:
    cpu = list(np.linspace(9.5, 10.5, 11))
    found = estimate(record([10.0] * 11, cpu), record([11.0] * 11, [c + 0.1 for c in cpu]))
    assert found.cpu_floor_ms == pytest.approx(9.6)
    assert found.value_ms == pytest.approx(9.65)


@pytest.mark.parametrize(("count", "lowest"), [(1, 1), (2, 2), (3, 2), (8, 2), (9, 3), (16, 4)])
def test_the_floor_is_the_mean_of_the_lowest_quarter_of_the_sweeps(count: int, lowest: int) -> None:
    floors = np.random.default_rng(count).uniform(1.0, 1.5, count)
    found = estimate(*(record([floor]) for floor in floors))
    assert found.value_ms == pytest.approx(np.sort(floors)[:lowest].mean())


def test_moments_in_which_the_device_was_much_slower_or_faster_change_no_floor() -> None:
    steady = [record([floor, 1.2]) for floor in (1.0, 1.01, 1.02, 1.0)]
    moving = [record([speed, 1.2 * speed], sentinel=(0.1 * speed,)) for speed in (1.3, 1 / 1.3, 1.2)]
    found = measurement_from_records([*steady, *moving], 0.02, sentinel_ms=0.1, drift_fraction=0.15)
    assert found.value_ms == 1.0
    assert found.sweeps == 4
    assert found.wall_floor_ms == pytest.approx(1 / 1.3), "what was timed is told as it was"
    assert found.wall_median_ms == pytest.approx(np.median([np.median(r.wall_ms) for r in (*steady, *moving)]))


def test_within_what_the_plan_lets_pass_times_are_as_they_were() -> None:
    """The sentinel moves by a tenth and the model does not: no floor is divided by it."""
    found = measurement_from_records([record([2.0], sentinel=(s,)) for s in (0.1, 0.11, 0.1, 0.11)], 0.02, drift_fraction=0.15)
    assert (found.value_ms, found.high_ms, found.converged) == (2.0, 2.0, True)


def test_the_sentinel_counts_by_its_tenth_percentile() -> None:
    """Neither a disturbance nor one fast run decides."""
    sentinel = (0.05, *[0.1] * 9, 0.5)
    assert record([1.0], sentinel=sentinel).sentinel_floor_ms == pytest.approx(0.1)


def test_several_threads_keep_to_wall_time() -> None:
    records = [record([10.0, 12.0], [9.5, 9.5]), record([10.1, 12.0], [9.5, 9.5])]
    assert estimate(*records, use_cpu_clock=False).value_ms == pytest.approx(10.05)
    assert estimate(*records).value_ms == 9.5


def test_cpu_samples_far_below_the_wall_are_clock_errors() -> None:
    found = estimate(record([10.0] * 3, [1.0, 10.0, 10.2]), record([10.0] * 3, [0.0, 8.9, 10.1]))
    assert found.cpu_floor_ms == pytest.approx(np.percentile([10.0, 10.2], 10))
    assert found.value_ms == 10.0
    none_left = estimate(record([10.0], [1.0]), record([10.2], [2.0]))
    assert none_left.cpu_floor_ms == 10.0
    assert none_left.value_ms == pytest.approx(10.1), "of each sweep its own wall time"


def test_a_cpu_clock_that_shows_nothing_settles_nothing() -> None:
    coarse = [record([floor], [0.0]) for floor in (1.0, 1.5, 2.0, 3.0)]
    assert estimate(*coarse).value_ms == estimate(*coarse, use_cpu_clock=False).value_ms == 1.25
    assert not estimate(*coarse).converged


def test_a_wall_clock_that_is_set_back_shortens_no_time() -> None:
    """A run of 1 ms in which the clock goes back by half of it: no thread computes for longer than it was there."""
    jumped = record([1.0, 0.5, 1.02], [0.99, 0.99, 1.0])
    found = estimate(jumped, record([1.01] * 3, [1.0] * 3))
    assert found.wall_floor_ms == 1.0
    assert found.value_ms == pytest.approx((0.99 + 1.0) / 2), "the CPU time tells what the wall clock cannot have seen"
    assert found.converged
    assert estimate(jumped, use_cpu_clock=False).value_ms == 0.5, "several threads do compute for longer"


def test_a_cpu_clock_that_runs_ahead_is_said_and_loses_nothing() -> None:
    found = estimate(record([1.0, 1.1], [2.0, 2.0]), record([1.01, 1.1], [2.0, 2.0]))
    assert found.value_ms == pytest.approx(1.005)
    assert not found.clocks_agree


@pytest.mark.parametrize(("cpu", "agree"), [(1.09, True), (1.12, False)])
def test_clocks_agree_within_a_tenth(cpu: float, agree: bool) -> None:
    assert estimate(record([1.0], [cpu]), record([1.0], [cpu])).clocks_agree is agree


def lowest(floors: Sequence[float]) -> float:
    return float(np.sort(floors)[: max(2, -(-len(floors) // 4))].mean())


@pytest.mark.parametrize("floors", [[1.0, 1.1], [1.5, 1.0, 1.2, 1.1], [1.0, 1.0, 1.4, 1.1, 1.05, 1.2, 1.3, 1.15]])
def test_repeatability_is_how_far_the_halves_of_the_sweeps_are_apart(floors: list[float]) -> None:
    """Oracle: all ways to halve them, of which the estimator tries a sample."""
    everyone = range(len(floors))
    halves = [(set(half), set(everyone) - set(half)) for half in itertools.combinations(everyone, len(floors) // 2)]
    pairs = [[lowest([floors[i] for i in half]) for half in both] for both in halves]
    expected = np.mean([max(pair) / min(pair) for pair in pairs]) - 1
    found = estimate(*(record([floor]) for floor in floors))
    assert found.repeatability_fraction == pytest.approx(expected, rel=0.1)
    assert found.value_ms / found.low_ms == pytest.approx(found.high_ms / found.value_ms)


def test_an_odd_sweep_is_left_out_of_the_halves() -> None:
    """Three are halved into one and one."""
    found = estimate(record([1.0]), record([1.3]), record([1.1]))
    assert found.repeatability_fraction == pytest.approx(np.mean([0.3, 0.1, 1.3 / 1.1 - 1]), rel=0.1)


@pytest.mark.parametrize("count", [4, 8, 9, 16])
def test_the_interval_of_a_floor_holds_the_true_one_about_as_often_as_it_says(count: int) -> None:
    """Sweeps disturbed by exponential noise, as on a shared host. The truth is what campaigns have on average."""
    draws = 1 + 0.02 * np.random.default_rng(0).exponential(size=(2000, count))
    truth = np.mean([lowest(draw) for draw in draws])
    found = [estimate(*(record([floor]) for floor in draw)) for draw in draws[:500]]
    assert 0.75 <= np.mean([m.low_ms <= truth <= m.high_ms for m in found]) <= 0.97


def test_one_sweep_never_converges() -> None:
    found = estimate(record([1.0, 1.0]))
    assert not found.converged
    assert found.high_ms == 2.0


@pytest.mark.parametrize(("other", "converged"), [(1.019, True), (1.021, False)])
def test_convergence_is_the_tolerance(other: float, converged: bool) -> None:
    assert estimate(record([1.0]), record([other])).converged is converged


def test_the_median_is_that_of_the_sweeps_with_an_interval_that_needs_no_distribution() -> None:
    found = median_of(1.0, 1.01, 1.005, 1.002, 1.004, 1.003)
    assert found.value_ms == found.wall_median_ms == pytest.approx(1.0035)
    assert (found.low_ms, found.high_ms, found.estimator) == (1.0, 1.01, "median")
    assert found.converged
    assert not median_of(1.0, 1.01, 1.005, 1.002, 1.004).converged, "five medians hold the true one in 94 % of cases only"
    assert not median_of(1.0, 1.1, 1.05, 1.02, 1.04, 1.03).converged, "known to within 5 % only"


@pytest.mark.parametrize("count", [6, 9, 15, 25])
def test_the_interval_of_a_median_holds_it_as_often_as_it_says(count: int) -> None:
    """Of a distribution that is far from normal; the true median of the exponential one is log 2."""
    draws = np.random.default_rng(0).exponential(size=(4000, count))
    held = np.mean([low <= np.log(2) <= high for low, high in map(median_interval, draws)])
    assert 0.945 <= held <= 0.99


def test_two_modes_are_seen_and_keep_a_median_from_converging() -> None:
    two_clocks = [1.0, 1.001, 1.002, 1.08, 1.081, 1.082, 1.001, 1.08]
    assert is_bimodal(two_clocks)
    assert not is_bimodal(two_clocks[:3])
    assert not is_bimodal([1.0, 1.001, 1.002, 1.003, 1.001, 1.5]), "one outlier is no mode"
    assert not is_bimodal([1.0, 1.02, 1.04, 1.06, 1.08]), "a spread without a gap is no mode"
    wide = [record([value] * 3) for value in two_clocks]
    assert not measurement_from_records(wide, 0.2, estimator="median").converged
    assert measurement_from_records(wide, 0.2, estimator="median").is_bimodal
    assert estimate(*wide).value_ms == pytest.approx(1.0, abs=0.001), "the floor is the faster of the two modes"


def test_a_bound_needs_as_many_runs_as_mlperf_asks_for() -> None:
    """Oracle: LoadGen's minima, 64 runs for p90, 130 for p95, 662 for p99."""
    for share, fewest in ((0.9, 64), (0.95, 130), (0.99, 662)):
        samples = np.arange(1.0, fewest + 1)
        assert percentile_bound(samples[:-1], share) is None
        assert percentile_bound(samples, share) == fewest, "with just enough runs the slowest is the bound"
    assert 90 < percentile_bound(np.arange(1.0, 101), 0.9) <= 100


def test_a_bound_is_kept_with_the_confidence_that_it_promises() -> None:
    draws = np.random.default_rng(1).exponential(size=(2000, 300))
    true_p90 = np.log(10)
    assert np.mean([percentile_bound(draw, 0.9) >= true_p90 for draw in draws]) >= 0.985


def test_statistics_that_a_budget_can_bind() -> None:
    runs = [*np.linspace(1.0, 1.9, 90), *np.linspace(4.0, 5.0, 10)]
    found = estimate(record(runs), record(runs))
    assert found.of_statistic("floor") is found
    median, p90 = found.of_statistic("median"), found.of_statistic("p90")
    assert (median.value_ms, median.estimator) == (found.wall_median_ms, "median")
    assert p90.value_ms == p90.high_ms == found.wall_p90_bound_ms > found.wall_p90_ms
    assert found.slow_fraction == 0.1
    with pytest.raises(IncompatibleError, match="64 do"):
        estimate(record([1.0, 1.1])).of_statistic("p90")
    with pytest.raises(IncompatibleError, match="no floor"):
        median_of(1.0, 1.0).of_statistic("floor")


def test_a_floor_that_has_converged_says_nothing_of_the_median() -> None:
    """Four sweeps with one floor, whose medians are far apart: what is above the median is no repeatability of it."""
    found = estimate(*(record([1.0, median, median]) for median in (1.02, 1.1, 1.45, 1.5)))
    assert found.converged
    median = found.of_statistic("median")
    assert not median.converged
    assert median.value_ms == pytest.approx(1.275)
    assert not median.is_within(1.1)
    settled = estimate(*(record([1.0, median, median]) for median in (1.1, 1.101, 1.102, 1.103, 1.104, 1.105)))
    assert settled.of_statistic("median").converged


def test_sweeps_on_a_slowed_device_count_for_what_users_see_but_not_for_the_floor() -> None:
    """Every third sweep half as slow again: the floor is that of the others, nine runs in ten are not below the slow ones."""
    speeds = [1.0, 1.0, 1.5] * 3
    records = [record([speed] * 20, sentinel=(0.1 * speed,)) for speed in speeds]
    found = measurement_from_records(records, 0.02, sentinel_ms=0.1, drift_fraction=0.15, fewest_sweeps=4)
    assert (found.value_ms, found.sweeps, found.converged) == (1.0, 6, True)
    assert found.wall_p90_ms == found.wall_p90_bound_ms == 1.5
    assert found.is_bimodal
    assert not found.median_converged
    fewer = measurement_from_records(records, 0.02, sentinel_ms=0.1, drift_fraction=0.15, fewest_sweeps=8)
    assert not fewer.converged, "six of eight that were asked for"
    slow = measurement_from_records(records[2::3], 0.02, sentinel_ms=0.1, drift_fraction=0.15)
    assert slow.value_ms == 1.5
    assert not slow.converged, "never seen but slowed"


def test_a_device_that_slows_down_for_good_is_told_from_noise() -> None:
    generator = np.random.default_rng(2)
    noise = list(np.exp(generator.normal(0, 0.03, 24)))
    assert slow_down(list(enumerate(noise)), 0.15) is None
    throttled = [ms * (1.4 if index >= 12 else 1.0) for index, ms in enumerate(noise)]
    found = slow_down(list(enumerate(throttled)), 0.15)
    assert found is not None
    assert found.at_s == 12
    assert found.fraction == pytest.approx(0.4, abs=0.05)
    assert slow_down(list(enumerate(throttled[::-1])), 0.15) is None, "one that becomes faster does not throttle"
    assert slow_down([(0.0, 1.0), (1.0, 1.4)], 0.15) is None, "two say nothing"


def test_false_alarms_of_a_slow_down_are_rare() -> None:
    draws = np.exp(np.random.default_rng(3).normal(0, 0.3, (200, 24)))
    assert sum(slow_down(list(enumerate(draw)), 0.15) is not None for draw in draws) <= 6


def test_memory_is_the_most_and_loading_the_least() -> None:
    found = estimate(record([1.0], memory=20.0, load=5.0), record([1.0], memory=None), record([1.0], memory=30.0))
    assert (found.peak_memory_mib, found.load_ms, found.first_ms) == (30.0, 5.0, 9.0)
    assert estimate(record([1.0])).peak_memory_mib is None


@pytest.mark.parametrize("wall", [[], [0.0], [-1.0], [float("nan")], [1.0, float("inf")]])
def test_what_cannot_be_a_time_is_refused(wall: list[float]) -> None:
    with pytest.raises(MeasurementError, match="not a positive number"):
        estimate(record([1.0]), record(wall))


def test_nothing_recorded_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no sweep"):
        measurement_from_records([], 0.02)
