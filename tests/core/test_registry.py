from importlib.metadata import EntryPoint

import pytest

from mobilenas.core import registry
from mobilenas.core.registry import Registry
from mobilenas.errors import ResourceError, UnknownNameError, UsageError


def install(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> list[str]:
    """Let ``points`` be what is installed; returns the list of the groups asked for."""
    asked = []

    def fake(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [point for point in points if point.group == group]

    monkeypatch.setattr(registry, "entry_points", fake)
    return asked


def test_a_thing_and_a_path() -> None:
    things: Registry = Registry("thing", {"b": "math:pi", "a": 3})
    assert things.get("a") == 3
    assert things.get("b") == pytest.approx(3.14159, abs=1e-5)
    assert list(things) == ["a", "b"]
    assert "a" in things
    assert "c" not in things


def test_listing_imports_nothing() -> None:
    things: Registry = Registry("thing", {"broken": "no_such_package.module:thing"})
    assert list(things) == ["broken"]
    with pytest.raises(ResourceError, match=r"thing 'broken' needs the Python package 'no_such_package'.*pip install"):
        things.get("broken")


def test_a_plug_in_that_lacks_what_it_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, EntryPoint("pie", "math:pie", "mobilenas.things"))
    with pytest.raises(ResourceError, match=r"'pie' cannot be loaded from math:pie"):
        Registry("thing", {}).get("pie")


def test_an_unknown_name_comes_with_the_nearest() -> None:
    things: Registry = Registry("thing", {"darts": 1, "gdas": 2})
    with pytest.raises(UnknownNameError, match=r"no thing named 'dart': did you mean darts.*available: darts, gdas"):
        things.get("dart")


def test_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = install(
        monkeypatch, EntryPoint("pi", "math:pi", "mobilenas.odd_things"), EntryPoint("e", "math:e", "mobilenas.things")
    )
    things: Registry = Registry("odd thing", {"one": 1})
    assert list(things) == ["one", "pi"]
    assert things.get("pi") == pytest.approx(3.14159, abs=1e-5)
    assert asked == ["mobilenas.odd_things"], "the group is named after the kind and read once"


@pytest.mark.parametrize("built_in", [{"pi": 3}, {}])
def test_a_name_claimed_twice_is_refused(monkeypatch: pytest.MonkeyPatch, built_in: dict) -> None:
    points = [EntryPoint("pi", f"math:{name}", "mobilenas.things") for name in ("pi", "tau")]
    install(monkeypatch, *points[len(built_in) :])
    with pytest.raises(UsageError, match=r"two packages provide the thing 'pi'.*mobilenas\.things.*math:tau"):
        list(Registry("thing", built_in))
