"""The kits fail what is wrong: each piece below breaks one law, and that law's test says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mobilenas.core.architecture import Architecture
from mobilenas.core.workload import Kernel
from mobilenas.errors import DocumentError
from mobilenas.latency.models import LatencyModel
from mobilenas.latency.prediction import Prediction
from mobilenas.methods.base import Progress, SearchMethod, Step
from mobilenas.methods.darts import Darts
from mobilenas.runtimes.base import PreparedModel, Runtime
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.spaces.base import DerivationProgram, OptionCosts, SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.supernet import ArchitectureParameters, Mixture
from mobilenas.testing.contracts import SpaceContract
from mobilenas.testing.device_contracts import RuntimeContract
from mobilenas.testing.fakes import make_model
from mobilenas.testing.search_contracts import LatencyModelContract, MethodContract


class HardProbabilities(Darts):
    def relax_architecture(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        mixture = super().relax_architecture(parameters, progress)
        hard = {
            name: torch.zeros_like(row).scatter(0, row.argmax(0, keepdim=True), 1.0) + (row - row.detach())
            for name, row in mixture.probabilities.items()
        }
        return Mixture(mixture.weights, hard, mixture.active)


class WeakConstraint(Darts):
    def architecture_gradient(self, step: Step) -> None:
        super().architecture_gradient(replace(step, constraint=lambda mixture: 0.01 * step.constraint(mixture)))


class TrainingImages(Darts):
    def architecture_gradient(self, step: Step) -> None:
        super().architecture_gradient(replace(step, valid=step.train))


class Ascent(Darts):
    def architecture_gradient(self, step: Step) -> None:
        super().architecture_gradient(replace(step, loss=lambda batch, mixture: -step.loss(batch, mixture)))


class LooksAtValidationOnly(Darts):
    def architecture_gradient(self, step: Step) -> None:
        step.loss(step.valid, self.relax_architecture(step.parameters, step.progress))
        super().architecture_gradient(replace(step, loss=lambda batch, mixture: step.loss(step.train, mixture)))


class SharpCost(Darts):
    def relax_architecture(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        return replace_probabilities(parameters, lambda rows: (2 * rows).softmax(-1))


def replace_probabilities(parameters: ArchitectureParameters, relaxation: Callable[[Tensor], Tensor]) -> Mixture:
    return Mixture(parameters.softmax(), parameters.relax(relaxation), {})


class LeavesGradients(Darts):
    def architecture_gradient(self, step: Step) -> None:
        super().architecture_gradient(step)
        for weight in step.weights:
            weight.grad = torch.ones_like(weight)


class Reseeds(Darts):
    def relax_architecture(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        torch.manual_seed(7)
        return super().relax_architecture(parameters, progress)


class CheapestAlways(CellSpace):
    """Deaf to the scores where there is a budget."""

    def derivation_program(self, scores: Mapping[str, np.ndarray], costs: Sequence[OptionCosts] = ()) -> DerivationProgram:
        program = super().derivation_program(scores, costs)
        return replace(program, scores=-program.costs.sum(axis=0)) if costs else program


class FirstBudgetOnly(CellSpace):
    """Deaf to all budgets but the first."""

    def derivation_program(self, scores: Mapping[str, np.ndarray], costs: Sequence[OptionCosts] = ()) -> DerivationProgram:
        program = super().derivation_program(scores, costs)
        first = np.arange(len(program.costs)) == 0
        return replace(
            program,
            costs=np.where(first[:, None], program.costs, 0.0),
            fixed_costs=np.where(first, program.fixed_costs, 0.0),
        )


class EntropyCost(CellSpace):
    """Right at one-hot probabilities only."""

    def expected_cost(self, probabilities: Mapping[str, Tensor], costs: OptionCosts, temperature: float = 1.0) -> Tensor:
        entropy = torch.stack([-(p.double() * p.double().clamp_min(1e-12).log()).sum() for p in probabilities.values()]).sum()
        return super().expected_cost(probabilities, costs, temperature) * (1 + 0.5 * entropy)


class Lukewarm(CellSpace):
    """Deaf to the temperature."""

    def expected_cost(self, probabilities: Mapping[str, Tensor], costs: OptionCosts, temperature: float = 1.0) -> Tensor:
        return super().expected_cost(probabilities, costs)


class OneCopy(OnnxRuntime):
    """A fragment of one copy, however many were asked for: the slope over copies would be nothing but noise."""

    def kernel_model(self, kernel: Kernel, copies: int) -> PreparedModel:
        return super().kernel_model(kernel, 1)


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (HardProbabilities, "test_the_cost_sees_soft_probabilities"),
        (WeakConstraint, "test_the_constraint_enters_the_gradient_whole"),
        (TrainingImages, "test_an_architecture_step_judges_on_validation_images"),
        (TrainingImages, "test_an_architecture_step_descends_on_validation_images"),
        (LooksAtValidationOnly, "test_an_architecture_step_descends_on_validation_images"),
        (Ascent, "test_an_architecture_step_descends_on_validation_images"),
        (SharpCost, "test_what_the_cost_sees_is_what_the_derivation_maximises"),
        (LeavesGradients, "test_an_architecture_step_fills_the_gradients_of_the_logits_only"),
        (Reseeds, "test_nothing_reseeds_the_global_generator"),
    ],
)
def test_a_wrong_method_is_caught(method: type[SearchMethod], law: str) -> None:
    class Kit(MethodContract):
        def make(self) -> SearchMethod:
            return method()

    with pytest.raises(AssertionError):
        getattr(Kit(), law)()


def test_a_wrong_expectation_is_caught() -> None:
    class Kit(SpaceContract):
        def make(self) -> SearchSpace:
            return EntropyCost(channels=4, layers=5, image_size=8, image_channels=1)

    with pytest.raises(AssertionError, match="no mixture of networks costs that"):
        Kit().test_an_expectation_lies_between_the_cheapest_and_the_dearest_network()


def test_a_deaf_expectation_is_caught() -> None:
    class Kit(SpaceContract):
        def make(self) -> SearchSpace:
            return Lukewarm(channels=4, layers=5, image_size=8, image_channels=1)

    with pytest.raises(AssertionError, match="the temperature changes nothing"):
        Kit().test_a_low_temperature_brings_the_expectation_nearer_to_the_decoded_network()


@pytest.mark.serial
def test_a_fragment_of_too_few_copies_is_caught() -> None:
    class Kit(RuntimeContract):
        def make(self) -> Runtime:
            return OneCopy()

    with pytest.raises(AssertionError, match="forty copies"):
        Kit().test_every_kernel_can_be_timed_alone()


@pytest.mark.parametrize("space", [CheapestAlways, FirstBudgetOnly])
def test_a_wrong_derivation_is_caught(space: type[CellSpace]) -> None:
    class Kit(SpaceContract):
        def make(self) -> SearchSpace:
            return space(channels=4, layers=3, image_size=8, nodes=3)

    with pytest.raises(AssertionError):
        Kit().test_no_drawn_network_within_two_budgets_scores_higher_than_the_derived()


class OtherUnit:
    """Seconds where milliseconds are asked for."""

    def __init__(self, model: LatencyModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def latency(self, architecture: Architecture) -> Prediction:
        prediction = self._model.latency(architecture)
        return Prediction(*(value / 1000 for value in (prediction.ms, prediction.low_ms, prediction.high_ms)))


def test_another_unit_and_silence_about_what_is_missing_are_caught() -> None:
    class Kit(LatencyModelContract):
        def make(self) -> tuple[LatencyModel, SearchSpace]:
            space = CellSpace(channels=4, layers=3, image_size=8, nodes=3)
            return OtherUnit(make_model(space)), space

        def ask_what_is_missing(self) -> None:
            pass

    with pytest.raises(AssertionError, match="another unit"):
        Kit().test_latency_and_option_costs_are_about_the_same_thing()
    with pytest.raises(AssertionError, match="something is missing"):
        Kit().test_what_is_missing_raises_and_never_counts_as_zero()


class Careless(OtherUnit):
    """The given questions answered in another way than the model does."""

    def __init__(self, model: LatencyModel, **answers: Any) -> None:
        super().__init__(model)
        vars(self).update(answers)

    def latency(self, architecture: Architecture) -> Prediction:
        return self._model.latency(architecture)


SMALL = CellSpace(channels=4, layers=3, image_size=8, nodes=3)
TABLE = make_model(SMALL)


@pytest.mark.parametrize(
    ("law", "answers"),
    [
        ("test_several_networks_take_what_each_takes", {"latencies": lambda some: [TABLE.latency(a) for a in set(some)]}),
        ("test_the_errors_are_those_of_nine_networks_in_ten", {"workload_ms": lambda a: 1.1 * TABLE.workload_ms(a)}),
        ("test_workload_ms_is_the_sum_of_the_option_costs", {"workload_ms": lambda a: 1.01 * TABLE.workload_ms(a)}),
        (
            "test_at_certain_probabilities_the_expectation_is_the_networks_own",
            {"expected_ms": lambda probabilities, temperature=1.0: 1.01 * TABLE.expected_ms(probabilities, temperature)},
        ),
    ],
)
def test_an_answer_that_disagrees_with_the_others_is_caught(law: str, answers: dict[str, Any]) -> None:
    class Kit(LatencyModelContract):
        def make(self) -> tuple[LatencyModel, SearchSpace]:
            return Careless(make_model(SMALL), **answers), SMALL

        def ask_what_is_missing(self) -> None:
            raise DocumentError("nothing here is about that")

    with pytest.raises(AssertionError):
        getattr(Kit(), law)()


def test_a_digest_of_the_moment_is_caught() -> None:
    class Kit(LatencyModelContract):
        def make(self) -> tuple[LatencyModel, SearchSpace]:
            return Careless(make_model(SMALL), digest=f"{id(object()):x}{time.monotonic_ns():x}"), SMALL

        def ask_what_is_missing(self) -> None:
            raise DocumentError("nothing here is about that")

    with pytest.raises(AssertionError):
        Kit().test_the_digest_is_the_same_for_the_same_model()


class CostsThatDoNotAddUp(CellSpace):
    def expected_cost(self, probabilities, costs, temperature=1.0):  # type: ignore[no-untyped-def]
        return super().expected_cost(probabilities, costs, temperature) ** 1.01


def test_a_cost_that_is_not_linear_is_caught() -> None:
    class Kit(SpaceContract):
        def make(self) -> SearchSpace:
            return CostsThatDoNotAddUp(channels=4, layers=3, image_size=8, nodes=2)

    with pytest.raises(AssertionError):
        Kit().test_an_expectation_is_the_costs_times_the_expected_uses()


def test_a_constant_latency_is_caught() -> None:
    class Kit(LatencyModelContract):
        def make(self) -> tuple[LatencyModel, SearchSpace]:
            space = CellSpace(channels=4, layers=3, image_size=8, nodes=3)
            model = make_model(space)
            model.latency = lambda architecture: Prediction(5.0, 5.0, 5.0)  # type: ignore[method-assign]
            return model, space

        def ask_what_is_missing(self) -> None:
            raise DocumentError("nothing here is about that")

    with pytest.raises(AssertionError, match="the same latency"):
        Kit().test_latency_tells_networks_apart()
