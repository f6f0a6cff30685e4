"""Kill a process again and again while it writes checkpoints and a journal, and see that nothing whole is ever lost.

python tests/benchmarks/kill_writes.py --kills 200 --output /tmp/writes
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from pathlib import Path

import torch

from mobilenas.core.run_directory import Journal
from mobilenas.search.checkpoints import Checkpoints

NUMBERS = 200_000
"""Of 32 bits in each checkpoint."""
LONGEST_S = 0.15


def kill_writes(folder: Path, kills: int, seed: int) -> int:
    """The checkpoint that is found after each kill is whole, and no older than the last one that was told to be written; the
    journal holds each of its records once, in order. Returns how many kills left a file under a temporary name.
    """
    generator, torn = random.Random(seed), 0
    told = 0
    for _ in range(kills):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                _write(folder, writing)
            finally:
                os._exit(1)
        os.close(writing)
        os.read(reading, 8)  # it has begun
        time.sleep(generator.uniform(0, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the child ended by itself"
        with os.fdopen(reading, "rb") as pipe:
            acknowledged = pipe.read()
        told = max(told, int.from_bytes(acknowledged[-8:], "little")) if acknowledged else told
        state = Checkpoints(folder / "checkpoints").load_latest()
        assert (state is None and told == 0) or state["number"] >= told, "a checkpoint that was written is gone"
        if state is not None:
            assert torch.equal(state["tensor"], torch.full((NUMBERS,), float(state["number"]))), "of two generations"
            told = max(told, state["number"])
        records = [record["number"] for record in Journal(folder / "journal.jsonl").read()]
        assert records == list(range(1, len(records) + 1)), "the journal lacks a record, or has one twice"
        assert len(records) >= told, "a record that was written is gone"
        torn += any(path.name.startswith(".") for path in (folder / "checkpoints").iterdir())
        assert len(list((folder / "checkpoints").iterdir())) <= 2 * 3, "what was half-written piles up"
    return torn


def _write(folder: Path, pipe: int) -> None:
    checkpoints, journal = Checkpoints(folder / "checkpoints"), Journal(folder / "journal.jsonl")
    written = len(journal.read())
    os.write(pipe, (0).to_bytes(8, "little"))
    while True:
        written += 1
        journal.append({"number": written})
        checkpoints.save({"number": written, "tensor": torch.full((NUMBERS,), float(written))})
        os.write(pipe, written.to_bytes(8, "little"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    a = parser.parse_args()
    a.output.mkdir(parents=True)
    (a.output / "checkpoints").mkdir()
    begin = time.monotonic()
    torn = kill_writes(a.output, a.kills, a.seed)
    [*_, last] = Journal(a.output / "journal.jsonl").read()
    print(
        f"{a.kills} kills in {last['number']} writes, {torn} of them inside one; nothing lost; {time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
