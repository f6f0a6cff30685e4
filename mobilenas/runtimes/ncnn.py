"""ncnn: models converted on this host by pnnx, kernels read from the converted graph.

ncnn runs the layers of its ``.param`` file as they stand, one after the other: nothing is fused when it is loaded. What a
layer takes depends on how its input lies in memory (4, 8 or 16 channels side by side), which the layer before it decides; in a
row the input has therefore gone through a layer that packs it as ncnn would.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mobilenas import onnx_model
from mobilenas.core.workload import Kernel, TensorSpec
from mobilenas.devices.streams import answer
from mobilenas.errors import IncompatibleError, ResourceError, RunnerError
from mobilenas.runtimes import onnx_precisions
from mobilenas.runtimes.base import PreparedModel, RunSettings, Runtime, telling_lines
from mobilenas.runtimes.ncnn_files import (
    Layer,
    layers_of,
    noise_weights,
    param_of,
    sizes_of,
    weights_of,
    whole_numbers,
    window_of,
)
from mobilenas.runtimes.ncnn_int8 import quantised

OPERATORS = {
    "Convolution": "Conv",
    "ConvolutionDepthWise": "Conv",
    "Deconvolution": "ConvTranspose",
    "DeconvolutionDepthWise": "ConvTranspose",
    "InnerProduct": "Gemm",
}
"""Layers whose kernels have a name that all engines share, by which they are told apart and predicted."""
ACTIVATIONS = ("", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Mish", "HardSwish")
"""Fused into a convolution or a product, by parameter 9."""
FREE = ("Input", "Split", "MemoryData", "Noop")
"""Layers that compute nothing while a network runs: they hand on what is there."""
IN_PLACE = (
    *("BatchNorm", "Bias", "Clip", "Dropout", "ELU", "GELU", "GroupNorm", "HardSigmoid", "HardSwish", "InstanceNorm", "LRN"),
    *("LayerNorm", "Mish", "PReLU", "ReLU", "SELU", "Scale", "Sigmoid", "Softmax", "Swish", "TanH", "UnaryOp"),
)
"""They write over their input, which they would copy first if others read it too."""
TELLING = ("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "MaxPool", "AveragePool")
"""Operators (and those whose name ends so) by which pnnx finds the axis of the batch, which ncnn does without."""
INDIFFERENT = (
    *("Flatten", "Reshape", "Transpose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Relu", "Clip", "Sigmoid", "Identity"),
)
"""Operators that are right without it."""
CONVERSION_TIMEOUT_S = 600.0


class Ncnn(Runtime):
    """ncnn on the CPU. A batch is one image; the precision is that of weights and sums."""

    name: ClassVar[str] = "ncnn"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    providers: ClassVar[tuple[str, ...]] = ("CPU",)
    runner: ClassVar[str] = "ncnn_runner.py"
    suffixes: ClassVar[tuple[str, ...]] = (".param", ".bin")
    shares_weights: ClassVar[bool] = False

    def check(self, settings: RunSettings) -> None:
        super().check(settings)
        if settings.batch != 1:
            raise IncompatibleError(f"ncnn runs one image at a time, not {settings.batch}: say --set device.batch=1")

    def prepare(self, onnx: bytes, settings: RunSettings, calibration: np.ndarray | None = None) -> PreparedModel:
        self.check(settings)
        parsed = onnx_model.parse_model(onnx, "model")
        inputs = onnx_model.inputs_of(parsed)
        shapes = [tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in inputs]
        if any(not shape or shape[0] != 1 for shape in shapes):
            raise IncompatibleError(f"ncnn runs one image at a time; the model's inputs are {shapes}")
        _check_batch_is_told({node.op_type for node in parsed.graph.node}, shapes)
        param, weights = _converted(onnx, shapes)
        sizes = {f"in{index}": sizes_of(shape[1:]) for index, shape in enumerate(shapes)}
        converted = layers_of(param)
        layers = [layer._replace(parameters=sizes[layer.name]) if layer.kind == "Input" else layer for layer in converted]
        unknown = next((layer for layer in layers if "." in layer.kind or "::" in layer.kind), None)
        if unknown is not None:
            raise IncompatibleError(f"ncnn has no layer for {unknown.kind} ({unknown.name}): the model cannot be converted")
        split = next((layer for layer in layers if layer.kind == "Slice" and not layer.parameters), None)
        if split is not None:
            raise IncompatibleError(f"pnnx does not say at which sizes {split.name} splits: give the model's Split its sizes")
        content = param_of(layers)
        if settings.precision == "int8":
            calls = onnx_precisions.calls_of(parsed, calibration)
            content, weights = quantised(content, weights, [[array[0] for array in arrays] for arrays in calls])
        return PreparedModel(content, weights=weights)

    def kernels_of(self, model: PreparedModel, graph: bytes | None, nodes: Sequence[Mapping[str, Any]]) -> Counter[Kernel]:
        reports = {node["name"]: node for node in nodes}
        specs: dict[str, TensorSpec] = {}
        found: Counter[Kernel] = Counter()
        for layer in layers_of(model.content.decode()):
            if layer.name not in reports:
                raise RunnerError(f"the runner did not report the layer {layer.name!r} ({layer.kind})")
            report = reports[layer.name]
            made = tuple(TensorSpec((1, *shape), "float32") for _, shape in report["outputs"])
            specs.update(zip(layer.outputs, made, strict=True))
            if layer.kind not in FREE:
                taken = tuple(specs[name] for name in layer.inputs)
                found[_kernel(layer, taken, made, report["provider"])] += 1
        return found

    def kernel_model(self, kernel: Kernel, copies: int) -> PreparedModel:
        """Copies share their inputs, packed as ncnn packs them; each has weights of its own, as ncnn loads them.

        What works in place works on the result of the copy before it.
        """
        stored = kernel.attribute_values
        data = [spec for spec in kernel.inputs if spec is not None and not spec.is_constant]
        layers = []
        for index, spec in enumerate(data):
            layers.append(Layer("Input", f"in{index}", (), (f"in{index}",), sizes_of(spec.shape[1:])))
            layers.append(Layer("ReLU", f"packed{index}", (f"in{index}",), (f"packed{index}",), {}))
        outputs = [tuple(f"out{copy}_{index}" for index in range(len(kernel.outputs))) for copy in range(copies)]
        if stored["layer"] in IN_PLACE and len(data) == 1:
            inputs, ends = [("packed0",), *outputs[:-1]], outputs[-1:]
        else:
            inputs, ends = [tuple(f"in{index}_{copy}" for index in range(len(data))) for copy in range(copies)], outputs
            shared = enumerate(zip(*inputs, strict=True))
            layers += [Layer("Split", f"split{index}", (f"packed{index}",), names, {}) for index, names in shared]
        for copy, (taken, made) in enumerate(zip(inputs, outputs, strict=True)):
            layers.append(Layer(stored["layer"], f"copy{copy}", taken, made, stored["parameters"]))
        layers.append(Layer("Noop", "end", tuple(name for made in ends for name in made), ("end",), {}))
        weights = noise_weights(stored["layer"], weights_of(stored["layer"], stored["parameters"]))
        return PreparedModel(param_of(layers), optimise=False, weights=weights * copies)

    def session_model(self) -> PreparedModel:
        layers = [Layer("Input", "in0", (), ("in0",), {"0": "1"}), Layer("Noop", "end", ("in0",), ("end",), {})]
        return PreparedModel(param_of(layers), optimise=False, weights=b"")


# ---- conversion --------------------------------------------------------------------------------------------------------


def _check_batch_is_told(operators: Collection[str], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise ``IncompatibleError`` for a model of which pnnx would take the batch for an axis of the image."""
    is_told = any(operator.endswith(TELLING) for operator in operators)
    unsafe = sorted(set(operators).difference(INDIFFERENT))
    if not is_told and unsafe and max(map(len, shapes)) > 2:
        raise IncompatibleError(
            f"pnnx cannot tell the batch from the image in a model without convolution or pool, and {unsafe[0]} depends on it"
        )


def _converted(onnx: bytes, shapes: Sequence[tuple[int, ...]]) -> tuple[str, bytes]:
    """The ``.param`` and ``.bin`` that pnnx makes of a model."""
    try:
        import pnnx
    except ImportError:
        raise ResourceError("ncnn's converter pnnx is not installed here: pip install 'mobilenas[ncnn]'") from None
    sizes = ",".join(f"[{','.join(map(str, shape))}]f32" for shape in shapes)
    with tempfile.TemporaryDirectory(prefix="mobilenas-pnnx-") as folder:
        (Path(folder) / "model.onnx").write_bytes(onnx)
        argv = [pnnx.EXEC_PATH, "model.onnx", f"inputshape={sizes}", "fp16=0"]
        code, printed, said = answer(argv, timeout_s=CONVERSION_TIMEOUT_S, directory=Path(folder))
        if code is None:
            raise IncompatibleError(f"pnnx did not convert the model to ncnn within {CONVERSION_TIMEOUT_S:.0f} s")
        param, weights = Path(folder) / "model.ncnn.param", Path(folder) / "model.ncnn.bin"
        if code != 0 or not param.exists() or not weights.exists():
            last = telling_lines(re.sub(r"\x1b\[[0-9;]*m", "", printed.decode(errors="replace") + said))
            raise IncompatibleError(f"pnnx cannot convert the model to ncnn (exit code {code}): {last}")
        return param.read_text(), weights.read_bytes()


# ---- kernels -----------------------------------------------------------------------------------------------------------


def _kernel(layer: Layer, taken: tuple[TensorSpec, ...], made: tuple[TensorSpec, ...], provider: str) -> Kernel:
    attributes: dict[str, Any] = {"layer": layer.kind, "parameters": layer.parameters}
    number = whole_numbers(layer.parameters)
    code = number.get("9", 0)
    if layer.kind in OPERATORS and 0 < code < len(ACTIVATIONS):
        attributes["activation"] = ACTIVATIONS[code]
    window = window_of(number)
    if OPERATORS.get(layer.kind, "").startswith("Conv"):
        attributes |= {
            "kernel_shape": window,
            "strides": (number.get("13", number.get("3", 1)), number.get("3", 1)),
            "dilations": (number.get("12", number.get("2", 1)), number.get("2", 1)),
            "group": number.get("7", 1) if layer.kind.endswith("DepthWise") else 1,
        }
    elif layer.kind == "Pooling" and not number.get("4"):
        attributes |= {"kernel_shape": window, "strides": (number.get("12", number.get("2", 1)), number.get("2", 1))}
    weights = weights_of(layer.kind, layer.parameters)
    operator = f"ncnn::{OPERATORS.get(layer.kind, layer.kind)}"
    return Kernel(operator, json.dumps(attributes, sort_keys=True), (*taken, *weights), made, provider)
