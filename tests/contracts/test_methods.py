"""The conformance kit on every registered search method."""

from mobilenas.methods import METHODS
from mobilenas.methods.base import SearchMethod
from mobilenas.methods.darts import Darts
from mobilenas.methods.gdas import Gdas
from mobilenas.testing.search_contracts import MethodContract


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


def test_every_registered_method_is_tested_here() -> None:
    assert set(METHODS) == {"darts", "gdas"}
    assert METHODS.get("darts") is Darts
