"""The conformance kit on every registered search method."""

import msgspec

from mobilenas.methods import METHODS
from mobilenas.methods.base import SearchMethod
from mobilenas.methods.darts import Darts
from mobilenas.methods.dense_nas import DenseNas
from mobilenas.methods.gdas import Gdas
from mobilenas.methods.p_darts import PDarts
from mobilenas.methods.pc_darts import PCDarts
from mobilenas.methods.switches import Switches
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace
from mobilenas.spaces.dense_layout import blocks
from mobilenas.testing.search_contracts import MethodContract
from tests.oracles.small_blocks import small_blocks


class TestDarts(MethodContract):
    def make(self) -> SearchMethod:
        return Darts()


class TestSecondOrderDarts(MethodContract):
    def make(self) -> SearchMethod:
        return Darts(order=2)


class TestExactSecondOrderDarts(MethodContract):
    def make(self) -> SearchMethod:
        return Darts(order=2, hessian="exact")


class TestGdas(MethodContract):
    def make(self) -> SearchMethod:
        return Gdas()


class TestGdasWithSwitches(MethodContract):
    def make(self) -> SearchMethod:
        method = Gdas()
        method.switches = Switches(edge_normalisation=True, partial_channels=2, skip_dropout=0.3, skip_limit=6)
        return method


class TestPDarts(MethodContract):
    """Two stages, so that a kit's searches stay short."""

    def make(self) -> SearchMethod:
        return PDarts(added_layers=(0, 1), added_channels=(0, 2), kept=(4,), skip_dropout=(0.2, 0.5))


class TestPCDarts(MethodContract):
    def make(self) -> SearchMethod:
        method = PCDarts()
        method.switches = msgspec.structs.replace(method.switches, partial_channels=2)  # the kit's cells have two channels
        return method


class TestDenseNas(MethodContract):
    toy_operators = ("mbconv_k3_e3", "mbconv_k7_e6")

    def make(self) -> SearchMethod:
        return DenseNas()

    def space(self) -> SearchSpace:
        return small_blocks()

    def toy_space(self, cheap: str, dear: str) -> SearchSpace:
        layout = blocks((4, 6), (1, 2), (0, 1), (0, 0))
        return DenseBlockSpace("mbconv", layout, 8, operators=(cheap, dear), image_size=8, classes=3)


class TestDenseNasByStep(TestDenseNas):
    def make(self) -> SearchMethod:
        return DenseNas(alternation="step", temperature_of="routes", drift=True, renormalise_last=True)


def test_every_registered_method_is_tested_here() -> None:
    assert set(METHODS) == {"darts", "gdas", "p-darts", "pc-darts", "dense-nas"}
    assert METHODS.get("darts") is Darts
