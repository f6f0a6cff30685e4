"""A profile, a search, a training and a sweep on a disk that fills while they run, and again after room was made.

python -m tests.benchmarks.full_disk [FOLDER]

Each command works on a disk of its own, a small tmpfs, which is filled once the command has begun to write. Where no disk may
be mounted, the size of files is limited instead. The table says how the command ended, what it said, what STATUS says, and
how the same command ended once there was room.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SMALL = ("--data", "digits", "--channels", "4", "--layers", "3")
DISK_MIB = 24
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


def main(folder: Path) -> list[Outcome]:
    """All four commands; the table of the search is made on a disk with room."""
    table = folder / "table"
    quiet = ["-q"]
    profile = ["profile", *SMALL, "--plan", "quick", *quiet]
    subprocess.run([sys.executable, "-m", "mobilenas", *profile, "-o", str(table)], check=True)
    disks = {name: folder / name for name in ("profile", "search", "train", "sweep")}
    kinds = {name: "a full disk" if small_disk(disk) else "a limit of files" for name, disk in disks.items()}
    print(f"by {', '.join(f'{name}: {kind}' for name, kind in kinds.items())}")
    searched = ["--method", "darts", "--table", str(table), "--no-measure"]
    outcomes = []
    try:
        home = disks["profile"] / "home"
        outcomes.append(
            fare(
                "profile",
                profile,
                disks["profile"],
                lambda: any(home.glob("campaigns/*/rows.jsonl")),
                lambda: newest(home, "campaigns/*/STATUS"),
                home,
            )
        )
        run = disks["search"] / "run"
        search = ["search", *SMALL, *searched, "--latency-budget", "60%", "--epochs", "8", "-o", str(run), *quiet]
        metrics = run / "metrics.jsonl"
        outcomes.append(fare("search", search, disks["search"], metrics.exists, lambda: run / "STATUS", folder / "home"))
        trained = disks["train"] / "run"
        trained.mkdir()
        for name in ("architecture.json", "config.toml", "result.json"):
            (trained / name).write_bytes((run / name).read_bytes())
        train = ["train", str(trained), "--data", "digits", "--epochs", "8", *quiet]
        metrics = trained / "train" / "metrics.jsonl"
        outcomes.append(
            fare("train", train, disks["train"], metrics.exists, lambda: trained / "train" / "STATUS", folder / "home")
        )
        swept = disks["sweep"] / "sweep"
        settings = {"table": str(table), "measure": False, "epochs": 4}
        sets = [
            f"--set=search.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
        ]
        sweep = ["sweep", "-o", str(swept), "--method", "darts", "--latency-budget", "60%", "--seeds", "1", *SMALL, *sets]
        sweep += ["--set=train.epochs=2", *quiet]
        outcomes.append(
            fare(
                "sweep",
                sweep,
                disks["sweep"],
                lambda: any(swept.glob("trials/*/metrics.jsonl")),
                lambda: swept / "STATUS",
                folder / "home",
            )
        )
    finally:
        for disk in disks.values():
            if disk.is_mount():
                subprocess.run(["umount", "-l", str(disk)], check=False)
    return outcomes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="full-disk-") as temporary:
        found = main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary))
    print("| command | ends with | says | STATUS | again |\n|---|---|---|---|---|")
    for outcome in found:
        print(f"| {outcome.command} | {outcome.full_code} | {outcome.said} | {outcome.status} | {outcome.again_code} |")
    sys.exit(not all(outcome.is_right for outcome in found))
