"""The kits fail what is wrong: each piece below breaks one law, and that law's test says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mobilenas.core.workload import Kernel
from mobilenas.latency.models import LatencyModel, Prediction
from mobilenas.methods.base import Progress, SearchMethod, Step
from mobilenas.methods.darts import Darts
from mobilenas.runtimes.base import PreparedModel, Runtime
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.spaces.base import OptionCosts, SearchSpace
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


def test_a_constant_latency_is_caught() -> None:
    class Kit(LatencyModelContract):
        def make(self) -> tuple[LatencyModel, SearchSpace]:
            space = CellSpace(channels=4, layers=3, image_size=8, nodes=3)
            model = make_model(space)
            model.latency = lambda architecture: Prediction(5.0, 5.0, 5.0)  # type: ignore[method-assign]
            return model, space

    with pytest.raises(AssertionError, match="the same latency"):
        Kit().test_latency_tells_networks_apart()
