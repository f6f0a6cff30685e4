"""Train a derived architecture from scratch: SGD, cosine, cutout, drop path, auxiliary head (DARTS, appendix A.2)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import CyclingLoader, ImageData, Images
from mobilenas.errors import DivergedError
from mobilenas.network import Network
from mobilenas.search.checkpoints import Checkpoints, random_state, set_random_state
from mobilenas.search.engine import SgdSettings
from mobilenas.search.task import Task

EVALUATION_BATCH = 256


class TrainSettings(msgspec.Struct, frozen=True):
    """How a network is trained; fractions are from 0 to 1."""

    epochs: int
    batch_size: int
    workers: int
    weights: SgdSettings
    drop_path_fraction: float
    auxiliary_weight: float
    cutout: bool
    seed: int


class TrainReport(msgspec.Struct, frozen=True):
    """What one epoch of training did; a line of metrics.jsonl."""

    epoch: int
    epochs: int
    train_cross_entropy: float
    train_accuracy: float
    test_accuracy: float
    lr: float
    duration_s: float


@dataclass
class Trainer:
    """Trains ``network``; a run directory with a checkpoint goes on where it stopped."""

    network: Network
    data: ImageData
    task: Task
    settings: TrainSettings
    fabric: Fabric
    directory: RunDirectory
    on_epoch: Callable[[TrainReport], None] = lambda _: None

    def run(self) -> TrainReport:
        """Train to the last epoch and return its report. Raises ``DivergedError`` if the loss stops being finite."""
        settings, fabric = self.settings, self.fabric
        torch.manual_seed(settings.seed)
        parameters = list(self.network.parameters())
        optimiser = torch.optim.SGD(
            parameters,
            settings.weights.lr,
            momentum=settings.weights.momentum,
            weight_decay=settings.weights.weight_decay,
        )
        model, optimiser = fabric.setup(self.network, optimiser)
        model.mark_forward_method("forward_with_auxiliary")
        images = self.data.with_cutout() if settings.cutout else self.data.train
        loader = CyclingLoader(images, settings.batch_size, settings.seed, settings.workers)
        checkpoints = Checkpoints(self.directory.checkpoints)
        first, report = self._resume(checkpoints, model, optimiser, loader)
        for epoch in range(first, settings.epochs):
            report = self._epoch(model, optimiser, parameters, loader, epoch)
            state = {
                "network": self.network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "loader": loader.state(),
                "random": random_state(),
                "report": msgspec.to_builtins(report),
            }
            checkpoints.save(epoch + 1, state)
            self.directory.metrics.append(report)
            self.on_epoch(report)
        assert report is not None
        return report

    def _epoch(self, model: Any, optimiser: Any, parameters: list[Any], loader: CyclingLoader, epoch: int) -> TrainReport:
        settings, fabric = self.settings, self.fabric
        begin = time.monotonic()
        lr = settings.weights.lr_at(epoch, settings.epochs)
        for group in optimiser.param_groups:
            group["lr"] = lr
        self.network.drop_path_fraction = settings.drop_path_fraction * epoch / settings.epochs
        model.train()
        total, correct, count = 0.0, 0, 0
        for _ in range(len(loader)):
            images, labels = fabric.to_device(loader.next())
            logits, auxiliary = model.forward_with_auxiliary(images)
            loss = self.task.loss(logits, labels)
            total += float(loss.detach()) * len(labels)
            if auxiliary is not None:
                loss = loss + settings.auxiliary_weight * self.task.loss(auxiliary, labels)
            optimiser.zero_grad()
            fabric.backward(loss)
            nn.utils.clip_grad_norm_(parameters, settings.weights.clip_norm)
            optimiser.step()
            correct += self.task.correct(logits.detach(), labels)
            count += len(labels)
        if not math.isfinite(total):
            raise DivergedError(f"the training loss is not finite in epoch {epoch + 1}; lower weights.lr")
        return TrainReport(
            epoch=epoch,
            epochs=settings.epochs,
            train_cross_entropy=total / count,
            train_accuracy=correct / count,
            test_accuracy=evaluate(model, self.data.test, self.task, fabric),
            lr=lr,
            duration_s=time.monotonic() - begin,
        )

    def _resume(
        self, checkpoints: Checkpoints, model: Any, optimiser: Any, loader: CyclingLoader
    ) -> tuple[int, TrainReport | None]:
        found = checkpoints.load_latest()
        if found is None:
            return 0, None
        epoch, state = found
        self.network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        loader.load_state(state["loader"])
        set_random_state(state["random"])
        return epoch, msgspec.convert(state["report"], TrainReport)


def evaluate(model: nn.Module, images: Images, task: Task, fabric: Fabric) -> float:
    """Fraction of ``images`` that ``model`` gets right, in eval mode; the mode is restored."""
    was_training = model.training
    model.eval()
    correct = 0
    with torch.no_grad():
        for batch, labels in DataLoader(images, EVALUATION_BATCH):
            batch, labels = fabric.to_device((batch, labels))
            correct += task.correct(model(batch), labels)
    model.train(was_training)
    return correct / len(images)
