"""Latency as a line over multiply-adds: the yardstick that a better model must beat."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec
from torch import Tensor

from mobilenas import ops
from mobilenas.core.architecture import Architecture
from mobilenas.errors import DocumentError
from mobilenas.latency.prediction import Prediction
from mobilenas.latency.table import ErrorReport
from mobilenas.spaces.base import OptionCosts, Probabilities, SearchSpace


class MaddsModel:
    """``fixed_ms`` and a time per million multiply-adds; ``error`` is what it was off by on measured networks."""

    def __init__(self, space: SearchSpace, fixed_ms: float, ms_per_million: float, error: ErrorReport) -> None:
        if not (fixed_ms > 0 and ms_per_million > 0):
            raise DocumentError(f"a line of {fixed_ms} ms and {ms_per_million} ms per million: both must be above 0")
        self.space, self.fixed_ms, self.ms_per_million, self._error = space, fixed_ms, ms_per_million, error
        costs = space.option_costs({w: ms_per_million * ops.madds(w) / 1e6 for w in space.workloads()})
        self._costs = OptionCosts(costs.fixed + fixed_ms, costs.options)

    @property
    def option_costs(self) -> OptionCosts:
        return self._costs

    @property
    def workload_error(self) -> ErrorReport:
        return ErrorReport.none()  # a line is its own linear stand-in

    @property
    def error(self) -> ErrorReport:
        return self._error

    @property
    def interval_factor(self) -> float:
        return 1 + self._error.p90_fraction

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]

    def latency(self, architecture: Architecture) -> Prediction:
        return Prediction.within(self.workload_ms(architecture), self.interval_factor)

    def latencies(self, architectures: Sequence[Architecture]) -> list[Prediction]:
        return [self.latency(architecture) for architecture in architectures]

    def workload_ms(self, architecture: Architecture) -> float:
        return self.fixed_ms + self.ms_per_million * self.space.madds(architecture) / 1e6

    def expected_ms(self, probabilities: Probabilities, temperature: float = 1.0) -> Tensor:
        return self.space.expected_cost(probabilities, self._costs, temperature)

    def describe(self) -> dict[str, Any]:
        line = {"fixed_ms": self.fixed_ms, "ms_per_million": self.ms_per_million}
        return {"model": "madds", **line, "error": msgspec.to_builtins(self._error)}
