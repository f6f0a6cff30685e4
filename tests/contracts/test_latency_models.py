"""The conformance kit on the table model, over a synthetic table."""

from mobilenas.latency.models import LatencyModel
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_model
from mobilenas.testing.search_contracts import LatencyModelContract


class TestTableModel(LatencyModelContract):
    def make(self) -> tuple[LatencyModel, SearchSpace]:
        space = CellSpace(channels=4, layers=3, image_size=8, nodes=3)
        return make_model(space), space
