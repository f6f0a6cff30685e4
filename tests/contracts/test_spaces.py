from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.contracts import SpaceContract


class TestDigitCells(SpaceContract):
    def make(self) -> SearchSpace:
        return CellSpace(channels=4, layers=5, image_size=8, image_channels=1)


class TestOddCells(SpaceContract):
    def make(self) -> SearchSpace:
        return CellSpace(channels=4, layers=3, image_size=28, image_channels=1)


class TestImagenetStem(SpaceContract):
    def make(self) -> SearchSpace:
        return CellSpace(channels=4, layers=3, image_size=33, stem="imagenet")
