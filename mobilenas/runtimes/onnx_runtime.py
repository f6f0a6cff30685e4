"""ONNX Runtime: lowering to its fused kernels, and models that repeat one such kernel.

Why kernels: an Add fuses into the convolution before it, the ReLUs of all readers of one tensor are merged, channel
counts that are no multiple of 16 fall back to another layout. Operators cannot know this; the optimised graph does.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mobilenas import onnx_model
from mobilenas.core.workload import OPSET, Kernel, TensorSpec
from mobilenas.errors import DocumentError, RunnerError
from mobilenas.onnx_model import ModelFile
from mobilenas.runtimes import onnx_precisions
from mobilenas.runtimes.base import Lowered, NodeTime, PreparedModel, RunSettings, Runtime
from mobilenas.runtimes.onnx_opsets import attribute_value, in_own_opset

_DTYPES = {
    "float": "float32",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "bool": "bool",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "double": "float64",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
}
_STORED_VALUES = 64
"""Whole constants up to this many elements are part of a kernel: they are shapes, axes and paddings. Of fractions only scalars
are, as an exponent of 2 is quicker than another; what has a dimension is trained, be it one bias: its value changes no time.
"""
_SCALED_BY = ("Resize", "Upsample")
"""Operators whose constants are sizes, be they fractions with a dimension: none is trained."""
_NO_ROW = "tables hold tensors of numbers only. `mobilenas measure` times such a model as a whole"
_PROVIDER = re.compile(r"[A-Za-z0-9]+ExecutionProvider")
_QUANTISED = ("QLinear", "QGemm", "QuantizeLinear", "DequantizeLinear")
"""Beginnings of operators whose constants are scales, zeros and biases, however small: all follow from training."""


class OnnxRuntime(Runtime):
    """ONNX Runtime with its default optimisation; the optimised graph is written and read back."""

    name: ClassVar[str] = "onnxruntime"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    runner: ClassVar[str] = "onnxruntime_runner.py"
    tells_node_times: ClassVar[bool] = True

    def knows_provider(self, provider: str) -> bool:
        """Any that a build may have, or several with commas between: each takes what those before it leave."""
        return all(_PROVIDER.fullmatch(name) for name in provider.split(","))

    def prepare(self, onnx: bytes, settings: RunSettings, calibration: np.ndarray | None = None) -> PreparedModel:
        self.check(settings)
        if settings.precision == "fp16":
            return PreparedModel(onnx_precisions.halved(onnx))
        if settings.precision == "int8":
            return PreparedModel(onnx_precisions.quantised(onnx, calibration))
        return PreparedModel(onnx)

    def prepare_file(self, file: ModelFile, settings: RunSettings) -> PreparedModel:
        self.check(settings)
        if file.external and settings.precision != "fp32":
            return super().prepare_file(file, settings)
        return msgspec.structs.replace(self.prepare(file.content, settings), source=file)

    def lowered_from(self, model: PreparedModel, graph: bytes | None, nodes: Sequence[Mapping[str, Any]]) -> Lowered:
        if graph is None:
            return super().lowered_from(model, graph, nodes)
        return lowered_from_graph(graph, nodes)

    def kernels_of(self, model: PreparedModel, graph: bytes | None, nodes: Sequence[Mapping[str, Any]]) -> Counter[Kernel]:
        if graph is None:
            raise RunnerError(f"{self.runner} did not say where the optimised graph lies")
        return kernels_from_graph(graph, nodes)

    def kernel_model(self, kernel: Kernel, copies: int) -> PreparedModel:
        """Copies share inputs and weights, and only the last one's output leaves the graph; nothing is optimised, since
        identical copies would be merged.
        """
        domain, _, operator = kernel.operator.rpartition("::")
        attributes = kernel.attribute_values
        inputs, initializers, names = [], [], []
        for index, spec in enumerate(kernel.inputs):
            name = f"in{index}" if spec else ""
            names.append(name)
            if spec and spec.is_constant:
                initializers.append(numpy_helper.from_array(_constant(spec), name))
            elif spec:
                inputs.append(helper.make_tensor_value_info(name, _element_type(spec.dtype), spec.shape))
        nodes = [
            helper.make_node(
                operator,
                names,
                [f"out{copy}_{index}" for index in range(len(kernel.outputs))],
                name=f"copy{copy}",
                domain=domain,
                **attributes,
            )
            for copy in range(copies)
        ]
        outputs = [
            helper.make_tensor_value_info(f"out{copies - 1}_{index}", _element_type(spec.dtype), spec.shape)
            for index, spec in enumerate(kernel.outputs)
        ]
        graph = helper.make_graph(nodes, "kernel", inputs, outputs, initializers)
        domains = [domain] if domain else []
        return PreparedModel(onnx_model.make_model(graph, domains, kernel.opset).SerializeToString(), optimise=False)

    def session_model(self) -> PreparedModel:
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "session",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1,))],
        )
        return PreparedModel(onnx_model.make_model(graph).SerializeToString(), optimise=False)


def kernels_from_graph(model: bytes, nodes: Sequence[Mapping[str, Any]]) -> Counter[Kernel]:
    """Count the kernels of an optimised graph, whose shapes come from the runner's report on its ``nodes``.

    Raises ``RunnerError`` if the report does not cover a node of the graph, and ``DocumentError`` for a node that is no kernel.
    """
    return _lowered(onnx_model.parse_model(model, "optimised graph"), nodes)[0].kernels


def lowered_from_graph(model: bytes, nodes: Sequence[Mapping[str, Any]]) -> Lowered:
    """Convert an optimised graph to its kernels, with the operators whose outputs depend on data.

    Raises ``RunnerError`` if the report does not cover a node of the graph.
    """
    parsed = onnx_model.parse_model(model, "optimised graph")
    lowered, specs = _lowered(parsed, nodes)
    return msgspec.structs.replace(lowered, data_dependent=data_dependent(parsed, specs))


def _lowered(parsed: onnx.ModelProto, nodes: Sequence[Mapping[str, Any]]) -> tuple[Lowered, dict[str, TensorSpec]]:
    """Convert nodes to kernels; return them with all tensors that are no constants."""
    graph = parsed.graph
    opset = next((entry.version for entry in parsed.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    specs = {value.name: _input_spec(value) for value in graph.input if value.name not in constants}
    reports = _reports_by_node(graph.node, nodes)
    texts = [value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.STRING]
    complaint = f"the input {texts[0]} is a tensor(string): {_NO_ROW}" if texts else None
    for node, report in zip(graph.node, reports, strict=True):
        for name, output in zip(node.output, report["outputs"], strict=False):
            if output and output[0] in _DTYPES:
                specs[name] = TensorSpec(tuple(output[1]), _DTYPES[output[0]])
            elif output:
                complaint = complaint or f"the node {node.name!r} ({node.op_type}) makes {output[0]}: {_NO_ROW}"
    found = []
    for node, report in zip(graph.node, reports, strict=True):
        kernel = None
        try:
            _check_node(node)
            inputs = tuple(_spec_of(name, constants, specs, node) if name else None for name in node.input)
            outputs = tuple(specs[name] for name in node.output if name in specs)
            kernel = _kernel(node, inputs, outputs, opset, report["provider"])
        except DocumentError as error:
            complaint = complaint or str(error)
        found.append(NodeTime(node.name, _operator(node), kernel, report.get("ms")))
    return Lowered(tuple(found), complaint=complaint), specs


def data_dependent(model: onnx.ModelProto, specs: Mapping[str, TensorSpec]) -> tuple[str, ...]:
    """Return the operators of an optimised graph whose outputs depend on the model's input values, each with its node.

    These are the nodes of ONNX's own domain of which the shapes of all inputs are known and, by ONNX's rules, not those of all
    outputs; and such as hold graphs. What reads an output of theirs follows, and is not named. ``specs`` are the tensors as
    they were when the model ran.
    """
    inferred = _with_inferred_shapes(model, specs)
    fixed = {value.name for value in (*inferred.value_info, *inferred.output) if _is_fixed(value)}
    open_names: set[str] = set()
    found = []
    for node in inferred.node:
        follows = any(name in open_names for name in node.input)
        unknown = [name for name in node.output if name and name in specs and name not in fixed]
        if _holds_graphs(node) or (unknown and not follows and node.domain in ("", "ai.onnx")):
            found.append(f"{node.op_type} ({node.name or node.output[0]})")
            open_names.update(node.output)
        elif follows:
            open_names.update(unknown)
    return tuple(found)


def _with_inferred_shapes(model: onnx.ModelProto, specs: Mapping[str, TensorSpec]) -> onnx.GraphProto:
    """Infer the shapes that follow from the inputs' shapes alone; for other domains than ONNX's take those of the run."""
    graph = onnx.GraphProto(name=model.graph.name, node=model.graph.node, input=model.graph.input, output=model.graph.output)
    given = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _STORED_VALUES:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for node in graph.node:
        for name in node.output if node.domain not in ("", "ai.onnx") else ():
            if name in specs:
                element = _element_type(specs[name].dtype)
                graph.value_info.append(helper.make_tensor_value_info(name, element, specs[name].shape))
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    return onnx.shape_inference.infer_shapes(bare, data_prop=True).graph


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(dim.WhichOneof("value") == "dim_value" for dim in tensor.shape.dim)


def _holds_graphs(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _check_node(node: onnx.NodeProto) -> None:
    """Raise ``DocumentError`` for control flow, which may take another way with other numbers."""
    if _holds_graphs(node):
        raise DocumentError(
            f"the node {node.name!r} ({node.op_type}) holds graphs of its own, after the engine's optimisation too: its "
            f"time depends on what the model is given: {_NO_ROW}, or predict what is inside as a model of its own"
        )


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _kernel(
    node: onnx.NodeProto,
    inputs: tuple[TensorSpec | None, ...],
    outputs: tuple[TensorSpec, ...],
    opset: int,
    provider: str,
) -> Kernel:
    attributes, operator = _attributes(node), _operator(node)
    if node.domain:
        opset = opset if node.domain == onnx_model.CHANNELS_LAST else OPSET
    else:
        opset, attributes, inputs = in_own_opset(operator, attributes, inputs, opset)
    return Kernel(operator, json.dumps(attributes, sort_keys=True), inputs, outputs, provider, opset)


def _spec_of(
    name: str, constants: Mapping[str, onnx.TensorProto], specs: Mapping[str, TensorSpec], node: onnx.NodeProto
) -> TensorSpec:
    if name in constants:
        return _constant_spec(constants[name], node.op_type)
    if name not in specs:
        raise DocumentError(
            f"the node {node.name!r} ({node.op_type}) reads {name!r}, whose shape the engine did not tell: {_NO_ROW}"
        )
    return specs[name]


def _reports_by_node(graph_nodes: Sequence[onnx.NodeProto], reports: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The report on each node. One without a name is reported as ``Operator_number``: those of an operator come in order."""
    by_name = {report["name"]: report for report in reports}
    named = {node.name for node in graph_nodes}
    unnamed: dict[str, list[Mapping[str, Any]]] = {}
    for report in reports:
        operator, _, number = report["name"].rpartition("_")
        if number.isdigit() and report["name"] not in named:
            unnamed.setdefault(operator, []).append(report)
    found = []
    for node in graph_nodes:
        candidates = [by_name[node.name]] if node.name in by_name else [] if node.name else unnamed.get(node.op_type, [])
        if not candidates:
            raise RunnerError(f"the runner did not report the node {node.name!r} ({node.op_type}) of its own graph")
        found.append(candidates.pop(0))
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values = {attribute.name: attribute_value(attribute) for attribute in node.attribute}
    for name, value in values.items():
        try:
            json.dumps(value)
        except TypeError:
            raise DocumentError(
                f"the node {node.name!r} ({node.op_type}) has the attribute {name!r}, which no kernel can hold"
            ) from None
    return values


def _constant_spec(tensor: onnx.TensorProto, read_by: str) -> TensorSpec:
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.data_type == TensorProto.STRING:
        raise DocumentError(f"the constant {tensor.name!r} holds text: {_NO_ROW}")
    count = int(np.prod(tensor.dims)) if tensor.dims else 1
    is_fraction = dtype.kind in "fV"  # V: as bfloat16, which numpy itself does not know
    is_size = dtype.kind in "iub" or (read_by in _SCALED_BY and count > 0)
    is_part = not tensor.dims or (count <= _STORED_VALUES and is_size)
    values = None
    if is_part and not read_by.startswith(_QUANTISED) and (is_fraction or dtype.kind in "iub"):
        array = numpy_helper.to_array(tensor).reshape(-1)
        values = tuple((array.astype(np.float64) if is_fraction else array).tolist())
    return TensorSpec(tuple(tensor.dims), str(dtype), is_constant=True, values=values)


def _input_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return TensorSpec(shape, str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)))


def _element_type(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _constant(spec: TensorSpec) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if spec.values is not None:
        return np.array(spec.numbers, dtype).reshape(spec.shape)
    generator = np.random.default_rng(0)
    if dtype in (np.int8, np.uint8) and len(spec.shape) > 1:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, spec.shape, dtype, endpoint=True)
    if dtype == np.float32 and len(spec.shape) < 2:
        return np.abs(0.1 * generator.standard_normal(spec.shape)).astype(dtype)  # a scale must be above zero
    return np.asarray(0.1 * generator.standard_normal(spec.shape)).astype(dtype)
