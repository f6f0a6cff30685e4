"""The conformance kit on every latency model, over synthetic tables."""

import random
from copy import copy
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mobilenas.errors import MissingDataError
from mobilenas.latency import LATENCY_MODELS
from mobilenas.latency.kernel_model import KernelModel
from mobilenas.latency.kernels import PREDICTOR, TargetKernels, learn
from mobilenas.latency.models import LatencyModel, Sought, TableModel
from mobilenas.latency.network_model import NetworkModel
from mobilenas.latency.predictors.kernel import KernelPredictor
from mobilenas.latency.store import FoundTables
from mobilenas.latency.table import MOBILE_NETWORKS, LatencyTable, NetworkScale
from mobilenas.profiling.learn import learn_network_model
from mobilenas.spaces import SPACES
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.nas_bench_201 import NasBench201Space
from mobilenas.testing.fakes import make_lower, make_model, make_table
from mobilenas.testing.search_contracts import LatencyModelContract


class TestTableModel(LatencyModelContract):
    def make(self) -> tuple[LatencyModel, SearchSpace]:
        space = CellSpace(channels=4, layers=3, image_size=8, nodes=3)
        return make_model(space), space

    def ask_what_is_missing(self) -> None:
        model, space = self.make()
        assert isinstance(model, TableModel)
        rows = dict(list(model.table.rows.items())[::2])
        lacking = TableModel(replace(model.table, rows=rows), space, model.lower)
        lacking.latency(space.random_architecture(random.Random(0)))


def learnt_kernels() -> tuple[LatencyTable, KernelPredictor]:
    """A table of kernels at many sizes, as mobile networks have them, and what is learnt from it."""
    tables = [make_table(CellSpace(channels=c, layers=3, image_size=s, nodes=3)) for c in (3, 4, 6, 8) for s in (8, 12, 16)]
    whole = replace(tables[0], rows={kernel: row for table in tables for kernel, row in table.rows.items()})
    space = CellSpace(channels=3, layers=3, image_size=8, nodes=3)
    lowered = make_lower(space)([row.architecture for row in whole.networks])
    measured = np.array([row.measured_ms for row in whole.networks])
    return whole, learn(whole, lowered, measured)


def slowed(scale: NetworkScale, factor: float) -> NetworkScale:
    return msgspec.structs.replace(scale, reference_ms=factor * scale.reference_ms)


def at_speed(table: LatencyTable, factor: float) -> LatencyTable:
    """The table as it comes out while the device is so much slower."""
    card = msgspec.structs.replace(
        table.card,
        sentinel_ms=factor * table.card.sentinel_ms,
        session_ms=factor * table.card.session_ms,
        spaces={key: msgspec.structs.replace(c, scale=slowed(c.scale, factor)) for key, c in table.card.spaces.items()},
    )
    times = ("kernel_sum_ms", "measured_ms", "low_ms", "high_ms")
    networks = tuple(msgspec.structs.replace(n, **{t: factor * getattr(n, t) for t in times}) for n in table.networks)
    return replace(table, card=card, rows={k: row.times(factor) for k, row in table.rows.items()}, networks=networks)


class TestKernelModel(LatencyModelContract):
    """A table that lacks every second row of those that the predictor can tell."""

    space = CellSpace(channels=4, layers=3, image_size=8, nodes=3)

    @classmethod
    def setup_class(cls) -> None:
        cls.whole, cls.learnt = learnt_kernels()

    def make(self) -> tuple[LatencyModel, SearchSpace]:
        model = make_model(self.space)
        known = [kernel for kernel in model.table.rows if self.learnt.knows(kernel)]
        lacking = [kernel for kernel, found in zip(known, self.learnt.predict(known), strict=True) if found.is_seen][::2]
        assert len(lacking) > 5
        table = replace(model.table, rows={k: row for k, row in model.table.rows.items() if k not in lacking})
        return KernelModel(TableModel(table, self.space, model.lower), TargetKernels([table], lambda: self.learnt)), self.space

    def ask_what_is_missing(self) -> None:
        model, space = self.make()
        assert isinstance(model, KernelModel)
        unseen = replace(model, kernels=replace(model.kernels, tables=[replace(model.table.table, rows={})]))
        unseen.latency(space.random_architecture(random.Random(0)))

    def test_it_is_found_beside_the_tables_of_the_target(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path))
        model, space = self.make()
        assert isinstance(model, KernelModel)
        tables = tmp_path / "latency_tables"
        model.table.table.save(tables / "space")
        sought = Sought(space, model.table.table.card.key, None, model.table.lower, "mobilenas profile")
        with pytest.raises(MissingDataError, match="--kernels"):
            KernelModel.find(sought)
        self.whole.save(tables / "kernels")
        self.learnt.save(tables / "kernels" / PREDICTOR)
        found = LATENCY_MODELS.get("kernel")(sought)
        architecture = space.random_architecture(random.Random(3))
        assert found.latency(architecture).ms == pytest.approx(model.latency(architecture).ms, rel=0.05)
        assert found.digest != model.digest, "it also knows the rows of the other table"

    @pytest.mark.parametrize("space_factor", [1.1, 0.9])
    def test_rows_and_learnt_times_are_brought_to_the_speed_of_the_space(
        self, space_factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same device, measured ``space_factor`` times as slow in the space's campaign as in that of mobile networks."""
        monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path))
        model, space = self.make()
        assert isinstance(model, KernelModel)
        architecture = space.random_architecture(random.Random(3))
        before, after = (
            KernelModel.find(self.saved(tmp_path, at_speed(model.table.table, factor))) for factor in (1.0, space_factor)
        )
        [kernels] = make_lower(space)([architecture])
        assert kernels.keys() - after.table.table.rows.keys(), "some are learnt"
        assert after.latency(architecture).ms == pytest.approx(space_factor * before.latency(architecture).ms, rel=1e-6)

    @pytest.mark.parametrize("space_factor", [1.4, 0.6])
    def test_what_was_learnt_at_another_speed_is_not_used(
        self, space_factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path))
        model, _ = self.make()
        assert isinstance(model, KernelModel)
        word = "faster" if space_factor > 1 else "slower"
        with pytest.raises(MissingDataError, match=f"Not used: .*/mobile was measured while the device was {word}"):
            KernelModel.find(self.saved(tmp_path, at_speed(model.table.table, space_factor)))

    def saved(self, home: Path, table: LatencyTable) -> Sought:
        """``table`` as that of the space, and what was learnt as of mobile networks, which calibrate unless asked not to."""
        [card] = self.whole.card.spaces.values()
        cards = {MOBILE_NETWORKS: msgspec.structs.replace(card, space=MOBILE_NETWORKS)}
        mobile = replace(
            self.whole,
            card=msgspec.structs.replace(self.whole.card, spaces=cards),
            rows={k: r for k, r in self.whole.rows.items() if k not in make_table(self.space).rows},
            workload_costs={},
            networks=tuple(
                msgspec.structs.replace(n, architecture=msgspec.structs.replace(n.architecture, space=MOBILE_NETWORKS))
                for n in self.whole.networks
            ),
        )
        learnt = copy(self.learnt)
        learnt.learnt_from_ = mobile.digest
        table.save(home / "latency_tables" / "space")
        mobile.save(home / "latency_tables" / "mobile")
        learnt.save(home / "latency_tables" / "mobile" / PREDICTOR)
        return Sought(self.space, table.card.key, None, make_lower(self.space), "mobilenas profile")

    def test_what_is_learnt_widens_the_interval(self) -> None:
        model, space = self.make()
        assert isinstance(model, KernelModel)
        whole = replace(model, kernels=replace(model.kernels, tables=[make_table(space)]))
        generator = random.Random(8)
        for architecture in (space.random_architecture(generator) for _ in range(20)):
            [kernels] = model.table.lower([architecture])
            guessed, known = model.latency(architecture), whole.latency(architecture)
            widths = [prediction.high_ms / prediction.ms for prediction in (guessed, known)]
            assert widths[0] > widths[1] if kernels.keys() - model.table.table.rows.keys() else np.isclose(*widths)
            assert np.isclose(guessed.ms, known.ms, rtol=0.2)


class TestNetworkModel(LatencyModelContract):
    is_linear = False
    one_hot_temperature = 0.01
    space: SearchSpace = CellSpace(channels=4, layers=3, image_size=8, nodes=3)

    @classmethod
    def setup_class(cls) -> None:
        cls.learnt = learn_network_model(cls.space, make_table(cls.space, networks=30))

    def make(self) -> tuple[LatencyModel, SearchSpace]:
        return self.learnt, self.space

    def ask_what_is_missing(self) -> None:
        costs = self.learnt.card.costs[:-1]
        NetworkModel(msgspec.structs.replace(self.learnt.card, costs=costs), self.learnt.predictor, self.space)


class TestNetworkModelOfNasBench201(TestNetworkModel):
    space = NasBench201Space(channels=4, cells_per_stage=1, image_size=8)


class TestNetworkModelOfDenseBlocks(TestNetworkModel):
    space = SPACES.get("dense-small")()


def test_what_networks_tell_of_rows_holds_in_their_own_table_only(tmp_path: Path) -> None:
    """The table that calibrates keeps its factors; rows that another one brings come without."""
    own, foreign = (make_table(CellSpace(channels=c, layers=3, image_size=8, nodes=3)) for c in (4, 6))
    own, foreign = (
        replace(t, rows={k: msgspec.structs.replace(row, network_factor=1.2) for k, row in t.rows.items()})
        for t in (own, foreign)
    )
    found = FoundTables(((tmp_path / "foreign", foreign), (tmp_path / "own", own)))
    kernels = TargetKernels.of(found, calibrating=own)
    assert {kernels.rows[k].network_factor for k in foreign.rows} == {1.0}
    assert {kernels.rows[k].network_factor for k in own.rows.keys() - foreign.rows.keys()} == {1.2}
