"""The contract of a search space: the only code that knows what a network of it looks like."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from mobilenas import network, ops
from mobilenas.core.architecture import Architecture, Decision, OptionValue, options_key
from mobilenas.core.workload import Blueprint, Workload
from mobilenas.errors import UsageError, nearest_hint
from mobilenas.supernet import Supernet

Probabilities = Mapping[str, Tensor]
"""Per decision name: a tensor ``(n_options,)`` over the decision's options, soft."""


class SupernetSize(msgspec.Struct, frozen=True):
    """Size of a proxy network that is trained while searching; it shares the decisions with the deployed network."""

    channels: int
    layers: int


@dataclass(frozen=True)
class SupernetPlan:
    """What one stage of a search trains: its size, what it chooses among, and how it is relaxed.

    Without a ``size`` it is as large as the deployed network. ``decisions`` may lack options of the space's, and whole
    decisions; what is left out is not built. Of ``partial_channels`` K only every K-th channel passes through the candidates
    (PC-DARTS, arXiv 1907.05737). ``checkpoint`` trades time for memory: what a cell or block computes is computed
    again on the way back.
    """

    size: SupernetSize | None
    decisions: tuple[Decision, ...]
    partial_channels: int = 1
    checkpoint: bool = False


@dataclass(frozen=True)
class OptionCosts:
    """What each option adds to the network's cost, in the cost's own unit (milliseconds, multiply-adds, ...).

    ``fixed`` is what every network of the space pays; ``options[decision]`` has shape ``(n_options,)`` and sums over
    every place in the network where the decision applies.
    """

    fixed: float
    options: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DerivationProgram:
    """What may be chosen together, as a 0/1 linear program over ``variables`` = (decision, option) pairs.

    Maximise ``scores @ z`` with ``lower <= rows @ z <= upper`` (the space's rules). Row ``b`` of ``costs`` and entry
    ``b`` of ``fixed_costs`` give cost ``b`` of the network: ``costs[b] @ z + fixed_costs[b]``.
    """

    variables: tuple[tuple[str, str], ...]
    scores: np.ndarray
    rows: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    costs: np.ndarray
    fixed_costs: np.ndarray


class SearchSpace(ABC):
    """Describes the *deployed* network: its size, its decisions, its workloads. Implementations are frozen dataclasses.

    Budgets, costs, fingerprints and profiles are about the deployed network. The supernet, which is only trained to
    decide, may have its own ``SupernetSize``. Costs flow one way: a cost per workload -> ``option_costs`` -> either
    ``expected_cost`` (the loss) or ``derivation_program`` (the choice).
    """

    name: ClassVar[str]
    traits: ClassVar[frozenset[str]] = frozenset()
    """What a method may ask for: ``"cells"``, ``"routes"``, ``"partial channels"``, ..."""
    proxy: ClassVar[SupernetSize | None] = SupernetSize(channels=16, layers=8)
    """Size of a supernet unless the search says otherwise; ``None`` where it is always as large as the deployed network."""

    @cached_property
    def options(self) -> dict[str, OptionValue]:
        """The constructor's arguments, that is the dataclass's fields, as plain data; ``type(self)(**options) == self``."""
        return asdict(cast(Any, self))

    @property
    def may_collapse(self) -> bool:
        """Whether a network of skips for the most part has learnt nothing: not where skips are how depth is searched, nor where
        a part of the network is fixed.
        """
        return False

    @property
    def undecided(self) -> dict[str, np.ndarray]:
        """Log probabilities ``(O,)`` per decision that favour no option, and so no network."""
        return {decision.name: np.full(len(decision.options), -math.log(len(decision.options))) for decision in self.decisions}

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int, int]:
        """Shape of the deployed network's input, ``(batch, channels, height, width)``."""

    @property
    @abstractmethod
    def decisions(self) -> tuple[Decision, ...]:
        """Everything that may be chosen, in a fixed order."""

    @abstractmethod
    def workloads(self) -> frozenset[Workload]:
        """Every workload that any network of the space can have."""

    @abstractmethod
    def blueprint(self, architecture: Architecture) -> Blueprint:
        """The deployed network as data; raises ``DocumentError`` where the choices are not legal in this space."""

    @abstractmethod
    def supernet(self, plan: SupernetPlan) -> Supernet:
        """The supernet of ``plan``; raises ``IncompatibleError`` where its size cannot be relaxed so."""

    @abstractmethod
    def option_costs(self, cost: Mapping[Workload, float]) -> OptionCosts:
        """Add up a cost per workload to a cost per option; a workload without a cost raises ``KeyError``."""

    @abstractmethod
    def expected_cost(self, probabilities: Probabilities, costs: OptionCosts, temperature: float = 1.0) -> Tensor:
        """Expectation of the cost under the decode rule, a differentiable scalar.

        ``temperature`` (above 0) sharpens what the decode rule makes all-or-nothing; at 0 it would be the decoded
        network's own cost. Must be linear in the costs, which may be tensors that need a gradient.
        """

    @abstractmethod
    def derivation_program(self, scores: Mapping[str, np.ndarray], costs: Sequence[OptionCosts] = ()) -> DerivationProgram:
        """The choice as a 0/1 program; ``scores[decision]`` are log probabilities ``(n_options,)``.

        Undecided ones score every network alike.
        """

    @abstractmethod
    def decode(self, probabilities: Probabilities) -> Architecture:
        """The architecture that the probabilities stand for, without any budget."""

    @abstractmethod
    def one_hot(self, architecture: Architecture) -> dict[str, Tensor]:
        """Probabilities that are certain of ``architecture``: ``decode(one_hot(a)) == a``."""

    @abstractmethod
    def random_architecture(self, generator: random.Random) -> Architecture:
        """An architecture drawn uniformly over the legal choices."""

    def architecture(self, choices: Iterable[tuple[str, str]]) -> Architecture:
        """The architecture with the given (decision, option) pairs."""
        return Architecture(self.name, self.options, dict(sorted(choices)))

    def build(self, architecture: Architecture, auxiliary: bool = False) -> network.Network:
        """The deployed network, untrained; with the auxiliary head that it is trained with if asked for."""
        blueprint = self.blueprint(architecture)
        return network.Network(blueprint, self.auxiliary_head(architecture) if auxiliary else None)

    def auxiliary_head(self, architecture: Architecture) -> nn.Module | None:
        """The classifier that is trained on ``blueprint.auxiliary_after``; ``None`` where the space has none."""
        return None

    def workloads_of(self, architecture: Architecture) -> Counter[Workload]:
        """Workloads of one network with their multiplicity."""
        return self.blueprint(architecture).workloads

    def madds(self, architecture: Architecture) -> int:
        """Multiply-adds of one inference at batch 1."""
        return sum(count * ops.madds(w) for w, count in self.workloads_of(architecture).items())

    def params(self, architecture: Architecture) -> int:
        """Learned scalars of the deployed network."""
        return sum(count * ops.params(w) for w, count in self.workloads_of(architecture).items())

    @cached_property
    def _free(self) -> OptionCosts:
        return self.option_costs(dict.fromkeys(self.workloads(), 0.0))

    def expected_uses(self, probabilities: Probabilities, temperature: float = 1.0) -> Tensor:
        """How often each entry of ``OptionCosts`` is expected to be paid, ``(F,)`` in the order of its options.

        The gradient of ``expected_cost`` in the costs, itself differentiable in the probabilities. Of a single network it is
        zeros and ones, the same as that network's ``one_hot`` where a decision is always made.
        """
        costs: Any = {
            name: torch.zeros(len(row), dtype=torch.float64, requires_grad=True) for name, row in self._free.options.items()
        }
        with torch.enable_grad():
            total = self.expected_cost(probabilities, OptionCosts(0.0, costs), temperature)
        goes_on = torch.is_grad_enabled() and any(row.requires_grad for row in probabilities.values())
        uses = torch.autograd.grad(total, list(costs.values()), create_graph=goes_on, materialize_grads=True)
        return torch.cat(uses).to(next(iter(probabilities.values())).device)

    def workloads_of_options(self) -> np.ndarray:
        """How often each entry of ``OptionCosts`` runs each workload, ``(F, W)``, workloads sorted."""
        workloads = sorted(self.workloads())
        free = dict.fromkeys(workloads, 0.0)
        return np.array([np.concatenate(list(self.option_costs({**free, w: 1.0}).options.values())) for w in workloads]).T

    def search_only(self, supernet: Supernet) -> tuple[nn.Module, ...]:
        """Modules of ``supernet`` that no derived network has; replaced by identities when the two are compared."""
        return ()

    @property
    def key(self) -> str:
        """Short stable name of the space with its options."""
        return options_key(self.name, self.options)


def check_operators(given: Sequence[str], known: Sequence[str]) -> None:
    """Raise ``UsageError`` if one of ``given`` is not ``known`` or named twice."""
    for operator in given:
        if operator not in known:
            raise UsageError(f"space.operators has {operator!r}{nearest_hint(operator, known)} (available: {', '.join(known)})")
    if len(set(given)) < len(given):
        raise UsageError("space.operators names an operator twice")


def check_numbers(space: SearchSpace, **least: int) -> None:
    """Raise ``UsageError`` unless each option named is a whole number of at least so much; images always are."""
    for name, minimum in {"image_size": 8, "image_channels": 1, "classes": 2, "batch": 1, **least}.items():
        check_range(getattr(space, name), minimum, f"space.{name}")


def check_range(value: int, minimum: int, what: str, maximum: int = 10_000) -> None:
    """Raise ``UsageError`` naming ``what`` if ``value`` is no whole number from ``minimum`` to ``maximum``."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise UsageError(f"{what} is {value!r}; it must be a whole number, at least {minimum} and at most {maximum}")
