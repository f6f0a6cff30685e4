"""Kill a profile, a search and a training at random moments, run each again until it ends, and compare with one never killed.

python tests/benchmarks/kill_and_resume.py --kills 5 --output /tmp/kills
python tests/benchmarks/kill_and_resume.py --kills 5 --output /tmp/kills --channels 16 --layers 8 --epochs 15
python tests/benchmarks/kill_and_resume.py --kills 20 --output /tmp/kills --processes 2 --epochs 45
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file


@dataclass(frozen=True)
class Size:
    """How large a thing is killed."""

    channels: int = 4
    layers: int = 3
    epochs: int = 15
    """Of the search and of the training: three or more for a kill."""
    train_fraction: float = 0.2
    processes: int = 1
    """At the search and the training; of several one is killed, or all."""
    nodes: int = 4
    """Of each cell."""

    @property
    def together(self) -> list[str]:
        return ["--devices", str(self.processes)] if self.processes > 1 else []

    @property
    def space(self) -> list[str]:
        return ["--channels", str(self.channels), "--layers", str(self.layers), "--set", f"space.options.nodes={self.nodes}"]


class Commands:
    """Runs commands in ``home``, the folder that also holds the user's data of these runs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "MOBILENAS_HOME": str(home / "data"), "OMP_NUM_THREADS": "1"}

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "mobilenas", *arguments]
        with open(self.home / "log.txt", "ab") as log:
            return subprocess.Popen(argv, cwd=self.home, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def run(self, arguments: Sequence[str]) -> None:
        """Run to the end."""
        code = self.start(arguments).wait()
        assert code == 0, (self.home / "log.txt").read_text()[-3000:]

    def run_with_kills(
        self, arguments: Sequence[str], kills: int, working: Path, pace_s: float, generator: random.Random
    ) -> int:
        """Kill it ``kills`` times while it works, up to ``pace_s`` after ``working`` has changed; how often that hit."""
        hits = 0
        for _ in range(kills):
            before = _stamp(working)
            process = self.start(arguments)
            while process.poll() is None and _stamp(working) == before:
                time.sleep(0.005)
            try:
                process.wait(generator.uniform(0, pace_s))
            except subprocess.TimeoutExpired:
                kill_some(process, generator)
                hits += 1
            else:
                assert process.returncode == 0, (self.home / "log.txt").read_text()[-3000:]
                break
        self.run(arguments)
        return hits


def kill_some(process: subprocess.Popen[bytes], generator: random.Random) -> None:
    """Kill a command: where it has begun processes beside its own, one of these, itself, or all."""
    beside = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    victim = generator.choice(["all", "first", "another"]) if beside else "first"
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(beside[0] if victim == "another" else process.pid, signal.SIGKILL)
    code = process.wait(timeout=60)
    assert code == (8 if victim == "another" else -signal.SIGKILL), f"{victim} was killed, and the command ended with {code}"


def _stamp(path: Path) -> tuple[str, ...]:
    """What tells that work has gone on: names and sizes of the files below ``path``."""
    found = path.rglob("*") if path.is_dir() else [path]
    stamps = []
    for file in found:
        try:
            stamps.append(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}")
        except FileNotFoundError:
            continue
    return tuple(sorted(stamps))


def profile(folder: Path, size: Size, kills: int, seed: int) -> int:
    """Every model is recorded once per sweep, whatever was killed; returns the number of kills that hit."""
    commands = Commands(folder)
    arguments = ["profile", "--data", "digits", *size.space, "-o", str(folder / "table")]
    hits = commands.run_with_kills(arguments, kills, folder / "data" / "campaigns", 4.0, random.Random(seed))
    [journal] = (folder / "data" / "campaigns").glob("*/rows.jsonl")
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    records = Counter((e["sweep"], e["model"]) for e in entries if "record" in e and e["model"] != "sentinel")
    assert max(records.values()) == 1, "something was measured again"
    card = json.loads((folder / "table" / "card.json").read_text())
    assert card["environment"]["versions"]["engine"] != "unknown"
    assert card["rows"] > 20
    return hits


def search(folder: Path, table: Path, size: Size, kills: int, seed: int) -> int:
    """Logits, weights and architecture are those of a search that was never killed, bit for bit."""
    arguments = [
        "search", "--data", "digits", *size.space, "--latency-budget", "40%", "--no-measure", "--table", str(table),
        "--epochs", str(size.epochs), "--set", "supernet.channels=4", "--set", "supernet.layers=3",
        "--set", f"data.train_fraction={size.train_fraction}", "--set", "architecture.lr=0.02",
        "--set", "selection.keep=2", "--set", "selection.steps=12", *size.together, "-o",
    ]  # fmt: skip
    commands = Commands(folder)
    commands.run([*arguments, "whole"])
    whole, killed = folder / "whole", folder / "killed"
    pace_s = _pace_s(whole, size.epochs / kills)
    hits = commands.run_with_kills([*arguments, "killed"], kills, killed / "metrics.jsonl", pace_s, random.Random(seed))
    assert (whole / "architecture.json").read_bytes() == (killed / "architecture.json").read_bytes()
    assert (whole / "logits.safetensors").read_bytes() == (killed / "logits.safetensors").read_bytes()
    _assert_same_tensors(_last_checkpoint(whole), _last_checkpoint(killed))
    _assert_same_metrics(whole, killed)
    return hits


def train(folder: Path, run: Path, size: Size, kills: int, seed: int) -> int:
    """The weights are those of a training that was never killed, bit for bit."""
    arguments = [
        "train",
        "run",
        "--epochs",
        str(size.epochs),
        "--set",
        f"data.train_fraction={size.train_fraction}",
        *size.together,
    ]
    whole, killed = folder / "whole", folder / "killed"
    for each in (whole, killed):
        each.mkdir(parents=True)
        _copy_run(run, each / "run")
    Commands(whole).run(arguments)
    working = killed / "run" / "train" / "metrics.jsonl"
    pace_s = _pace_s(whole / "run" / "train", size.epochs / kills)
    hits = Commands(killed).run_with_kills(arguments, kills, working, pace_s, random.Random(seed))
    name = Path("run", "train", "weights.safetensors")
    assert (whole / name).read_bytes() == (killed / name).read_bytes()
    _assert_same_metrics(whole / "run" / "train", killed / "run" / "train")
    return hits


def _copy_run(run: Path, to: Path) -> None:
    to.mkdir()
    for name in ("architecture.json", "config.toml", "result.json"):
        (to / name).write_bytes((run / name).read_bytes())


def _pace_s(run: Path, epochs: float) -> float:
    """Seconds that so many epochs of a run took, less the one that a kill waits for."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max(1.0, epochs - 1) * sum(line["duration_s"] for line in lines) / len(lines)


def _last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").rglob("*.safetensors"))


def _assert_same_tensors(one: Path, other: Path) -> None:
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


def _assert_same_metrics(one: Path, other: Path) -> None:
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    for line in (*lines[0], *lines[1]):
        del line["duration_s"]
        line.pop("images_per_s", None)
    assert lines[0] == lines[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--train-fraction", type=float, default=0.2)
    parser.add_argument("--processes", type=int, default=1)
    a = parser.parse_args()
    size = Size(a.channels, a.layers, a.epochs, a.train_fraction, a.processes)
    output = a.output.resolve()
    begin = time.monotonic()
    print(f"profile: {profile(output / 'profile', size, a.kills, a.seed)} kills, nothing measured twice", flush=True)
    table = output / "profile" / "table"
    print(f"search: {search(output / 'search', table, size, a.kills, a.seed)} kills, same bits", flush=True)
    run = output / "search" / "whole"
    print(f"train: {train(output / 'train', run, size, a.kills, a.seed)} kills, same bits", flush=True)
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
