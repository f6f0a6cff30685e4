import itertools

import numpy as np
import pytest

from mobilenas.core import measurement
from mobilenas.core.measurement import PLANS, Measurement, SweepRecord, detect_environment, measurement_from_records, plan_named
from mobilenas.errors import MeasurementError, UnknownNameError


def record(wall: list[float], cpu: list[float] | None = None, memory: float | None = None, load: float = 7.0) -> SweepRecord:
    return SweepRecord(tuple(wall), tuple(wall if cpu is None else cpu), 9.0, load, memory)


def estimate(*records: SweepRecord, use_cpu_clock: bool = True) -> Measurement:
    return measurement_from_records(records, 0.02, use_cpu_clock)


def test_short_runs_take_the_least_wall_time() -> None:
    walls = [1.2, 1.0, 1.5], [1.1, 1.3, 1.01]
    found = estimate(*(record(wall, [0.95] * 3) for wall in walls))
    assert found.value_ms == found.low_ms == found.wall_floor_ms == 1.0
    assert found.high_ms == pytest.approx(1.01)
    assert found.wall_median_ms == pytest.approx(np.median(walls))
    assert found.wall_p90_ms == pytest.approx(np.percentile(walls, 90))
    assert (found.sweeps, found.samples, found.estimator) == (2, 6, "floor")
    assert found.converged
    assert found.clocks_agree


def test_long_runs_take_the_tenth_percentile_of_cpu_time() -> None:
    cpu = list(np.linspace(9.5, 10.5, 11))
    found = estimate(record([10.0] * 11, cpu), record([11.0] * 11, [c + 0.1 for c in cpu]))
    assert found.value_ms == found.cpu_floor_ms == pytest.approx(9.6)
    assert found.high_ms == pytest.approx(9.7)


def test_several_threads_keep_to_wall_time() -> None:
    records = [record([10.0, 12.0], [9.5, 9.5]), record([10.1, 12.0], [9.5, 9.5])]
    assert estimate(*records, use_cpu_clock=False).value_ms == 10.0
    assert estimate(*records).value_ms == 9.5


def test_cpu_samples_far_below_the_wall_are_clock_errors() -> None:
    found = estimate(record([10.0] * 3, [1.0, 10.0, 10.2]), record([10.0] * 3, [0.0, 8.9, 10.1]))
    assert found.value_ms == found.cpu_floor_ms == pytest.approx(np.percentile([10.0, 10.2], 10))
    none_left = estimate(record([10.0], [1.0]), record([10.2], [2.0]))
    assert none_left.value_ms == none_left.cpu_floor_ms == 10.0


def test_a_wall_clock_that_is_set_back_shortens_no_time() -> None:
    """A run of 1 ms in which the clock goes back by half of it: no thread computes for longer than it was there."""
    jumped = record([1.0, 0.5, 1.02], [0.99, 0.99, 1.0])
    found = estimate(jumped, record([1.01] * 3, [1.0] * 3))
    assert found.value_ms == found.wall_floor_ms == 1.0
    assert found.converged
    assert estimate(jumped, use_cpu_clock=False).value_ms == 0.5, "several threads do compute for longer"


def test_a_cpu_clock_that_runs_ahead_is_said_and_loses_nothing() -> None:
    found = estimate(record([1.0, 1.1], [2.0, 2.0]), record([1.01, 1.1], [2.0, 2.0]))
    assert found.value_ms == 1.0
    assert not found.clocks_agree


@pytest.mark.parametrize(("cpu", "agree"), [(1.09, True), (1.12, False)])
def test_clocks_agree_within_a_tenth(cpu: float, agree: bool) -> None:
    assert estimate(record([1.0], [cpu]), record([1.0], [cpu])).clocks_agree is agree


@pytest.mark.parametrize("floors", [[1.0, 1.1], [1.0, 1.3, 1.1], [1.5, 1.0, 1.2, 1.1], [1.0, 1.0, 1.4, 1.1, 1.05, 1.2]])
def test_repeatability_is_the_mean_over_all_halvings(floors: list[float]) -> None:
    """Oracle: brute force. Of all ways to take half of the sweeps without the best one, the mean of their minimum."""
    best, *others = sorted(floors)
    expected = np.mean([min(half) for half in itertools.combinations(others, len(floors) // 2)]) / best - 1
    found = estimate(*(record([floor]) for floor in floors))
    assert found.repeatability_fraction == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.high_ms == pytest.approx(best * (1 + expected))


def test_one_sweep_never_converges() -> None:
    found = estimate(record([1.0, 1.0]))
    assert not found.converged
    assert found.high_ms == 2.0


@pytest.mark.parametrize(("other", "converged"), [(1.019, True), (1.021, False)])
def test_convergence_is_the_tolerance(other: float, converged: bool) -> None:
    assert estimate(record([1.0]), record([other])).converged is converged


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


@pytest.mark.parametrize("name", ["quick", "standard", "strict"])
def test_plans(name: str) -> None:
    plan = plan_named(name)
    assert plan.name == name
    assert 2 <= plan.sweeps <= plan.maximum_sweeps
    assert plan.samples <= plan.maximum_samples


def test_an_unknown_plan_names_the_nearest() -> None:
    assert set(PLANS) == {"quick", "standard", "strict"}
    with pytest.raises(UnknownNameError, match="did you mean strict"):
        plan_named("strickt")


def test_the_environment_of_a_host_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_read", lambda path: None)
    found = detect_environment({"torch": "2"})
    assert found.governor is None
    assert found.frequencies_mhz == found.temperatures_celsius == ()
    assert found.cpu_model
    assert found.versions == {"torch": "2"}


def test_the_environment_is_read_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/cpuinfo": "processor : 0\nmodel name : Fast CPU\ncpu MHz : 1500.5\nprocessor : 1\ncpu MHz : 800",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    }
    monkeypatch.setattr(measurement, "_read", files.get)
    found = detect_environment({})
    assert found.cpu_model == "Fast CPU"
    assert found.frequencies_mhz == (1500.5, 800.0)
    assert found.governor == "performance"
