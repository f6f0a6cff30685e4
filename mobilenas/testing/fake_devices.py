"""Stand-ins for a device: an engine that computes nothing and times exactly, and a link that fails when it is told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import msgspec
import onnx

from mobilenas import onnx_model
from mobilenas.core.measurement import MeasurementPlan, SweepRecord
from mobilenas.core.workload import Kernel
from mobilenas.devices.links import Link, LocalLink
from mobilenas.runtimes.base import PreparedModel, RunSettings, refusal
from mobilenas.runtimes.onnx_runtime import OnnxRuntime, kernels_from_graph
from mobilenas.runtimes.reports import PROTOCOL

PROVIDER = "FakeProvider"
CALL_MS = 0.003
"""What a call of the fake engine costs, whatever it runs."""
SENTINEL_MS = 0.1
"""What the sentinel takes on it."""


def kernel_ms(kernel: Kernel) -> float:
    """A made-up latency: a constant, and what the kernel reads and writes."""
    elements = sum(_size(spec.shape) for spec in (*kernel.inputs, *kernel.outputs) if spec)
    return 1e-3 + 1e-6 * elements


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


class FakeRuntime(OnnxRuntime):
    """Executes nothing: each node of a model is a kernel, equal ones merged, and a model takes just the sum of its kernels.

    ``slowdown`` maps how many sweeps are done (1.5 is half through the second) to a factor on the times: a device that heats
    up. ``version`` is what it says of its engine.
    """

    name: ClassVar[str] = "fake"

    def __init__(self, slowdown: Callable[[float], float] = lambda sweeps: 1.0, version: str = "1") -> None:
        self.slowdown, self.version = slowdown, version
        self.sweeps = 0

    def lower(
        self,
        models: Mapping[str, PreparedModel],
        link: Link,
        settings: RunSettings,
        receive: Callable[[dict[str, Any]], None],
    ) -> None:
        receive(self.hello(link, settings))
        for name in models:
            receive({"type": "graph", "id": name, "nodes": []})

    def kernels_of(self, model: PreparedModel, graph: bytes | None, nodes: Sequence[Mapping[str, Any]]) -> Counter[Kernel]:
        return Counter(_kernels(model))

    def session_model(self) -> PreparedModel:
        """Optimised, so that nothing is left of it: a call costs ``CALL_MS``."""
        return msgspec.structs.replace(super().session_model(), optimise=True)

    def hello(self, link: Link, settings: RunSettings) -> dict[str, Any]:
        return {"type": "hello", "protocol": PROTOCOL, "runner": "fake", "engine_version": self.version}

    def time_models(
        self,
        models: Mapping[str, PreparedModel],
        link: Link,
        settings: RunSettings,
        plan: MeasurementPlan,
        on_record: Callable[[str, SweepRecord], None],
        on_hello: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        on_hello(self.hello(link, settings))
        begun, self.sweeps = self.sweeps, self.sweeps + 1
        refused = {}
        for index, (name, model) in enumerate(models.items()):
            factor = self.slowdown(begun + index / len(models))
            try:
                kernels = _kernels(model)
            except Exception as error:  # as a runner does: one bad model must not end the others
                refused[name] = str(error)
                continue
            ms = factor * (CALL_MS + sum(count * kernel_ms(kernel) for kernel, count in kernels.items()))
            times = (ms,) * plan.samples
            sentinel = (factor * SENTINEL_MS,)
            on_record(name, SweepRecord(times, times, sentinel, first_ms=2 * ms, load_ms=1.0, peak_memory_mib=None))
        if refused:
            raise refusal(self.name, refused, len(models))


@lru_cache(maxsize=4096)
def _kernels(model: PreparedModel) -> Counter[Kernel]:
    """Every node of the model as a kernel, with the shapes that ONNX infers; identities go, equal nodes are merged."""
    inferred = onnx.shape_inference.infer_shapes(onnx_model.parse_model(model.content, "model"), strict_mode=True)
    graph = inferred.graph
    if model.optimise:
        _simplify(graph)
    known = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    reported = []
    for index, node in enumerate(graph.node):
        node.name = f"node{index}"
        outputs = [
            [
                "float" if known[name].elem_type == onnx.TensorProto.FLOAT else "int64",
                [d.dim_value for d in known[name].shape.dim],
            ]
            if name in known
            else None
            for name in node.output
        ]
        reported.append({"name": node.name, "outputs": outputs, "provider": PROVIDER})
    return kernels_from_graph(inferred.SerializeToString(), reported)


def _simplify(graph: onnx.GraphProto) -> None:
    constants: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        renamed[tensor.name] = constants.setdefault(str(array.shape).encode() + array.tobytes(), tensor.name)
    first: dict[tuple[str, ...], onnx.NodeProto] = {}
    kept = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type == "Identity":
            renamed[node.output[0]] = node.input[0]
            continue
        attributes = sorted(attribute.SerializeToString().hex() for attribute in node.attribute)
        twin = first.setdefault((node.op_type, *node.input, *attributes), node)
        if twin is node:
            kept.append(node)
        else:
            renamed.update(zip(node.output, twin.output, strict=True))
    del graph.node[:]
    graph.node.extend(kept)


class FakeLink(Link):
    """This host, with errors on schedule: ``failures[n]`` is raised by the ``n``-th operation, counted from 0."""

    def __init__(self, failures: Mapping[int, Exception] | None = None) -> None:
        super().__init__()
        self.failures = dict(failures or {})
        self.operations = 0
        self._link = LocalLink()

    def _step(self) -> None:
        number, self.operations = self.operations, self.operations + 1
        if number in self.failures:
            raise self.failures[number]

    @property
    def python(self) -> str:
        return self._link.python

    def open(self) -> None:
        self._link.open()

    def close(self) -> None:
        self._link.close()

    def push(self, files: Mapping[str, bytes]) -> None:
        self._step()
        self._link.push(files)

    def pull(self, name: str) -> bytes:
        self._step()
        return self._link.pull(name)

    def delete(self, names: Sequence[str]) -> None:
        self._step()
        self._link.delete(names)

    def run(self, argv: Sequence[str], *, timeout_s: float, on_line: Callable[[str], None]) -> None:
        self._step()
        self._link.run(argv, timeout_s=timeout_s, on_line=on_line)
