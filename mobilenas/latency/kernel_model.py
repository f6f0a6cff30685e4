"""Sums of kernels in which those that the table lacks are learnt from the target's other kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.errors import MissingDataError
from mobilenas.latency.calibration import Calibration
from mobilenas.latency.kernels import TargetKernels
from mobilenas.latency.models import Sought, TableModel
from mobilenas.latency.prediction import Prediction
from mobilenas.latency.store import target_tables
from mobilenas.latency.table import ErrorReport
from mobilenas.spaces.base import OptionCosts, Probabilities


@dataclass
class KernelModel:
    """The rows of all ``kernels``' tables, and where there is none their predictor.

    Scale, the linear stand-in and the speed of the device are those of the space's ``table``; the interval is the wider
    the more of a network's time is predicted. Nothing is measured while searching.
    """

    table: TableModel
    kernels: TargetKernels
    _known: dict[Architecture, Prediction] = field(init=False, default_factory=dict)

    @classmethod
    def find(cls, sought: Sought) -> KernelModel:
        """On the space's table and the newest predictor of the target; raises ``DocumentError`` kinds where one is missing."""
        table = TableModel.find(sought)
        known = TargetKernels.of(target_tables(table.table.card.key), table.table)
        if known.predictor is None:
            unused = f". Not used: {'; '.join(known.left_out)}" if known.left_out else ""
            raise MissingDataError(
                f"no kernels of {sought.key.device}, {sought.key.runtime} were learnt from: make a predictor with mobilenas "
                f"profile --kernels, or say --latency-model table{unused}"
            )
        return cls(table, replace(known, tables=[table.table, *known.tables]))

    @property
    def option_costs(self) -> OptionCosts:
        return self.table.option_costs

    @property
    def workload_error(self) -> ErrorReport:
        return self.table.workload_error

    @property
    def error(self) -> ErrorReport:
        """Of networks whose kernels all have rows; what learning adds is in each prediction's interval."""
        return self.table.error

    @property
    def interval_factor(self) -> float:
        """Of the same networks."""
        return self.table.interval_factor

    @property
    def digest(self) -> str:
        learnt = self.kernels.predictor
        return documents.digest([[t.digest for t in self.kernels.tables], learnt and learnt.learnt_from_])[:16]

    def latency(self, architecture: Architecture) -> Prediction:
        """Predict one network; raises ``MissingKernelError`` where kernels unlike all measured ones take over a third of it."""
        return self.latencies([architecture])[0]

    def latencies(self, architectures: Sequence[Architecture]) -> list[Prediction]:
        """Of several networks, lowered together; raises ``MissingKernelError`` as ``latency``."""
        unknown = list(dict.fromkeys(a for a in architectures if a not in self._known))
        calibration = Calibration(self.table.table, self.table.card, is_of_its_kind=True)
        for architecture, kernels in zip(unknown, self.table.lower(unknown) if unknown else [], strict=True):
            found = self.kernels.predict(kernels, calibration=calibration)
            self._known[architecture] = found.prediction
        return [self._known[architecture] for architecture in architectures]

    def workload_ms(self, architecture: Architecture) -> float:
        return self.table.workload_ms(architecture)

    def expected_ms(self, probabilities: Probabilities, temperature: float = 1.0) -> Tensor:
        return self.table.expected_ms(probabilities, temperature)

    def describe(self) -> dict[str, Any]:
        learnt = self.kernels.predictor
        return {
            **self.table.describe(),
            "model": "kernel",
            "families_learnt": sorted(learnt.families_) if learnt else [],
            "learnt_width": learnt.common_width_ if learnt else None,
        }
