"""The interval in which a later measurement lies: beside busy processes it reaches down to what the model takes alone."""

import msgspec
import pytest

from mobilenas.core.estimators import measurement_from_records
from mobilenas.core.measurement import Measurement, SweepRecord


def measured(floors_ms: tuple[float, ...] = (4.0, 4.04, 4.02, 4.01), load: float | None = 0.01) -> Measurement:
    records = [
        SweepRecord((ms,) * 20, (ms,) * 20, (0.1,), first_ms=9.0, load_ms=9.0, peak_memory_mib=None, load_fraction=load)
        for ms in floors_ms
    ]
    return measurement_from_records(records, 0.03)


@pytest.mark.parametrize("load", [0.0, 0.02, 0.05, None])
def test_on_an_idle_device_it_is_narrow(load: float | None) -> None:
    found = measured(load=load).lasting()
    assert 1.08 < found.high_ms / found.low_ms <= 1.15


def test_beside_two_busy_processes_it_holds_half_the_time() -> None:
    """As of two models that took 1.7 and 2.1 times as long as minutes later, with sweeps that agreed within a few percent."""
    found = measured(load=0.67).lasting()
    assert found.low_ms < found.value_ms / 2.05
    assert found.high_ms / found.low_ms <= 2.5


def test_it_grows_with_the_load_and_with_the_spread_of_the_sweeps() -> None:
    widths = [found.high_ms / found.low_ms for found in (measured(load=load).lasting() for load in (0.1, 0.3, 0.6, 1.0))]
    assert widths == sorted(widths)
    apart, together = measured((4.0, 4.02, 5.0, 4.01, 4.0, 4.01, 4.02, 4.0)).lasting(), measured().lasting()
    assert apart.high_ms / apart.value_ms > 1.07 > together.high_ms / together.value_ms
    assert apart.high_ms / apart.low_ms <= 1.15


def test_a_budget_is_judged_by_what_repeats_all_the_same() -> None:
    found = measured(load=0.9)
    lasting = found.lasting()
    assert lasting.repeatability_fraction == pytest.approx(found.repeatability_fraction)
    assert lasting.lasting() == lasting
    for target_ms in (3.0, 3.98, 4.1):
        assert lasting.is_within(target_ms) is found.is_within(target_ms)


def test_another_statistic_has_an_interval_of_its_own() -> None:
    found, lasting = measured(load=0.9), measured(load=0.9).lasting()
    assert lasting.of_statistic("median") == found.of_statistic("median")


def test_intervals_agree_where_they_touch() -> None:
    found = msgspec.structs.replace(measured(), low_ms=3.0, high_ms=5.0)
    assert found.agrees_with(5.0, 9.0)
    assert found.agrees_with(1.0, 3.0)
    assert not found.agrees_with(5.1, 9.0)
    assert not found.agrees_with(1.0, 2.9)
