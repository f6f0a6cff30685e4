"""A kernel in numbers: the work that it does, and what else its speed depends on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilenas.core.workload import Kernel, TensorSpec

ACTIVATIONS = ("", "Relu", "Clip", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu")
"""Fused into a convolution; the first is none."""
FEATURES = (
    "log_madds",
    "log_read",
    "log_written",
    "log_weights",
    "log_in_channels",
    "log_out_channels",
    "log_out_pixels",
    "log_groups",
    "window",
    "stride",
    "dilation",
    "in_channels_mod_16",
    "out_channels_mod_16",
    "activation",
    "inputs",
    "inner_axis_moves",
)
WORK_FEATURES = FEATURES[:8]
"""Those that grow with a kernel: beyond the largest seen lies extrapolation."""


@dataclass(frozen=True)
class Work:
    """What a kernel has to do, whatever executes it: multiply-adds, and elements read, written, and held as weights."""

    madds: int
    read: int
    written: int
    weights: int


def work_of(kernel: Kernel) -> Work:
    """Counted from the shapes that the runtime gave; blocked layouts count their padding, which is executed too."""
    data, weights = _split(kernel)
    written = sum(map(_elements, kernel.outputs))
    madds = 0
    if _is_convolution(kernel):
        out = kernel.outputs[0].shape
        madds = out[0] * math.prod(out[2:]) * _elements(_second(kernel))
    elif _is_product(kernel):
        madds = _elements(kernel.outputs[0]) * _contracted(kernel)
    return Work(madds, sum(map(_elements, data)), written, sum(map(_elements, weights)))


def family_of(kernel: Kernel) -> str:
    """Kernels whose times one law describes: an operator on one type of numbers, and of convolutions depthwise, grouped,
    pointwise and the others.
    """
    name = kernel.operator
    if _is_convolution(kernel):
        groups, (_, per_group, height, width) = _attributes(kernel).get("group", 1), _second(kernel).shape
        kind = "depthwise" if per_group == 1 else "grouped"
        name += f" {kind}" if groups > 1 else f" {'pointwise' if height * width == 1 else 'window'}"
    types = dict.fromkeys(spec.dtype for spec in (*kernel.inputs[:1], *kernel.outputs) if spec is not None)
    return name if set(types) == {"float32"} else f"{name} {' '.join(types)}"


def features_of(kernel: Kernel) -> np.ndarray:
    """Values of ``FEATURES``, ``(len(FEATURES),)``."""
    attributes, work = _attributes(kernel), work_of(kernel)
    data, _ = _split(kernel)
    taken, made = data[0].shape if data else (), kernel.outputs[0].shape
    in_channels, out_channels = (shape[1] if len(shape) > 1 else 1 for shape in (taken, made))
    window = _second(kernel).shape[2:] if _is_convolution(kernel) else attributes.get("kernel_shape", ())
    activation = attributes.get("activation", "")
    permutation = attributes.get("perm", ())
    return np.array(
        [
            math.log1p(work.madds),
            math.log1p(work.read),
            math.log1p(work.written),
            math.log1p(work.weights),
            math.log1p(in_channels),
            math.log1p(out_channels),
            math.log1p(math.prod(made[2:]) * (made[0] if made else 1)),
            math.log1p(attributes.get("group", 1)),
            math.prod(window),
            math.prod(attributes.get("strides", ())),
            max(attributes.get("dilations", (1,)), default=1),
            in_channels % 16,
            out_channels % 16,
            ACTIVATIONS.index(activation) if activation in ACTIVATIONS else len(ACTIVATIONS),
            len([spec for spec in kernel.inputs if spec is not None]),
            float(bool(permutation) and permutation[-1] != len(permutation) - 1),
        ],
        dtype=float,
    )


def _split(kernel: Kernel) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs that arrive, and constants of numbers."""
    given = [spec for spec in kernel.inputs if spec is not None]
    return [s for s in given if not s.is_constant], [s for s in given if s.is_constant and s.dtype.startswith("float")]


def _attributes(kernel: Kernel) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kernel.attributes)
    return found


def _is_convolution(kernel: Kernel) -> bool:
    return kernel.operator.endswith("Conv") and len(kernel.inputs) > 1 and len(_second(kernel).shape) == 4


def _is_product(kernel: Kernel) -> bool:
    return kernel.operator.endswith(("Gemm", "MatMul"))


def _second(kernel: Kernel) -> TensorSpec:
    spec = kernel.inputs[1]
    assert spec is not None
    return spec


def _contracted(kernel: Kernel) -> int:
    """Length of the axis that a matrix product sums over."""
    first = kernel.inputs[0]
    assert first is not None
    return first.shape[-2 if _attributes(kernel).get("transA") else -1]


def _elements(spec: TensorSpec) -> int:
    return math.prod(spec.shape)
