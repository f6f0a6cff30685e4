"""Rows of a latency table measured on a loaded host beside the same rows on a quiet one, sweep by sweep in turn.

``OMP_NUM_THREADS=1 python tests/benchmarks/loaded_host.py --output runs/loaded`` lowers networks of a space to their kernels.
Then it measures these alternately: a sweep as the host is, a sweep with two busy processes beside it. What has not converged
gets more sweeps, as in any campaign. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from mobilenas import onnx_model
from mobilenas.config import DeviceConfig
from mobilenas.core.measurement import plan_named
from mobilenas.core.run_directory import Journal
from mobilenas.latency.diff import SMALLEST_MS
from mobilenas.profiling.kernels import measure_kernels
from mobilenas.spaces.cells import CellSpace
from mobilenas.workflows import Target

BUSY = (
    "while True: pass",
    "import numpy; a = numpy.zeros(2**24); b = a.copy()\nwhile True: b[:] = a",
)
"""One that computes, one that moves memory."""
NETWORKS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the records go here")
    parser.add_argument("--plan", default="quick")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    target, plan, space = Target.from_config(DeviceConfig()), plan_named(arguments.plan), CellSpace()
    generator = random.Random(0)
    models = [onnx_model.compose(space.blueprint(space.random_architecture(generator))) for _ in range(NETWORKS)]
    tables = {}
    with target.device.open() as link:
        kernels = sorted(set().union(*target.runtime.kernels(models, link, target.settings)))
        for sweeps in range(1, plan.maximum_sweeps + 1):
            so_far = msgspec.structs.replace(plan, sweeps=min(sweeps, plan.sweeps), maximum_sweeps=sweeps, spread_s=0.0)
            for name, busy in (("quiet", ()), ("loaded", BUSY)):
                with beside(busy):
                    journal = Journal(arguments.output / f"{name}.jsonl")
                    tables[name] = measure_kernels(kernels, link, target.runtime, target.settings, so_far, journal)
            print(f"{sweeps} of at most {plan.maximum_sweeps} sweeps", flush=True)
    quiet, loaded = ([tables[name][kernel] for kernel in kernels] for name in ("quiet", "loaded"))
    told = [q.value_ms >= SMALLEST_MS and lo.value_ms >= SMALLEST_MS for q, lo in zip(quiet, loaded, strict=True)]
    ratios = np.array([lo.value_ms / q.value_ms for q, lo, is_told in zip(quiet, loaded, told, strict=True) if is_told])
    settled = np.array([lo.converged for lo, is_told in zip(loaded, told, strict=True) if is_told])
    print(f"\n| rows | number | median difference | worst | off by over 10 % |\n|{'---|' * 5}")
    for name, chosen in (("all", np.full(len(ratios), True)), ("converged", settled), ("not converged", ~settled)):
        if chosen.any():
            off = np.abs(ratios[chosen] - 1)
            print(f"| {name} | {len(off)} | {np.median(off):.1%} | {off.max():.0%} | {(off > 0.1).sum()} |")
    unsettled = sum(not row.converged for row in quiet)
    print(f"\nmedian ratio {np.median(ratios):.3f}; not converged when quiet: {unsettled} of {len(quiet)}")


@contextmanager
def beside(programs: tuple[str, ...]) -> Iterator[None]:
    """Processes that run until the block ends."""
    running = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
