"""The conformance kit on every registered ranker."""

from mobilenas.search.rankers import RANKERS
from mobilenas.search.rankers.base import Evidence, Ranker
from mobilenas.search.rankers.capacity import Capacity
from mobilenas.search.rankers.inherited import Inherited
from mobilenas.search.rankers.logits import Logits
from mobilenas.search.rankers.short_training import ShortTraining
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace
from mobilenas.spaces.dense_layout import blocks
from mobilenas.testing.ranker_contracts import CLASSES, RankerContract


class TestCapacity(RankerContract):
    def make(self, evidence: Evidence) -> Ranker:
        return Capacity(evidence)


class TestCapacityOnBlocks(TestCapacity):
    def space(self) -> SearchSpace:
        layout = blocks((4, 4, 6), (1, 2, 2), (0, 1, 1), (0, 1, 1))
        operators = ("mbconv_k3_e3", "mbconv_k5_e6")
        return DenseBlockSpace("mbconv", layout, 8, 3, operators, image_size=8, image_channels=1, classes=CLASSES)


class TestShortTraining(RankerContract):
    def make(self, evidence: Evidence) -> Ranker:
        return ShortTraining(evidence)


class TestInherited(RankerContract):
    def make(self, evidence: Evidence) -> Ranker:
        return Inherited(evidence)


class TestLogits(RankerContract):
    def make(self, evidence: Evidence) -> Ranker:
        return Logits(evidence)


def test_all_registered_rankers_are_here() -> None:
    tested = {Capacity.name, ShortTraining.name, Inherited.name, Logits.name}
    assert {name for name in RANKERS if name not in RANKERS.plug_ins} == tested
    assert all(RANKERS.get(name).name == name for name in tested)
