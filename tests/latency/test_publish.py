"""A table that was measured here, published: for whom it is found, and for whom it is not."""

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mobilenas import workflows
from mobilenas.config import ProfileConfig, load_config
from mobilenas.core import resources
from mobilenas.core.resources import shipped
from mobilenas.devices.device import find_device
from mobilenas.errors import DocumentError, MissingDataError, UsageError
from mobilenas.latency.publish import publish
from mobilenas.latency.store import find_table, table_layout
from mobilenas.latency.table import ErrorReport, LatencyTable
from tests.conftest import CONFIG, Outcome, space

Command = Callable[..., Outcome]


@pytest.fixture
def measured(valid_table: Path, tmp_path: Path) -> Path:
    """A table as ``profile`` leaves it on this host, whose name stands in its key."""
    table = LatencyTable.load(valid_table)
    environment = find_device("local").card
    here = msgspec.structs.replace(table.card.environment, system=environment.system, cpu_model=environment.cpu_model)
    card = msgspec.structs.replace(table.card, origin="measured", environment=here, environment_after=here)
    replace(table, card=card).save(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_published_table_is_found_but_never_as_this_host(measured: Path, home: Path, command: Command) -> None:
    outcome = command("table", "publish", measured, "--name", "example-board", "-o", home / "latency_tables", "--json")
    assert outcome.code == 0, outcome.err
    folder = Path(json.loads(outcome.out)["path"])
    assert folder == home / "latency_tables" / "example-board" / "onnxruntime-fp32-b1-t1" / space().key
    before, after = LatencyTable.load(measured), LatencyTable.load(folder)
    assert after.card.key == msgspec.structs.replace(before.card.key, device="example-board")
    assert (after.rows, after.networks, after.workload_costs) == (before.rows, before.networks, before.workload_costs)
    assert f"local-{platform.node()}" in (measured / "card.json").read_text()
    assert not [file for file in folder.iterdir() if f"local-{platform.node()}" in file.read_text()]
    [listed] = json.loads(command("table", "list", "--json").out)["tables"]
    assert listed["key"]["device"] == "example-board"
    key = workflows.Target.from_config(CONFIG.device).table_key
    with pytest.raises(MissingDataError, match="no latency table of local"):
        find_table(None, key, space().key, "mobilenas profile")
    options = [f"space.options.{name}={value}" for name, value in CONFIG.space.options.items()]
    flags = {"transfer": True, "measure_networks": 10, "data.name": "digits"}
    campaign = workflows.transfer_from_config(load_config(ProfileConfig, None, options, flags))
    assert [proxy.card.key.device for proxy in campaign.proxies] == ["example-board"]
    with pytest.raises(UsageError, match="there is something already"):
        publish(measured, "example-board", home / "latency_tables")


@pytest.mark.parametrize("name", ["local", "local-vm", "locale", "Pixel-6", "pixel_6", "pixel--6", "-pixel", "", "../x", "a/b"])
def test_a_name_that_could_be_a_host_s_or_a_path_is_refused(name: str, measured: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--name"):
        publish(measured, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_what_was_measured_and_is_whole_is_published(
    measured: Path, valid_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    with pytest.raises(DocumentError, match="origin is 'estimated'"):
        publish(valid_table, "board", tmp_path / "out")
    table = LatencyTable.load(measured)
    replace(table, card=msgspec.structs.replace(table.card, spaces={}), workload_costs={}).save(tmp_path / "kernels")
    with pytest.raises(DocumentError, match="covers the spaces none"):
        publish(tmp_path / "kernels", "board", tmp_path / "out")
    with open(measured / "kernels.csv", "a") as file:
        file.write("x")
    with pytest.raises(DocumentError, match="changed since it was measured"):
        publish(measured, "board", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "site-packages" / "mobilenas")
    outcome = command("table", "publish", measured, "--name", "board")
    assert outcome.code == 2
    assert "--output" in outcome.err


@pytest.mark.parametrize("card", sorted(shipped("latency_tables").glob("*/*/*/card.json")), ids=lambda path: path.parent.name)
def test_a_shipped_table_can_be_read_and_beats_multiply_adds(card: Path) -> None:
    table = LatencyTable.load(card.parent)
    assert table.card.origin == "measured"
    [(key, space)] = table.card.spaces.items()
    assert card.parent == shipped("latency_tables") / table_layout(table.card.key, key)
    tested = [row for row in table.networks if row.role == "test"]
    predicted = np.array([space.predict(row.kernel_sum_ms).ms for row in tested])
    assert ErrorReport.of(predicted, np.array([row.measured_ms for row in tested])) == space.table_error
    assert space.table_error.mape_fraction < 0.6 * space.madds_baseline_error.mape_fraction
    assert len(table.rows) == table.card.rows > 50


def test_tables_are_shipped() -> None:
    assert len(list(shipped("latency_tables").glob("*/*/*/card.json"))) >= 5
