import msgspec
import pytest

from mobilenas.core import environment
from mobilenas.core.environment import check_environment, detect_environment, doubts, environment_from_hello
from mobilenas.errors import MeasurementError, RunnerError

STATE = {
    "machine": "aarch64",
    "system": "Linux",
    "cpu_model": "Fast CPU",
    "cpu_count": 8,
    "governor": "performance",
    "frequencies_mhz": [2000.0],
    "temperatures_celsius": [40.0],
    "load_average": [0.1, 0.2, 0.3],
}


def test_the_environment_of_a_host_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_read", lambda path: None)
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
    monkeypatch.setattr(environment, "_read", files.get)
    found = detect_environment({})
    assert found.cpu_model == "Fast CPU"
    assert found.frequencies_mhz == (1500.5, 800.0)
    assert found.governor == "performance"


def test_the_state_is_the_devices_own() -> None:
    found = environment_from_hello({"runner": "r", "engine_version": "1.2", "python": "3.8", "state": STATE})
    assert (found.cpu_model, found.cpu_count, found.temperatures_celsius) == ("Fast CPU", 8, (40.0,))
    assert found.versions == {"runner": "r", "runner_python": "3.8", "engine": "1.2"}
    assert environment_from_hello({"runner": "r"}).cpu_model == "unknown"


@pytest.mark.parametrize("wrong", ["text", {}, {**STATE, "cpu_count": "many"}, {**STATE, "load_average": [1.0]}])
def test_a_state_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(RunnerError, match="state"):
        environment_from_hello({"state": wrong})


def test_what_is_not_fit_for_measuring_is_said_or_refused() -> None:
    good = environment_from_hello({"state": STATE})
    assert check_environment(good, "strict") == ()
    busy = msgspec.structs.replace(good, governor="ondemand", load_average=(2.0, 1.0, 1.0))
    assert len(doubts(busy)) == 2
    assert check_environment(busy, "warn") == doubts(busy)
    assert check_environment(busy, "off") == ()
    with pytest.raises(MeasurementError, match=r"ondemand.*load 2\.00.*--env warn"):
        check_environment(busy, "strict")
