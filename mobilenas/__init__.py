"""mobilenas: a neural network for a latency budget on a real device, and the proof.

The names below are the public surface; each is loaded when it is first asked for. The commands are functions of
``mobilenas.workflows``; the conformance kits for plug-in authors are in ``mobilenas.testing``.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when ONNX Runtime is imported: it would send data on its use

if TYPE_CHECKING:
    from mobilenas import workflows
    from mobilenas.config import ExportConfig, ProfileConfig, SearchConfig, TrainConfig, load_config
    from mobilenas.core.architecture import Architecture, Decision
    from mobilenas.core.measurement import Measurement, MeasurementPlan
    from mobilenas.core.workload import Kernel, Workload
    from mobilenas.devices.device import find_device
    from mobilenas.errors import BudgetError, MobileNASError
    from mobilenas.latency.budget import Budget, derive, latency_range
    from mobilenas.latency.models import LatencyModel, TableModel
    from mobilenas.latency.prediction import Prediction
    from mobilenas.latency.table import LatencyTable
    from mobilenas.methods import METHODS
    from mobilenas.methods.base import SearchMethod
    from mobilenas.runtimes import RUNTIMES
    from mobilenas.runtimes.measure import measure
    from mobilenas.spaces import SPACES
    from mobilenas.spaces.base import SearchSpace, SupernetSize

_HOMES = {
    "mobilenas": ("workflows",),
    "mobilenas.config": ("ExportConfig", "ProfileConfig", "SearchConfig", "TrainConfig", "load_config"),
    "mobilenas.core.architecture": ("Architecture", "Decision"),
    "mobilenas.core.measurement": ("Measurement", "MeasurementPlan"),
    "mobilenas.core.workload": ("Kernel", "Workload"),
    "mobilenas.devices.device": ("find_device",),
    "mobilenas.errors": ("BudgetError", "MobileNASError"),
    "mobilenas.latency.budget": ("Budget", "derive", "latency_range"),
    "mobilenas.latency.models": ("LatencyModel", "TableModel"),
    "mobilenas.latency.prediction": ("Prediction",),
    "mobilenas.latency.table": ("LatencyTable",),
    "mobilenas.methods": ("METHODS",),
    "mobilenas.methods.base": ("SearchMethod",),
    "mobilenas.runtimes": ("RUNTIMES",),
    "mobilenas.runtimes.measure": ("measure",),
    "mobilenas.spaces": ("SPACES",),
    "mobilenas.spaces.base": ("SearchSpace", "SupernetSize"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "RUNTIMES",
    "SPACES",
    "Architecture",
    "Budget",
    "BudgetError",
    "Decision",
    "ExportConfig",
    "Kernel",
    "LatencyModel",
    "LatencyTable",
    "Measurement",
    "MeasurementPlan",
    "MobileNASError",
    "Prediction",
    "ProfileConfig",
    "SearchConfig",
    "SearchMethod",
    "SearchSpace",
    "SupernetSize",
    "TableModel",
    "TrainConfig",
    "Workload",
    "derive",
    "find_device",
    "latency_range",
    "load_config",
    "measure",
    "workflows",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'mobilenas' has no attribute {name!r}")
    return import_module(f"mobilenas.{name}") if home == "mobilenas" else getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
