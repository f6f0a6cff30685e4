"""Of two processes one dies, hangs or goes another way: the other names it, and where it was. Signals stop both."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobilenas.data import check_batch, load_data
from mobilenas.errors import UsageError
from tests.benchmarks.kill_and_resume import Commands, Size

PROGRAM = """
import os, sys, time
from datetime import timedelta
import torch
from torch.distributed import TCPStore
from mobilenas.errors import LostProcessError
from mobilenas.search.processes import Processes

rank, port, trouble = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
store = TCPStore("127.0.0.1", port, 2, rank == 0, timedelta(seconds=30), wait_for_workers=False)
processes = Processes(rank, 2, store, timeout_s=3)
try:
    for step in range(3):
        processes.at(f"step {step}")
        if step == 2 and rank == 1 and trouble == "dies":
            os._exit(1)
        if step == 2 and rank == 1 and trouble == "hangs":
            time.sleep(60)
        assert processes.gather(rank) == [0, 1]
        processes.check_same({"logits": torch.full((3,), float(rank == 1 and step == 2 and trouble == "differs"))})
except LostProcessError as error:
    print(error, flush=True)
    os._exit(8)
"""


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("dies", "process 1 of 2 is lost at step 1"),
        ("hangs", "process 1 of 2 is lost at step 1"),
        ("differs", "process 1 of 2 has gone another way than process 0 at step 2: logits differ"),
    ],
)
def test_a_lost_process_is_named_with_where_it_was(trouble: str, said: str) -> None:
    """Where it was is where it met the others last."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    both = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(port), trouble], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    words, _ = both[0].communicate(timeout=60)
    both[1].kill()
    both[1].communicate()
    assert both[0].returncode == 8
    assert said in words


SEARCH = [
    "search", "--data", "digits", *Size().space, "--epochs", "4", "--set", "supernet.channels=2",
    "--set", "supernet.layers=3", "--set", "data.train_fraction=0.2", "-o", "run",
]  # fmt: skip


def started(commands: Commands, *more: str) -> tuple[subprocess.Popen[bytes], int]:
    """A search of two processes that has ended its first epoch, and the number of the other process."""
    process = commands.start([*SEARCH, "--devices", "2", *more])
    metrics = commands.home / "run" / "metrics.jsonl"
    while process.poll() is None and not metrics.exists():
        time.sleep(0.01)
    [beside] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, int(beside)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_another_number_goes_on(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    process, beside = started(commands)
    os.kill(beside, signal.SIGTERM)
    assert process.wait(timeout=60) == 143, (tmp_path / "log.txt").read_text()
    assert (tmp_path / "run" / "STATUS").read_text().startswith("interrupted")
    assert not Path(f"/proc/{beside}").exists()
    commands.run(SEARCH)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_process_that_is_stopped_is_named_and_not_left_behind(tmp_path: Path) -> None:
    process, beside = started(Commands(tmp_path), "--set", "compute.timeout_s=3")
    os.kill(beside, signal.SIGSTOP)
    assert process.wait(timeout=60) == 8
    assert "error: process 1 of 2 is lost at stage 1, epoch " in (tmp_path / "log.txt").read_text()
    assert not Path(f"/proc/{beside}").exists()


@pytest.mark.slow
def test_torchrun_starts_them_and_the_first_one_tells(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mobilenas", *SEARCH]
    done = subprocess.run([*argv, "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "run"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(("batch", "said"), [(9, "data.batch is 9; 2 processes cannot share it equally"), (3, "at least 4")])
def test_a_batch_that_processes_cannot_share_is_refused(batch: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_batch(load_data("digits").train, batch, processes=2)
