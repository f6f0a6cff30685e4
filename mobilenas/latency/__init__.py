"""What an architecture costs. Names of latency models, resolved when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mobilenas.core.registry import Registry

if TYPE_CHECKING:
    from mobilenas.latency.models import LatencyModel, Sought

LATENCY_MODELS: Registry[Callable[[Sought], LatencyModel]] = Registry(
    "latency model",
    {
        "table": "mobilenas.latency.models:TableModel.find",
        "kernel": "mobilenas.latency.kernel_model:KernelModel.find",
        "network": "mobilenas.latency.network_model:NetworkModel.find",
    },
)
