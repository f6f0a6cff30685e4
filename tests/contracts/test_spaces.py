from mobilenas.core.architecture import Architecture
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace
from mobilenas.spaces.dense_layout import blocks
from mobilenas.spaces.nas_bench_201 import NasBench201Space
from mobilenas.testing.contracts import SpaceContract
from tests.oracles.small_blocks import small_blocks


class TestDigitCells(SpaceContract):
    def make(self) -> SearchSpace:
        return CellSpace(channels=4, layers=5, image_size=8, image_channels=1)


class TestOddCells(SpaceContract):
    def make(self) -> SearchSpace:
        return CellSpace(channels=4, layers=3, image_size=28, image_channels=1)


class TestImagenetStem(SpaceContract):
    def make(self) -> SearchSpace:
        return CellSpace(channels=4, layers=3, image_size=33, stem="imagenet")


class TestMobileBlocks(SpaceContract):
    def make(self) -> SearchSpace:
        return small_blocks()


class TestOddMobileBlocks(SpaceContract):
    def make(self) -> SearchSpace:
        return small_blocks(image_size=27)


class TestResnetBlocks(SpaceContract):
    """All blocks that lead to the last node are as wide as it: without the 1x1 convolutions the classifier is the same."""

    def make(self) -> SearchSpace:
        layout = blocks((4, 4, 6, 8, 8), (1, 2, 2, 4, 4), (0, 1, 1, 2, 2), (0, 1, 2, 1, 1))
        return DenseBlockSpace("basic_block", layout, 8, reach=10, image_size=9, image_channels=1, classes=5)


class TestBottleneckBlocks(SpaceContract):
    def make(self) -> SearchSpace:
        layout = blocks((4, 2, 3, 4, 4), (2, 2, 4, 4, 8), (0, 1, 1, 2, 2), (0, 1, 2, 0, 1))
        return DenseBlockSpace("bottleneck", layout, 16, reach=10, image_size=16, image_channels=1, classes=5)


class TestTheSmallestDenseSpace(SpaceContract):
    heeds_temperature = False

    def make(self) -> SearchSpace:
        return DenseBlockSpace("mbconv", blocks((4, 6), (1, 2), (0, 1), (0, 0)), 8, image_size=8, classes=3)


WAYS = (("0-3",), ("0-1", "1-3"), ("0-2", "2-3"), ("0-1", "1-2", "2-3"))
"""From the input of a cell of NAS-Bench-201 to its output."""


class NasBench201Contract(SpaceContract):
    heeds_temperature = False  # all decisions are always made: nothing to sharpen

    def may_be_derived(self, architecture: Architecture) -> bool:
        return any(all(architecture.choices[edge] != "none" for edge in way) for way in WAYS)


class TestNasBench201(NasBench201Contract):
    def make(self) -> SearchSpace:
        return NasBench201Space(channels=4, cells_per_stage=2, image_size=8, image_channels=1)


class TestOddNasBench201(NasBench201Contract):
    def make(self) -> SearchSpace:
        return NasBench201Space(channels=3, cells_per_stage=1, image_size=9, classes=3)


class TestNasBench201WithoutNone(SpaceContract):
    heeds_temperature = False

    def make(self) -> SearchSpace:
        operators = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
        return NasBench201Space(channels=4, cells_per_stage=1, image_size=8, operators=operators)


class TestNasBench201WithAllItsEdges(NasBench201Contract):
    def make(self) -> SearchSpace:
        return NasBench201Space(channels=4, cells_per_stage=1, image_size=8, unread="kept")


class TestPublishedNasBench201(NasBench201Contract):
    samples = 4

    def make(self) -> SearchSpace:
        return NasBench201Space()
