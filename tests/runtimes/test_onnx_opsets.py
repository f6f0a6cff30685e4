"""Models of other opsets than this package's: their kernels are told in ours where they mean the same, and all run alone."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mobilenas import onnx_model
from mobilenas.core.measurement import PLANS
from mobilenas.core.workload import OPSET, Kernel, TensorSpec
from mobilenas.devices.device import find_device
from mobilenas.latency.predictors.kernel import shape_of
from mobilenas.latency.predictors.kernel_features import family_of, features_of
from mobilenas.profiling.kernels import kernel_models
from mobilenas.runtimes.base import RunSettings
from mobilenas.runtimes.onnx_opsets import in_own_opset
from mobilenas.runtimes.onnx_runtime import OnnxRuntime

SETTINGS = RunSettings()
ZOO = Path(onnx.__file__).parent / "backend/test/data/light"
ONCE = msgspec.structs.replace(
    PLANS["quick"], samples=1, maximum_samples=1, minimum_s=0.0, warmup_runs=1, warmup_s=0.0, warmup_maximum_s=0.0
)


def lowered(content: bytes) -> Counter[Kernel]:
    with find_device("local").open() as link:
        return OnnxRuntime().kernels([content], link, SETTINGS)[0]


def run_alone(kernels: Sequence[Kernel]) -> None:
    """Raises ``RunnerError`` with what the engine says of those that it refuses."""
    runtime = OnnxRuntime()
    with find_device("local").open() as link:
        runtime.time_models(kernel_models(kernels, runtime), link, SETTINGS, ONCE, lambda name, record: None)


def model_of(
    operator: str, opset: int, inputs: Sequence[Any] = (), shape: Sequence[int] = (1, 6, 8, 8), **attributes: Any
) -> bytes:
    """One node on ``x``, with constants as its other inputs, after a Relu, lest it is folded or removed."""
    constants = [numpy_helper.from_array(np.asarray(value), f"c{index}") for index, value in enumerate(inputs)]
    outputs = ["y", "z"] if operator == "Split" else ["y"]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node(operator, ["r", *(tensor.name for tensor in constants)], outputs, name="node", **attributes),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return onnx_model.make_model(helper.make_graph(nodes, "g", [given], made, constants), opset=opset).SerializeToString()


def kernel_of(operator: str, opset: int, inputs: Sequence[Any] = (), **attributes: Any) -> Kernel:
    [kernel] = [k for k in lowered(model_of(operator, opset, inputs, **attributes)) if k.operator == operator]
    return kernel


AXES = np.array([2, 3])
SCALES = np.array([1.0, 1.0, 1.5, 1.5], np.float32)
HALVES = np.array([2, 4])


@pytest.mark.parametrize(
    ("kernel", "opset"),
    [
        (("ReduceMean", 18, [AXES]), OPSET),
        (("ReduceMean", 20, []), OPSET),
        (("Relu", 9, []), OPSET),
        (("MaxPool", 9, [], {"kernel_shape": [3, 3]}), OPSET),
        (("AveragePool", 22, [], {"kernel_shape": [3, 3]}), OPSET),
        (("Softmax", 20, [], {"axis": 1}), OPSET),
        (("Softmax", 11, [], {"axis": 1}), 11),
        (("Split", 18, [HALVES], {"axis": 1}), OPSET),
        (("Split", 18, [], {"axis": 1, "num_outputs": 2}), 18),
        (("Split", 11, [], {"axis": 1, "split": [2, 4]}), 11),
        (("Gelu", 20, []), 20),
        (("Pad", 10, [], {"pads": [0, 0, 1, 1, 0, 0, 1, 1]}), 2),
        (("Pad", 21, [np.array([0, 0, 1, 1, 0, 0, 1, 1])]), OPSET),
        (("Slice", 9, [], {"starts": [1], "ends": [4], "axes": [2]}), 1),
        (("Upsample", 9, [SCALES], {"mode": "nearest"}), 9),
        (("Resize", 10, [SCALES], {"mode": "nearest"}), 10),
        (("Resize", 19, [np.zeros(0, np.float32), SCALES], {"mode": "linear"}), OPSET),
        (("Resize", 19, [np.zeros(0, np.float32), SCALES], {"mode": "linear", "antialias": 1}), 19),
    ],
    ids=lambda value: f"{value[0]} of {value[1]}" if isinstance(value, tuple) else "",
)
def test_a_kernel_of_any_opset_runs_alone(kernel: tuple[Any, ...], opset: int) -> None:
    operator, version, inputs, attributes = (*kernel, {})[:4]
    found = kernel_of(operator, version, inputs, **attributes)
    assert found.opset == opset
    run_alone([found])


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_a_reduction_is_the_same_kernel_whether_its_axes_are_an_attribute_or_an_input(opset: int) -> None:
    """So that its row is found, and what is learnt of one holds for the other."""
    ours, theirs = kernel_of("ReduceMean", OPSET, axes=[2, 3]), kernel_of("ReduceMean", opset, [AXES])
    assert theirs == ours
    assert (family_of(theirs), shape_of(theirs)) == (family_of(ours), shape_of(ours))
    assert (features_of(theirs) == features_of(ours)).all()


def test_what_a_softmax_meant_before_opset_13_is_another_kernel() -> None:
    old, new = kernel_of("Softmax", 11, axis=1), kernel_of("Softmax", 13, axis=1)
    assert old.identifier != new.identifier
    assert old.key == f"{new.key} (opset 11)"
    assert family_of(old) == family_of(new)


@pytest.mark.parametrize(
    ("shape", "attributes", "axis"),
    [
        ((1, 1000), {}, 1),
        ((1, 1000), {"axis": -1}, 1),
        ((1, 1000, 1, 1), {"axis": 1}, 1),
        ((1, 1, 1, 7), {"axis": 1}, 3),
        ((4, 1), {}, 1),
        ((1, 10, 5, 5), {}, None),
    ],
)
def test_a_softmax_over_one_axis_meant_the_same_before_opset_13(
    shape: tuple[int, ...], attributes: dict[str, int], axis: int | None
) -> None:
    """Oracle: flattened from the axis on, as opset 1 says, and over the axis that is found."""
    opset, told, _ = in_own_opset("Softmax", attributes, [TensorSpec(shape, "float32")], 11)
    assert opset == (11 if axis is None else OPSET)
    x = np.random.default_rng(0).standard_normal(shape)
    first = attributes.get("axis", 1) % len(shape)
    flat = np.exp(x).reshape(int(np.prod(shape[:first])), -1)
    flattened = (flat / flat.sum(axis=1, keepdims=True)).reshape(shape)
    if axis is not None:
        assert told["axis"] == axis
        assert np.allclose(np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True), flattened)


def test_a_pool_of_an_old_opset_is_that_of_ours() -> None:
    assert kernel_of("MaxPool", 9, kernel_shape=[3, 3], strides=[2, 2]).identifier == (
        kernel_of("MaxPool", OPSET, kernel_shape=[3, 3], strides=[2, 2]).identifier
    )


def test_kernels_of_our_opset_keep_the_identifiers_that_tables_and_records_have() -> None:
    """As they were before kernels had an opset."""
    assert kernel_of("Relu", OPSET).identifier == "b9bf1a72aff6eccf"
    assert kernel_of("ReduceMean", OPSET, axes=[2, 3]).identifier == "a5fc59c231f47b73"


def network() -> nn.Module:
    convolution = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Hardswish()]
    return nn.Sequential(
        nn.Upsample(scale_factor=2), *convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10), nn.GELU()
    ).eval()


@pytest.mark.parametrize("opset", [18, 20])
def test_every_kernel_of_what_torch_exports_today_runs_alone(opset: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network(), (torch.zeros(1, 3, 32, 32),), dynamo=True, opset_version=opset, verbose=False)
    assert program is not None
    kernels = lowered(program.model_proto.SerializeToString())
    assert {"ReduceMean", "Resize", "Gemm"} < {kernel.operator for kernel in kernels}
    run_alone(list(kernels))


def test_every_kernel_of_a_network_of_opset_9_runs_alone() -> None:
    content = (ZOO / "light_shufflenet.onnx").read_bytes()
    assert onnx_model.parse_model(content, "zoo").opset_import[0].version == 9
    kernels = lowered(content)
    assert {kernel.opset for kernel in kernels if kernel.operator == "Softmax"} == {OPSET}, "over the classes only"
    run_alone(list(kernels))
