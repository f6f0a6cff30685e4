"""Module -> ONNX: exported whole where the numbers matter, composed from cached fragments where only structure does."""

from __future__ import annotations

import io
import os
import re
import shlex
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mobilenas import ops
from mobilenas.core import documents
from mobilenas.core.workload import OPSET, Blueprint, Layer, Workload
from mobilenas.errors import DocumentError, UsageError

INPUT_NAME = "images"
OUTPUT_NAME = "logits"
CHANNELS_LAST = "com.ms.internal.nhwc"
"""A domain of ONNX Runtime that has the operators, and the opset, of ONNX."""
LARGEST_MESSAGE = 2**31 - 2**24
"""Bytes of a model, with its weights, that one protobuf message surely holds; weights beyond that stay in their files."""
_PASSED_ON = ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose")
"""Operators whose output holds the numbers of their first input."""


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


class ModelFile(msgspec.Struct, frozen=True):
    """An ONNX file as it is given to an engine, every input with a fixed shape."""

    content: bytes
    """The model; with its weights, unless they are too large for one message."""
    folder: Path | None = None
    """Where weights lie that are too large to be read into ``content``."""
    external: tuple[str, ...] = ()
    """Their files, relative to ``folder``."""
    index_limits: tuple[tuple[str, int], ...] = ()
    """Inputs that are indices into a table of weights, each with the rows of that table: values to draw are below."""
    inputs: tuple[tuple[str, bytes], ...] = ()
    """Values of inputs, by name, in NumPy's file format; all others are drawn at random."""
    batch: int | None = None
    """The first dimension of its inputs with four dimensions, where they agree on one; ``None`` where nothing tells."""


def read_model(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> ModelFile:
    """Read the ONNX file ``path``, with weights kept beside it; ``shapes`` fix open dimensions of inputs, by name.

    Raises ``DocumentError`` if it is no model, or one whose inputs have no fixed shape or are no tensors, and ``UsageError``
    for ``shapes`` that contradict the file.
    """
    content = documents.read_bytes(path, documents.MAXIMUM_MODEL_BYTES)
    model = parse_model(content, str(path))
    inputs = inputs_of(model)
    if not model.graph.node:
        raise DocumentError(f"{path}: not an ONNX model with nodes")
    if not inputs:
        raise DocumentError(f"{path}: the model has no inputs: all that it computes is constant, there is nothing to time")
    for value in inputs:
        _check_kind(value, path)
    fix_shapes(model, shapes or {}, str(path))
    _check_shapes(inputs, path)
    _name_nodes_apart(model)
    parts = [(tensor, _external_part(tensor, path)) for tensor in _external_tensors(model)]
    size = len(content) + sum(part.length for _, part in parts)
    documents.check_size(path, size, documents.MAXIMUM_MODEL_BYTES)
    limits = tuple(index_limits(model).items())
    if size >= LARGEST_MESSAGE:
        external = tuple(dict.fromkeys(part.location for _, part in parts))
        return ModelFile(bytes(model.SerializeToString()), path.parent.resolve(), external, limits, batch=_batch(inputs))
    _read_weights(parts)
    return ModelFile(bytes(model.SerializeToString()), index_limits=limits, batch=_batch(inputs))


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Those that are given while it runs: old models list their weights among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the dimensions of a tensor whose shape is fixed."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def type_name(value: onnx.ValueInfoProto) -> str:
    """Format the type of a value as ONNX writes it: ``tensor(uint16)``, ``seq(tensor(float))``."""
    return _type_words(value.type)


def rename_inputs(model: onnx.ModelProto) -> list[str]:
    """Give what is given while ``model`` runs names that are safe everywhere, in place; return them in order."""
    renamed = {value.name: f"mobilenas_input{index}" for index, value in enumerate(inputs_of(model))}
    for value in model.graph.input:
        value.name = renamed.get(value.name, value.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    return list(renamed.values())


def fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Fill the open dimensions of inputs, in place; one that has a name is filled wherever the name stands.

    Raises ``UsageError`` for an input that the model does not have, and for dimensions that contradict what is known.
    """
    values = {value.name: value for value in inputs_of(model)}
    named: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in values:
            raise UsageError(f"{where} has no input {name!r}, only {', '.join(values)}")
        tensor = values[name].type.tensor_type
        dims = list(tensor.shape.dim) if tensor.HasField("shape") else [onnx.TensorShapeProto.Dimension() for _ in shape]
        known = [_size(dim) for dim in dims]
        said = f"{','.join(map(str, shape))} is given"
        if len(known) != len(shape):
            raise UsageError(f"{said}, and the input {name} of {where} has {len(known)} dimensions, {_dims_words(dims)}")
        for position, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            if dim.WhichOneof("value") == "dim_value" and known[position] not in (None, size):
                raise UsageError(
                    f"{said}, and the dimension {position} of the input {name} of {where} is {known[position]}, not {size}; "
                    f"its shape is {_dims_words(dims)}, of which only what is open can be given"
                )
            if dim.dim_param and named.setdefault(dim.dim_param, size) != size:
                raise UsageError(
                    f"{said}: the dimension {dim.dim_param!r} of {where} is both {named[dim.dim_param]} and {size}"
                )
        tensor.shape.ClearField("dim")
        tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in shape)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_param in named:
                dim.dim_value = named[dim.dim_param]


def index_limits(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of rows that each input indexes, for inputs used as indices into constant weights (token ids)."""
    rows = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    source = {value.name: value.name for value in inputs_of(model)}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in _PASSED_ON and node.input and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type in ("Gather", "GatherElements") and node.input[1] in source and node.input[0] in rows:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            name, limit = source[node.input[1]], int(rows[node.input[0]][axis])
            found[name] = min(limit, found.get(name, limit))
    return found


def _type_words(kind: onnx.TypeProto) -> str:
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return f"tensor({_element_words(kind.tensor_type.elem_type)})"
    if which == "sparse_tensor_type":
        return f"sparse_tensor({_element_words(kind.sparse_tensor_type.elem_type)})"
    if which == "sequence_type":
        return f"seq({_type_words(kind.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({_type_words(kind.optional_type.elem_type)})"
    if which == "map_type":
        return f"map({_element_words(kind.map_type.key_type)},{_type_words(kind.map_type.value_type)})"
    return which or "no type"


def _element_words(element: int) -> str:
    return str(TensorProto.DataType.Name(element)).lower() if element in TensorProto.DataType.values() else str(element)


def _check_kind(value: onnx.ValueInfoProto, path: Path) -> None:
    if value.type.WhichOneof("value") != "tensor_type" or value.type.tensor_type.elem_type == TensorProto.UNDEFINED:
        raise DocumentError(
            f"{path}: the input {value.name} is of type {type_name(value)}, for which mobilenas has no values, whatever the "
            "engine takes: it gives tensors. Export the model with tensors as its inputs"
        )


def _check_shapes(inputs: Sequence[onnx.ValueInfoProto], path: Path) -> None:
    """Raise ``DocumentError`` for dimensions that are open, with what fills them, or that are 0."""
    said, remedies, open_words = [], [], []
    for value in inputs:
        tensor = value.type.tensor_type
        dims = list(tensor.shape.dim)
        sizes = [_size(dim) for dim in dims]
        if tensor.HasField("shape") and 0 in sizes:
            raise DocumentError(
                f"{path}: the dimension {sizes.index(0)} of the input {value.name} is 0, of {_dims_words(dims)}: it holds "
                "nothing, so there is nothing to time. Export the model with a shape that it is used with"
            )
        if not tensor.HasField("shape"):
            said.append(f"the input {value.name} has no shape")
            remedies.append(_flag(value.name, ["SHAPE"]))
            open_words.append("SHAPE (as 1,3,224,224)")
        elif None in sizes:
            filled, chosen = _filled(dims)
            said.append(f"the input {value.name} has the open shape {_dims_words(dims)}")
            remedies.append(_flag(value.name, filled))
            open_words += chosen
    if said:
        words = list(dict.fromkeys(open_words))
        choose = f", where {', '.join(words)} {'is' if len(words) == 1 else 'are'} yours to choose" if words else ""
        raise DocumentError(f"{path}: {'; '.join(said)}: its time depends on it. Add {' '.join(remedies)}{choose}")


def _filled(dims: Sequence[onnx.TensorShapeProto.Dimension]) -> tuple[list[int | str], list[str]]:
    """Return a shape that keeps what is known, with 1 for an open first dimension, and placeholders for the user to choose."""
    filled: list[int | str] = []
    chosen = []
    for position, dim in enumerate(dims):
        size = _size(dim)
        if size is None and position > 0:
            word = re.sub(r"\W+", "_", dim.dim_param).strip("_").upper()
            word = word if word and not word.isdigit() else f"SIZE{position}"
            filled.append(word)
            chosen.append(word)
        else:
            filled.append(1 if size is None else size)
    return filled, chosen


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """Return a dimension, ``None`` where it is open; some exporters write -1 for that."""
    return dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0 else None


def _dims_words(dims: Sequence[onnx.TensorShapeProto.Dimension]) -> str:
    sizes = ((_size(dim), dim.dim_param) for dim in dims)
    return " x ".join(str(size) if size is not None else name or "?" for size, name in sizes) or "a scalar"


def _flag(name: str, shape: Sequence[int | str]) -> str:
    return shlex.join(["--shape", f"{name}={','.join(map(str, shape))}"])


def _batch(inputs: Sequence[onnx.ValueInfoProto]) -> int | None:
    found = {shape[0] for shape in map(shape_of, inputs) if len(shape) == 4}
    return found.pop() if len(found) == 1 else None


def _name_nodes_apart(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, in place."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if node.name in seen:
            node.name = f"{node.name}/{index}"
        seen.update([node.name] if node.name else [])


def _read_weights(parts: Iterable[tuple[onnx.TensorProto, _Part]]) -> None:
    """Read the numbers of tensors, which are kept in files of their own, into the model."""
    for tensor, part in parts:
        with documents.opened(part.file, documents.MAXIMUM_MODEL_BYTES) as file:
            file.seek(part.offset)
            tensor.raw_data = file.read(part.length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of ``model``, those of graphs inside nodes too, whose numbers are kept in other files."""
    graphs: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        found = [] if isinstance(graph, onnx.FunctionProto) else list(graph.initializer)
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            found += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        yield from (tensor for tensor in found if tensor.data_location == TensorProto.EXTERNAL)


class _Part(NamedTuple):
    """Where the numbers of a tensor lie."""

    location: str
    """Relative to the model's folder."""
    file: Path
    offset: int
    length: int


def _external_part(tensor: onnx.TensorProto, path: Path) -> _Part:
    said = {entry.key: entry.value for entry in tensor.external_data}
    file, folder = path.parent / said.get("location", ""), path.parent.resolve()
    where = f"{path}: the weights {tensor.name!r}, kept in {said.get('location')!r}"
    if "\0" in said.get("location", "") or not file.resolve().is_relative_to(folder):
        raise DocumentError(f"{where}, lie outside the model's folder, where nothing is read: put them beside the model")
    try:
        with documents.opened(file, documents.MAXIMUM_MODEL_BYTES) as opened:
            size = os.fstat(opened.fileno()).st_size
        offset = int(said.get("offset", 0))
        length = int(said.get("length", size - offset))
    except ValueError as error:  # of which a DocumentError is one
        raise DocumentError(f"{where}: {error}") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise DocumentError(f"{where}: bytes {offset} to {offset + length} of a file of {size}: it is not the whole file")
    return _Part(said["location"], file, offset, length)


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
