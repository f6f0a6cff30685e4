"""Small searches and a training in float64, by one or each of two: ``python -m tests.search.together FOLDER RANK PORT``."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed import TCPStore

from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import Images, InMemory, Subset, load_data
from mobilenas.latency.budget import Budget
from mobilenas.latency.models import TableModel
from mobilenas.methods.base import SearchMethod
from mobilenas.methods.darts import Darts
from mobilenas.methods.dense_nas import DenseNas
from mobilenas.methods.gdas import Gdas
from mobilenas.methods.p_darts import PDarts
from mobilenas.methods.pc_darts import PCDarts
from mobilenas.search.descent import AdamSettings, SgdSettings
from mobilenas.search.engine import EngineSettings, SearchEngine
from mobilenas.search.processes import Processes
from mobilenas.search.retrain import Trainer, TrainSettings
from mobilenas.search.task import Classification
from mobilenas.spaces.base import SearchSpace, SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import dense_small
from mobilenas.supernet import Mixture
from mobilenas.testing.fakes import make_lower, make_table

CELLS = CellSpace(channels=4, layers=3, image_size=8, nodes=2, classes=3)
DENSE = dense_small(16, 3)
IMAGES = 16
CASES: dict[str, tuple[SearchSpace, Callable[[], SearchMethod]]] = {
    "darts": (CELLS, Darts),
    "darts of second order": (CELLS, lambda: Darts(order=2)),
    "darts of second order, exact": (CELLS, lambda: Darts(order=2, hessian="exact")),
    "gdas": (CELLS, Gdas),
    "p-darts": (CELLS, lambda: PDarts(added_layers=(0, 3), added_channels=(0, 0), kept=(5,), skip_dropout=(0.0, 0.0))),
    "pc-darts": (CELLS, PCDarts),
    "dense-nas": (DENSE, DenseNas),
}
TRAINING = "training"


class Ghost(nn.Module):
    """Normalises the two halves of a batch apart, as two processes do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor, *mixture: Mixture) -> Tensor:
        return torch.cat([self.inner(half, *mixture) for half in images.chunk(2)])


def images(space: SearchSpace, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    _, channels, height, width = space.image_shape
    pixels = torch.randint(0, 256, (IMAGES, channels, height, width), generator=generator, dtype=torch.uint8)
    return Images(InMemory(pixels, torch.arange(IMAGES) % 3), lambda image: image.double() / 255)


def search(folder: Path, case: str, processes: Processes, is_ghost: bool = False, accumulate: int = 1) -> dict[str, Tensor]:
    """Logits and weights after two epochs under a budget that binds."""
    space, method = CASES[case]
    supernets: list[nn.Module] = []

    class Watched(type(space)):  # type: ignore[misc]
        def supernet(self, plan: SupernetPlan) -> nn.Module:
            supernets.append(super().supernet(plan))
            return Ghost(supernets[-1]) if is_ghost else supernets[-1]

    model = TableModel(make_table(space), space, make_lower(space))
    target_ms = 0.8 * model.latency(space.random_architecture(random.Random(0))).ms
    engine = SearchEngine(
        space=Watched(**{field.name: getattr(space, field.name) for field in fields(space)}),
        method=method(),
        task=Classification(),
        halves=(images(space, 1), images(space, 2)),
        budgets=[Budget(model, target_ms)],
        settings=EngineSettings(
            supernet=None if space.proxy is None else SupernetSize(channels=4, layers=3),
            checkpoint_cells=False,
            epochs=2,
            warmup_epochs=1,
            batch_size=8,
            workers=0,
            weights=SgdSettings(lr=0.05, min_lr=0.01, momentum=0.9, weight_decay=1e-4, clip_norm=5.0),
            architecture=AdamSettings(lr=0.01, beta1=0.5, beta2=0.999, weight_decay=1e-3),
            seed=0,
            accumulate=accumulate,
        ),
        fabric=Fabric(accelerator="cpu", devices=1, precision="64-true"),
        directory=RunDirectory(folder / case),
        processes=processes,
    )
    parameters = engine.run()
    return {
        **{f"logits {name}": row.detach().clone() for name, row in parameters.named_parameters()},
        **{f"weight {name}": weight.detach().clone() for name, weight in supernets[-1].named_parameters()},
    }


class GhostNetwork(Ghost):
    """The same of a network that is trained with an auxiliary head."""

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, ...]:
        halves = [self.inner.forward_with_auxiliary(half) for half in images.chunk(2)]
        return tuple(torch.cat(parts) for parts in zip(*halves, strict=True))


def train(folder: Path, processes: Processes, is_ghost: bool = False, accumulate: int = 1) -> dict[str, Tensor]:
    """Weights after two epochs; nothing is dropped, which each process would draw apart."""
    space = CellSpace(channels=4, layers=3, image_size=8, image_channels=1)
    digits = load_data("digits")
    train, test = digits.read()
    torch.manual_seed(0)
    network = space.build(space.random_architecture(random.Random(0)), auxiliary=True)
    weights = SgdSettings(lr=0.05, min_lr=0.0, momentum=0.9, weight_decay=3e-4, clip_norm=5.0)
    Trainer(
        network=GhostNetwork(network) if is_ghost else network,
        data=replace(digits, read=lambda: (Subset(train, torch.arange(48)), Subset(test, torch.arange(16)))),
        task=Classification(),
        settings=TrainSettings(2, 16, 0, weights, 0.0, 0.4, True, 1, accumulate=accumulate),
        fabric=Fabric(accelerator="cpu", devices=1, precision="64-true"),
        directory=RunDirectory(folder / TRAINING),
        processes=processes,
    ).run()
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def run(folder: Path, case: str, processes: Processes, is_ghost: bool = False, accumulate: int = 1) -> dict[str, Tensor]:
    """What comes of a search, or of a training."""
    if case == TRAINING:
        return train(folder, processes, is_ghost, accumulate)
    return search(folder, case, processes, is_ghost, accumulate)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = TCPStore("127.0.0.1", port, 2, rank == 0, timedelta(seconds=60), wait_for_workers=False)
    processes = Processes(rank, 2, store, timeout_s=60)
    for case in [*CASES, TRAINING]:
        found = run(folder / str(rank), case, processes)
        torch.save(found, folder / f"{case}-{rank}.pt")
    processes.close()


if __name__ == "__main__":
    main()
