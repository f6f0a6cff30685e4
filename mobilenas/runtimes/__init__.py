"""Which engine runs a network, one file per engine. Names of runtimes, resolved when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenas.core.registry import Registry

if TYPE_CHECKING:
    from mobilenas.runtimes.base import Runtime

RUNTIMES: Registry[type[Runtime]] = Registry(
    "runtime",
    {
        "onnxruntime": "mobilenas.runtimes.onnx_runtime:OnnxRuntime",
        "ncnn": "mobilenas.runtimes.ncnn:Ncnn",
        "mnn": "mobilenas.runtimes.mnn:Mnn",
        "tensorrt": "mobilenas.runtimes.tensorrt:TensorRt",
    },
)
