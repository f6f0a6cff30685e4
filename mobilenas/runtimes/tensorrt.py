"""TensorRT on NVIDIA's GPUs, ``tensorrt`` or ``tensorrt-rtx``: ONNX goes to the device, which builds an engine of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mobilenas.core.workload import Kernel
from mobilenas.errors import IncompatibleError
from mobilenas.runtimes import onnx_precisions
from mobilenas.runtimes.base import PreparedModel, RunSettings, Runtime

WHOLE = (
    "TensorRT runs kernels side by side, and shows none that could be run alone: its networks are measured whole. "
    "Say profile --transfer --measure-networks 10, which needs no kernels, and then search --latency-model network"
)


class TensorRt(Runtime):
    """Whole networks only; timed by the GPU's own clock."""

    name: ClassVar[str] = "tensorrt"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    providers: ClassVar[tuple[str, ...]] = ("CUDA",)
    runner: ClassVar[str] = "tensorrt_runner.py"
    suffixes: ClassVar[tuple[str, ...]] = (".tensorrt.onnx",)

    def prepare(self, onnx: bytes, settings: RunSettings, calibration: np.ndarray | None = None) -> PreparedModel:
        self.check(settings)
        if settings.precision == "fp16":
            return PreparedModel(onnx_precisions.halved(onnx))
        if settings.precision == "int8":
            return PreparedModel(onnx_precisions.quantised(onnx, calibration, is_symmetric=True))
        return PreparedModel(onnx)

    def check_kernels(self, settings: RunSettings) -> None:
        raise IncompatibleError(WHOLE)

    def kernels_of(self, model: PreparedModel, graph: bytes | None, nodes: Sequence[Mapping[str, Any]]) -> Counter[Kernel]:
        raise IncompatibleError(WHOLE)

    def kernel_model(self, kernel: Kernel, copies: int) -> PreparedModel:
        raise IncompatibleError(WHOLE)

    def session_model(self) -> PreparedModel:
        raise IncompatibleError(WHOLE)
