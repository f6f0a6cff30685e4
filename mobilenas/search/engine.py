"""The one search loop: stages, phases, two optimisers, budgets, checkpoints. No branch on a method's name.

Each step relaxes the logits to a mixture, runs the supernet on it, and descends either the weights (on a training batch)
or the logits (on a validation batch, with the budgets' terms).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, count
from typing import Any

import msgspec
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.run_directory import RunDirectory
from mobilenas.core.signals import StopRequest
from mobilenas.data import CyclingLoader, Images, check_batch, loader_of
from mobilenas.errors import DivergedError, MissingKernelError
from mobilenas.latency.budget import AugmentedLagrangian, Budget, LogCost
from mobilenas.methods.base import Batch, Moved, Progress, SearchMethod, Stage, Step, StepKind
from mobilenas.search.checkpoints import Checkpoints, Saver, Tally, check_like, load_states_apart, states_apart
from mobilenas.search.collapse import SPARE, Health, Snapshot, Watch, certain, entropy, idle_share
from mobilenas.search.descent import AdamSettings, Descent, Guard, SgdSettings
from mobilenas.search.memory import MemoryEstimate, estimate, number_bytes_of, on_meta
from mobilenas.search.parts import Parts, check_parts
from mobilenas.search.perturbation import importance
from mobilenas.search.processes import Processes
from mobilenas.search.task import Task
from mobilenas.spaces.base import SearchSpace, SupernetPlan, SupernetSize
from mobilenas.supernet import ArchitectureParameters, LogitsBefore, Mixture, Supernet

LOWEST_TEMPERATURE = 0.05
COMPARE_EVERY = 100
"""Steps after which several processes compare what must be the same in all."""
WATCHED_IMAGES = 1024
"""Of the half that the architecture is judged on; the chosen network is tried on them after every epoch."""
STATE_BYTES = 8
"""Of a weight and its momentum in a checkpoint."""
LARGEST_LOSS = 1e3
"""In nats, of a supernet without an option that it cannot do without."""
PERTURBED_IMAGES = 256
"""Of that half; the supernet is tried on them without each option."""
TRIES = 4
"""Draws of paths that the estimate of memory is the largest of."""
DRAWS = 16
"""Mixtures that the expectation at the end of an epoch is taken over."""


class EngineSettings(msgspec.Struct, frozen=True):
    """Everything about a search that is neither space nor method."""

    supernet: SupernetSize | None
    checkpoint_cells: bool
    epochs: int
    warmup_epochs: int
    batch_size: int
    workers: int
    weights: SgdSettings
    architecture: AdamSettings
    seed: int
    accumulate: int = 1
    """Parts that each batch is computed in."""
    on_device: bool = False
    """Whether images live where the supernet does, and are augmented there."""
    watch: Watch = "warn"
    """What is done about a collapse."""


class BudgetReport(msgspec.Struct, frozen=True):
    """One budget after an epoch; ``table_ms`` is the decoded network's, ``None`` where the table lacks a kernel of it."""

    target_ms: float
    expected_ms: float
    table_ms: float | None
    multiplier: float
    penalty: float


class EpochReport(msgspec.Struct, frozen=True):
    """What one epoch of a search did; a line of metrics.jsonl. Accuracies are fractions."""

    stage: int
    epoch: int
    epochs: int
    train_cross_entropy: float
    train_accuracy: float
    valid_cross_entropy: float | None
    valid_accuracy: float | None
    budgets: tuple[BudgetReport, ...]
    decoded: str
    """Fingerprint of the network that the logits stand for now."""
    health: Health | None
    """``None`` where a collapse is not watched for."""
    lr: float
    duration_s: float


@dataclass
class _Position:
    """Where a stage is: the epoch, how many steps of it are done, and what they have summed up to."""

    epoch: int = 0
    step: int = 0
    train: Tally = field(default_factory=Tally)
    valid: Tally = field(default_factory=Tally)

    @property
    def tallies(self) -> dict[str, Tally]:
        return {"train": self.train, "valid": self.valid}


@dataclass
class SearchEngine:
    """Trains a supernet and its logits; ``run`` returns the finished logits. A run directory with a checkpoint goes on."""

    space: SearchSpace
    method: SearchMethod
    task: Task
    halves: tuple[Images, Images]
    budgets: Sequence[Budget]
    settings: EngineSettings
    fabric: Fabric
    directory: RunDirectory
    log_cost: LogCost | None = None
    processes: Processes = field(default_factory=Processes)
    """Those that search together; each is given all images and computes its part of every batch."""
    on_epoch: Callable[[EpochReport], None] = lambda _: None
    on_note: Callable[[str], None] = lambda _: None
    collapsed: bool = False
    """Whether any stage has collapsed; known after ``run``."""
    images: int = 0
    """That its steps have passed through the supernet; known after ``run``."""
    restored: bool = False
    """Whether the logits of any stage are those of an epoch before it collapsed."""
    _last: _StageRun | None = None

    def check(self) -> None:
        """Raise what ``run`` would raise before its first step, without leaving anything."""
        with torch.device("meta"):
            self.space.supernet(self.plan_of(next(self._stages())))
        self.check_batches(self.processes.size)

    def check_batches(self, processes: int) -> None:
        """Raise ``UsageError`` where so many processes could not share the batches."""
        for images in self.halves:
            check_batch(images, self.settings.batch_size, processes)
        check_parts(self.settings.accumulate, self.settings.batch_size // processes)

    def memory(self, processes: int) -> list[tuple[Stage, MemoryEstimate]]:
        """The stages that are trained, and what a step of each takes in one of so many processes."""
        images = -(-(self.settings.batch_size // processes) // self.settings.accumulate)
        return [(stage, self.memory_of(stage, images)) for stage in self._stages_ahead() if stage.epochs]

    def _stages_ahead(self) -> Iterator[Stage]:
        """All stages before the first has run: whatever logits one ends with, the next one is as large."""
        stages, generator = self._stages(), torch.Generator()
        stage = next(stages)
        while True:
            yield stage
            try:
                stage = stages.send(ArchitectureParameters(stage.decisions, generator, self.space.decisions))
            except StopIteration:
                return

    def memory_of(self, stage: Stage, images: int) -> MemoryEstimate:
        """What a step of a stage on so many images takes; of paths that are drawn, the largest of ``TRIES``."""
        parameters = ArchitectureParameters(stage.decisions, torch.Generator(), self.space.decisions)
        with torch.device("meta"):
            supernet = self.space.supernet(self.plan_of(stage)).train()
            pixels, labels = torch.empty(images, *self.space.image_shape[1:]), torch.zeros(images, dtype=torch.int64)

        def drawn() -> MemoryEstimate:
            mixture = self.method.relax_architecture(parameters, Progress(0, 0, max(2, stage.epochs)))
            mixture = self.method.switches.relaxed(mixture, self.space, 0.0)
            held = msgspec.structs.replace(mixture, weights=on_meta(mixture.weights))
            return estimate(supernet, lambda: self.task.loss(supernet(pixels, held), labels), number_bytes_of(self.fabric))

        with torch.random.fork_rng(devices=[]):
            found = [drawn() for _ in range(TRIES if self.method.draws else 1)]
        return max(found, key=lambda each: each.total_bytes)

    def plan_of(self, stage: Stage) -> SupernetPlan:
        """The supernet of a stage."""
        parts = self.method.switches.partial_channels
        return SupernetPlan(stage.size, stage.decisions, parts, self.settings.checkpoint_cells)

    def _stages(self) -> Generator[Stage, ArchitectureParameters, None]:
        self.method.check(self.space)
        settings = self.settings
        return self.method.stages(self.space, settings.supernet, settings.epochs, settings.warmup_epochs)

    def run(self) -> ArchitectureParameters:
        """Search all stages. Raises ``IncompatibleError`` if the method or its switches need what the space lacks,
        ``DivergedError`` if the loss stops being finite.
        """
        self._check_room()
        stages = self._stages()
        stage = next(stages)
        index = 0
        while True:
            self._last = _StageRun(self, index, stage)
            parameters = self._last.run()
            self.images += self._last.images
            try:
                stage = stages.send(parameters)
            except StopIteration:
                return parameters
            index += 1

    def _check_room(self) -> None:
        """Raise ``ResourceError`` where the disk has no room for the checkpoints of the largest stage."""
        if not self.processes.is_first:
            return
        sizes = []
        for stage in self._stages_ahead():
            with torch.device("meta"):
                supernet = self.space.supernet(self.plan_of(stage))
            sizes.append(STATE_BYTES * sum(weight.numel() for weight in supernet.parameters()) if stage.epochs else 0)
        Checkpoints(self.directory.checkpoints).check_room(max(sizes))

    def importance(self, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, np.ndarray]:
        """After ``run``: per decision what each option is worth to the last stage's supernet, in nats; ``DROPPED_SCORE`` for
        what that stage lacks.
        """
        assert self._last is not None, "nothing has run"
        return self._last.importance(progress)

    def inherited(self, networks: Sequence[Architecture]) -> tuple[np.ndarray, int]:
        """After ``run``: the accuracy ``(N,)`` of each network with the weights of the last stage, and the images that took;
        0 for a network with an option that this stage lacks.
        """
        assert self._last is not None, "nothing has run"
        return self._last.inherited(networks)


class _StageRun:
    """One stage of a search: its supernet, logits, optimisers, loaders and multipliers."""

    def __init__(self, engine: SearchEngine, index: int, stage: Stage) -> None:
        self.engine, self.index, self.stage, self.processes = engine, index, stage, engine.processes
        settings, fabric = engine.settings, engine.fabric
        torch.manual_seed(settings.seed + index)
        supernet: Supernet = engine.space.supernet(engine.plan_of(stage))
        generator = torch.Generator().manual_seed(settings.seed + index)
        self.parameters = ArchitectureParameters(stage.decisions, generator, engine.space.decisions)
        fabric.to_device(self.parameters)
        weights, logits = list(supernet.parameters()), list(self.parameters.parameters())
        self.supernet, sgd = fabric.setup(supernet, settings.weights.optimiser(weights))
        adam: Any = fabric.setup_optimizers(settings.architecture.optimiser(logits))
        self.guard = Guard(fabric, self.supernet, self.processes, engine.on_note)
        self.weights = Descent(sgd, weights, settings.weights.clip_norm, self.guard, self.processes)
        self.logits = Descent(adam, logits, settings.architecture.clip_norm, self.guard, self.processes)
        part = self.processes.part_of(settings.batch_size)
        own = part.stop - part.start
        may_halve = self.processes.size == 1 and engine.method.may_be_in_parts
        self.parts = Parts(settings.accumulate, own, may_halve, engine.on_note, partial(engine.memory_of, stage))
        place = fabric.device if settings.on_device else None
        self.loaders = [
            loader_of(images, settings.batch_size, settings.seed + 2 * index + half, settings.workers, part, place)
            for half, images in enumerate(engine.halves)
        ]
        self.lagrangians = [AugmentedLagrangian() for _ in engine.budgets]
        self.position = _Position()
        self.best: Snapshot | None = None
        self.health: Health | None = None
        self.watched = self._first_images(WATCHED_IMAGES)
        self.checkpoints = Checkpoints(engine.directory.checkpoints / f"stage{index}", engine.on_note)

    def run(self) -> ArchitectureParameters:
        first = deepcopy(self._state())
        self._resume()
        with StopRequest() as stop:
            saver = Saver(self.checkpoints, self._state, stop, self.processes)
            while self.position.epoch < self.stage.epochs:
                try:
                    report = self._epoch(self._progress(), saver)
                except DivergedError as error:
                    self.guard.go_back(error)
                    self.checkpoints.go_back(self._load_state, self.processes, first)
                    self.weights.left_out = self.logits.left_out = 0
                    self._keep_metrics()
                    continue
                self.position = _Position(self.position.epoch + 1)
                if self.processes.is_first:
                    self.engine.directory.metrics.append(report)
                saver.save()
                self.engine.on_epoch(report)
                saver.after_epoch()
        self._judge()
        return self.parameters

    @property
    def images(self) -> int:
        """That all steps of the stage pass through the supernet."""
        epochs = (self.engine.method.phases(self.stage, epoch) for epoch in range(self.stage.epochs))
        steps = sum(len(kinds) * self._steps_in(kinds) for passes in epochs for kinds in passes)
        return steps * self.engine.settings.batch_size

    def _judge(self) -> None:
        """Say so where the stage has collapsed, and set the logits back to the best before it if that is asked for."""
        health, best = self.health, self.best
        if health is None or not health.is_collapsed:
            return
        self.engine.collapsed = True
        told = f"warning: the search has collapsed: {health.idle_share or 0:.0%} of the operators it chooses are skips or none"
        if best is None:
            self.engine.on_note(f"{told}, and it never was otherwise")
            return
        before = f"epoch {best.epoch + 1}, where it was {best.health.idle_share or 0:.0%}"
        if self.engine.settings.watch == "warn":
            self.engine.on_note(f"{told}; --set watch=restore would go back to {before}")
            return
        self.engine.on_note(f"{told}; it goes back to {before}")
        self.engine.restored = True
        self.parameters.load_state_dict(dict(best.logits))

    def _progress(self) -> Progress:
        return Progress(self.index, self.position.epoch, self.stage.epochs, self.stage.warmup_epochs)

    def _epoch(self, progress: Progress, saver: Saver) -> EpochReport:
        begin = time.monotonic()
        self.supernet.train()
        position, passes = self.position, self.engine.method.phases(self.stage, progress.epoch)
        train, valid = position.train, position.valid
        ends = list(accumulate(self._steps_in(kinds) for kinds in passes))
        settings = self.engine.settings.weights
        lr = self.guard.rate_factor * settings.lr_at(progress.epoch, progress.epochs)
        self.logits.set_rate(self.engine.settings.architecture.lr)
        for kinds, end in zip(passes, ends, strict=True):
            while position.step < end:
                self.weights.set_rate(settings.lr_in(progress.epoch, position.step, ends[-1], progress.epochs))
                batches = {name: self._batch(loader) for name, loader in self._read_in(kinds).items()}
                for kind in kinds:
                    if kind == "architecture":
                        pair = batches.get("train", batches["valid"]), batches["valid"]
                        valid.merge(self.parts.within_memory(partial(self._architecture_step, *pair, progress)))
                    else:
                        train.merge(self.parts.within_memory(partial(self._weight_step, batches["train"], progress)))
                position.step += 1
                self.processes.at(f"stage {self.index + 1}, epoch {progress.epoch + 1}, step {position.step}")
                if position.step % COMPARE_EVERY == 0:
                    self._compare()
                saver.after_step()
        self._compare()
        self.processes.average_statistics(self.supernet)
        train, valid = train.over(self.processes), valid.over(self.processes)
        train_loss, valid_loss = train.mean_loss(), valid.mean_loss()
        decoded = self.engine.method.decode(self.engine.space, self.parameters)
        budgets = self._update_multipliers(decoded, progress)
        health = self._watch(decoded, budgets, valid.accuracy())
        return EpochReport(
            stage=self.index,
            epoch=progress.epoch,
            epochs=progress.epochs,
            train_cross_entropy=train_loss if train_loss is not None else 0.0,
            train_accuracy=train.accuracy() or 0.0,
            valid_cross_entropy=valid_loss,
            valid_accuracy=valid.accuracy(),
            budgets=budgets,
            decoded=decoded.fingerprint,
            health=health,
            lr=lr,
            duration_s=time.monotonic() - begin,
        )

    def _watch(self, decoded: Architecture, budgets: Sequence[BudgetReport], valid_accuracy: float | None) -> Health | None:
        """See how the search does, and keep its logits where it does better than before; nothing where it is not watched."""
        if self.engine.settings.watch == "off":
            return None
        space, epoch = self.engine.space, self.position.epoch
        alone = self._tried(certain(space, decoded, next(self.parameters.parameters())), self.watched)
        may_be_slower = all(b.table_ms is not None and b.table_ms < SPARE * b.target_ms for b in budgets)
        health = Health(idle_share(space, decoded), entropy(self.parameters), alone.accuracy() or 0.0, may_be_slower)
        if valid_accuracy is not None and not health.is_collapsed:
            if self.best is None or valid_accuracy >= self.best.valid_accuracy:
                self.best = Snapshot.of(epoch, valid_accuracy, health, self.parameters)
        self.health = health
        return health

    def _tried(self, mixture: Mixture, loader: CyclingLoader) -> Tally:
        """What ``mixture`` does on the first pass of ``loader``, normalised by each batch; leaves the supernet as it was."""
        buffers, tally = {name: buffer.clone() for name, buffer in self.supernet.named_buffers()}, Tally()
        loader.load_state({"pass": 0, "position": 0})
        with torch.no_grad():
            for _ in range(len(loader)):
                for part in self.parts.of(self._batch(loader)):
                    logits = self.supernet(part.images, mixture)
                    correct = self.engine.task.correct(logits, part.labels)
                    tally.add(self.engine.task.loss(logits, part.labels), correct, len(part.labels))
            for name, buffer in self.supernet.named_buffers():
                buffer.copy_(buffers[name])
        return tally.over(self.processes)

    def importance(self, progress: Callable[[int, int], None]) -> dict[str, np.ndarray]:
        """Per decision what each option is worth to the supernet as it is now, in nats."""
        loader, decisions = self._first_images(PERTURBED_IMAGES), self.stage.decisions
        total, calls = 1 + sum(len(decision.options) for decision in decisions), count()
        rows = {name: row.detach() for name, row in self.parameters.softmax().items()}
        self.supernet.train()

        def loss(mixture: Mixture) -> float:
            progress(next(calls), total)
            found = self._tried(mixture, loader).mean_loss()
            return LARGEST_LOSS if found is None else min(found, LARGEST_LOSS)

        return importance(rows, decisions, self.engine.space.decisions, loss)

    def inherited(self, networks: Sequence[Architecture]) -> tuple[np.ndarray, int]:
        """The accuracy of each network alone, on the watched images."""
        like, known = next(self.parameters.parameters()), {d.name: set(d.options) for d in self.stage.decisions}
        self.supernet.train()
        found, images = np.zeros(len(networks)), 0
        for index, architecture in enumerate(networks):
            if all(option in known.get(name, {option}) for name, option in architecture.choices.items()):
                tally = self._tried(certain(self.engine.space, architecture, like), self.watched)
                found[index], images = tally.accuracy() or 0.0, images + tally.count
        return found, images

    def _first_images(self, number: int) -> CyclingLoader:
        """About so many images of the half that the architecture is judged on, the same ones each time."""
        images, batch = self.engine.halves[1], self.engine.settings.batch_size
        few = images.subset(torch.arange(min(max(number, batch), len(images))))
        return CyclingLoader(few, batch, self.engine.settings.seed, 0, self.processes.part_of(batch))

    def _compare(self) -> None:
        """Raise ``LostProcessError`` if another process has logits, multipliers or draws that are not these."""
        if self.processes.size == 1:
            return
        multipliers = torch.tensor([float(value) for each in self.lagrangians for value in each.state().values()])
        logits = dict(self.parameters.named_parameters())
        self.processes.check_same({**logits, "multipliers": multipliers, "random numbers": torch.get_rng_state()})

    def _read_in(self, kinds: Sequence[StepKind]) -> dict[str, CyclingLoader]:
        """The halves that a pass of steps of these ``kinds`` reads."""
        train, valid = self.loaders
        return {**({"train": train} if "weights" in kinds else {}), **({"valid": valid} if "architecture" in kinds else {})}

    def _steps_in(self, kinds: Sequence[StepKind]) -> int:
        """Once through the images that such a pass reads; where it reads both halves, through the smaller one."""
        return min(len(loader) for loader in self._read_in(kinds).values())

    def _batch(self, loader: CyclingLoader) -> Batch:
        images, labels = self.engine.fabric.to_device(loader.next())
        return Batch(images, labels)

    def _weight_step(self, batch: Batch, progress: Progress) -> Tally:
        tally = Tally()
        with torch.no_grad():
            mixture = self.engine.method.relax_weights(self.parameters, progress)
        self.weights.begin()
        self.engine.fabric.backward(self._loss(batch, mixture, tally))
        self.weights.average()
        self.weights.step()
        return tally

    def _architecture_step(self, train: Batch, valid: Batch, progress: Progress) -> Tally:
        method, tally = self.engine.method, Tally()
        self.logits.begin()
        method.architecture_gradient(
            Step(
                parameters=self.parameters,
                train=train,
                valid=valid,
                progress=progress,
                loss=lambda batch, mixture: self._loss(batch, mixture, tally if batch is valid else Tally()),
                constraint=lambda mixture: self._constraint(mixture, progress),
                backward=self.engine.fabric.backward,
                weights=self.weights.tensors,
                weights_after=lambda gradients: weights_after(self.weights.optimiser, self.weights.tensors, gradients),
                weights_lr=self.weights.lr,
                average=self.processes.average,
            )
        )
        self.logits.average()
        method.switches.decay(self.parameters, progress.fraction)
        before = LogitsBefore.of(self.parameters, self.logits.optimiser)
        if self.logits.step():
            with torch.no_grad():
                method.after_architecture_step(Moved(self.parameters, before, self.logits.optimiser, progress))
        return tally

    def _loss(self, batch: Batch, mixture: Mixture, tally: Tally) -> Tensor:
        task, dropout = self.engine.task, self.stage.skip_dropout_at(self.position.epoch)
        mixture = self.engine.method.switches.relaxed(mixture, self.engine.space, self._progress().fraction)

        def compute(part: Batch, weights: Mapping[str, Tensor]) -> Tensor:
            own = msgspec.structs.replace(mixture, weights=weights, skip_dropout=dropout)
            with self.processes.drawing_apart():
                logits = self.supernet(part.images, own)
            loss = task.loss(logits, part.labels)
            tally.add(loss, task.correct(logits.detach(), part.labels), len(part.labels))
            return loss

        return self.parts.loss(compute, batch, mixture.weights, self.weights.tensors, lambda: self.guard.scale)

    def _constraint(self, mixture: Mixture, progress: Progress) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.engine.fabric.device)
        for budget, lagrangian in zip(self.engine.budgets, self.lagrangians, strict=True):
            expected_ms = budget.model.expected_ms(mixture.probabilities, temperature_at(progress))
            total = total + lagrangian.term(budget.margin_factor * expected_ms, budget.target_ms)
        if self.engine.log_cost is not None:
            total = total + self.engine.log_cost.term(mixture.probabilities)
        return total

    def _update_multipliers(self, decoded: Architecture, progress: Progress) -> tuple[BudgetReport, ...]:
        """Drive each multiplier by the decoded network's predicted bound, or by its linear cost where a row is missing."""
        reports = []
        table_ms: float | None
        for budget, lagrangian in zip(self.engine.budgets, self.lagrangians, strict=True):
            try:
                predicted = budget.model.latency(decoded)
                table_ms, bound_ms = predicted.ms, budget.bound_ms(predicted)
            except MissingKernelError:
                table_ms, bound_ms = None, budget.margin_factor * budget.model.workload_ms(decoded)
            expected_ms = self._expected_ms(budget, progress)
            if progress.epoch >= self.stage.warmup_epochs:
                was_at_its_limit = lagrangian.is_at_its_limit
                lagrangian.update(budget.margin_factor * expected_ms, bound_ms, budget.target_ms)
                if lagrangian.is_at_its_limit and not was_at_its_limit:
                    self.engine.on_note(
                        f"warning: the budget of {budget.target_ms:.4g} ms pushes as hard as it may (multiplier "
                        f"{lagrangian.multiplier:g}), and the logits still stand for {bound_ms:.4g} ms; the derivation meets it"
                    )
            reports.append(BudgetReport(budget.target_ms, expected_ms, table_ms, lagrangian.multiplier, lagrangian.penalty))
        return tuple(reports)

    def _expected_ms(self, budget: Budget, progress: Progress) -> float:
        """What architecture steps expect now, on average over ``DRAWS``: a method may draw what the cost sees."""
        with torch.no_grad():
            mixtures = [self.engine.method.relax_architecture(self.parameters, progress) for _ in range(DRAWS)]
            expected = [float(budget.model.expected_ms(m.probabilities, temperature_at(progress))) for m in mixtures]
        return math.fsum(expected) / DRAWS

    def _state(self) -> dict[str, Any]:
        return {
            "position": {"epoch": self.position.epoch, "step": self.position.step},
            "supernet": self.supernet.state_dict(),
            "parameters": self.parameters.state_dict(),
            "weights": self.weights.state(),
            "logits": self.logits.state(),
            "guard": self.guard.state(),
            "parts": self.parts.state(),
            "best": self.best and self.best.state(),
            "health": msgspec.to_builtins(self.health),
            "lagrangians": [lagrangian.state() for lagrangian in self.lagrangians],
            "loaders": [loader.state() for loader in self.loaders],
            **states_apart(self.processes, self.supernet, self.position.tallies),
        }

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        self.checkpoints.resume(self._load_state, self.processes)
        self._keep_metrics()

    def _keep_metrics(self) -> None:
        """Drop what will be done again; what comes after a stage that is finished is that of its own run."""
        here = (self.index, self.position.epoch)
        if self.processes.is_first and self.position.epoch < self.stage.epochs:
            self.engine.directory.metrics.keep(lambda line: (line["stage"], line["epoch"]) < here)

    def _load_state(self, state: dict[str, Any]) -> None:
        check_like(state, self._state())
        self.supernet.load_state_dict(state["supernet"])
        self.parameters.load_state_dict(state["parameters"])
        self.weights.load_state(state["weights"])
        self.logits.load_state(state["logits"])
        self.guard.load_state(state["guard"])
        self.parts.load_state(state["parts"])
        self.best = Snapshot.of_state(state["best"]) if state["best"] else None
        self.health = documents.convert(state["health"], Health, "health") if state["health"] else None
        for lagrangian, saved in zip(self.lagrangians, state["lagrangians"], strict=True):
            lagrangian.load_state(saved)
        for loader, saved in zip(self.loaders, state["loaders"], strict=True):
            loader.load_state(saved)
        tallies = load_states_apart(self.processes, self.supernet, state)
        if state["position"]["epoch"] > self.stage.epochs:
            raise ValueError(f"epoch {state['position']['epoch']} of {self.stage.epochs}")
        self.position = _Position(**state["position"], train=tallies["train"], valid=tallies["valid"])


def temperature_at(progress: Progress) -> float:
    """Sharpness of the expected cost: from 1 at first towards 0, where it is the decoded network's cost."""
    return max(LOWEST_TEMPERATURE, 1.0 - progress.fraction)


def weights_after(
    optimiser: torch.optim.Optimizer, weights: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """What a step of the SGD ``optimiser`` on ``gradients`` would make of ``weights``, without making it."""
    [group] = optimiser.param_groups
    after = []
    for weight, gradient in zip(weights, gradients, strict=True):
        decayed = gradient + group["weight_decay"] * weight.detach()
        before = optimiser.state[weight].get("momentum_buffer") if weight in optimiser.state else None
        momentum = decayed if before is None else group["momentum"] * before + decayed
        direction = decayed + group["momentum"] * momentum if group["nesterov"] else momentum
        after.append(weight.detach() - group["lr"] * direction)
    return after
