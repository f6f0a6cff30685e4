"""A campaign on a device behind ssh or adb, with the real engine: the local one's table in shape, and no row is lost."""

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mobilenas.core.measurement import PLANS
from mobilenas.core.run_directory import Journal
from mobilenas.devices.adb import AdbLink
from mobilenas.devices.device import Device, find_device, name_of_address
from mobilenas.devices.links import Link
from mobilenas.devices.ssh import SshLink
from mobilenas.errors import LinkError
from mobilenas.latency.table import LatencyTable
from mobilenas.profiling.campaign import Campaign
from mobilenas.profiling.networks import SpaceNetworks
from mobilenas.runtimes.base import RunSettings
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from tests.conftest import SMALL, Outcome, space
from tests.devices.conftest import needs_adb, needs_ssh
from tests.devices.loopback_adb import LoopbackAdb
from tests.devices.loopback_ssh import LoopbackSsh

PLAN = msgspec.structs.replace(
    PLANS["quick"],
    sweeps=2,
    maximum_sweeps=2,
    spread_s=0.0,
    scale_networks=4,
    test_networks=3,
    lowered_networks=20,
    samples=10,
    maximum_samples=10,
    minimum_s=0.0,
    drift_fraction=100.0,
)
DROPS = 10
"""How often a device goes off."""
Command = Callable[..., Outcome]


def campaign(root: Path, open_link: Callable[[], Link]) -> Campaign:
    """The same whatever the way to the device: its card is this host's, by which a campaign's networks are drawn."""
    device = Device(find_device("local").card, open_link)
    return Campaign(SpaceNetworks(space()), device, OnnxRuntime(), RunSettings(), PLAN, root, seed=1, gate="off")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    return campaign(tmp_path_factory.mktemp("local"), find_device("local").open).run()


def check_alike(table: LatencyTable, local: LatencyTable) -> None:
    assert table.rows.keys() == local.rows.keys()
    assert [row.architecture for row in table.networks] == [row.architecture for row in local.networks]
    assert table.workload_costs.keys() == local.workload_costs.keys()
    assert all(row.sweeps == PLAN.sweeps for row in table.rows.values())
    assert table.card.key == local.card.key


def check_same_shape(command: Command, address: str, here: LatencyTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which networks are measured is drawn by the device's name, so rows may differ; what there is of each kind does not."""
    monkeypatch.setitem(PLANS, "quick", PLAN)
    outcome = command("profile", "--device", address, "--data", "digits", *SMALL, "--set", "seed=1", "--json")
    assert outcome.code == 0, outcome.err
    there = LatencyTable.load(Path(json.loads(outcome.out)["table"]))
    assert there.card.key.device == name_of_address(address)
    assert msgspec.structs.replace(there.card.key, device=here.card.key.device) == here.card.key
    assert there.workload_costs.keys() == here.workload_costs.keys()
    assert [row.role for row in there.networks] == [row.role for row in here.networks]
    assert {row.sweeps for row in there.rows.values()} == {row.sweeps for row in here.rows.values()} == {PLAN.sweeps}
    assert len(there.rows.keys() & here.rows.keys()) > 0.9 * len(here.rows)


@needs_ssh
def test_profile_makes_the_same_kind_of_table_through_ssh(
    ssh: LoopbackSsh, command: Command, local: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same_shape(command, ssh.address, local, monkeypatch)


@needs_adb
def test_profile_makes_the_same_kind_of_table_through_adb(
    adb: LoopbackAdb, command: Command, local: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same_shape(command, adb.address, local, monkeypatch)


@needs_ssh
def test_no_row_is_lost_when_ssh_breaks_again_and_again(ssh: LoopbackSsh, local: LatencyTable, tmp_path: Path) -> None:
    check_alike(_broken(ssh, DROPS, campaign(tmp_path / "broken", lambda: SshLink(ssh.address, pauses_s=(0.05,)))), local)


@needs_adb
def test_no_row_is_lost_when_adb_breaks_again_and_again(adb: LoopbackAdb, local: LatencyTable, tmp_path: Path) -> None:
    check_alike(_broken(adb, DROPS, campaign(tmp_path / "broken", lambda: AdbLink(adb.address, pauses_s=(0.2,)))), local)


def _broken(device: LoopbackSsh | LoopbackAdb, most: int, asked: Campaign) -> LatencyTable:
    """The table of a campaign whose device goes off up to ``most`` times at moments of chance, and comes back once given up."""
    chance, journal = random.Random(0), asked.folder / "rows.jsonl"
    drops, before = 0, ""
    while True:

        def go_off() -> None:
            device.is_down = True
            device.drop()

        timer = threading.Timer(chance.uniform(0.05, 1.2), go_off)
        timer.start()
        if drops == most:
            timer.cancel()
        try:
            table = asked.run()
            break
        except LinkError:
            drops += 1
        finally:
            timer.cancel()
            timer.join()
            device.is_down = False
        lines = journal.read_text() if journal.exists() else ""
        assert lines.startswith(before), "what was measured was touched"
        before = lines
    assert drops, "the device never went off"
    records = [(entry["model"], entry["sweep"]) for entry in Journal(journal).read() if "record" in entry]
    assert len(records) == len(set(records)), "something was measured twice"
    return table
