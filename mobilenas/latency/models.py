"""Latency models: what an architecture costs, as a number and as a differentiable expectation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
from torch import Tensor

from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import Statistic
from mobilenas.core.workload import Kernel
from mobilenas.latency.prediction import Prediction
from mobilenas.latency.store import find_table
from mobilenas.latency.table import ErrorReport, LatencyTable, SpaceCard, TableKey, TableRow
from mobilenas.spaces.base import OptionCosts, Probabilities, SearchSpace


class LatencyModel(Protocol):
    """What a search asks of a cost: the same questions whether rows are summed or a predictor answers."""

    @property
    def option_costs(self) -> OptionCosts:
        """Milliseconds per option: the linear stand-in for the latency that the derivation chooses by."""
        ...

    @property
    def workload_error(self) -> ErrorReport:
        """How far the linear stand-in is from ``latency``."""
        ...

    @property
    def error(self) -> ErrorReport:
        """How far ``latency`` is from the device, on networks that nothing was fitted on."""
        ...

    @property
    def interval_factor(self) -> float:
        """By how much predictions may be wrong: no interval reaches less far."""
        ...

    @property
    def digest(self) -> str:
        """Hexadecimal digits that change when any answer may."""
        ...

    def latency(self, architecture: Architecture) -> Prediction:
        """The best that the model knows of one network."""
        ...

    def latencies(self, architectures: Sequence[Architecture]) -> list[Prediction]:
        """The same of several, in one go."""
        ...

    def workload_ms(self, architecture: Architecture) -> float:
        """The linear stand-in for one network."""
        ...

    def expected_ms(self, probabilities: Probabilities, temperature: float = 1.0) -> Tensor:
        """Expectation in milliseconds, differentiable in the probabilities: what the loss sees."""
        ...

    def describe(self) -> dict[str, Any]:
        """Provenance and error."""
        ...


MeasureKernels = Callable[[Sequence[Kernel]], Mapping[Kernel, TableRow]]
"""Kernels -> their rows, measured on the device that the table is of, at the speed that it had then."""

Lower = Callable[[Sequence[Architecture]], list[Counter[Kernel]]]
"""Architectures -> the kernels that the runtime makes of each."""


@dataclass(frozen=True)
class Sought:
    """What a latency model is wanted for; a registered model is a function of it."""

    space: SearchSpace
    key: TableKey
    """The target. The engine's version is open."""
    folder: Path | None
    """Where the table is, if the user said so."""
    lower: Lower
    """On the target."""
    profile_command: str
    """Measures a table of the space on the target."""
    statistic: Statistic = "floor"
    """What predictions are to be of."""


@dataclass
class TableModel:
    """Sums of table rows for one space, with the space's scale.

    A whole network is lowered by ``lower`` and its kernels are summed. The loss and the derivation see a linear stand-in:
    workload costs, whose own error is in the card, and the tangent of the scale. With ``measure_kernels`` a kernel that no
    network of the profile had is measured when a network with it is asked for; without, such a network raises
    ``MissingKernelError``.
    """

    table: LatencyTable
    space: SearchSpace
    lower: Lower
    measure_kernels: MeasureKernels | None = None
    option_costs: OptionCosts = field(init=False)
    _known: dict[Architecture, Prediction] = field(init=False, default_factory=dict)

    @classmethod
    def find(cls, sought: Sought) -> TableModel:
        """On the newest table of the target that covers the space; raises ``DocumentError`` kinds where there is none."""
        table = find_table(sought.folder, sought.key, sought.space.key, sought.profile_command)
        return cls(table.of_statistic(sought.statistic), sought.space, sought.lower)

    def __post_init__(self) -> None:
        costs = self.space.option_costs(self.table.costs_ms(self.space.key, self.space.workloads()))
        scale = self.card.scale
        self.option_costs = OptionCosts(
            fixed=scale.slope * (costs.fixed + self.table.card.session_ms) + scale.offset_ms,
            options={name: scale.slope * row for name, row in costs.options.items()},
        )

    @property
    def card(self) -> SpaceCard:
        """What the table knows of the space; raises ``DocumentError`` if it was not profiled."""
        return self.table.space_card(self.space.key)

    @property
    def workload_error(self) -> ErrorReport:
        """How far the linear stand-in is from the kernel sums."""
        return self.table.workload_costs[self.space.key].error

    @property
    def error(self) -> ErrorReport:
        return self.card.table_error

    @property
    def interval_factor(self) -> float:
        return self.card.interval_factor

    @property
    def digest(self) -> str:
        return self.table.digest

    def latency(self, architecture: Architecture) -> Prediction:
        """``table_ms``; raises ``MissingKernelError`` if the network has a kernel without a row."""
        return self.latencies([architecture])[0]

    def latencies(self, architectures: Sequence[Architecture]) -> list[Prediction]:
        """``table_ms`` of several networks, lowered together; raises ``MissingKernelError``."""
        unknown = list(dict.fromkeys(a for a in architectures if a not in self._known))
        lowered = self.lower(unknown) if unknown else []
        missing = sorted(set().union(*lowered) - self.table.rows.keys())
        if missing and self.measure_kernels is not None:
            self.table = replace(self.table, rows={**self.table.rows, **self.measure_kernels(missing)})
        for architecture, kernels in zip(unknown, lowered, strict=True):
            self._known[architecture] = self.card.predict(self.table.kernel_sum_ms(kernels))
        return [self._known[architecture] for architecture in architectures]

    def workload_ms(self, architecture: Architecture) -> float:
        """The linear stand-in for ``table_ms`` that the loss and the derivation see."""
        return cost_of(self.space, self.option_costs, architecture)

    def expected_ms(self, probabilities: Probabilities, temperature: float = 1.0) -> Tensor:
        return self.space.expected_cost(probabilities, self.option_costs, temperature)

    def describe(self) -> dict[str, Any]:
        card = self.table.card
        return {
            "model": "table",
            "key": msgspec.to_builtins(card.key),
            "created": card.created,
            "origin": card.origin,
            "estimator": card.key.estimator,
            "scale": msgspec.to_builtins(self.card.scale),
            "sentinel_ms": card.sentinel_ms,
            "table_error": msgspec.to_builtins(self.card.table_error),
            "workload_error": msgspec.to_builtins(self.workload_error),
        }


def cost_of(space: SearchSpace, costs: OptionCosts, architecture: Architecture) -> float:
    """The cost of one network, from costs of options."""
    return float(space.expected_cost(space.one_hot(architecture), costs))
