import json
import math

import msgspec
import numpy as np
import pytest

from mobilenas.core.workload import Kernel, TensorSpec
from mobilenas.errors import DocumentError


def test_weights_of_a_kernel_are_its_constant_numbers() -> None:
    spec = TensorSpec((256, 512), "float32", is_constant=True)
    shape = TensorSpec((2,), "int64", is_constant=True, values=(1, 2))
    kernel = Kernel(
        "Gemm", "{}", (TensorSpec((1, 512), "float32"), spec, shape, None), (TensorSpec((1, 256), "float32"),), "CPU"
    )
    assert kernel.weight_mib == 0.5


def constant(value: float, attributes: str = "{}") -> Kernel:
    spec = TensorSpec((), "float32", is_constant=True, values=(value,))
    return Kernel("Clip", attributes, (TensorSpec((1, 4), "float32"), None, spec), (TensorSpec((1, 4), "float32"),), "CPU")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_constants_that_are_not_finite_come_back(value: float) -> None:
    kernel = constant(value, json.dumps({"alpha": value, "all": [1.0, value]}))
    again = msgspec.json.decode(msgspec.json.encode(kernel), type=Kernel)
    assert again == kernel
    assert hash(again) == hash(kernel)
    assert again.identifier == kernel.identifier == constant(value, kernel.attributes).identifier
    assert json.loads(msgspec.json.encode(kernel))["inputs"][2]["values"] == [str(value)]
    spec, attributes = again.inputs[2], again.attribute_values
    assert spec is not None
    assert np.array_equal([*spec.numbers, attributes["alpha"], *attributes["all"]], [value, value, 1.0, value], equal_nan=True)


def test_kernels_are_sorted_whatever_they_hold() -> None:
    """Some lack an input, some hold what is no number."""
    kernels = [constant(math.nan), constant(1.0), constant(math.inf), constant(2)]
    bare = msgspec.structs.replace(kernels[0], inputs=(kernels[0].inputs[0], kernels[0].inputs[0]))
    assert sorted([*kernels, bare]) == sorted([bare, *reversed(kernels)])


def test_truth_values_are_kept_as_numbers() -> None:
    spec = TensorSpec((), "bool", is_constant=True, values=(True,))
    assert msgspec.json.decode(msgspec.json.encode(spec), type=TensorSpec) == spec


@pytest.mark.parametrize("attributes", ["", "[]", "[" * 100_000, "{]"])
def test_attributes_are_a_json_object(attributes: str) -> None:
    with pytest.raises(DocumentError, match="Clip"):
        constant(1.0, attributes)
