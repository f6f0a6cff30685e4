"""MNN: models converted on this host, kernels read from the converted graph.

MNN runs the operators of its graph as they stand. How a tensor lies in memory is the converter's choice: four channels side by
side after a convolution (``NC4HW4``), plain after a reshape. A kernel is an operator with the layout of what it reads.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import IO, Any, ClassVar, TypeVar

import numpy as np

from mobilenas import onnx_model
from mobilenas.core.workload import Kernel, TensorSpec
from mobilenas.devices.links import Link
from mobilenas.devices.streams import tail
from mobilenas.errors import IncompatibleError, ResourceError
from mobilenas.runtimes import mnn_convert, onnx_precisions
from mobilenas.runtimes.base import PreparedModel, RunSettings, Runtime, telling_lines

PLAIN, BLOCKED = "NCHW", "NC4HW4"
OPERATORS = {
    "Convolution": "Conv",
    "ConvolutionDepthwise": "Conv",
    "Deconvolution": "ConvTranspose",
    "DeconvolutionDepthwise": "ConvTranspose",
}
"""Operators whose kernels have a name that all engines share, by which they are told apart and predicted."""
RESHAPING = ("Flatten", "MatMul", "Reshape", "Squeeze", "Unsqueeze")
"""What they make is plain."""
NUMBERS = {"float32s": "float32", "int32s": "int32", "int8s": "int8", "uint8s": "uint8", "int64s": "int64"}
"""Under which name a constant of the graph holds its numbers."""
RELU = {"type": "ReLU", "main_type": "Relu", "main": {"slope": 0.0}}
STORED_VALUES = 64
"""Constants up to this size are part of a kernel, as shapes and scalars are."""
WHOLE = (
    "MNN's kernels of integers cannot be run alone here: networks in int8 are measured whole. "
    "Say profile --transfer --measure-networks 10, which needs no kernels, and then search --latency-model network"
)
CONVERSION_TIMEOUT_S = 600.0
R = TypeVar("R")


class Mnn(Runtime):
    """MNN on the CPU."""

    name: ClassVar[str] = "mnn"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    providers: ClassVar[tuple[str, ...]] = ("CPU",)
    runner: ClassVar[str] = "mnn_runner.py"
    suffixes: ClassVar[tuple[str, ...]] = (".mnn", f".mnn{mnn_convert.WEIGHTS}")
    shares_weights: ClassVar[bool] = False

    def prepare(self, onnx: bytes, settings: RunSettings, calibration: np.ndarray | None = None) -> PreparedModel:
        self.check(settings)
        parsed = onnx_model.parse_model(onnx, "model")
        if settings.precision == "int8":
            calls = onnx_precisions.calls_of(parsed, calibration)
            names = onnx_model.rename_inputs(parsed)  # each becomes the name of a file
            renamed = parsed.SerializeToString()
            try:
                return PreparedModel(_quantised(mnn_convert.integers_from_onnx, renamed, names, calls), weights=b"")
            finally:
                _quantised.end()  # MNN's tool leaves its process unfit for more
        model, weights = _converted(mnn_convert.model_from_onnx, onnx)
        return PreparedModel(model, weights=weights)

    def check_kernels(self, settings: RunSettings) -> None:
        self.check(settings)
        if settings.precision == "int8":
            raise IncompatibleError(WHOLE)

    def lower(
        self,
        models: Mapping[str, PreparedModel],
        link: Link,
        settings: RunSettings,
        receive: Callable[[dict[str, Any]], None],
    ) -> None:
        """Nothing is asked of the device but who it is: it runs the graph that was made on this host."""
        receive(self.hello(link, settings))
        for name in models:
            receive({"type": "graph", "id": name, "nodes": []})

    def kernels_of(self, model: PreparedModel, graph: bytes | None, nodes: Sequence[Mapping[str, Any]]) -> Counter[Kernel]:
        return kernels_of_graph(*_converted(mnn_convert.graph_of, model.content, model.weights))

    def kernel_model(self, kernel: Kernel, copies: int) -> PreparedModel:
        """Copies share their inputs, which lie as they do in a network; what fits itself works on the result before it.

        Each has weights of its own, from the same place of the file. Results that no copy reads are read by an operator each,
        lest what only moves numbers is left undone, and are forgotten then, as in a network. There are as many such readers
        in the model of few copies: in the slope between the two they cancel.
        """
        stored = kernel.attribute_values
        graph, inputs, weights = _Graph(), [], b""
        for index, (spec, layout) in enumerate(zip(kernel.inputs, stored["layouts"], strict=False)):
            assert spec is not None
            inputs.append(graph.constant(index, spec) if spec.is_constant else graph.input(index, spec, layout))
        if stored["external"]:
            stored["main"]["external"] = [0, *stored["external"]]
            count = sum(stored["external"]) // 4
            weights = (0.1 * np.random.default_rng(0).standard_normal(count)).astype("<f4").tobytes()
        data = [spec for spec in kernel.inputs if spec is not None and not spec.is_constant]
        fits_itself = len(kernel.outputs) == 1 and data and data[0].shape == kernel.outputs[0].shape
        is_chain = fits_itself and stored["layouts"][0] == stored["made"]
        results = []
        for copy in range(copies):
            results.append(graph.operator(f"copy{copy}", stored, inputs, len(kernel.outputs)))
            if is_chain:
                inputs = [*results[-1], *inputs[1:]]
        graph.ends = results[-1]
        for number in range(0 if is_chain else max(copies, *self.copies(kernel))):
            read = results[min(number, copies - 1)]
            graph.ends = [graph.operator(f"reader{number}_{index}", RELU, [index], 1)[0] for index in read]
        return PreparedModel(_converted(mnn_convert.model_from_graph, graph.whole()), optimise=False, weights=weights)

    def session_model(self) -> PreparedModel:
        graph = _Graph()
        number = graph.input(0, TensorSpec((1, 1), "float32"), PLAIN)
        graph.ends = graph.operator("end", RELU, [number], 1)
        return PreparedModel(_converted(mnn_convert.model_from_graph, graph.whole()), optimise=False, weights=b"")


class _Converter:
    """The process that converts, one thing at a time, begun when it is needed and again once it was interrupted or crashed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self._owner = 0
        self._alone = threading.Lock()

    @cached_property
    def _words(self) -> IO[bytes]:
        """What the processes say."""
        words = tempfile.TemporaryFile()  # noqa: SIM115
        atexit.register(words.close)
        atexit.register(self.end)  # which comes first
        return words

    def __call__(self, work: Callable[..., R], *arguments: Any) -> R:
        """What ``work`` of ``mnn_convert`` returns there; raises ``IncompatibleError`` with what the converter said."""
        if find_spec("MNN") is None:
            raise ResourceError("MNN, which converts models, is not installed here: pip install 'mobilenas[mnn]'")
        with self._alone:
            begin = self._words.seek(0, os.SEEK_END)
            try:
                result, complaint, lack = self._ask(work.__name__, arguments)
            except (EOFError, OSError, ValueError):
                result, complaint, lack = None, f"its converter ended with exit code {self.end()}", None
            except BaseException:
                self.end()  # its answer must not be taken for that to the next question
                raise
            if lack is not None:
                raise ResourceError(f"the model is not converted to MNN: {lack}")
            if complaint is not None:
                last = telling_lines(tail(self._words, begin))
                raise IncompatibleError(f"the model cannot be converted to MNN: {complaint}: {last}")
            found: R = result
            return found

    def _ask(self, name: str, arguments: tuple[Any, ...]) -> list[Any]:
        if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
            argv, self._folder = [sys.executable, mnn_convert.__file__], tempfile.mkdtemp(prefix="mobilenas-mnn-")
            own = {**os.environ, "TMPDIR": self._folder}  # what a crash leaves behind goes with it
            self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, env=own)
            self._owner = os.getpid()
        given, made = self._process.stdin, self._process.stdout
        assert given is not None
        assert made is not None
        patience = threading.Timer(CONVERSION_TIMEOUT_S, self._process.kill)
        patience.start()
        try:
            mnn_convert.send(given, [name, arguments])
            answer = mnn_convert.receive(made)
            if not isinstance(answer, list) or len(answer) != 3:
                raise ValueError("an answer that is none")
            return answer
        finally:
            patience.cancel()

    def end(self) -> int:
        """End the process; its exit code."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return 0
        shutil.rmtree(self._folder, ignore_errors=True)
        with process:  # which closes its pipes
            try:
                process.wait(1.0)  # it may be about to end by itself, which tells more
            except subprocess.TimeoutExpired:
                process.kill()
            return process.wait()


class _Graph:
    """A graph in MNN's JSON, put together from its front to its end."""

    def __init__(self) -> None:
        self.tensors: list[str] = []
        self.operators: list[dict[str, Any]] = []
        self.ends: list[int] = []
        """Tensors that must be there in the end."""

    def input(self, index: int, spec: TensorSpec, layout: str) -> int:
        """The tensor of an input that lies so. An operator has made it: mere moving is done again by each that reads it."""
        main = {"dims": list(spec.shape), "dtype": "DT_FLOAT", "dformat": PLAIN}
        [found] = self._append("Input", "Input", main, f"in{index}", [])
        if layout != PLAIN:
            main = {"source": PLAIN, "dest": layout}
            [found] = self._append("ConvertTensor", "TensorConvertInfo", main, f"laid{index}", [found])
        return self.operator(f"made{index}", RELU, [found], 1)[0]

    def constant(self, index: int, spec: TensorSpec) -> int:
        """The tensor of a constant, of noise where its values are none of the kernel's."""
        values = (
            np.array(spec.numbers) if spec.values is not None else 0.1 * np.random.default_rng(0).standard_normal(spec.shape)
        )
        field, kind = next((field, kind) for field, kind in NUMBERS.items() if kind == spec.dtype)
        kinds = {"float32": "DT_FLOAT", "int32": "DT_INT32", "int8": "DT_INT8", "uint8": "DT_UINT8", "int64": "DT_INT64"}
        numbers = values.astype(spec.dtype).reshape(-1).tolist()
        main = {"dataFormat": PLAIN, "dataType": kinds[kind], "dims": list(spec.shape), field: numbers}
        [found] = self._append("Const", "Blob", main, f"constant{index}", [])
        return found

    def operator(self, name: str, stored: Mapping[str, Any], inputs: Sequence[int], outputs: int) -> list[int]:
        """The tensors that an operator makes."""
        return self._append(stored["type"], stored["main_type"], stored["main"], name, inputs, outputs)

    def whole(self) -> dict[str, Any]:
        """The graph."""
        return {
            "bizCode": "mobilenas",
            "oplists": self.operators,
            "outputName": [self.tensors[index] for index in self.ends],
            "preferForwardType": "CPU",
            "sourceType": "ONNX",
            "tensorName": self.tensors,
            "tensorNumber": len(self.tensors),
            "usage": "INFERENCE",
        }

    def _append(
        self, kind: str, main_type: str | None, main: Any, name: str, inputs: Sequence[int], outputs: int = 1
    ) -> list[int]:
        first = len(self.tensors)
        self.tensors += [name if outputs == 1 else f"{name}_{index}" for index in range(outputs)]
        made = list(range(first, first + outputs))
        operator: dict[str, Any] = {"type": kind, "name": name, "outputIndexes": made, "defaultDimentionFormat": "NHWC"}
        if inputs:
            operator["inputIndexes"] = list(inputs)
        if main_type is not None:
            operator |= {"main_type": main_type, "main": main}
        self.operators.append(operator)
        return made


_converted, _quantised = _Converter(), _Converter()


def kernels_of_graph(
    graph: Mapping[str, Any], tensors: Mapping[str, tuple[Sequence[int], Sequence[int] | None]]
) -> Counter[Kernel]:
    """Count the kernels of a graph in MNN's JSON; of its ``tensors`` the shapes and, of integers, the values are known.

    What makes only integers computes sizes, once, before the network runs: it is no kernel.
    """
    names = graph["tensorName"]
    specs: dict[int, TensorSpec] = {}
    layouts: dict[int, str] = {}
    found: Counter[Kernel] = Counter()
    for operator in graph["oplists"]:
        taken, made = operator.get("inputIndexes", []), operator.get("outputIndexes", [])
        if operator["type"] in ("Const", "TrainableParam"):
            [index] = made
            specs[index], layouts[index] = _constant_spec(operator), PLAIN
            continue
        layout = _layout(operator, [layouts[index] for index in taken if not specs[index].is_constant])
        for index in made:
            specs[index], layouts[index] = _spec(*tensors[names[index]]), layout
        outputs = tuple(specs[index] for index in made)
        if operator["type"] != "Input" and not all(spec.is_constant for spec in outputs):
            inputs = tuple(specs[index] for index in taken)
            found[_kernel(operator, inputs, outputs, [layouts[index] for index in taken], layout)] += 1
    return found


def _layout(operator: Mapping[str, Any], inputs: Sequence[str]) -> str:
    if operator["type"] == "ConvertTensor":
        return str(operator["main"]["dest"])
    if operator["type"] in OPERATORS:
        return BLOCKED
    return PLAIN if operator["type"] in RESHAPING or not inputs else inputs[0]


def _kernel(
    operator: Mapping[str, Any],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    layouts: list[str],
    made: str,
) -> Kernel:
    main = dict(operator.get("main") or {})
    external = main.pop("external", None)
    attributes: dict[str, Any] = {
        "type": operator["type"],
        "main_type": operator.get("main_type"),
        "main": main,
        "external": external[1:] if external else [],
        "layouts": layouts,
        "made": made,
    }
    weights: tuple[TensorSpec, ...] = ()
    if operator["type"] in OPERATORS:
        common = main["common"]
        window, group = (common["kernelY"], common["kernelX"]), common.get("group", 1)
        attributes |= {
            "kernel_shape": window,
            "strides": (common["strideY"], common["strideX"]),
            "dilations": (common["dilateY"], common["dilateX"]),
            "group": group,
            "activation": "Relu" if common.get("relu") else "Clip" if common.get("relu6") else "",
        }
        channels, size = common["outputCount"], (attributes["external"] or [0])[0] // 4
        first = channels if OPERATORS[operator["type"]] == "Conv" else inputs[0].shape[1]
        weights = (
            TensorSpec((first, size // (first * window[0] * window[1]), *window), "float32", is_constant=True),
            TensorSpec((channels,), "float32", is_constant=True),
        )
    elif operator["type"] == "Pooling" and not main.get("isGlobal"):
        attributes |= {"kernel_shape": (main["kernelY"], main["kernelX"]), "strides": (main["strideY"], main["strideX"])}
    name = f"mnn::{OPERATORS.get(operator['type'], operator['type'])}"
    return Kernel(name, json.dumps(attributes, sort_keys=True), (*inputs, *weights), outputs, "CPU")


def _spec(shape: Sequence[int], values: Sequence[int] | None) -> TensorSpec:
    if values is None:
        return TensorSpec(tuple(shape), "float32")
    return TensorSpec(tuple(shape), "int32", is_constant=True, values=tuple(values))


def _constant_spec(operator: Mapping[str, Any]) -> TensorSpec:
    main, shape = operator["main"], tuple(operator["main"].get("dims", ()))
    if "external" in main and main.get("dataType") == "DT_FLOAT":
        return TensorSpec(shape, "float32", is_constant=True)
    field = next((field for field in NUMBERS if field in main), None)
    if field is None:
        raise IncompatibleError(f"{operator['name']!r} holds {main.get('dataType')}: such constants are not known")
    values = main[field]
    is_part = not shape or len(values) <= STORED_VALUES
    return TensorSpec(shape, NUMBERS[field], is_constant=True, values=tuple(values) if is_part else None)
