"""`import mobilenas` offers what __all__ says, the same objects as their homes, and loads nothing before it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mobilenas


@pytest.mark.parametrize("name", mobilenas.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(mobilenas, name) is not None


def test_what_a_type_checker_sees_is_what_is_there() -> None:
    tree = ast.parse(Path(mobilenas.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(declared) == sorted(mobilenas.__all__)
    assert declared == mobilenas._HOME_OF


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
