"""ncnn models in integers: weights with a scale for each channel, the input of each layer with one.

A layer that has such scales turns its input into integers, sums in integers, and makes fractions again; layers between are as
they were. All scales are symmetric: 127 over the largest absolute number.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenas.errors import IncompatibleError, ResourceError
from mobilenas.runtimes.ncnn_files import (
    INTEGER_KEY,
    Layer,
    layers_of,
    param_of,
    read_weights,
    scales_of,
    whole_numbers,
    window_of,
    written_weights,
)

QUANTISED = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
LARGEST, SMALLEST_RANGE = 127, 1e-12


def quantised(param: bytes, weights: bytes, calls: Sequence[Sequence[np.ndarray]]) -> tuple[bytes, bytes]:
    """``.param`` and ``.bin`` in integers, of a model of fractions; each of ``calls`` holds an array for each input of it.

    Raises ``IncompatibleError`` for layers whose weights are not known here, and if ncnn cannot run the model on this host.
    """
    layers = list(layers_of(param.decode()))
    ranges = _ranges(param, weights, [layer for layer in layers if _is_quantised(layer)], calls)
    made, parts = [], []
    for layer, arrays in zip(layers, read_weights(layers, weights), strict=True):
        if _is_quantised(layer):
            arrays = _in_integers(layer, arrays, ranges[layer.inputs[0]])
            layer = layer._replace(parameters={**layer.parameters, INTEGER_KEY: "1"})
        made.append(layer)
        parts.append(written_weights(layer.kind, arrays))
    return param_of(made), b"".join(parts)


def _is_quantised(layer: Layer) -> bool:
    """Groups of several channels stay fractions: where ncnn packs them, their sums of integers are wrong (x86, 1.0.2026)."""
    if layer.kind != "ConvolutionDepthWise":
        return layer.kind in QUANTISED
    number = whole_numbers(layer.parameters)
    return number["0"] == number["7"] == number["6"] // math.prod(window_of(number))


def _in_integers(layer: Layer, arrays: Sequence[np.ndarray], largest_input: float) -> list[np.ndarray]:
    weights, *bias = arrays
    rows = weights.reshape(scales_of(layer.kind, whole_numbers(layer.parameters)), -1)
    scales = LARGEST / np.maximum(np.abs(rows).max(axis=1), SMALLEST_RANGE)
    integers = np.clip(np.round(rows * scales[:, None]), -LARGEST, LARGEST).astype(np.int8)
    input_scale = LARGEST / max(largest_input, SMALLEST_RANGE)
    return [integers.reshape(weights.shape), *bias, scales.astype("<f4"), np.array([input_scale], "<f4")]


def _ranges(param: bytes, weights: bytes, layers: Sequence[Layer], calls: Sequence[Sequence[np.ndarray]]) -> dict[str, float]:
    """The largest absolute number of each layer's input over all calls."""
    try:
        import ncnn
    except ImportError:
        raise ResourceError(
            "ncnn, by which the range of activations is found, is not installed here: pip install ncnn"
        ) from None
    with tempfile.TemporaryDirectory(prefix="mobilenas-ncnn-") as folder:
        paths = {Path(folder) / "model.param": param, Path(folder) / "model.bin": weights}
        for path, content in paths.items():
            path.write_bytes(content)
        net = ncnn.Net()
        net.opt.num_threads = 1
        net.opt.use_vulkan_compute = net.opt.use_bf16_storage = net.opt.use_bf16_packed = False
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.opt.lightmode = False
        model, numbers = map(str, paths)
        if net.load_param(model) != 0 or net.load_model(numbers) != 0:
            raise IncompatibleError("ncnn on this host cannot read the model that pnnx made")
        found = {layer.inputs[0]: 0.0 for layer in layers}
        for arrays in calls:
            extractor = net.create_extractor()
            for name, array in zip(net.input_names(), arrays, strict=True):
                extractor.input(name, _mat_of(ncnn, array))
            for name, largest in found.items():
                code, mat = extractor.extract(name)
                if code != 0:
                    raise IncompatibleError(f"ncnn on this host cannot compute {name}")
                found[name] = max(largest, float(np.abs(np.array(mat)).max()))
        return found


def _mat_of(ncnn: Any, array: np.ndarray) -> Any:
    held = np.ascontiguousarray(array, np.float32)
    return ncnn.Mat(held).clone()
