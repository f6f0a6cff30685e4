"""The conformance kit on the table model, over a synthetic table."""

import random
from dataclasses import replace

from mobilenas.latency.models import LatencyModel, TableModel
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_model
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
