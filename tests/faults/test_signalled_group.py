"""A signal to the whole process group, as a terminal or a supervisor sends it, while loader workers are at work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SMALL


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signalled_group_finishes_the_step_and_saves(number: int, code: int, tmp_path: Path) -> None:
    small = ("--set", "supernet.channels=2", "--set", "supernet.layers=3", "--set", "data.train_fraction=0.2", *SMALL)
    argv = [sys.executable, "-m", "mobilenas", "search", *small, "--set", "data.workers=2", "--epochs", "400", "-o", "run"]
    process = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "STATUS").read_text().split()[0] == "interrupted"
    assert list((tmp_path / "run" / "checkpoints").rglob("*.json"))
