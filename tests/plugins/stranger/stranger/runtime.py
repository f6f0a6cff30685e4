"""The ONNX project's reference evaluator as an engine: it runs a graph node by node, as it stands."""

from pathlib import Path
from typing import ClassVar

from mobilenas.runtimes.onnx_runtime import OnnxRuntime


class OnnxReference(OnnxRuntime):
    """Kernels are the nodes of the graph; models and reports have the form that ONNX Runtime's have."""

    name: ClassVar[str] = "onnx-reference"
    runner: ClassVar[str] = "reference_runner.py"

    @property
    def runner_file(self) -> Path:
        return Path(__file__).with_name(self.runner)
