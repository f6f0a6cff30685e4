"""`import mobilenas` offers what __all__ says, the same objects as their homes, and loads nothing before it is asked for."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import get_args, get_type_hints

import pytest

import mobilenas


def declared() -> dict[str, str]:
    """What a type checker sees: public name -> the module that it is imported from."""
    tree = ast.parse(Path(mobilenas.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("name", mobilenas.__all__)
def test_every_public_name_is_the_object_that_its_home_defines(name: str) -> None:
    found, home = getattr(mobilenas, name), import_module(declared()[name])
    if isinstance(found, ModuleType):
        assert found.__name__ == f"mobilenas.{name}"
        return
    assert found is vars(home)[name]
    if isinstance(found, type | FunctionType):
        assert (found.__module__, found.__name__) == (home.__name__, name)


def test_what_a_type_checker_sees_is_what_is_there() -> None:
    assert sorted(declared()) == sorted(mobilenas.__all__)
    assert declared() == mobilenas._HOME_OF
    assert set(mobilenas.__all__) <= set(dir(mobilenas))


def of_the_package(annotation: object) -> set[str]:
    """Names of the classes of this package in an annotation."""
    if isinstance(annotation, type) and annotation.__module__.startswith("mobilenas."):
        return {annotation.__name__}
    return {name for argument in get_args(annotation) for name in of_the_package(argument)}


@pytest.mark.parametrize(
    "public",
    [
        mobilenas.derive,
        mobilenas.latency_range,
        mobilenas.Budget.__init__,
        mobilenas.TableModel.__init__,
        *(getattr(mobilenas.workflows, verb) for verb in ("profile", "search", "train", "export")),
    ],
    ids=lambda function: function.__qualname__,
)
def test_what_a_public_function_must_be_given_is_public_too(public: Callable[..., object]) -> None:
    needed = [p.name for p in inspect.signature(public).parameters.values() if p.default is p.empty and p.name != "self"]
    hints = get_type_hints(public)
    wanted = {name for parameter in needed for name in of_the_package(hints[parameter])}
    assert wanted
    assert wanted <= set(mobilenas.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        mobilenas.serach  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, mobilenas; dir(mobilenas); mobilenas.Architecture, mobilenas.SearchConfig;"
        "print([m for m in ('torch', 'onnx', 'scipy', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
