"""Conformance kits of latency models and search methods, as classes to subclass; ``contracts.py`` says how.

Nothing here imports pytest. Shapes: ``B`` batch, ``C`` channels, ``H``, ``W``, ``O`` options of a decision.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional

from mobilenas.core.run_directory import RunDirectory
from mobilenas.core.workload import Workload
from mobilenas.data import Images, InMemory
from mobilenas.errors import DocumentError
from mobilenas.latency.budget import solutions
from mobilenas.latency.models import LatencyModel
from mobilenas.methods.base import Batch, Moved, Progress, SearchMethod, Stage, Step
from mobilenas.search.checkpoints import Checkpoints
from mobilenas.search.descent import AdamSettings, SgdSettings
from mobilenas.search.engine import EngineSettings, EpochReport, SearchEngine
from mobilenas.search.task import Classification
from mobilenas.spaces.base import SearchSpace, SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.supernet import ArchitectureParameters, LogitsBefore, Mixture, Supernet
from mobilenas.testing.contracts import central_difference, expect_error, random_costs, random_probabilities

SIZE = SupernetSize(channels=2, layers=3)
"""Of the supernets that the method's kit trains."""


class LatencyModelContract(ABC):
    """The laws of a latency model. Override ``make``."""

    samples = 6
    """Random architectures per law."""
    one_hot_temperature = 1.0
    """As in ``SpaceContract``."""
    is_linear = True
    """Whether ``expected_ms`` is the linear stand-in's expectation, or at certain probabilities ``latency`` itself."""

    @abstractmethod
    def make(self) -> tuple[LatencyModel, SearchSpace]:
        """The model under test and the space that it is about."""

    @abstractmethod
    def ask_what_is_missing(self) -> None:
        """Ask a model of this kind for what it cannot know; it must raise ``DocumentError`` or a kind of it."""

    def test_what_is_missing_raises_and_never_counts_as_zero(self) -> None:
        with expect_error(DocumentError, "something is missing"):
            self.ask_what_is_missing()

    def test_latency_and_option_costs_are_about_the_same_thing(self) -> None:
        """In the same unit, and dearer by the one is dearer by the other."""
        model, space = self.make()
        generator = random.Random(3)
        drawn = [space.random_architecture(generator) for _ in range(5 * self.samples)]
        known = np.array([model.latency(architecture).ms for architecture in drawn])
        linear = np.array([model.workload_ms(a) for a in drawn])
        assert np.all((known > 0.5 * linear) & (known < 2 * linear)), "another unit, or another thing"
        assert np.corrcoef(known, linear)[0, 1] > 0.5

    def test_latency_is_positive_repeatable_and_inside_its_interval(self) -> None:
        model, space = self.make()
        again, _ = self.make()
        generator = random.Random(1)
        for architecture in (space.random_architecture(generator) for _ in range(self.samples)):
            prediction = model.latency(architecture)
            assert 0 < prediction.ms < math.inf
            assert prediction.low_ms <= prediction.ms <= prediction.high_ms
            assert prediction.high_ms >= prediction.ms * model.interval_factor * (1 - 1e-9), "narrower than the model's own"
            assert again.latency(architecture) == prediction

    def test_latency_tells_networks_apart(self) -> None:
        model, space = self.make()
        generator = random.Random(2)
        found = {model.latency(space.random_architecture(generator)).ms for _ in range(2 * self.samples)}
        assert len(found) > self.samples, "different networks, the same latency"

    def test_several_networks_take_what_each_takes(self) -> None:
        model, space = self.make()
        generator = random.Random(4)
        drawn = [space.random_architecture(generator) for _ in range(self.samples)]
        together = model.latencies([*drawn, drawn[0]])
        alone = [self.make()[0].latency(a) for a in [*drawn, drawn[0]]]
        for of_many, of_one in zip(together, alone, strict=True):  # a product of many rows may round otherwise than one of each
            assert all(
                math.isclose(a, b, rel_tol=1e-9)
                for a, b in zip(msgspec.structs.astuple(of_many), msgspec.structs.astuple(of_one), strict=True)
            )

    def test_the_errors_are_those_of_nine_networks_in_ten(self) -> None:
        model, space = self.make()
        generator = random.Random(5)
        drawn = [space.random_architecture(generator) for _ in range(10 * self.samples)]
        off = [abs(model.workload_ms(a) / model.latency(a).ms - 1) for a in drawn]
        assert np.quantile(off, 0.8) <= max(2 * model.workload_error.p90_fraction, 1e-9), "the stand-in is worse than it says"
        assert 0 <= model.error.p90_fraction < math.inf

    def test_the_digest_is_the_same_for_the_same_model(self) -> None:
        digest = self.make()[0].digest
        assert digest == self.make()[0].digest
        assert int(digest, 16) >= 0

    def test_at_certain_probabilities_the_expectation_is_the_networks_own(self) -> None:
        model, space = self.make()
        generator = random.Random(6)
        for architecture in (space.random_architecture(generator) for _ in range(self.samples)):
            expected = float(model.expected_ms(space.one_hot(architecture), self.one_hot_temperature))
            own = model.workload_ms(architecture) if self.is_linear else model.latency(architecture).ms
            assert math.isclose(expected, own, rel_tol=1e-6)

    def test_workload_ms_is_the_sum_of_the_option_costs(self) -> None:
        model, space = self.make()
        generator = random.Random(7)
        for architecture in (space.random_architecture(generator) for _ in range(self.samples)):
            summed = space.expected_cost(space.one_hot(architecture), model.option_costs, self.one_hot_temperature)
            assert math.isclose(model.workload_ms(architecture), float(summed), rel_tol=1e-6)

    def test_expected_ms_is_the_spaces_expectation_of_its_option_costs(self) -> None:
        if not self.is_linear:
            return
        model, space = self.make()
        for seed, temperature in enumerate((1.0, 0.3)):
            probabilities = random_probabilities(space, seed)
            expected = float(space.expected_cost(probabilities, model.option_costs, temperature))
            assert math.isclose(float(model.expected_ms(probabilities, temperature)), expected, rel_tol=1e-9)

    def test_expected_ms_tells_options_apart(self) -> None:
        model, space = self.make()
        values = {float(model.expected_ms(random_probabilities(space, seed, 3.0))) for seed in range(4)}
        assert len(values) == 4, "different probabilities, the same expectation"
        assert all(0 < value < math.inf for value in values)

    def test_gradient_of_expected_ms_matches_finite_differences(self) -> None:
        model, space = self.make()
        rows = {name: row.log().requires_grad_() for name, row in random_probabilities(space, 7).items()}

        def expected() -> Tensor:
            return model.expected_ms({name: row.softmax(0) for name, row in rows.items()})

        gradients = torch.autograd.grad(expected(), list(rows.values()))
        largest = max(float(gradient.abs().max()) for gradient in gradients)
        assert largest > 0, "the gradient is zero everywhere"
        for row, gradient in zip(rows.values(), gradients, strict=True):
            for index in range(len(row)):
                difference = central_difference(row, index, lambda: float(expected()))
                assert abs(difference - float(gradient[index])) <= 1e-4 * largest

    def test_describe_is_json(self) -> None:
        model, _ = self.make()
        described = json.loads(json.dumps(model.describe(), allow_nan=False))
        assert isinstance(described, dict)
        assert described, "a model says where its numbers come from"


class MethodContract(ABC):
    """The laws of a search method, on a cell space small enough to search in seconds. Override ``make``."""

    seed = 3
    toy_operators = ("skip_connect", "sep_conv_3x3")

    @abstractmethod
    def make(self) -> SearchMethod:
        """The method under test."""

    def space(self) -> SearchSpace:
        """The space that is searched; must have every trait that the method needs."""
        return CellSpace(channels=2, layers=3, image_size=8, nodes=2, classes=3)

    def toy_space(self, cheap: str, dear: str) -> SearchSpace:
        """A space whose only operators are ``cheap`` and ``dear``, which are two of ``toy_operators``."""
        return CellSpace(channels=2, layers=3, image_size=8, nodes=1, classes=3, operators=(cheap, dear))

    def test_a_search_changes_weights_and_logits(self) -> None:
        first, second = self._states(epochs=2)
        for part in ("supernet", "parameters"):
            assert not _same(first[part], second[part]), f"{part} did not change"

    def test_an_architecture_step_fills_the_gradients_of_the_logits_only(self) -> None:
        method = self.make()
        search = _ToySearch.of(method, self.space(), self.seed)
        weights, logits = _snapshot(search.supernet), _snapshot(search.parameters)
        batches = copy.deepcopy((search.train, search.valid))
        method.architecture_gradient(search.step(lambda mixture: torch.zeros(())))
        for name, row in search.parameters.named_parameters():
            assert row.grad is not None, name
            assert torch.isfinite(row.grad).all(), name
            assert row.grad.abs().max() > 0 or row.shape[1] == 1, name
            assert torch.equal(row, logits[name]), "the optimiser moves logits, not the method"
        for name, weight in search.supernet.named_parameters():
            assert torch.equal(weight, weights[name]), f"{name} was not restored bit for bit"
            assert weight.requires_grad, name
            assert weight.grad is None or not weight.grad.any(), f"{name} was left a gradient"
        for batch, before in zip((search.train, search.valid), batches, strict=True):
            assert torch.equal(batch.images, before.images)
            assert torch.equal(batch.labels, before.labels)

    def test_the_cost_sees_soft_probabilities(self) -> None:
        """A hard sample has no expectation: the latency of one draw would push at random. Several may be drawn, though."""
        method = self.make()
        search = _ToySearch.of(method, self.space(), self.seed)
        for mixture in (
            relax(search.parameters, search.progress) for relax in (method.relax_weights, method.relax_architecture)
        ):
            for name, row in mixture.probabilities.items():
                assert abs(float(row.detach().sum()) - 1) < 1e-5, name
                drawn = mixture.active.get(name, ())
                seen = row.detach()[list(drawn)] if len(drawn) > 1 else row.detach()
                assert float(seen.min()) > 0, name
                assert float(row.detach().min()) >= 0, name
                assert len(row) == 1 or float(row.detach().max()) < 1 - 1e-6, name

    def test_the_constraint_enters_the_gradient_whole(self) -> None:
        """The gradient with a constraint less the one without is the constraint's own."""
        method, space = self.make(), self.space()
        costs = space.option_costs(random_costs(space, 4))

        def constraint(mixture: Mixture) -> Tensor:
            return 10.0 * space.expected_cost(mixture.probabilities, costs)

        gradients = []
        for term in (lambda mixture: torch.zeros(()), constraint):
            search = _ToySearch.of(method, space, self.seed)
            method.architecture_gradient(search.step(term))
            gradients.append([row.grad.clone() for row in search.parameters.parameters() if row.grad is not None])
        search = _ToySearch.of(method, space, self.seed)
        torch.autograd.backward(constraint(method.relax_architecture(search.parameters, search.progress)))
        largest = max(float(row.grad.abs().max()) for row in search.parameters.parameters() if row.grad is not None)
        assert largest > 1e-3
        for without, added, row in zip(*gradients, search.parameters.parameters(), strict=True):
            assert row.grad is not None
            assert torch.allclose(added - without, row.grad, rtol=1e-3, atol=1e-3 * largest)

    def test_what_the_cost_sees_is_what_the_derivation_maximises(self) -> None:
        method, space = self.make(), self.space()
        search = _ToySearch.of(method, space, self.seed, spread=1e3)
        scores = method.scores(space, search.parameters)
        for name, row in method.relax_architecture(search.parameters, search.progress).probabilities.items():
            wanted = torch.tensor(scores[name]).exp() * (row.detach() > 0)  # what was not drawn, the cost does not see
            wanted /= wanted.sum()
            assert torch.allclose(row.detach().double(), wanted, rtol=1e-3, atol=1e-6), name

    def test_an_architecture_step_descends_on_validation_images(self) -> None:
        """Of two losses that pull apart, the validation images' is the one that falls: their option 0 loses, 1 does not."""
        method, space = self.make(), self.space()
        search = _ToySearch.of(method, space, self.seed)
        step = search.step(lambda mixture: torch.zeros(()))
        optimiser = torch.optim.Adam(search.parameters.parameters(), lr=0.05)

        def loss(batch: Batch, mixture: Mixture) -> Tensor:
            option = 0 if batch is step.valid else 1
            decay = sum((weight**2).sum() for weight in step.weights)
            return torch.stack([row[option] for row in mixture.weights.values()]).sum() + 1e-3 * decay

        torch.manual_seed(self.seed)
        for _ in range(30):
            optimiser.zero_grad()
            method.architecture_gradient(replace(step, loss=loss))
            optimiser.step()
        probabilities = list(search.parameters.softmax().values())
        fallen = [float(row[0].detach()) for row in probabilities if len(row) > 2]
        kept = [float(row[1].detach()) for row in probabilities if len(row) > 2]
        assert sum(fallen) < 0.7 * sum(kept), "the loss of the validation images did not fall"

    def test_nothing_reseeds_the_global_generator(self) -> None:
        method = self.make()
        search = _ToySearch.of(method, self.space(), self.seed)
        torch.manual_seed(12345)
        method.relax_weights(search.parameters, search.progress)
        optimiser = torch.optim.Adam(search.parameters.parameters(), lr=0.1)
        search.move(method, optimiser, search.step(lambda mixture: torch.zeros(())))
        assert torch.initial_seed() == 12345

    def test_an_architecture_step_judges_on_validation_images(self) -> None:
        method = self.make()
        search = _ToySearch.of(method, self.space(), self.seed)
        step = search.step(lambda mixture: torch.zeros(()))
        judged: list[bool] = []

        def loss(batch: Batch, mixture: Mixture) -> Tensor:
            judged.append(batch is step.valid)
            return step.loss(batch, mixture)

        method.architecture_gradient(replace(step, loss=loss))
        assert any(judged), "the validation images were not looked at"

    def test_warmup_trains_weights_and_leaves_logits_untouched(self) -> None:
        first, second = self._states(epochs=2, warmup_epochs=2)
        assert not _same(first["supernet"], second["supernet"]), "warm-up did not train the weights"
        initial = ArchitectureParameters(self._first_stage().decisions, torch.Generator().manual_seed(self.seed))
        for state in (first, second):
            assert _same(state["parameters"], initial.state_dict()), "warm-up moved the logits"

    def test_the_same_seed_gives_the_same_search(self) -> None:
        with _folder() as a, _folder() as b, _folder() as c:
            same, again, other = (self._search(a), self._search(b), self._search(c, seed=self.seed + 1))
        assert _same(same.state_dict(), again.state_dict())
        assert not _same(same.state_dict(), other.state_dict()), "the seed changes nothing"
        assert self.make().decode(self.space(), same) == self.make().decode(self.space(), again)

    def test_a_resumed_search_ends_as_one_that_never_stopped(self) -> None:
        with _folder() as whole, _folder() as halved:
            reports: list[EpochReport] = []
            never_stopped = self._search(whole, epochs=3, on_epoch=reports.append)
            with expect_error(KeyboardInterrupt, "the search is stopped after its first epoch"):
                self._search(halved, epochs=3, on_epoch=_stop)
            resumed_reports: list[EpochReport] = []
            resumed = self._search(halved, epochs=3, on_epoch=resumed_reports.append)
        wanted = [(report.stage, report.epoch) for report in reports[1:]]
        assert [(report.stage, report.epoch) for report in resumed_reports] == wanted, "the search began anew"
        assert _same(never_stopped.state_dict(), resumed.state_dict())
        assert self.make().decode(self.space(), never_stopped) == self.make().decode(self.space(), resumed)

    def test_a_search_interrupted_in_mid_epoch_saves_and_ends_as_one_that_never_stopped(self) -> None:
        with _folder() as whole, _folder() as halved:
            never_stopped = self._search(whole, epochs=2)
            interrupted = self.make()
            relax, calls = interrupted.relax_weights, iter(range(99))

            def relax_and_interrupt(parameters: ArchitectureParameters, progress: Progress) -> Mixture:
                if next(calls) == 2:  # the first step of the second epoch: a step of it is left to do
                    os.kill(os.getpid(), signal.SIGINT)
                return relax(parameters, progress)

            interrupted.relax_weights = relax_and_interrupt  # type: ignore[method-assign]
            with expect_error(KeyboardInterrupt, "the search is interrupted in its second epoch"):
                self._search(halved, epochs=2, method=interrupted)
            state = Checkpoints(RunDirectory(halved).checkpoints / "stage0").load_latest()
            passes = self.make().phases(self._first_stage(), 1)
            before = 2 * next(index for index, kinds in enumerate(passes) if "weights" in kinds)
            assert (state["position"]["epoch"], state["position"]["step"]) == (1, before + 1), (
                "the step was not finished and saved"
            )
            resumed = self._search(halved, epochs=2)
            lines = [
                [(line["stage"], line["epoch"]) for line in RunDirectory(folder).metrics.read()] for folder in (whole, halved)
            ]
        assert lines[0] == lines[1]
        assert _same(never_stopped.state_dict(), resumed.state_dict())

    def test_a_huge_multiplier_makes_the_cheap_operator_win(self) -> None:
        method = self.make()
        for cheap, dear in permutations(self.toy_operators):
            space = self.toy_space(cheap, dear)
            constraint = _HugeConstraint(space, {w: 1.0 if w.operator == dear else 0.01 for w in space.workloads()})
            search = _ToySearch.of(method, space, self.seed)
            optimiser = torch.optim.Adam(search.parameters.parameters(), lr=0.1)
            for _ in range(10):
                search.move(method, optimiser, search.step(constraint))
            chosen = set(method.decode(space, search.parameters).choices.values())
            assert chosen & {cheap, dear} == {cheap}

    def test_scores_agree_with_decode(self) -> None:
        method, space = self.make(), self.space()
        for seed in range(4):
            parameters = ArchitectureParameters(self._first_stage().decisions, torch.Generator().manual_seed(seed))
            with torch.no_grad():
                for row in parameters.parameters():
                    row.mul_(1e3)  # published logits begin near 0, where ties are decided by rounding
            program = space.derivation_program(method.scores(space, parameters))
            assert space.architecture(next(solutions(program))) == method.decode(space, parameters)

    # ---- helpers ---------------------------------------------------------------------------------------------------

    def _first_stage(self) -> Stage:
        return next(self.make().stages(self.space(), SIZE, 2, 0))

    def _states(self, epochs: int, warmup_epochs: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the checkpoints of a search hold after its first and after its last epoch."""
        states: list[dict[str, Any]] = []
        with _folder() as folder:

            def keep(report: EpochReport) -> None:
                found = Checkpoints(RunDirectory(folder).checkpoints / "stage0").load_latest()
                assert found is not None, "an epoch ended without a checkpoint"
                states.append(found)

            self._search(folder, epochs=epochs, warmup_epochs=warmup_epochs, on_epoch=keep)
        return states[0], states[-1]

    def _search(
        self,
        folder: Path,
        *,
        seed: int | None = None,
        epochs: int = 2,
        warmup_epochs: int = 0,
        on_epoch: Callable[[EpochReport], None] = lambda _: None,
        method: SearchMethod | None = None,
    ) -> ArchitectureParameters:
        space = self.space()
        engine = SearchEngine(
            space=space,
            method=method or self.make(),
            task=Classification(),
            halves=(_random_images(space, 1), _random_images(space, 2)),
            budgets=(),
            settings=EngineSettings(
                supernet=SIZE,
                checkpoint_cells=False,
                epochs=epochs,
                warmup_epochs=warmup_epochs,
                batch_size=4,
                workers=0,
                weights=SgdSettings(lr=0.05, min_lr=0.01, momentum=0.9, weight_decay=1e-4, clip_norm=5.0),
                architecture=AdamSettings(lr=0.01, beta1=0.5, beta2=0.999, weight_decay=1e-3),
                seed=self.seed if seed is None else seed,
            ),
            fabric=Fabric(accelerator="cpu", devices=1),
            directory=RunDirectory(folder),
            on_epoch=on_epoch,
        )
        return engine.run()


@dataclass(frozen=True)
class _HugeConstraint:
    """A thousand times the expected cost of a mixture."""

    space: SearchSpace
    cost: Mapping[Workload, float]

    def __call__(self, mixture: Mixture) -> Tensor:
        return 1e3 * self.space.expected_cost(mixture.probabilities, self.space.option_costs(self.cost))


@dataclass(frozen=True)
class _ToySearch:
    """A supernet, its logits and two batches, outside the engine."""

    supernet: Supernet
    parameters: ArchitectureParameters
    train: Batch
    valid: Batch
    progress: Progress

    @classmethod
    def of(cls, method: SearchMethod, space: SearchSpace, seed: int, spread: float = 1.0) -> _ToySearch:
        stage = next(method.stages(space, SIZE, 2, 0))
        torch.manual_seed(seed)
        supernet = space.supernet(SupernetPlan(stage.size, stage.decisions, method.switches.partial_channels))
        parameters = ArchitectureParameters(stage.decisions, torch.Generator().manual_seed(seed), space.decisions)
        with torch.no_grad():
            for row in parameters.parameters():
                row.mul_(spread)
        batches = [Batch(torch.randn((4, *space.image_shape[1:])), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
        return cls(supernet, parameters, batches[0], batches[1], Progress(0, 1, 2))

    def move(self, method: SearchMethod, optimiser: torch.optim.Optimizer, step: Step) -> None:
        """One architecture step, as the engine makes it."""
        optimiser.zero_grad()
        method.architecture_gradient(step)
        before = LogitsBefore.of(self.parameters, optimiser)
        optimiser.step()
        with torch.no_grad():
            method.after_architecture_step(Moved(self.parameters, before, optimiser, self.progress))

    def step(self, constraint: Callable[[Mixture], Tensor]) -> Step:
        return Step(
            parameters=self.parameters,
            train=self.train,
            valid=self.valid,
            progress=self.progress,
            loss=lambda batch, mixture: functional.cross_entropy(self.supernet(batch.images, mixture), batch.labels),
            constraint=constraint,
            backward=torch.autograd.backward,
            weights=list(self.supernet.parameters()),
            weights_after=lambda gradients: [
                weight.detach() - 0.05 * gradient
                for weight, gradient in zip(self.supernet.parameters(), gradients, strict=True)
            ],
            weights_lr=0.05,
        )


def _stop(report: EpochReport) -> None:
    raise KeyboardInterrupt


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _random_images(space: SearchSpace, seed: int) -> Images:
    """Eight images of noise with labels 0 to 2."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (8, *space.image_shape[1:]), generator=generator, dtype=torch.uint8)
    return Images(InMemory(pixels, torch.arange(8) % 3), lambda image: image.float() / 255)


def _snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts hold equal tensors, bit for bit."""
    assert a.keys() == b.keys()
    assert a, "nothing to compare"
    return all(torch.equal(a[name], b[name]) for name in a)
