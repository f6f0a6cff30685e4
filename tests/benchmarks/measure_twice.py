"""Measure five networks again and again, idle and beside two busy processes in turn: do the intervals overlap?

    python tests/benchmarks/measure_twice.py --output runs/measure-twice --pause-s 600 --repeats 3

Each round is kept in the output folder as it is done, so that the same command goes on where it stopped. Prints each pair of
measurements that follow each other in the same state, and each idle one with the loaded one that follows it: whether their
intervals overlap, and how wide they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mobilenas import onnx_model, workflows
from mobilenas.config import MeasureConfig
from mobilenas.core import documents
from mobilenas.core.run_directory import write_atomic

NETWORKS = ("mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x1_0", "mnasnet0_5", "resnet18")
BUSY = "while True: sum(i * i for i in range(100_000))"
WIDEST = {"quiet": 1.15, "loaded": 2.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pause-s", type=float, default=600.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plan", default="quick")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    models = [_exported(name, arguments.output) for name in NETWORKS]
    rounds: dict[str, list[list[dict[str, float]]]] = {"quiet": [], "loaded": []}
    before: str | None = None
    for repeat in range(arguments.repeats):
        for state in rounds:
            name = f"{repeat}-{state}"
            rounds[state].append(_round(models, arguments, name, state, after=before))
            before = name
    for state, found in rounds.items():
        _compare(f"{state}, then {state}", found[:-1], found[1:])
        widths = [each["high_ms"] / each["low_ms"] for one in found for each in one]
        within = sum(width <= WIDEST[state] for width in widths)
        print(f"{state}: high/low at most {max(widths):.3f}, {within} of {len(widths)} within {WIDEST[state]}\n")
    _compare("quiet, then loaded", rounds["quiet"], rounds["loaded"])


def _compare(title: str, first: list[list[dict[str, float]]], second: list[list[dict[str, float]]]) -> None:
    """Print each network of each pair of rounds, and how many intervals overlap."""
    print(f"{title}\n\n| model | first ms | second ms | overlap | others' share |\n|---|---|---|---|---|")
    overlaps = []
    for ones, others in zip(first, second, strict=True):
        for name, one, other in zip(NETWORKS, ones, others, strict=True):
            overlaps.append(one["low_ms"] <= other["high_ms"] and other["low_ms"] <= one["high_ms"])
            times = " | ".join(f"{e['value_ms']:.3f} ({e['low_ms']:.3f} to {e['high_ms']:.3f})" for e in (one, other))
            print(f"| {name} | {times} | {'yes' if overlaps[-1] else 'no'} | {one['load']:.2f}, {other['load']:.2f} |")
    print(f"\n{sum(overlaps)} of {len(overlaps)} pairs overlap\n", flush=True)


def _exported(name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    if not path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchvision import models

            network = models.get_model(name, weights=None).eval()
        content = onnx_model.onnx_from_module(network, [torch.randn(1, 3, 224, 224)]).SerializeToString()
        path.write_bytes(content)
    return path


def _round(
    models: list[Path], arguments: argparse.Namespace, name: str, state: str, after: str | None = None
) -> list[dict[str, float]]:
    """One measurement of all models, or what was kept of it; at least the pause after the one before."""
    kept = arguments.output / f"{name}.json"
    if not kept.exists():
        if after is not None:
            ended = json.loads((arguments.output / f"{after}.json").read_text())["at_s"]
            time.sleep(max(0.0, ended + arguments.pause_s - time.time()))
        with _busy(2 if state == "loaded" else 0):
            results = workflows.measure(models, MeasureConfig(plan=arguments.plan))
        failed = [result.failure.message for result in results if result.failure]
        if failed:
            sys.exit(failed[0])
        document = {"at_s": time.time(), "measured": [result.measured for result in results]}
        write_atomic(kept, documents.dump_json(document))
    found: list[dict[str, float]] = json.loads(kept.read_text())["measured"]
    return found


@contextmanager
def _busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
