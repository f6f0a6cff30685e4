"""A chain of layers at one resolution, each with one operator: the smallest space there is."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mobilenas import ops
from mobilenas.core.architecture import Architecture, Decision
from mobilenas.core.workload import Blueprint, Layer, Workload
from mobilenas.errors import DocumentError
from mobilenas.spaces.base import DerivationProgram, OptionCosts, Probabilities, SearchSpace, SupernetPlan, check_range
from mobilenas.supernet import MixedOp, Mixture, Supernet


@dataclass(frozen=True)
class ChainSpace(SearchSpace):
    """``layers`` layers of ``channels`` channels between a stem and a head."""

    channels: int = 8
    layers: int = 4
    image_size: int = 8
    image_channels: int = 1
    classes: int = 10
    operators: tuple[str, ...] = ("skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_5x5")
    batch: int = 1

    name: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        check_range(self.channels, 1, "space.channels")
        check_range(self.layers, 1, "space.layers")

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.image_channels, self.image_size, self.image_size)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(Decision(f"layer{index}", self.operators, "op") for index in range(self.layers))

    # ---- structure: the deployed network and its workloads -----------------------------------------------------------

    def workload(self, operator: str) -> Workload:
        """``operator`` at the chain's one shape."""
        return Workload(operator, self.channels, self.channels, self.image_size, self.image_size, 1, self.batch)

    @property
    def stem(self) -> Workload:
        """Images to channels."""
        return Workload("stem_cifar", self.image_channels, self.channels, self.image_size, self.image_size, 1, self.batch)

    @property
    def head(self) -> Workload:
        """Channels to classes."""
        return Workload("head", self.channels, self.classes, self.image_size, self.image_size, 1, self.batch)

    def workloads(self) -> frozenset[Workload]:
        return frozenset({self.stem, self.head, *map(self.workload, self.operators)})

    def blueprint(self, architecture: Architecture) -> Blueprint:
        layers, source = [Layer("stem", self.stem, ("images",))], "stem"
        for decision in self.decisions:
            operator = architecture.choices.get(decision.name)
            if operator not in self.operators:
                raise DocumentError(f"architecture: {decision.name} is {operator!r}; it must be one of {self.operators}")
            layers.append(Layer(decision.name, self.workload(operator), (source,)))
            source = decision.name
        if len(architecture.choices) != self.layers:
            raise DocumentError(f"architecture: {len(architecture.choices)} choices, the chain has {self.layers} layers")
        return Blueprint((*layers, Layer("head", self.head, (source,))), self.image_shape)

    def supernet(self, plan: SupernetPlan) -> Supernet:
        return ChainSupernet(self if plan.size is None else replace(self, channels=plan.size.channels))

    # ---- choices ---------------------------------------------------------------------------------------------------

    def random_architecture(self, generator: random.Random) -> Architecture:
        return self.architecture((decision.name, generator.choice(self.operators)) for decision in self.decisions)

    def decode(self, probabilities: Probabilities) -> Architecture:
        return self.architecture((d.name, d.options[int(probabilities[d.name].argmax())]) for d in self.decisions)

    def one_hot(self, architecture: Architecture) -> dict[str, Tensor]:
        self.blueprint(architecture)
        return {
            d.name: torch.tensor([float(o == architecture.choices[d.name]) for o in d.options], dtype=torch.float64)
            for d in self.decisions
        }

    # ---- costs -----------------------------------------------------------------------------------------------------

    def option_costs(self, cost: Mapping[Workload, float]) -> OptionCosts:
        row = np.array([cost[self.workload(operator)] for operator in self.operators])
        return OptionCosts(cost[self.stem] + cost[self.head], {decision.name: row for decision in self.decisions})

    def expected_cost(self, probabilities: Probabilities, costs: OptionCosts, temperature: float = 1.0) -> Tensor:
        total = torch.tensor(costs.fixed, dtype=torch.float64)
        for name, row in costs.options.items():
            p = probabilities[name].double()
            total = total.to(p.device) + (p * torch.as_tensor(row, device=p.device)).sum()
        return total

    def derivation_program(self, scores: Mapping[str, np.ndarray], costs: Sequence[OptionCosts] = ()) -> DerivationProgram:
        pairs = [(decision.name, index) for decision in self.decisions for index in range(len(self.operators))]
        names = [decision.name for decision in self.decisions]
        rows = np.array([[float(name == decision) for name, _ in pairs] for decision in names])
        return DerivationProgram(
            variables=tuple((name, self.operators[index]) for name, index in pairs),
            scores=np.array([scores[name][index] for name, index in pairs]),
            rows=rows,
            lower=np.ones(len(names)),
            upper=np.ones(len(names)),
            costs=np.array([[c.options[name][index] for name, index in pairs] for c in costs]).reshape(-1, len(pairs)),
            fixed_costs=np.array([c.fixed for c in costs]),
        )


class ChainSupernet(Supernet):
    """Every layer a mixed operator."""

    def __init__(self, space: ChainSpace) -> None:
        super().__init__()
        self.stem, self.head = ops.build_operator(space.stem), ops.build_operator(space.head)
        self.layers = nn.ModuleDict({d.name: MixedOp(d.options, partial(space.workload)) for d in space.decisions})

    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        x = self.stem(images)
        for name, layer in self.layers.items():
            x = layer(x, mixture.weights[name], mixture.active.get(name))
        return self.head(x)

    def modules_of(self, choices: Mapping[str, str]) -> dict[str, nn.Module]:
        kept = {name: self.layers[name].candidates[operator] for name, operator in choices.items()}
        return {"stem": self.stem, **kept, "head": self.head}
