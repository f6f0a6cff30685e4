"""Time and peak memory of one search step on ``densenas-mbv2`` at its full size: an architecture step, then a weight step.

OMP_NUM_THREADS=1 python tests/benchmarks/densenas_step.py --batch 2 [--checkpoint]
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch.nn import functional

from mobilenas.latency.budget import LogCost
from mobilenas.methods.base import Batch, Moved, Progress, Step
from mobilenas.methods.dense_nas import DenseNas
from mobilenas.spaces.base import SupernetPlan
from mobilenas.spaces.dense_blocks import densenas_mbv2
from mobilenas.supernet import ArchitectureParameters, LogitsBefore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--checkpoint", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    space, method, progress = densenas_mbv2(arguments.image_size, classes=100), DenseNas(), Progress(0, 60, 150, 50)
    supernet = space.supernet(SupernetPlan(None, space.decisions, checkpoint=arguments.checkpoint)).train()
    parameters = ArchitectureParameters(space.decisions, torch.Generator().manual_seed(0))
    weights = list(supernet.parameters())
    adam = torch.optim.Adam(parameters.parameters(), 3e-4, (0.5, 0.999), weight_decay=1e-3)
    sgd = torch.optim.SGD(weights, 0.2, momentum=0.9, weight_decay=4e-5)
    costs = space.option_costs(dict.fromkeys(space.workloads(), 0.1))
    objective = LogCost(space, costs, 0.15, 15.0)
    batch = Batch(torch.randn(arguments.batch, *space.image_shape[1:]), torch.arange(arguments.batch))
    step = Step(
        parameters=parameters,
        train=batch,
        valid=batch,
        progress=progress,
        loss=lambda batch, mixture: functional.cross_entropy(supernet(batch.images, mixture), batch.labels),
        constraint=lambda mixture: objective.term(mixture.probabilities),
        backward=torch.autograd.backward,
        weights=weights,
        weights_after=list,
        weights_lr=0.2,
    )
    lowest_s = {"architecture": 1e9, "weights": 1e9}
    for _ in range(arguments.steps):
        begin = time.monotonic()
        adam.zero_grad()
        method.architecture_gradient(step)
        before = LogitsBefore.of(parameters, adam)
        adam.step()
        with torch.no_grad():
            method.after_architecture_step(Moved(parameters, before, adam, progress))
        middle = time.monotonic()
        sgd.zero_grad()
        with torch.no_grad():
            mixture = method.relax_weights(parameters, progress)
        torch.autograd.backward(step.loss(batch, mixture))
        sgd.step()
        taken = {"architecture": middle - begin, "weights": time.monotonic() - middle}
        lowest_s = {kind: min(lowest_s[kind], seconds) for kind, seconds in taken.items()}
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"architecture step {lowest_s['architecture']:.2f} s, weight step {lowest_s['weights']:.2f} s, peak {peak_gib:.2f} GiB"
    )


if __name__ == "__main__":
    main()
