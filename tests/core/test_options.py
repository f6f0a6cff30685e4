"""Options of plug-ins, however their files spell annotations."""

import sys
import types
from pathlib import Path

import pytest

from mobilenas.config import SearchConfig, SpaceConfig
from mobilenas.core.options import option_types
from mobilenas.core.registry import Registry
from mobilenas.errors import UsageError
from mobilenas.workflows.naming import space_from_config
from mobilenas.workflows.run_search import method_from_config

FUTURE = "from __future__ import annotations\n"
METHOD = """
from typing import Annotated, Callable, Literal, Optional
from mobilenas.methods.base import SearchMethod

class Mine(SearchMethod):
    name = "mine"

    def __init__(
        self, order: int = 1, rate: float = 0.1, fast: bool = False, how: str = "a", kept: tuple[int, ...] = (1,),
        pair: tuple[float, float] = (0.0, 1.0), kind: Literal["x", "y"] = "x", limit: Optional[int] = None,
        share: "float | None" = None, noise: Callable[[int], int] = abs, bare=3,
    ) -> None:
        self.given = (order, rate, fast, how, kept, pair, kind, limit, share, bare)
"""
OPTIONS = ["order", "rate", "fast", "how", "kept", "pair", "kind", "limit", "share", "bare"]


@pytest.fixture(params=["", FUTURE], ids=["plain", "future"])
def package(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package ``mine`` with a method, whose file has the import or lacks it."""
    points = tmp_path / "site" / "mine-1.0.dist-info"
    points.mkdir(parents=True)
    (points / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (points / "entry_points.txt").write_text("[mobilenas.methods]\nmine = mine_package:Mine\n")
    (points.parent / "mine_package.py").write_text(request.param + METHOD)
    monkeypatch.syspath_prepend(points.parent)
    monkeypatch.delitem(sys.modules, "mine_package", raising=False)
    monkeypatch.setattr("mobilenas.workflows.run_search.METHODS", Registry("method", {}))
    yield points.parent
    sys.modules.pop("mine_package", None)


def test_a_plug_in_takes_its_options_with_and_without_the_import(package: Path) -> None:
    options = {"order": 2, "rate": 0.5, "kept": (2, 3), "pair": (0.5, 1.0), "kind": "y", "limit": 4, "share": 0.25, "bare": 5}
    method = method_from_config(SearchConfig(method="mine", method_options=options))
    assert method.given == (2, 0.5, False, "a", (2, 3), (0.5, 1.0), "y", 4, 0.25, 5)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"noise": 1}, "noise.*it has order, rate"), ({"ordr": 1}, "did you mean order"), ({"order": "x"}, "order is 'x'"),
     ({"kind": "z"}, "kind is 'z'"), ({"bare": "x"}, "bare is 'x'")],
)  # fmt: skip
def test_a_wrong_option_of_a_plug_in_is_refused(package: Path, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        method_from_config(SearchConfig(method="mine", method_options=options))


def test_options_are_those_that_toml_has_values_for(package: Path) -> None:
    import mine_package

    assert list(option_types(mine_package.Mine)) == OPTIONS


def test_an_annotation_for_type_checkers_only_hides_no_other() -> None:
    module = types.ModuleType("half")
    exec(f"{FUTURE}class Half:\n    def __init__(self, depth: int = 1, link: Link = None): ...\n", module.__dict__)
    assert option_types(module.Half) == {"depth": int}


def test_a_space_that_is_no_dataclass_takes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        def __init__(self, channels: int = 4, batch: int = 1) -> None:
            self.channels = channels

    monkeypatch.setattr("mobilenas.workflows.naming.SPACES", Registry("space", {"plain": Plain}))
    assert space_from_config(SpaceConfig(name="plain", options={"channels": 8}), None, 1).channels == 8
    with pytest.raises(UsageError, match="no option 'chanels'"):
        space_from_config(SpaceConfig(name="plain", options={"chanels": 8}), None, 1)
