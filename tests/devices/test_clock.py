"""The governor is held while a link is open and set back after: the real program on a folder that stands for /sys."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mobilenas.devices import links
from mobilenas.devices.device import find_device
from mobilenas.errors import DeviceError
from tests.conftest import Outcome


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, governor in enumerate(("schedutil", "powersave")):
        folder = tmp_path / "sys" / "devices" / "system" / "cpu" / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
        (folder / "scaling_available_governors").write_text("performance powersave schedutil\n")
    monkeypatch.setattr(links, "SYSTEM_FILES", str(tmp_path / "sys"))
    return tmp_path / "sys"


def governors(system: Path) -> list[str]:
    return [path.read_text().strip() for path in sorted(system.glob("devices/system/cpu/cpu*/cpufreq/scaling_governor"))]


@pytest.mark.parametrize("governor", ["performance", "powersave"])
def test_it_is_held_and_set_back(governor: str, system: Path) -> None:
    with find_device("local", governor=governor).open():
        assert governors(system) == [governor, governor]
    assert governors(system) == ["schedutil", "powersave"]


def test_it_is_set_back_after_an_error(system: Path) -> None:
    with pytest.raises(ZeroDivisionError), find_device("local", governor="performance").open():
        raise ZeroDivisionError
    assert governors(system) == ["schedutil", "powersave"]


def test_it_stays_as_it_is_where_none_is_named(system: Path) -> None:
    with find_device("local").open():
        assert governors(system) == ["schedutil", "powersave"]


@pytest.mark.parametrize("governor", ["fast", "performance; rm -rf /", "\n", "x" * 10_000])
def test_one_that_the_device_lacks_is_refused_and_none_is_changed(governor: str, system: Path) -> None:
    (system / "devices/system/cpu/cpu0/cpufreq/scaling_available_governors").unlink()
    with pytest.raises(DeviceError, match="cpu1 has no governor"), find_device("local", governor=governor).open():
        pass
    assert governors(system) == ["schedutil", "powersave"]


def test_a_device_without_one_says_so(system: Path, command: Callable[..., Outcome]) -> None:
    links.SYSTEM_FILES = str(system / "nowhere")
    outcome = command("profile", "--data", "digits", "--set", "device.governor=performance")
    assert outcome.code == 4
    assert "device.governor is 'performance', and the device says: its clock cannot be set" in outcome.err


def test_a_file_that_cannot_be_written_is_told(system: Path) -> None:
    file = system / "devices/system/cpu/cpu1/cpufreq/scaling_governor"
    file.unlink()
    file.symlink_to(system / "devices" / "nothing" / "there")
    with pytest.raises(DeviceError, match="its governor cannot be set"), find_device("local", governor="performance").open():
        pass
    assert governors_of_first(system) == "schedutil"


def governors_of_first(system: Path) -> str:
    return (system / "devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
