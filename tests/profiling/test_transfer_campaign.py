"""A transfer to an engine whose times are exact, from tables of others; and what is refused."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mobilenas.config import ProfileConfig, load_config
from mobilenas.core.measurement import PLANS
from mobilenas.devices.device import Device, find_device
from mobilenas.errors import DocumentError, MissingDataError, ResourceError, UsageError
from mobilenas.latency import table as latency_table
from mobilenas.latency.models import TableModel
from mobilenas.latency.network_card import load_card
from mobilenas.latency.network_model import NetworkModel
from mobilenas.latency.predictors.transfer import DeviceTransfer
from mobilenas.latency.store import HISTORY, NETWORK_CARD
from mobilenas.latency.table import LatencyTable, NetworkScale
from mobilenas.profiling import transfer_campaign
from mobilenas.profiling.transfer_campaign import TransferCampaign
from mobilenas.runtimes import RUNTIMES
from mobilenas.runtimes.base import RunSettings
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fake_devices import SENTINEL_MS, FakeLink, FakeRuntime
from mobilenas.testing.fakes import make_lower, make_table
from mobilenas.workflows import profile, transfer, transfer_from_config
from tests.conftest import Outcome

SPACE = CellSpace(channels=4, layers=3, image_size=8, image_channels=1)
PLAN = msgspec.structs.replace(PLANS["quick"], sweeps=3, maximum_sweeps=4, spread_s=0.0)


def proxy(device: str, dear: str, scale: float) -> LatencyTable:
    """A table of another device, on which one operator costs three times as much as in ``make_table``."""
    table = make_table(SPACE, scale)
    costs = table.workload_costs[SPACE.key]
    dearer = {w: ms * (3 if dear in w.operator else 1) for w, ms in costs.costs_ms.items()}
    return dataclasses.replace(
        table,
        card=msgspec.structs.replace(table.card, key=msgspec.structs.replace(table.card.key, device=device)),
        workload_costs={SPACE.key: msgspec.structs.replace(costs, costs_ms=dearer)},
    )


PROXIES = [proxy("a", "sep_conv", 1.0), proxy("b", "pool", 0.4), proxy("c", "dil_conv", 2.0)]


def campaign(root: Path, count: int = 12) -> TransferCampaign:
    device = Device(find_device("local").card, FakeLink)
    return TransferCampaign(SPACE, device, FakeRuntime(), RunSettings(), PLAN, root, PROXIES, count)


Done = tuple[TransferCampaign, NetworkModel]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    begun = campaign(tmp_path_factory.mktemp("campaigns"))
    return begun, begun.run()


def test_a_few_exact_networks_tell_the_others(done: Done, tmp_path: Path) -> None:
    _, model = done
    measured = {network.architecture: network.measured_ms for network in model.card.measured}
    assert len(measured) == 12
    assert model.card.origin == "transferred"
    assert model.card.table is None
    assert {p.key.device for p in model.card.proxies} == {"a", "b", "c"}
    assert sum(p.weight_fraction for p in model.card.proxies) == pytest.approx(1)
    spread = np.ptp(list(measured.values())) / np.mean(list(measured.values()))
    assert model.error.mape_fraction < 0.2 * spread
    again = campaign(tmp_path, 24).run()
    unseen = [n for n in again.card.measured if n.architecture not in measured]
    off = [abs(model.latency(n.architecture).ms / n.measured_ms - 1) for n in unseen]
    assert np.mean(off) < 0.2 * spread
    assert np.mean([p.low_ms <= n.measured_ms <= p.high_ms for n in unseen for p in [model.latency(n.architecture)]]) > 0.7


def test_the_costs_of_options_add_up_to_what_the_transfer_says(done: Done) -> None:
    """Oracle: ``DeviceTransfer`` itself, on networks that it was not fitted with."""
    begun, model = done
    counts = begun.counts_of(begun.pool)
    by_print = {n.architecture: n.measured_ms for n in model.card.measured}
    measured = np.array([by_print[begun.pool[row]] for row in begun.chosen])
    oracle = DeviceTransfer().fit(counts, begun.proxies_ms(counts), begun.chosen, measured)
    generator = random.Random(9)
    drawn = [SPACE.random_architecture(generator) for _ in range(50)]
    expected = oracle.predict(begun.counts_of(drawn), begun.proxies_ms(begun.counts_of(drawn)))
    assert [p.ms for p in model.latencies(drawn)] == pytest.approx(expected.tolist(), rel=1e-6)


def test_a_proxy_says_what_its_table_says(done: Done) -> None:
    begun, _ = done
    said = begun.proxies_ms(begun.counts_of(begun.pool[:5]))
    for column, table in enumerate(PROXIES):
        model = TableModel(table, SPACE, make_lower(SPACE))
        assert said[:, column].tolist() == pytest.approx([model.workload_ms(a) for a in begun.pool[:5]], rel=1e-9)


def test_a_device_that_throttles_is_named_in_the_card(tmp_path: Path) -> None:
    device = FakeRuntime(slowdown=lambda sweeps: 1.4 if sweeps >= 2 else 1.0)
    model = dataclasses.replace(campaign(tmp_path), runtime=device).run()
    assert model.card.slow_down is not None
    assert model.card.slow_down.fraction == pytest.approx(0.4)
    assert model.describe()["sentinel_ms"] == model.card.sentinel_ms == pytest.approx(SENTINEL_MS)


def with_offset(table: LatencyTable, offset_ms: float) -> LatencyTable:
    """The same slope of the tangent."""
    card = table.space_card(SPACE.key)
    scale = NetworkScale(card.scale.slope / 2, 1.0, -offset_ms / (card.scale.slope / 2))
    card = msgspec.structs.replace(card, scale=scale)
    return dataclasses.replace(table, card=msgspec.structs.replace(table.card, spaces={SPACE.key: card}))


def test_networks_that_the_tangent_of_a_proxy_puts_below_zero_are_left_out(done: Done, tmp_path: Path) -> None:
    """A valid table: an offset that is negative for small networks, where the table itself predicts half of their kernels."""
    begun, _ = done
    said = begun.proxies_ms(begun.counts_of(begun.pool))[:, 0]
    spoilt = with_offset(PROXIES[0], PROXIES[0].space_card(SPACE.key).scale.offset_ms - float(np.quantile(said, 0.2)))
    again = dataclasses.replace(campaign(tmp_path), proxies=[spoilt, *PROXIES[1:]])
    assert 0.7 * len(begun.pool) < len(again.pool) < 0.9 * len(begun.pool)
    assert again.run().error.mape_fraction < 0.5
    nothing = with_offset(PROXIES[0], -10 * float(said.max()))
    with pytest.raises(DocumentError, match=r"0 of .* the table of a fake FakeProvider .* profile it again"):
        _ = dataclasses.replace(campaign(tmp_path), proxies=[*PROXIES[1:], nothing]).pool


def test_a_proxy_that_lacks_a_workload_is_named(tmp_path: Path) -> None:
    costs = PROXIES[1].workload_costs[SPACE.key]
    fewer = msgspec.structs.replace(costs, costs_ms=dict(list(costs.costs_ms.items())[1:]))
    lacking = dataclasses.replace(PROXIES[1], workload_costs={SPACE.key: fewer})
    with pytest.raises(DocumentError, match="the table of b lacks the cost of 1 workloads"):
        _ = dataclasses.replace(campaign(tmp_path), proxies=[lacking]).chosen


def test_it_goes_on_where_it_stopped_and_chooses_the_same(done: Done) -> None:
    first, _ = done
    journal = (first.folder / "rows.jsonl").read_text()
    again = campaign(first.root)
    assert again.chosen.tolist() == first.chosen.tolist()
    again.run()
    assert (first.folder / "rows.jsonl").read_text() == journal, "nothing was left to measure"
    assert dataclasses.replace(again, proxies=PROXIES[:2]).folder != again.folder


def test_records_of_another_protocol_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = campaign(tmp_path).folder
    monkeypatch.setattr(transfer_campaign, "PROTOCOL", transfer_campaign.PROTOCOL + 1)
    assert campaign(tmp_path).folder != before


def test_the_document_claims_no_kernels(done: Done, tmp_path: Path) -> None:
    _, model = done
    model.save(tmp_path / "table")
    assert {path.name for path in (tmp_path / "table").iterdir()} == {"network-predictor.json", "network-predictor.safetensors"}
    again = NetworkModel.load(tmp_path / "table", SPACE)
    assert again.card == model.card
    assert again.describe()["origin"] == "transferred"


def config(*sets: str, **flags: object) -> ProfileConfig:
    options = [f"space.options.{name}={value}" for name, value in {"channels": 4, "layers": 3, "image_size": 8}.items()]
    return load_config(ProfileConfig, None, [*options, "space.options.image_channels=1", *sets], {"transfer": True, **flags})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "--measure-networks 10"),
        ({"measure_networks": 4}, "--measure-networks 5 or more"),
        ({"measure_networks": 10, "kernels": 100}, "leave --kernels out"),
    ],
)
def test_what_makes_no_sense_is_refused(
    flags: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path))
    PROXIES[0].save(tmp_path / "latency_tables" / "a")
    with pytest.raises(UsageError, match=said):
        transfer_from_config(config(**flags))


def test_without_a_proxy_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path))
    with pytest.raises(MissingDataError, match="Profile the space where its kernels can be measured"):
        transfer_from_config(config(measure_networks=10))


@pytest.fixture
def exact_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This host with an engine whose times are exact, and a table of another target; where ``--output`` may point to."""
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path))
    PROXIES[0].save(tmp_path / "latency_tables" / "a")
    monkeypatch.setitem(RUNTIMES._entries, "onnxruntime", FakeRuntime)
    monkeypatch.setitem(PLANS, "quick", msgspec.structs.replace(PLAN, scale_networks=4, test_networks=4, lowered_networks=30))
    return tmp_path / "kept"


def test_a_predictor_that_was_learnt_from_more_is_kept(done: Done, exact_host: Path) -> None:
    _, model = done
    learnt = msgspec.structs.replace(model.card, origin="measured", table="0123456789abcdef")
    dataclasses.replace(model, card=learnt).save(exact_host)
    before = (exact_host / NETWORK_CARD).read_bytes()
    with pytest.raises(UsageError, match="learnt from more than a transfer"):
        transfer(config(measure_networks=10, output=str(exact_host)))
    assert (exact_host / NETWORK_CARD).read_bytes() == before
    assert load_card(exact_host).networks == 12


def test_a_predictor_of_another_target_is_not_overwritten_and_one_of_the_same_is_kept(exact_host: Path) -> None:
    wanted = {"measure_networks": 6, "plan": "quick", "output": str(exact_host)}
    transfer(config("device.threads=4", **wanted))
    before = {file.name: file.read_bytes() for file in exact_host.iterdir()}
    with pytest.raises(UsageError, match=r"holds the network predictor of .* 4 1 floor"):
        transfer(config("device.threads=2", **wanted))
    with pytest.raises(UsageError, match=r"holds the network predictor of .* 4 1 floor"):
        profile(config("device.threads=2", **{**wanted, "transfer": False}))
    assert {file.name: file.read_bytes() for file in exact_host.iterdir()} == before
    transfer(config("device.threads=4", **wanted))
    [kept] = (exact_host / HISTORY).iterdir()
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before


def test_what_was_learnt_goes_only_once_the_table_is_written(
    done: Done, exact_host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done[1].save(exact_host)
    before = {file.name: file.read_bytes() for file in exact_host.iterdir()}
    wanted = config(transfer=False, output=str(exact_host), plan="quick")

    def full(folder: Path, contents: object) -> None:
        raise ResourceError(f"{folder}: cannot be written: No space left on device")

    with monkeypatch.context() as context, pytest.raises(ResourceError):
        context.setattr(latency_table, "write_together", full)
        profile(wanted)
    assert {file.name: file.read_bytes() for file in exact_host.iterdir() if file.is_file()} == before
    shutil.rmtree(exact_host / HISTORY)
    profile(wanted)
    assert sorted(file.name for file in exact_host.iterdir()) == [
        "card.json", HISTORY, "kernels.csv", "networks.csv", "workloads.csv"
    ]  # fmt: skip
    [kept] = (exact_host / HISTORY).iterdir()
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before


def test_a_predictor_is_listed_and_shown(done: Done, home: Path, command: Callable[..., Outcome]) -> None:
    done[1].save(home / "latency_tables" / "new")
    listed = json.loads(command("table", "list", "--json").out)
    assert listed["tables"] == []
    assert [(Path(p["path"]).name, p["origin"], p["networks"]) for p in listed["predictors"]] == [("new", "transferred", 12)]
    assert "network predictor (transferred) from 12 networks" in " ".join(command("table", "list").out.split())
    shown = " ".join(command("table", "show", str(home / "latency_tables" / "new")).out.split())
    for words in ("the sentinel 100 us", "none: a predictor of whole networks", "proxy c fake fp32 1 threads: weight"):
        assert words in shown
    PROXIES[0].save(home / "latency_tables" / "new")
    shown = " ".join(command("table", "show", str(home / "latency_tables" / "new")).out.split())
    assert "network predictor transferred" in shown
    assert "networks take 1.000 x" in shown
    (home / "latency_tables" / "new" / NETWORK_CARD).write_text("{")
    assert command("table", "show", str(home / "latency_tables" / "new")).code == 3
    assert len(json.loads(command("table", "list", "--json").out)["damaged"]) == 1


def test_an_engine_that_shows_no_kernels_is_transferred_to(exact_host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no kernel is asked for")

    for name in ("lower", "kernels_of", "kernel_model", "session_model"):
        monkeypatch.setattr(FakeRuntime, name, refuse)
    result = transfer(config("device.threads=4", measure_networks=6, plan="quick", output=str(exact_host)))
    assert result.networks == 6
