"""Latency as a line over multiply-adds: the yardstick that a better model must beat."""

from typing import Any

from torch import Tensor

from mobilenas import ops
from mobilenas.core.architecture import Architecture
from mobilenas.errors import DocumentError
from mobilenas.latency.prediction import Prediction
from mobilenas.spaces.base import OptionCosts, Probabilities, SearchSpace


class MaddsModel:
    """``fixed_ms`` and a time per million multiply-adds; ``spread_fraction`` is how far off networks were at most."""

    def __init__(self, space: SearchSpace, fixed_ms: float, ms_per_million: float, spread_fraction: float) -> None:
        if not (fixed_ms > 0 and ms_per_million > 0):
            raise DocumentError(f"a line of {fixed_ms} ms and {ms_per_million} ms per million: both must be above 0")
        self.space, self.fixed_ms, self.ms_per_million, self.spread = space, fixed_ms, ms_per_million, spread_fraction
        costs = space.option_costs({w: ms_per_million * ops.madds(w) / 1e6 for w in space.workloads()})
        self._costs = OptionCosts(costs.fixed + fixed_ms, costs.options)

    @property
    def option_costs(self) -> OptionCosts:
        return self._costs

    def latency(self, architecture: Architecture) -> Prediction:
        ms = self.fixed_ms + self.ms_per_million * self.space.madds(architecture) / 1e6
        return Prediction(ms, ms * (1 - self.spread), ms * (1 + self.spread))

    def expected_ms(self, probabilities: Probabilities, temperature: float = 1.0) -> Tensor:
        return self.space.expected_cost(probabilities, self._costs, temperature)

    def describe(self) -> dict[str, Any]:
        return {"model": "madds", "fixed_ms": self.fixed_ms, "ms_per_million": self.ms_per_million, "spread": self.spread}
