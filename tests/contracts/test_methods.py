"""The conformance kit on every registered search method."""

from collections import Counter

import msgspec
import torch

from mobilenas.methods import METHODS
from mobilenas.methods.base import SearchMethod
from mobilenas.methods.darts import Darts
from mobilenas.methods.dense_nas import DenseNas
from mobilenas.methods.gdas import Gdas
from mobilenas.methods.p_darts import PDarts
from mobilenas.methods.pc_darts import PCDarts
from mobilenas.methods.random_search import RandomSearch
from mobilenas.methods.switches import Switches
from mobilenas.spaces.base import SearchSpace, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace
from mobilenas.spaces.dense_layout import blocks
from mobilenas.supernet import ArchitectureParameters
from mobilenas.testing.search_contracts import MethodContract
from tests.oracles.small_blocks import small_blocks

OPERATORS = ("skip_connect", "sep_conv_3x3", "max_pool_3x3")


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


class TestRandomSearch(MethodContract):
    """It has the hooks of all methods, and no epoch to train, to resume or to warm up in; its logits decide nothing."""

    test_a_search_changes_weights_and_logits = None
    test_warmup_trains_weights_and_leaves_logits_untouched = None
    test_a_resumed_search_ends_as_one_that_never_stopped = None
    test_a_search_interrupted_in_mid_epoch_saves_and_ends_as_one_that_never_stopped = None
    test_what_the_cost_sees_is_what_the_derivation_maximises = None
    test_a_huge_multiplier_makes_the_cheap_operator_win = None
    test_scores_agree_with_decode = None

    def make(self) -> SearchMethod:
        return RandomSearch()

    def test_no_option_is_likelier_than_another(self) -> None:
        """Of 400 searches each of three operators stands on an edge about 133 times; by chance within 5 standard deviations."""
        space = CellSpace(channels=2, layers=3, image_size=8, nodes=1, classes=3, operators=OPERATORS)
        stage = next(self.make().stages(space, SupernetSize(2, 3), 5, 0))
        found: Counter[str] = Counter()
        for seed in range(400):
            parameters = ArchitectureParameters(stage.decisions, torch.Generator().manual_seed(seed), space.decisions)
            found[self.make().decode(space, parameters).choices["normal.0-2"]] += 1
        assert set(found) == set(OPERATORS)
        assert all(abs(count - 400 / 3) < 5 * (400 * 2 / 9) ** 0.5 for count in found.values()), found


def test_every_registered_method_is_tested_here() -> None:
    assert set(METHODS) == {"darts", "gdas", "p-darts", "pc-darts", "dense-nas", "random"}
    assert METHODS.get("darts") is Darts
