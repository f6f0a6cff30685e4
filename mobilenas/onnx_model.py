"""Module -> ONNX: exported whole where the numbers matter, composed from cached fragments where only structure does."""

from __future__ import annotations

import io
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from torch import Tensor, nn

from mobilenas import ops
from mobilenas.core.workload import OPSET, Blueprint, Layer, Workload
from mobilenas.errors import DocumentError

INPUT_NAME = "images"
OUTPUT_NAME = "logits"
CHANNELS_LAST = "com.ms.internal.nhwc"
"""A domain of ONNX Runtime that has the operators, and the opset, of ONNX."""


def onnx_from_module(
    module: nn.Module,
    inputs: Sequence[Tensor],
    *,
    input_names: Sequence[str] = (INPUT_NAME,),
    output_name: str = OUTPUT_NAME,
) -> onnx.ModelProto:
    """Export ``module`` in eval mode, BatchNorms folded, with the fixed shapes of ``inputs``.

    The legacy exporter is used on purpose: ten times quicker than the new one, and the same graph after a runtime's
    own optimisation (``docs/decisions``). Its deprecation is announced by a warning that is filtered here only.
    """
    buffer = io.BytesIO()
    was_training = module.training
    module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=[output_name],
        )
    module.train(was_training)
    return onnx.load_from_string(buffer.getvalue())


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what a deployed graph does not need (identities, dead ends, constant subgraphs) and check the result."""
    import onnxslim

    slimmed = cast(onnx.ModelProto, onnxslim.slim(model))
    onnx.checker.check_model(slimmed, full_check=True)
    return slimmed


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Write ``metadata`` into the model, in place, replacing what was there."""
    del model.metadata_props[:]
    helper.set_model_props(model, dict(metadata))


def parse_model(data: bytes, where: str) -> onnx.ModelProto:
    """Parse an ONNX model; raises ``DocumentError`` if the bytes are not one."""
    try:
        return onnx.load_from_string(data)
    except Exception as error:  # protobuf raises its own types, which differ between its implementations
        raise DocumentError(f"{where}: not an ONNX model: {error}") from error


def read_model(path: Path) -> bytes:
    """The ONNX file ``path`` with weights kept beside it; raises ``DocumentError`` if a device could not run it as it is, or if
    its time depends on what it is given.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path}: cannot be read: {error.strerror}") from error
    model = parse_model(content, str(path))
    inputs = inputs_of(model)
    if not model.graph.node or not inputs:
        raise DocumentError(f"{path}: not an ONNX model with inputs and nodes")
    for value in inputs:
        _check_input(value, path)
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise DocumentError(
                f"{path}: the node {node.name!r} ({node.op_type}) holds graphs of its own, so that its time depends on "
                "what the model is given: predict what is inside as a model of its own"
            )
    return _self_contained(model, path)


def batch_of(content: bytes) -> int | None:
    """The first dimension of a model's inputs, if all of two dimensions or more agree on one."""
    model = parse_model(content, "model")
    shapes = [value.type.tensor_type.shape.dim for value in inputs_of(model)]
    found = {shape[0].dim_value for shape in shapes if len(shape) > 1}
    return found.pop() if len(found) == 1 else None


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Those that are given while it runs: old models list their weights among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def rename_inputs(model: onnx.ModelProto) -> list[str]:
    """Give what is given while ``model`` runs names that are safe everywhere, in place; return them in order."""
    renamed = {value.name: f"mobilenas_input{index}" for index, value in enumerate(inputs_of(model))}
    for value in model.graph.input:
        value.name = renamed.get(value.name, value.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    return list(renamed.values())


def _check_input(value: onnx.ValueInfoProto, path: Path) -> None:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or tensor.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise DocumentError(f"{path}: the input {value.name} is no tensor of numbers: remove what reads it")
    dims = [dim.dim_param or dim.dim_value or "?" for dim in tensor.shape.dim]
    if not tensor.HasField("shape") or not all(dim.dim_value > 0 for dim in tensor.shape.dim):
        known = f"the shape {' x '.join(map(str, dims))}" if tensor.HasField("shape") else "no shape"
        raise DocumentError(
            f"{path}: the input {value.name} has {known}; fix it first: python -m onnxruntime.tools.make_dynamic_shape_fixed "
            f"--input_name {value.name} --input_shape 1,3,224,224 {path} fixed.onnx"
        )


def _self_contained(model: onnx.ModelProto, path: Path) -> bytes:
    """``model``, which is changed, with the weights that are kept beside ``path`` and a name of its own for every node."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if node.name in seen:
            node.name = f"{node.name}/{index}"
        seen.update([node.name] if node.name else [])
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        return bytes(model.SerializeToString())
    except Exception as error:  # files that are missing or too short, places outside the folder, more than protobuf's 2 GiB
        raise DocumentError(f"{path}: its weights, kept in files beside it, cannot be read into it: {error}") from error


# ---- composition -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _fragment(workload: Workload) -> onnx.GraphProto:
    """The exported and slimmed graph of one operator; inputs ``x0``, ``x1``, ..., output ``y``."""
    inputs = ops.example_inputs(workload, torch.Generator().manual_seed(0))
    names = [f"x{index}" for index in range(len(inputs))]
    with torch.random.fork_rng(devices=[]):  # a search that is lowering decoded networks has random numbers to draw
        module = ops.build_operator(workload)
    return slim(onnx_from_module(module, inputs, input_names=names, output_name="y")).graph


def compose(blueprint: Blueprint) -> bytes:
    """The serialised ONNX model of a network, for learning which kernels a runtime makes of it; its weights are untrained.

    Equal in structure to exporting the built network, at a hundredth of the time.
    """
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    values = {"images": INPUT_NAME}
    rng = np.random.default_rng(0)
    for layer in blueprint.read_layers:
        graph = _fragment(layer.workload)
        renamed = _place(layer, graph, values)
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{layer.name}/{node.name}"
            copy.input[:] = [renamed.get(name, f"{layer.name}/{name}") if name else "" for name in node.input]
            copy.output[:] = [f"{layer.name}/{name}" for name in node.output]
            nodes.append(copy)
        initializers += [_renamed_weight(tensor, layer.name, rng) for tensor in graph.initializer]
        values[layer.name] = renamed.get("y", f"{layer.name}/y")
    last = blueprint.layers[-1]
    nodes.append(helper.make_node("Identity", [values[last.name]], [OUTPUT_NAME]))
    graph = helper.make_graph(
        _distinct(nodes, initializers),
        "network",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, blueprint.image_shape)],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, None)],
        initializers,
    )
    return bytes(make_model(graph).SerializeToString())


def _distinct(nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """The nodes, in order, but for those that compute what one before them did, as two pools of one tensor; not all engines
    look for these. Small constants are the same if their values are.
    """
    same: dict[Hashable, str] = {}
    names = {t.name: same.setdefault((t.data_type, *t.dims, t.raw_data), t.name) for t in initializers if _is_no_weight(t)}
    first: dict[Hashable, onnx.NodeProto] = {}
    kept = []
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        twin = first.setdefault((node.domain, node.op_type, *node.input, *attributes), node)
        if twin is node:
            kept.append(node)
        else:
            names.update(zip(node.output, twin.output, strict=True))
    return kept


def _place(layer: Layer, graph: onnx.GraphProto, values: Mapping[str, str]) -> dict[str, str]:
    """Names of a fragment's inputs in the whole network (and of ``y`` where the operator passes its input on)."""
    names = {value.name: values[source] for value, source in zip(graph.input, layer.inputs, strict=True)}
    if graph.output[0].name in names:
        names["y"] = names[graph.output[0].name]
    return names


def _renamed_weight(tensor: onnx.TensorProto, prefix: str, rng: np.random.Generator) -> onnx.TensorProto:
    """A copy with some noise of its own, lest a runtime merges two operators that merely share their example weights.

    Scalars are no weights: they may be the bounds of a clip, which kernels carry as attributes.
    """
    array = numpy_helper.to_array(tensor)
    if not _is_no_weight(tensor):
        array = array + rng.standard_normal(array.shape, dtype=np.float32) * 0.01
    return numpy_helper.from_array(array, f"{prefix}/{tensor.name}")


def _is_no_weight(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type != TensorProto.FLOAT or not tensor.dims


def make_model(graph: onnx.GraphProto, extra_domains: Sequence[str] = (), opset: int = OPSET) -> onnx.ModelProto:
    """A model of one opset, this package's, and of the ONNX file version that runtimes of the last years read."""
    versions = {"": opset, **{domain: opset if domain == CHANNELS_LAST else 1 for domain in extra_domains}}
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    model: Any = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return cast(onnx.ModelProto, model)
