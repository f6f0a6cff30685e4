"""A transfer to an engine whose times are exact, from tables of others; and what is refused."""

import dataclasses
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mobilenas.config import ProfileConfig, load_config
from mobilenas.core.measurement import PLANS
from mobilenas.devices.device import Device, find_device
from mobilenas.errors import MissingDataError, UsageError
from mobilenas.latency.models import TableModel
from mobilenas.latency.network_model import CARD, NetworkModel, load_card
from mobilenas.latency.predictors.transfer import DeviceTransfer
from mobilenas.latency.table import LatencyTable
from mobilenas.profiling.transfer_campaign import TransferCampaign
from mobilenas.runtimes.base import RunSettings
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fake_devices import FakeLink, FakeRuntime
from mobilenas.testing.fakes import make_lower, make_table
from mobilenas.workflows import transfer, transfer_from_config

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


def test_it_goes_on_where_it_stopped_and_chooses_the_same(done: Done) -> None:
    first, _ = done
    journal = (first.folder / "rows.jsonl").read_text()
    again = campaign(first.root)
    assert again.chosen.tolist() == first.chosen.tolist()
    again.run()
    assert (first.folder / "rows.jsonl").read_text() == journal, "nothing was left to measure"
    assert dataclasses.replace(again, proxies=PROXIES[:2]).folder != again.folder


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


def test_a_predictor_that_was_learnt_from_more_is_kept(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path))
    PROXIES[0].save(tmp_path / "latency_tables" / "a")
    _, model = done
    dataclasses.replace(model, card=msgspec.structs.replace(model.card, origin="measured")).save(tmp_path / "kept")
    before = (tmp_path / "kept" / CARD).read_bytes()
    with pytest.raises(UsageError, match="learnt from more than a transfer"):
        transfer(config(measure_networks=10, output=str(tmp_path / "kept")))
    assert (tmp_path / "kept" / CARD).read_bytes() == before
    assert load_card(tmp_path / "kept").networks == 12
