"""Train a derived architecture from scratch: SGD, cosine, cutout, drop path, auxiliary head (DARTS, appendix A.2)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mobilenas.core import documents
from mobilenas.core.run_directory import RunDirectory
from mobilenas.core.signals import StopRequest
from mobilenas.data import CyclingLoader, ImageData, Images
from mobilenas.network import Network
from mobilenas.search.checkpoints import Checkpoints, Saver, Tally, load_states_apart, states_apart
from mobilenas.search.engine import SgdSettings
from mobilenas.search.processes import Processes
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


class TrainReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one epoch of training did; a line of metrics.jsonl."""

    epoch: int
    epochs: int
    train_cross_entropy: float
    train_accuracy: float
    test_accuracy: float
    lr: float
    duration_s: float


class Trainer:
    """Trains ``network``; a run directory with a checkpoint goes on where it stopped."""

    def __init__(
        self,
        *,
        network: Network,
        data: ImageData,
        task: Task,
        settings: TrainSettings,
        fabric: Fabric,
        directory: RunDirectory,
        processes: Processes | None = None,
        on_epoch: Callable[[TrainReport], None] = lambda _: None,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        network.to(memory_format=torch.channels_last)  # what torch's convolutions then keep to: 1.3 times as fast on a CPU
        self.network, self.data, self.task, self.settings, self.fabric = network, data, task, settings, fabric
        self.directory, self.on_epoch = directory, on_epoch
        self.processes = processes or Processes()
        torch.manual_seed(settings.seed)
        self.parameters = list(network.parameters())
        optimiser = torch.optim.SGD(
            self.parameters,
            settings.weights.lr,
            momentum=settings.weights.momentum,
            weight_decay=settings.weights.weight_decay,
        )
        self.model: Any
        self.model, self.optimiser = fabric.setup(_Trained(network), optimiser)
        images = data.with_cutout() if settings.cutout else data.train
        part = self.processes.part_of(settings.batch_size)
        self.loader = CyclingLoader(images, settings.batch_size, settings.seed, settings.workers, part)
        self.checkpoints = Checkpoints(directory.checkpoints, on_note)
        self.epoch, self.step, self.tally = 0, 0, Tally()
        self.report: TrainReport | None = None

    def run(self) -> TrainReport:
        """Train to the last epoch and return its report. Raises ``DivergedError`` if the loss stops being finite."""
        self._resume()
        with StopRequest() as stop:
            saver = Saver(self.checkpoints, self._state, stop, self.processes)
            while self.epoch < self.settings.epochs:
                self.report = self._epoch(saver)
                self.epoch, self.step, self.tally = self.epoch + 1, 0, Tally()
                if self.processes.is_first:
                    self.directory.metrics.append(self.report)
                saver.save()
                self.on_epoch(self.report)
                saver.after_epoch()
        assert self.report is not None
        return self.report

    def _epoch(self, saver: Saver) -> TrainReport:
        settings, fabric = self.settings, self.fabric
        begin = time.monotonic()
        lr = settings.weights.lr_at(self.epoch, settings.epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.network.drop_path_fraction = settings.drop_path_fraction * self.epoch / settings.epochs
        self.model.train()
        while self.step < len(self.loader):
            images, labels = fabric.to_device(self.loader.next())
            with self.processes.drawing_apart():
                logits, auxiliary = self.model(images, with_auxiliary=True)
            loss = self.task.loss(logits, labels)
            self.tally.add(loss, self.task.correct(logits.detach(), labels), len(labels))
            if auxiliary is not None:
                loss = loss + settings.auxiliary_weight * self.task.loss(auxiliary, labels)
            self.optimiser.zero_grad()
            fabric.backward(loss)
            self.processes.average(self.parameters)
            nn.utils.clip_grad_norm_(self.parameters, settings.weights.clip_norm)
            self.optimiser.step()
            self.step += 1
            self.processes.at(f"epoch {self.epoch + 1}, step {self.step}")
            saver.after_step()
        self.processes.average_statistics(self.network)
        tally = self.tally.over(self.processes)
        return TrainReport(
            epoch=self.epoch,
            epochs=settings.epochs,
            train_cross_entropy=tally.mean_loss() or 0.0,
            train_accuracy=tally.accuracy() or 0.0,
            test_accuracy=evaluate(self.model, self.data.test, self.task, fabric, self.processes),
            lr=lr,
            duration_s=time.monotonic() - begin,
        )

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "loader": self.loader.state(),
            **states_apart(self.processes, self.network, {"tally": self.tally}),
            "report": msgspec.to_builtins(self.report),
        }

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; metrics of what is done again are dropped."""
        self.checkpoints.resume(self._load_state, self.processes)
        if self.processes.is_first:
            self.directory.metrics.keep(lambda line: line["epoch"] < self.epoch)

    def _load_state(self, state: dict[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.loader.load_state(state["loader"])
        self.tally = load_states_apart(self.processes, self.network, state)["tally"]
        self.report = documents.convert(state["report"], TrainReport, "report") if state["report"] else None


class _Trained(nn.Module):
    """A network with one call for both of its outputs: precision and device are the business of what wraps ``forward``."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, with_auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        return self.network.forward_with_auxiliary(images) if with_auxiliary else self.network(images)


def evaluate(model: nn.Module, images: Images, task: Task, fabric: Fabric, processes: Processes | None = None) -> float:
    """Fraction of ``images`` that ``model`` gets right, in eval mode; the mode is restored. Several processes share them."""
    together = processes or Processes()
    own = images.subset(torch.arange(len(images))[together.part_of(len(images))])
    was_training = model.training
    model.eval()
    correct = 0
    with torch.no_grad():
        for batch, labels in DataLoader(own, EVALUATION_BATCH):
            batch, labels = fabric.to_device((batch, labels))
            correct += task.correct(model(batch), labels)
    model.train(was_training)
    return sum(together.gather(correct)) / len(images)
