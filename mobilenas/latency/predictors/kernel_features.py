"""A kernel in numbers: the work that it does, and what else its speed depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

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
RECURRENT = ("LSTM", "GRU", "RNN")
"""Operators that use all their weights at each of the steps that their first input begins with."""
Context = Literal["computing", "depthwise", "moving"]
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
    madds = 0
    if _is_convolution(kernel):
        positions = _channels_first(kernel, _data(kernel)[0] if _is_transposed(kernel) else kernel.outputs[0])
        madds = positions[0] * math.prod(positions[2:]) * _elements(_weight(kernel))
    elif is_product(kernel):
        madds = _elements(kernel.outputs[0]) * _contracted(kernel)
    elif kernel.operator in RECURRENT and kernel.inputs[0] is not None:
        steps, batch, *_ = kernel.inputs[0].shape
        madds = steps * batch * sum(map(_elements, kernel.weights))
    return Work(madds, *(sum(map(_elements, specs)) for specs in (_data(kernel), kernel.outputs, kernel.weights)))


def family_of(kernel: Kernel) -> str:
    """Kernels whose times one law describes: an operator on one type of numbers, and of convolutions depthwise, grouped,
    pointwise and the others, those of images apart from those in another number of dimensions.
    """
    name = kernel.operator
    if _is_convolution(kernel):
        groups, (first, second, *window) = _attributes(kernel).get("group", 1), _weight(kernel).shape
        per_group = first // groups if _is_transposed(kernel) else second
        kind = "depthwise" if per_group == 1 else "grouped"
        name += f" {kind}" if groups > 1 else f" {'pointwise' if math.prod(window) == 1 else 'window'}"
        name += "" if len(window) == 2 else f" {len(window)}-D"
    types = dict.fromkeys(spec.dtype for spec in (*kernel.inputs[:1], *kernel.outputs) if spec is not None)
    return name if set(types) == {"float32"} else f"{name} {' '.join(types)}"


def context_of(kernel: Kernel) -> Context:
    """By what a network slows it over its row, whose copies find their data warm in the cache: the less it computes on them the
    more.
    """
    if work_of(kernel).madds == 0 and not kernel.weights:  # others may compute what is not counted here
        return "moving"
    return "depthwise" if _is_convolution(kernel) and " depthwise" in family_of(kernel) else "computing"


def is_product(kernel: Kernel) -> bool:
    """Whether it is a matrix product, as linear layers are."""
    return kernel.operator.endswith(("Gemm", "MatMul"))


def features_of(kernel: Kernel) -> np.ndarray:
    """Values of ``FEATURES``, ``(len(FEATURES),)``."""
    attributes, work = _attributes(kernel), work_of(kernel)
    data = _data(kernel)
    taken, made = _channels_first(kernel, data[0]) if data else (), _channels_first(kernel, kernel.outputs[0])
    in_channels, out_channels = (shape[1] if len(shape) > 1 else 1 for shape in (taken, made))
    window = _weight(kernel).shape[2:] if _is_convolution(kernel) else attributes.get("kernel_shape", ())
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


def _data(kernel: Kernel) -> list[TensorSpec]:
    """Inputs that arrive while the network runs."""
    return [spec for spec in kernel.inputs if spec is not None and not spec.is_constant]


def _attributes(kernel: Kernel) -> dict[str, Any]:
    return kernel.attribute_values


def _is_convolution(kernel: Kernel) -> bool:
    return kernel.operator.endswith(("Conv", "ConvTranspose")) and len(kernel.inputs) > 1 and len(_weight(kernel).shape) > 2


def _is_transposed(kernel: Kernel) -> bool:
    """Every element read meets every weight of its group, where a plain convolution's every element written does."""
    return kernel.operator.endswith("ConvTranspose")


def _weight(kernel: Kernel) -> TensorSpec:
    """Of a convolution; scale and zero of its input come before it where they are integers."""
    spec = kernel.inputs[3 if kernel.operator.endswith("QLinearConv") else 1]
    assert spec is not None
    return spec


def _channels_first(kernel: Kernel, spec: TensorSpec) -> tuple[int, ...]:
    """The shape with the channels after the batch, wherever the kernel has them."""
    if not (_attributes(kernel).get("channels_last") or "nhwc" in kernel.operator.lower()):
        return spec.shape
    return (spec.shape[0], spec.shape[-1], *spec.shape[1:-1])


def _contracted(kernel: Kernel) -> int:
    """Length of the axis that a matrix product sums over."""
    first = kernel.inputs[0]
    assert first is not None
    return first.shape[-2 if _attributes(kernel).get("transA") else -1]


def _elements(spec: TensorSpec) -> int:
    return math.prod(spec.shape)
