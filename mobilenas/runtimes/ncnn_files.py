"""The two files of an ncnn model: layers as text in a ``.param``, their numbers one after the other in a ``.bin``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mobilenas.core.workload import TensorSpec
from mobilenas.errors import IncompatibleError

MAGIC = "7767517"
TAGGED = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise", "InnerProduct")
"""Layers whose weights begin with a word that says of which type they are."""
FRACTIONS, INTEGERS = (0).to_bytes(4, "little"), (0x000D4B38).to_bytes(4, "little")
"""That word; integers fill whole words, too."""
INTEGER_KEY = "8"
"""The parameter that says that weights are integers, with scales of theirs and of the input behind them."""
OTHER_WEIGHTS = (
    *("Convolution1D", "Convolution3D", "ConvolutionDepthWise1D", "ConvolutionDepthWise3D", "Deconvolution1D"),
    *("Deconvolution3D", "DeconvolutionDepthWise1D", "DeconvolutionDepthWise3D", "DeformableConv2D", "Embed", "GRU", "Gemm"),
    *("GroupNorm", "InstanceNorm", "LSTM", "LayerNorm", "MultiHeadAttention", "Normalize", "Quantize", "RMSNorm", "RNN"),
    "Requantize",
)
"""Layers whose weights are not known here: no row of theirs can be measured."""


class Layer(NamedTuple):
    """One line of a ``.param``."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, str]

    def line(self) -> str:
        """The line."""
        entries = [f"{key}={value}" for key, value in self.parameters.items()]
        sizes = [str(len(self.inputs)), str(len(self.outputs))]
        return " ".join([self.kind, self.name, *sizes, *self.inputs, *self.outputs, *entries])


def layers_of(param: str) -> Iterator[Layer]:
    """The layers of a ``.param``; raises ``IncompatibleError`` if it is none."""
    lines = param.splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise IncompatibleError("this is no .param file of ncnn")
    for row in filter(None, (line.split() for line in lines[2:])):
        taken, made = int(row[2]), int(row[3])
        ends = 4 + taken, 4 + taken + made
        parameters = dict(entry.split("=", 1) for entry in row[ends[1] :])
        yield Layer(row[0], row[1], tuple(row[4 : ends[0]]), tuple(row[ends[0] : ends[1]]), parameters)


def param_of(layers: Sequence[Layer]) -> bytes:
    """The inverse of ``layers_of``."""
    blobs = {name for layer in layers for name in layer.outputs}
    lines = [MAGIC, f"{len(layers)} {len(blobs)}", *(layer.line() for layer in layers)]
    return ("\n".join(lines) + "\n").encode()


def sizes_of(shape: tuple[int, ...]) -> dict[str, str]:
    """Parameters of an input layer of this shape, without the batch: width, height, depth, channels."""
    keys = {1: ("0",), 2: ("1", "0"), 3: ("2", "1", "0"), 4: ("2", "11", "1", "0")}.get(len(shape))
    if keys is None:
        raise IncompatibleError(f"ncnn has tensors of one to four dimensions beside the batch, not of shape {shape}")
    return dict(sorted(((key, str(size)) for key, size in zip(keys, shape, strict=True)), key=lambda entry: int(entry[0])))


def whole_numbers(parameters: Mapping[str, str]) -> dict[str, int]:
    """The parameters that are whole numbers, by their key."""
    return {key: int(value) for key, value in parameters.items() if value.lstrip("-").isdigit()}


def window_of(number: Mapping[str, int]) -> tuple[int, int]:
    """Height and width of what a convolution or a pool sees at once; both are its parameter 1 unless the height is apart."""
    width = number.get("1", 1)
    return number.get("11", width), width


def weights_of(kind: str, parameters: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """A layer's tensors in the order of the ``.bin`` file; raises ``IncompatibleError`` for layers not known here."""
    number = whole_numbers(parameters)
    shapes = _shapes(kind, number)
    found = [TensorSpec(shape, "float32", is_constant=True) for shape in shapes]
    if kind in TAGGED and number.get(INTEGER_KEY):
        scales = (scales_of(kind, number), 1)
        found[0] = TensorSpec(shapes[0], "int8", is_constant=True)
        found += [TensorSpec((count,), "float32", is_constant=True) for count in scales]
    return tuple(found)


def scales_of(kind: str, number: Mapping[str, int]) -> int:
    """How many parts of a layer's weights have a scale of their own, as integers: its channels, or its groups."""
    return number.get("7", 1) if kind == "ConvolutionDepthWise" else number["0"]


def _shapes(kind: str, number: Mapping[str, int]) -> list[tuple[int, ...]]:
    size, channels = number.get("6", 0), number.get("0", 0)
    if kind in TAGGED and number.get("19"):
        raise IncompatibleError(f"the ncnn layer {kind} takes its weights from another layer, which is not known here")
    if kind in ("Convolution", "ConvolutionDepthWise"):
        window = window_of(number)
        return [(channels, size // channels // math.prod(window), *window), *([(channels,)] if number.get("5") else [])]
    if kind in ("Deconvolution", "DeconvolutionDepthWise"):
        window, group = window_of(number), number.get("7", 1)
        each = channels // group
        return [(size // each // math.prod(window), each, *window), *([(channels,)] if number.get("5") else [])]
    if kind == "InnerProduct":
        return [(channels, number["2"] // channels), *([(channels,)] if number.get("1") else [])]
    if kind == "BatchNorm":
        return [(channels,)] * 4
    if kind == "Scale":
        return [(channels,)] * (2 if number.get("1") else 1)
    if kind == "MemoryData":
        return [tuple(number[key] for key in ("2", "11", "1", "0") if number.get(key))]
    if kind in ("PReLU", "Bias"):
        return [(channels,)]
    if kind in OTHER_WEIGHTS:
        raise IncompatibleError(f"the ncnn layer {kind} holds weights in a form that is not known here")
    return []


def read_weights(layers: Sequence[Layer], content: bytes) -> list[list[np.ndarray]]:
    """The tensors of each layer in a ``.bin`` of fractions. Raises ``IncompatibleError`` for layers not known here."""
    found, position = [], 0
    for layer in layers:
        position += len(FRACTIONS) if layer.kind in TAGGED else 0
        arrays = []
        for spec in weights_of(layer.kind, layer.parameters):
            count = math.prod(spec.shape)
            arrays.append(np.frombuffer(content, "<f4", count, position).reshape(spec.shape))
            position += 4 * count
        found.append(arrays)
    if position != len(content):
        raise IncompatibleError(f"the .bin file of ncnn has {len(content)} bytes, its layers take {position}")
    return found


def written_weights(kind: str, arrays: Sequence[np.ndarray]) -> bytes:
    """What the ``.bin`` file holds of one layer."""
    parts = []
    for index, array in enumerate(arrays):
        content = np.ascontiguousarray(array).tobytes()
        if kind in TAGGED and index == 0:
            parts.append(INTEGERS if array.dtype == np.int8 else FRACTIONS)
        parts.append(content + b"\0" * (-len(content) % 4))
    return b"".join(parts)


def noise_weights(kind: str, specs: Sequence[TensorSpec]) -> bytes:
    """Small numbers in place of a layer's own; what has to be above zero is."""
    generator = np.random.default_rng(0)
    arrays: list[np.ndarray] = []
    for index, spec in enumerate(specs):
        if spec.dtype == "int8":
            arrays.append(generator.integers(-127, 127, spec.shape, np.int8, endpoint=True))
            continue
        numbers = (0.1 * generator.standard_normal(spec.shape)).astype("<f4")
        is_scale = arrays and arrays[0].dtype == np.int8 and index >= len(specs) - 2
        is_variance = kind == "BatchNorm" and index == 2
        arrays.append(np.ones_like(numbers) if is_scale or is_variance else numbers)
    return written_weights(kind, arrays)
