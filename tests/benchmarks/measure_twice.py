"""Measure five networks twice, some minutes apart, on an idle host and beside two busy processes: do the intervals overlap?

    python tests/benchmarks/measure_twice.py --output runs/measure-twice --pause-s 600 --repeats 3

Each round is kept in the output folder as it is done, so that the same command goes on where it stopped. Prints each pair of
measurements, whether their intervals overlap, and how wide they are.
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
    print(
        "| load | repeat | model | first ms | second ms | overlap | widths | others' share |\n|---|---|---|---|---|---|---|---|"
    )
    overlaps: dict[str, list[bool]] = {"quiet": [], "loaded": []}
    widths: dict[str, list[float]] = {"quiet": [], "loaded": []}
    for repeat in range(arguments.repeats):
        for state in ("quiet", "loaded"):
            first = _round(models, arguments, f"{state}-{repeat}-first", state)
            second = _round(models, arguments, f"{state}-{repeat}-second", state, after=f"{state}-{repeat}-first")
            for name, one, other in zip(NETWORKS, first, second, strict=True):
                overlap = one["low_ms"] <= other["high_ms"] and other["low_ms"] <= one["high_ms"]
                wide = [each["high_ms"] / each["low_ms"] for each in (one, other)]
                overlaps[state].append(overlap)
                widths[state] += wide
                times = " | ".join(f"{e['value_ms']:.3f} ({e['low_ms']:.3f} to {e['high_ms']:.3f})" for e in (one, other))
                loads = f"{one['load']:.2f}, {other['load']:.2f}"
                print(
                    f"| {state} | {repeat} | {name} | {times} | {overlap} | {wide[0]:.3f}, {wide[1]:.3f} | {loads} |",
                    flush=True,
                )
    for state, found in overlaps.items():
        within = sum(width <= WIDEST[state] for width in widths[state])
        print(
            f"\n{state}: {sum(found)} of {len(found)} pairs overlap; high/low at most {max(widths[state]):.3f}, {within} of "
            f"{len(widths[state])} within {WIDEST[state]}"
        )


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
