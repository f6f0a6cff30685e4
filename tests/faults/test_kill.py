"""Killed at random moments and run again: nothing measured twice, and the same bits as one that was never killed.

The same at a larger size, and of trainings: tests/benchmarks/kill_and_resume.py.
"""

from pathlib import Path

import pytest

from tests.benchmarks import kill_and_resume as kills

SIZE = kills.Size(epochs=5, processes=2, nodes=2)


@pytest.mark.slow
def test_a_killed_profile_and_search_end_as_ones_never_stopped(tmp_path: Path) -> None:
    hits = [
        kills.profile(tmp_path / "profile", SIZE, 1, seed=1),
        kills.search(tmp_path / "search", tmp_path / "profile" / "table", SIZE, 3, seed=2),
    ]
    assert min(hits) >= 1, f"too few kills hit a working process: {hits}"
