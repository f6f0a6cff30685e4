"""A profile, a search, a training and a sweep on a disk that fills while they run, and again after room was made.

python -m tests.benchmarks.full_disk [TABLE]

Each command works on a disk of its own, a small tmpfs, which is filled once the command has begun to write. Where no disk may
be mounted, the size of files is limited instead. The table says how the command ended, what it said, what STATUS says, and
how the same command ended once there was room.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mobilenas import workflows
from mobilenas.config import SearchConfig, SpaceConfig, dump_config
from mobilenas.core import documents
from mobilenas.data import load_data

SMALL = ("--data", "digits", "--channels", "4", "--layers", "3")
DISK_MIB = 32
LIMIT_BYTES = 20_000
"""Of each file, where no disk may be mounted: less than a checkpoint or the records of a campaign."""
PATIENCE_S = 240.0


class Outcome(NamedTuple):
    """How one command fared."""

    command: str
    full_code: int
    said: str
    status: str
    again_code: int

    @property
    def is_right(self) -> bool:
        """Whether it ended as it must."""
        return (self.full_code, self.status, self.again_code) == (8, "failed", 0)


def small_disk(folder: Path) -> bool:
    """Mount a small disk at ``folder``; ``False`` where that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(folder)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def fill(folder: Path) -> Path:
    """Write a file until the disk of ``folder`` is full."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def fare(name: str, argv: list[str], disk: Path, begun: Callable[[], bool], status: Callable[[], Path], home: Path) -> Outcome:
    """Run ``argv`` on a disk that fills once ``begun``, and again with room."""
    is_mounted = disk.is_mount()
    environment = {**os.environ, "MOBILENAS_HOME": str(home)}
    whole = [sys.executable, "-m", "mobilenas", *argv]

    def limit() -> None:
        if not is_mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, resource.RLIM_INFINITY))

    process = subprocess.Popen(whole, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    filler = None
    deadline = time.monotonic() + PATIENCE_S
    while is_mounted and filler is None and process.poll() is None and time.monotonic() < deadline:
        if begun():
            filler = fill(disk)
        time.sleep(0.02)
    _, said = process.communicate(timeout=PATIENCE_S)
    words = [line for line in said.splitlines() if line.strip()]
    path = status()
    first = path.read_text().split("\n")[0] if path.exists() else "none"
    if filler:
        filler.unlink()
    again = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False, timeout=2 * PATIENCE_S)
    if again.returncode:
        words.append(f"again: {again.stderr[-300:]}")
    return Outcome(name, process.returncode, " / ".join(words[-2:]), first, again.returncode)


def newest(folder: Path, pattern: str) -> Path:
    """The file below ``folder`` that was written last."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns, default=folder / "none")


def make_run(folder: Path) -> None:
    """A run directory of a small network that was not searched for."""
    cfg = SearchConfig(space=SpaceConfig(options={"channels": 4, "layers": 3}))
    space = workflows.space_from_config(cfg.space, load_data("digits"), 1)
    folder.mkdir(parents=True)
    (folder / "architecture.json").write_text(space.random_architecture(random.Random(0)).to_json())
    (folder / "config.toml").write_text(dump_config(cfg))
    (folder / "result.json").write_text(documents.dump_json({"schema": "mobilenas/search-result@1", "budgets": []}))


def main(folder: Path, table: Path | None) -> Iterator[Outcome]:
    """All four commands; the table of the search is made on a disk with room, unless one is given."""
    profile = ["profile", *SMALL, "--plan", "quick", "-q"]
    if table is None:
        table = folder / "table"
        subprocess.run([sys.executable, "-m", "mobilenas", *profile, "-o", str(table)], check=True, stdout=sys.stderr)
    disks = {name: folder / name for name in ("profile", "search", "train", "sweep")}
    for name, disk in disks.items():
        print(f"{name}: {'a full disk' if small_disk(disk) else 'a limit of files'}", file=sys.stderr)
    small = {"supernet.channels": 2, "supernet.layers": 3, "measure": False, "table": str(table), "epochs": 6}
    small["selection.steps"] = 8
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in small.items()}
    try:
        run = disks["search"] / "run"
        search = ["search", *SMALL, *(f"--set={key}={value}" for key, value in words.items())]
        search += ["--latency-budget", "60%", "-o", str(run), "-q"]
        metrics = run / "metrics.jsonl"
        yield fare("search", search, disks["search"], metrics.exists, lambda: run / "STATUS", folder / "home")
        trained = disks["train"] / "run"
        make_run(trained)
        train = ["train", str(trained), "--data", "digits", "--epochs", "6", "-q"]
        own = trained / "train"
        yield fare("train", train, disks["train"], (own / "metrics.jsonl").exists, lambda: own / "STATUS", folder / "home")
        swept = disks["sweep"] / "sweep"
        sweep = ["sweep", "-o", str(swept), "--method", "darts", "--latency-budget", "60%", "--seeds", "1", *SMALL]
        sweep += [*(f"--set=search.{key}={value}" for key, value in words.items()), "--set=train.epochs=2", "-q"]
        has_begun = partial(has_file, swept, "trials/*/metrics.jsonl")
        yield fare("sweep", sweep, disks["sweep"], has_begun, lambda: swept / "STATUS", folder / "home")
        home = disks["profile"] / "home"
        has_begun = partial(has_file, home, "campaigns/*/rows.jsonl")
        yield fare("profile", profile, disks["profile"], has_begun, lambda: newest(home, "campaigns/*/STATUS"), home)
    finally:
        for disk in disks.values():
            if disk.is_mount():
                subprocess.run(["umount", "-l", str(disk)], check=False)


def has_file(folder: Path, pattern: str) -> bool:
    """Whether there is a file of this pattern."""
    return any(folder.glob(pattern))


if __name__ == "__main__":
    are_right = True
    print("| command | ends with | says | STATUS | again |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="full-disk-") as temporary:
        for outcome in main(Path(temporary), Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None):
            said = outcome.said.replace(temporary, "")
            print(f"| {outcome.command} | {outcome.full_code} | {said} | {outcome.status} | {outcome.again_code} |", flush=True)
            are_right &= outcome.is_right
    sys.exit(not are_right)
