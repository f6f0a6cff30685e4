"""ONNX Runtime in halves and in integers, really run: how far the numbers are off, and which kernels are the same."""

import random
from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from mobilenas import onnx_model
from mobilenas.core.measurement import PLANS
from mobilenas.core.workload import Kernel
from mobilenas.devices.device import find_device
from mobilenas.errors import IncompatibleError
from mobilenas.latency.predictors.kernel_features import family_of, features_of, work_of
from mobilenas.profiling.networks import network_for_timing
from mobilenas.runtimes import onnx_precisions
from mobilenas.runtimes.base import RunSettings
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.spaces.cells import CellSpace

SPACE = CellSpace(channels=8, layers=3, image_size=16)
INT8 = RunSettings(precision="int8")
of_all = pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("int8", 0.1)])
"""Mean difference of a logit, relative to the mean logit; the largest of untrained networks is far from one to the next."""


def network(seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    return network_for_timing(SPACE, SPACE.random_architecture(random.Random(seed)))


def images(calls: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((calls, *SPACE.image_shape)).astype(np.float32)


def lowered(*models: bytes, settings: RunSettings = INT8) -> list[Counter[Kernel]]:
    with find_device("local").open() as link:
        return OnnxRuntime().kernels(models, link, settings)


@of_all
def test_fewer_bits_compute_nearly_the_same(precision: str, tolerance: float) -> None:
    model, inputs = network(), images(40)
    session = onnxruntime.InferenceSession(model)
    expected = np.concatenate([session.run(None, {"images": call})[0] for call in inputs])
    settings = RunSettings(precision=precision)
    prepared = OnnxRuntime().prepare(model, settings, images(32, seed=1))
    stored = Counter(t.data_type for t in onnx_model.parse_model(prepared.content, "").graph.initializer if len(t.dims) == 4)
    assert set(stored) == {TensorProto.FLOAT16 if precision == "fp16" else TensorProto.INT8}
    with find_device("local").open() as link:
        found = OnnxRuntime().compute(prepared, inputs, link, settings)
    difference = np.abs(found - expected).mean() / np.abs(expected).mean()
    assert 0 < difference < tolerance


def test_a_range_that_is_too_narrow_costs_accuracy() -> None:
    """What calibration is for: activations beyond the range that was seen are cut off."""
    model, inputs = network(), images(40)
    session = onnxruntime.InferenceSession(model)
    expected = np.concatenate([session.run(None, {"images": call})[0] for call in inputs])
    errors = []
    with find_device("local").open() as link:
        for calibration in (images(32, seed=1), 0.1 * images(32, seed=1)):
            found = OnnxRuntime().compute(OnnxRuntime().prepare(model, INT8, calibration), inputs, link, INT8)
            errors.append(np.abs(found - expected).mean())
    assert errors[1] > 2 * errors[0]


def test_kernels_of_integers_are_the_same_in_two_networks_and_run_alone() -> None:
    """Scales and zeros follow from training: they are no part of a kernel."""
    one, other = lowered(network(1), network(2))
    assert any("QLinearConv" in kernel.operator for kernel in one)
    shared = [kernel for kernel in one.keys() & other.keys() if "QLinear" in kernel.operator]
    assert len(shared) > 5
    models = {kernel.identifier: OnnxRuntime().kernel_model(kernel, 2) for kernel in one.keys() | other.keys()}
    seen = {}
    with find_device("local").open() as link:
        OnnxRuntime().time_models(models, link, INT8, PLANS["quick"], seen.__setitem__)
    assert seen.keys() == models.keys()
    assert all(np.isfinite(features_of(kernel)).all() for kernel in one)


def test_work_of_integers_is_that_of_fractions() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 5, 1, 2, groups=32))
    model = onnx_model.slim(onnx_model.onnx_from_module(module, [torch.zeros(1, 16, 32, 32)])).SerializeToString()
    integers, fractions = lowered(model)[0], lowered(model, settings=RunSettings())[0]
    assert sum(n * work_of(k).madds for k, n in integers.items()) == sum(n * work_of(k).madds for k, n in fractions.items())
    families = {family_of(kernel) for kernel in integers}
    assert "com.microsoft::QLinearConv window uint8" in families
    assert "com.microsoft::QLinearConv depthwise uint8" in families


def test_only_one_input_can_be_calibrated_by_images() -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    inputs = [torch.zeros(1, 4), torch.zeros(1, 4)]
    model = onnx_model.onnx_from_module(Sum(), inputs, input_names=("x", "y")).SerializeToString()
    assert onnx_precisions.quantised(model)
    with pytest.raises(IncompatibleError, match="the model has 2 inputs"):
        onnx_precisions.quantised(model, np.zeros((1, 1, 4)))
