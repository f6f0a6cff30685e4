"""ONNX models in fewer bits: halves, and integers by static quantisation, in the form that most engines read (QDQ)."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mobilenas import onnx_model
from mobilenas.core.system import resource_error
from mobilenas.errors import IncompatibleError

PER_CHANNEL_OPSET = 13
CALLS = 4
"""Inputs of noise that a network is calibrated by whose numbers do not matter, as it is only timed."""


def halved(model: bytes) -> bytes:
    """Weights and sums in 16 bits; inputs and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    parsed = onnx_model.parse_model(model, "model")
    with warnings.catch_warnings(), _refused_as("halves"):
        warnings.simplefilter("ignore")  # weights below the smallest half become zero
        return bytes(convert_float_to_float16(parsed, keep_io_types=True).SerializeToString())


def quantised(model: bytes, inputs: np.ndarray | None = None, is_symmetric: bool = False) -> bytes:
    """Weights in 8 bits with a scale for each channel, activations with one each, from their range over ``inputs``.

    ``inputs`` is ``(calls, ...)``, each of them the model's one input; without any, noise stands in. Activations are bytes
    without a sign. With ``is_symmetric`` they have one, zero is zero, and biases stay as they are, as TensorRT wants it;
    x86 processors are slower so.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    parsed = onnx_model.parse_model(model, "model")
    reader = _Reader(parsed, inputs)
    opset = max((entry.version for entry in parsed.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < PER_CHANNEL_OPSET:
        raise IncompatibleError(f"the model is of opset {opset}; scales for each channel need {PER_CHANNEL_OPSET} or later")
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it advises what was done already, and warns of what it then leaves alone
    try:
        with tempfile.TemporaryDirectory(prefix="mobilenas-int8-") as folder, _refused_as("integers"):
            path = Path(folder) / "model.onnx"
            quantize_static(
                parsed,
                str(path),
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8 if is_symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"ActivationSymmetric": is_symmetric, "QuantizeBias": not is_symmetric},
            )
            return path.read_bytes()
    finally:
        root.setLevel(level)


@contextmanager
def _refused_as(numbers: str) -> Iterator[None]:
    """Whatever a library raises becomes one error."""
    try:
        yield
    except Exception as error:  # ONNX Runtime has a type for each of its complaints
        if (lack := resource_error(error)) is not None:
            raise lack from error
        words = " ".join(str(error).split()) or type(error).__name__
        raise IncompatibleError(f"the model cannot be turned into {numbers}: {words[:500]}") from error


def calls_of(model: onnx.ModelProto, inputs: np.ndarray | None) -> list[list[np.ndarray]]:
    """What a model is calibrated by: of each call an array for each input. Without ``inputs``, ``(calls, ...)``, it is noise.

    Raises ``IncompatibleError`` for ``inputs`` of a model that takes several.
    """
    given = onnx_model.inputs_of(model)
    if inputs is None:
        generator = np.random.default_rng(0)
        return [[_noise(value, generator) for value in given] for _ in range(CALLS)]
    if len(given) != 1:
        raise IncompatibleError(f"the model has {len(given)} inputs; it is calibrated by images, which are one")
    return [[call.astype(np.float32).reshape(_shape(given[0]))] for call in inputs]


class _Reader:
    """Inputs one by one, in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, model: onnx.ModelProto, inputs: np.ndarray | None) -> None:
        names = [value.name for value in onnx_model.inputs_of(model)]
        self._calls = (dict(zip(names, arrays, strict=True)) for arrays in calls_of(model, inputs))

    def get_next(self) -> dict[str, Any] | None:
        return next(self._calls, None)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _noise(value: onnx.ValueInfoProto, generator: np.random.Generator) -> np.ndarray:
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return generator.standard_normal(_shape(value)).astype(dtype)
