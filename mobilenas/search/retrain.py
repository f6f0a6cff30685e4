"""Train a derived architecture from scratch: SGD, cosine, cutout, drop path, auxiliary head (DARTS, appendix A.2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import msgspec
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from mobilenas.core import documents
from mobilenas.core.run_directory import RunDirectory
from mobilenas.core.signals import StopRequest
from mobilenas.data import ImageData, loader_of
from mobilenas.errors import DivergedError
from mobilenas.methods.base import Batch
from mobilenas.network import Network
from mobilenas.search.checkpoints import Checkpoints, Saver, Tally, check_like, load_states_apart, states_apart
from mobilenas.search.descent import Descent, Guard, SgdSettings
from mobilenas.search.memory import FLOAT_BYTES, MemoryEstimate, estimate, number_bytes_of
from mobilenas.search.parts import Parts
from mobilenas.search.processes import Processes
from mobilenas.search.task import Task

EVALUATION_BATCH = 256
GUESSES = 5
"""Of the other accuracy that is told where there are more classes."""


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
    colour_jitter: tuple[float, ...] | None = None
    ema_decay: float = 0.0
    """Of the mean of the weights that is tested and kept; 0 leaves it out."""
    accumulate: int = 1
    """Parts that each batch is computed in."""
    on_device: bool = False
    """Whether images live where the network does, and are augmented there."""


class TrainReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one epoch of training did; a line of metrics.jsonl."""

    epoch: int
    epochs: int
    train_cross_entropy: float
    train_accuracy: float
    test_accuracy: float
    top_5_accuracy: float | None
    """``None`` for fewer than six classes."""
    lr: float
    images_per_s: float
    """That were trained on, by all processes."""
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
        self.model: Any
        self.model, optimiser = fabric.setup(_Trained(network), settings.weights.optimiser(self.parameters))
        self.guard = Guard(fabric, network, self.processes, on_note)
        self.weights = Descent(optimiser, self.parameters, settings.weights.clip_norm, self.guard, self.processes)
        self.mean: AveragedModel | None = None
        if settings.ema_decay:
            averaging: Any = get_ema_multi_avg_fn
            self.mean = AveragedModel(network, multi_avg_fn=averaging(settings.ema_decay), use_buffers=True)
        images = data.for_training(settings.cutout, settings.colour_jitter)
        part = self.processes.part_of(settings.batch_size)
        place = fabric.device if settings.on_device else None
        self.loader = loader_of(images, settings.batch_size, settings.seed, settings.workers, part, place)
        own = part.stop - part.start
        self.parts = Parts(settings.accumulate, own, self.processes.size == 1, on_note, self.memory_of)
        self.checkpoints = Checkpoints(directory.checkpoints, on_note)
        self.epoch, self.step, self.tally = 0, 0, Tally()
        self.report: TrainReport | None = None

    @property
    def trained(self) -> Network:
        """What is tested and kept: the network, or the mean of its weights."""
        if self.mean is None:
            return self.network
        found: Network = self.mean.module  # type: ignore[assignment]
        return found

    def run(self) -> TrainReport:
        """Train to the last epoch and return its report. Raises ``DivergedError`` where gradients stop being finite and going
        back once did not help.
        """
        if self.processes.is_first:
            copies = 3 if self.mean is not None else 2
            self.checkpoints.check_room(copies * FLOAT_BYTES * sum(weight.numel() for weight in self.parameters))
        first = deepcopy(self._state())
        self._resume()
        with StopRequest() as stop:
            saver = Saver(self.checkpoints, self._state, stop, self.processes)
            while self.epoch < self.settings.epochs:
                try:
                    self.report = self._epoch(saver)
                except DivergedError as error:
                    self.guard.go_back(error)
                    self.checkpoints.go_back(self._load_state, self.processes, first)
                    self.weights.left_out = 0
                    self._keep_metrics()
                    continue
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
        rates, steps, first = settings.weights, len(self.loader), self.step
        lr = self.guard.rate_factor * rates.lr_at(self.epoch, settings.epochs)
        self.network.drop_path_fraction = settings.drop_path_fraction * self.epoch / settings.epochs
        self.model.train()
        while self.step < steps:
            self.weights.set_rate(rates.lr_in(self.epoch, self.step, steps, settings.epochs))
            images, labels = fabric.to_device(self.loader.next())
            self.tally.merge(self.parts.within_memory(partial(self._step, Batch(images, labels))))
            self.step += 1
            self.processes.at(f"epoch {self.epoch + 1}, step {self.step}")
            saver.after_step()
        trained_s = time.monotonic() - begin
        self.processes.average_statistics(self._modules)
        tally = self.tally.over(self.processes)
        batch = max(1, EVALUATION_BATCH // self.parts.count)
        tested = evaluate(self.model if self.mean is None else self.mean, self.data, self.task, fabric, self.processes, batch)
        return TrainReport(
            epoch=self.epoch,
            epochs=settings.epochs,
            train_cross_entropy=tally.mean_loss() or 0.0,
            train_accuracy=tally.accuracy() or 0.0,
            test_accuracy=tested.accuracy,
            top_5_accuracy=tested.top_5_accuracy,
            lr=lr,
            images_per_s=(self.step - first) * settings.batch_size / trained_s,
            duration_s=time.monotonic() - begin,
        )

    def memory_of(self, images: int) -> MemoryEstimate:
        """What a step on so many images takes."""
        network, facts = deepcopy(self.network).to("meta"), self.data.preprocessing
        pixels = torch.empty(images, facts.channels, facts.image_size, facts.image_size, device="meta")
        labels = torch.zeros(images, dtype=torch.int64, device="meta")

        def loss() -> Tensor:
            logits, auxiliary = network.forward_with_auxiliary(pixels)
            found = self.task.loss(logits, labels)
            return found if auxiliary is None else found + self.task.loss(auxiliary, labels)

        found = estimate(network, loss, number_bytes_of(self.fabric))
        mean_bytes = FLOAT_BYTES * found.parameters if self.mean is not None else 0
        return msgspec.structs.replace(found, weights_bytes=found.weights_bytes + mean_bytes)

    def _step(self, batch: Batch) -> Tally:
        """One step of the weights; what it did."""
        tally = Tally()

        def compute(part: Batch, _: Mapping[str, Tensor]) -> Tensor:
            with self.processes.drawing_apart():
                logits, auxiliary = self.model(part.images, with_auxiliary=True)
            loss = self.task.loss(logits, part.labels)
            tally.add(loss, self.task.correct(logits.detach(), part.labels), len(part.labels))
            if auxiliary is None:
                return loss
            return loss + self.settings.auxiliary_weight * self.task.loss(auxiliary, part.labels)

        self.weights.begin()
        self.fabric.backward(self.parts.loss(compute, batch, {}, self.parameters, lambda: self.guard.scale))
        self.weights.average()
        if self.weights.step() and self.mean is not None:
            self.mean.update_parameters(self.network)
        return tally

    @property
    def _modules(self) -> nn.Module:
        """All that has statistics."""
        return nn.ModuleList([self.network] if self.mean is None else [self.network, self.mean])

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "network": self.network.state_dict(),
            "mean": None if self.mean is None else self.mean.state_dict(),
            "weights": self.weights.state(),
            "guard": self.guard.state(),
            "parts": self.parts.state(),
            "loader": self.loader.state(),
            **states_apart(self.processes, self._modules, {"tally": self.tally}),
            "report": msgspec.to_builtins(self.report),
        }

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        self.checkpoints.resume(self._load_state, self.processes)
        self._keep_metrics()

    def _keep_metrics(self) -> None:
        """Drop what will be done again."""
        if self.processes.is_first:
            self.directory.metrics.keep(lambda line: line["epoch"] < self.epoch)

    def _load_state(self, state: dict[str, Any]) -> None:
        check_like(state, self._state())
        report = documents.convert(state["report"], TrainReport, "report") if state["report"] else None
        if state["epoch"] > self.settings.epochs or (report.epoch + 1 if report else 0) != state["epoch"]:
            raise ValueError(f"epoch {state['epoch']} of {self.settings.epochs}, reported {report}")
        self.epoch, self.step, self.report = state["epoch"], state["step"], report
        self.network.load_state_dict(state["network"])
        if self.mean is not None:
            self.mean.load_state_dict(state["mean"])
        self.weights.load_state(state["weights"])
        self.guard.load_state(state["guard"])
        self.parts.load_state(state["parts"])
        self.loader.load_state(state["loader"])
        self.tally = load_states_apart(self.processes, self._modules, state)["tally"]


class _Trained(nn.Module):
    """A network with one call for both of its outputs: precision and device are the business of what wraps ``forward``."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, with_auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        return self.network.forward_with_auxiliary(images) if with_auxiliary else self.network(images)


class Tested(NamedTuple):
    """How a network does on test images; the share that is right with one guess, and with five."""

    accuracy: float
    top_5_accuracy: float | None


def evaluate(
    model: nn.Module,
    data: ImageData,
    task: Task,
    fabric: Fabric,
    processes: Processes | None = None,
    batch_size: int = EVALUATION_BATCH,
) -> Tested:
    """``model`` in eval mode on all test images, of which several processes take parts; its mode is restored.

    Raises ``DivergedError``, in each process, where a logit is not finite: then there is no accuracy.
    """
    together, images = processes or Processes(), data.test
    own = images.subset(torch.arange(len(images))[together.part_of(len(images))])
    guesses = [1, GUESSES] if len(data.class_names) > GUESSES else [1]
    was_training = model.training
    model.eval()
    correct, without = [0] * len(guesses), 0
    with torch.no_grad():
        for batch, labels in DataLoader(own, batch_size):
            batch, labels = fabric.to_device((batch, labels))
            logits = model(batch)
            correct = [count + task.correct(logits, labels, n) for count, n in zip(correct, guesses, strict=True)]
            without += int((~logits.isfinite()).any(dim=1).sum())
    model.train(was_training)
    *totals, without = map(sum, zip(*together.gather([*correct, without]), strict=True))
    if without:
        raise DivergedError(f"the network's logits are not finite for {without} of {len(images)} test images")
    shares = [total / len(images) for total in totals]
    return Tested(shares[0], shares[1] if len(shares) > 1 else None)
