"""Killed at random moments and run again: nothing measured twice, and the same bits as one that was never killed.

The same at a larger size: tests/benchmarks/kill_and_resume.py.
"""

from pathlib import Path

import pytest

from tests.benchmarks import kill_and_resume as kills

SIZE, TWO = kills.Size(epochs=6), kills.Size(epochs=5, processes=2)


@pytest.mark.slow
def test_killed_profile_search_and_training_end_as_ones_never_stopped(tmp_path: Path) -> None:
    hits = [
        kills.profile(tmp_path / "profile", SIZE, 1, seed=1),
        kills.search(tmp_path / "search", tmp_path / "profile" / "table", TWO, 3, seed=2),
        kills.train(tmp_path / "train", tmp_path / "search" / "whole", SIZE, 1, seed=3),
    ]
    assert min(hits) >= 1, f"too few kills hit a working process: {hits}"
