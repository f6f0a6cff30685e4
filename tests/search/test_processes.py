"""Two processes with half of each batch against one that normalises the halves apart, in float64."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mobilenas.search.processes import Processes
from tests.search import together


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each of two processes has found, by case."""
    folder = tmp_path_factory.mktemp("two")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "tests.search.together", str(folder)]
    others = [subprocess.Popen([*argv, str(rank), str(port)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    words = [process.communicate(timeout=300)[1] for process in others]
    assert [process.returncode for process in others] == [0, 0], words
    return folder


@pytest.mark.parametrize("case", [*together.CASES, together.TRAINING])
def test_two_processes_make_what_one_makes_that_normalises_halves_apart(case: str, two: Path, tmp_path: Path) -> None:
    first, second = (torch.load(two / f"{case}-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first), "both make the same steps, bit by bit"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        alone = together.run(tmp_path, case, Processes(), is_ghost=True)
        plain = together.run(tmp_path / "plain", case, Processes()) if case == "darts" else None
    finally:
        torch.set_default_dtype(before)
    assert alone.keys() == first.keys()
    differences = {name: float((alone[name] - first[name]).abs().max()) for name in alone}
    assert max(differences.values()) < 1e-6, differences
    if plain is not None:
        assert any(float((plain[name] - first[name]).abs().max()) > 1e-6 for name in plain), (
            "normalised together, it is another"
        )
