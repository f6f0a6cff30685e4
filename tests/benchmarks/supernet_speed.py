"""The merged supernet beside the plain loop in NCHW: time of a search step, of a pass, memory, operations. One thread.

``OMP_NUM_THREADS=1 python -m tests.benchmarks.supernet_speed`` prints a table for docs/benchmarks/supernet-speed.md. The plain
side is the papers' step: every edge and operator by itself (tests/oracles/plain_cells.py), gradients of the weights also where
only the logits are stepped. Both sides are timed by turns; a ratio is the median of the turns' ratios.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mobilenas.methods import base
from mobilenas.methods.base import Batch, Progress, SearchMethod, Step
from mobilenas.methods.darts import Darts
from mobilenas.methods.gdas import Gdas
from mobilenas.methods.p_darts import PDarts
from mobilenas.methods.pc_darts import PCDarts
from mobilenas.spaces.base import SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.supernet import ArchitectureParameters, Mixture
from tests.oracles.plain_cells import PlainCells

SPACE = CellSpace()


class Side:
    """A supernet, its logits and its optimisers; ``step`` is one search step in the method's order."""

    def __init__(self, method: SearchMethod, batch: int, is_plain: bool, layers: int = 8, checkpoint: bool = False) -> None:
        decisions = method.searched(SPACE)
        torch.manual_seed(0)
        merged = SPACE.supernet(SupernetPlan(SupernetSize(16, layers), decisions, method.switches.partial_channels, checkpoint))
        self.method, self.is_plain = method, is_plain
        self.network: nn.Module = PlainCells(copy.deepcopy(merged)) if is_plain else merged
        self.weights = list(self.network.parameters())
        self.logits = ArchitectureParameters(decisions, torch.Generator().manual_seed(0), SPACE.decisions)
        self.sgd = torch.optim.SGD(self.weights, 0.025, momentum=0.9, weight_decay=3e-4)
        self.adam = torch.optim.Adam(self.logits.parameters(), 3e-4, (0.5, 0.999), weight_decay=1e-3)
        self.batches = [Batch(torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))) for _ in range(2)]
        self.progress = Progress(0, 1, 3)

    def loss(self, batch: Batch, mixture: Mixture) -> Tensor:
        return functional.cross_entropy(self.network(batch.images, mixture), batch.labels)

    def forward_backward(self) -> None:
        self.loss(self.batches[0], self.method.relax_architecture(self.logits, self.progress)).backward()

    def step(self) -> None:
        for kind in self.method.step_order:
            torch.manual_seed(1)  # both sides draw the same paths
            if kind == "architecture":
                self._architecture_step()
            else:
                with torch.no_grad():
                    mixture = self.method.relax_weights(self.logits, self.progress)
                self.sgd.zero_grad()
                self.loss(self.batches[0], mixture).backward()
                nn.utils.clip_grad_norm_(self.weights, 5.0)
                self.sgd.step()

    def _architecture_step(self) -> None:
        self.adam.zero_grad()
        step = Step(
            parameters=self.logits,
            train=self.batches[0],
            valid=self.batches[1],
            progress=self.progress,
            loss=self.loss,
            constraint=lambda mixture: torch.zeros(()),
            backward=torch.autograd.backward,
            weights=self.weights,
            weights_after=lambda gradients: [w.detach() - 0.025 * g for w, g in zip(self.weights, gradients, strict=True)],
            weights_lr=0.025,
        )
        with mock.patch.object(base, "frozen", return_value=nullcontext()) if self.is_plain else nullcontext():
            self.method.architecture_gradient(step)
        self.adam.step()


def ratios(plain: Callable[[], None], merged: Callable[[], None], rounds: int) -> tuple[float, float, float]:
    """Median, least and largest of plain time over merged time."""
    found = []
    for _ in range(rounds + 1):
        times = []
        for work in (plain, merged):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        found.append(times[0] / times[1])
    found = found[1:]  # the first round warms up
    return statistics.median(found), min(found), max(found)


class Operations(TorchDispatchMode):
    """Counts what would be a kernel each on a GPU: all operations but views, allocations and detaching."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if not is_view and not function._schema.name.startswith(("aten::empty", "aten::new_empty", "aten::detach")):
            self.count += 1
        return function(*arguments, **(keywords or {}))


def operations(side: Side) -> int:
    side.forward_backward()
    with Operations() as counted:
        side.forward_backward()
    return counted.count


def grown_mib(variant: str) -> float:
    """Growth of the resident memory's peak over one pass at batch 32, in a process of its own."""
    argv = [sys.executable, "-m", "tests.benchmarks.supernet_speed", "--memory", variant]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def _print_memory(variant: str) -> None:
    side = Side(Darts(), 32, variant == "plain", checkpoint=variant == "checkpointed")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew: it was the parent's
    before_mib = peak_mib()
    side.forward_backward()
    print(peak_mib() - before_mib)


def peak_mib() -> float:
    [line] = [text for text in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if text.startswith("VmHWM")]
    return int(line.split()[1]) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=["plain", "merged", "checkpointed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        _print_memory(options.memory)
        return
    print("| what | plain over merged | least to largest | must | aim |\n|---|---|---|---|---|")

    def row(name: str, method: Callable[[], SearchMethod], must: float, aim: float, batch: int = 8, layers: int = 8) -> None:
        plain, merged = (Side(method(), batch, is_plain, layers) for is_plain in (True, False))
        work = ("forward_backward", "forward_backward") if "pass" in name else ("step", "step")
        found = ratios(getattr(plain, work[0]), getattr(merged, work[1]), options.rounds)
        print(f"| {name} | {found[0]:.2f} | {found[1]:.2f} to {found[2]:.2f} | {must} | {aim} |", flush=True)

    row("DARTS, first-order step, batch 8", Darts, 2.3, 2.8)
    row("DARTS, forward and backward pass, batch 16", Darts, 2.0, 2.4, batch=16)
    row("PC-DARTS (K = 4), step, batch 8", PCDarts, 1.9, 2.4)
    row("GDAS, step, batch 8", Gdas, 1.7, 2.0)
    row("P-DARTS stage 1 (5 cells), step, batch 8", PDarts, 1.9, 1.9, layers=5)
    first, second = Side(Darts(), 8, False), Side(Darts(order=2), 8, False)
    found = ratios(second.step, first.step, options.rounds)
    print(f"| second-order over first-order step, batch 8 | {found[0]:.2f} | {found[1]:.2f} to {found[2]:.2f} | <= 3.0 | 2.4 |")
    counts = [operations(Side(Darts(), 8, is_plain)) for is_plain in (False, True)]
    print(f"| operations of a pass: {counts[0]} of {counts[1]} | {counts[0] / counts[1]:.2f} | | <= 0.45 | 0.4 |")
    grown = {variant: grown_mib(variant) for variant in ("plain", "merged", "checkpointed")}
    for variant, must, aim in (("merged", 0.65, 0.6), ("checkpointed", 0.25, 0.25)):
        name = f"peak growth, batch 32, {variant}: {grown[variant]:.0f} of {grown['plain']:.0f} MiB"
        print(f"| {name} | {grown[variant] / grown['plain']:.2f} | | <= {must} | {aim} |")


if __name__ == "__main__":
    main()
