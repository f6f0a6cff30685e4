"""Engines in halves and in integers, really run: how far the numbers are off, and which kernels are the same."""

import random
from collections import Counter
from pathlib import Path

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
from mobilenas.runtimes.base import RunSettings, Runtime
from mobilenas.runtimes.mnn import Mnn
from mobilenas.runtimes.ncnn import Ncnn
from mobilenas.runtimes.ncnn_files import layers_of, read_weights, written_weights
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.spaces.cells import CellSpace

SPACE = CellSpace(channels=8, layers=3, image_size=16)
MEAN_DIFFERENCES = {
    ("onnxruntime", "fp16"): 5e-3,
    ("onnxruntime", "int8"): 0.1,
    ("ncnn", "int8"): 0.1,
    ("mnn", "int8"): 1.0,
}
"""Largest mean difference of a logit, relative to the mean logit: the largest of untrained networks varies too much. MNN's own
tool is that far off.
"""
ENGINES = {engine.name: engine for engine in (OnnxRuntime(), Ncnn(), Mnn())}


def network(seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    return network_for_timing(SPACE, SPACE.random_architecture(random.Random(seed)))


def images(calls: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((calls, *SPACE.image_shape)).astype(np.float32)


def exported(module: torch.nn.Module, shape: tuple[int, ...]) -> bytes:
    return onnx_model.slim(onnx_model.onnx_from_module(module, [torch.zeros(shape)])).SerializeToString()


def lowered(*models: bytes, precision: str = "int8", engine: Runtime = ENGINES["onnxruntime"]) -> list[Counter[Kernel]]:
    with find_device("local").open() as link:
        return engine.kernels(models, link, RunSettings(precision=precision, provider=engine.providers[0]))


def difference(engine: Runtime, precision: str, calibration: np.ndarray | None = None) -> float:
    """Of the logits from those of ONNX Runtime in fp32."""
    model, inputs = network(), images(40)
    session = onnxruntime.InferenceSession(model)
    expected = np.concatenate([session.run(None, {"images": call})[0] for call in inputs])
    settings = RunSettings(precision=precision, provider=engine.providers[0])
    with find_device("local").open() as link:
        found = engine.compute(engine.prepare(model, settings, calibration), inputs, link, settings)
    return float(np.abs(found - expected).mean() / np.abs(expected).mean())


@pytest.mark.parametrize(("name", "precision"), MEAN_DIFFERENCES)
def test_fewer_bits_compute_nearly_the_same(name: str, precision: str) -> None:
    assert 0 < difference(ENGINES[name], precision, images(32, seed=1)) < MEAN_DIFFERENCES[name, precision]


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("int8", TensorProto.INT8)])
def test_an_onnx_model_holds_its_weights_in_fewer_bits(precision: str, kind: int) -> None:
    prepared = OnnxRuntime().prepare(network(), RunSettings(precision=precision))
    stored = Counter(t.data_type for t in onnx_model.parse_model(prepared.content, "").graph.initializer if len(t.dims) == 4)
    assert set(stored) == {kind}


@pytest.mark.parametrize("name", ["ncnn", "mnn"])
def test_integers_take_a_quarter_of_the_space(name: str) -> None:
    engine, model = ENGINES[name], exported(torch.nn.Conv2d(16, 64, 3), shape=(1, 16, 16, 16))
    sizes = [
        sum(map(len, engine.prepare(model, RunSettings(precision=precision, provider="CPU")).files))
        for precision in ("fp32", "int8")
    ]
    assert 0.2 < sizes[1] / sizes[0] < 0.4


@pytest.mark.parametrize("name", ["onnxruntime", "ncnn"])
def test_a_range_that_is_too_narrow_costs_accuracy(name: str) -> None:
    """What calibration is for: activations beyond the range that was seen are cut off."""
    right, narrow = (difference(ENGINES[name], "int8", scale * images(32, seed=1)) for scale in (1.0, 0.1))
    assert narrow > 1.5 * right


@pytest.mark.parametrize(("channels", "groups"), [(64, 4), (64, 8), (64, 2), (64, 32), (64, 64), (16, 1)])
def test_grouped_convolutions_of_ncnn_in_integers_are_right(channels: int, groups: int) -> None:
    """Groups of several channels are left in fractions, as ncnn adds up their integers wrongly."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, channels, 3), torch.nn.ReLU(), torch.nn.Conv2d(channels, channels, 3, groups=groups)
    )
    model, settings = exported(module, shape=(1, 3, 12, 12)), RunSettings(precision="int8", provider="CPU")
    inputs = np.random.default_rng(0).standard_normal((4, 1, 3, 12, 12)).astype(np.float32)
    session = onnxruntime.InferenceSession(model)
    expected = np.stack([session.run(None, {"images": call})[0].reshape(-1) for call in inputs])
    with find_device("local").open() as link:
        found = Ncnn().compute(Ncnn().prepare(model, settings, inputs), inputs, link, settings)
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize(
    "name", ["../../../../../../../../../tmp/mobilenas-evil", "/tmp/mobilenas-evil", "x" * 300, "a/b", "images"]
)
def test_the_name_of_an_input_becomes_no_file(name: str) -> None:
    model = onnx_model.parse_model(exported(torch.nn.Conv2d(3, 8, 3), shape=(1, 3, 8, 8)), "")
    model.graph.node[0].input[0] = model.graph.input[0].name = name
    settings = RunSettings(precision="int8", provider="CPU")
    assert Mnn().prepare(model.SerializeToString(), settings).content
    assert not list(Path("/tmp").glob("mobilenas-evil*"))


def test_weights_that_another_layer_makes_are_refused_by_name() -> None:
    class Made(torch.nn.Module):
        def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(x, weights)

    inputs = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 3, 3)]
    model = onnx_model.onnx_from_module(Made(), inputs, input_names=("x", "weights")).SerializeToString()
    with pytest.raises(IncompatibleError, match="Convolution takes its weights from another layer"):
        Ncnn().prepare(model, RunSettings(precision="int8", provider="CPU"))


def test_numbers_of_ncnn_are_read_as_they_were_written() -> None:
    """Its file says nothing of what it holds: a constant, and a layer that is not known here, are passed over by their size."""
    module = torch.nn.Sequential(torch.nn.Conv2d(16, 8, 1), Shifted(), torch.nn.Conv2d(8, 8, 3, groups=8, bias=False))
    model = exported(module, shape=(1, 16, 8, 8))
    prepared = Ncnn().prepare(model, RunSettings(provider="CPU"))
    layers = list(layers_of(prepared.content.decode()))
    arrays = read_weights(layers, prepared.weights or b"")
    again = b"".join(written_weights(layer.kind, found) for layer, found in zip(layers, arrays, strict=True))
    assert again == prepared.weights
    assert sum(layer.kind == "MemoryData" for layer in layers) == 1
    with pytest.raises(IncompatibleError, match="bytes, its layers take"):
        read_weights(layers, (prepared.weights or b"") + b"1234")


class Shifted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.randn(1, 8, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by


def test_kernels_of_mnn_in_integers_cannot_be_measured_alone() -> None:
    with find_device("local").open() as link, pytest.raises(IncompatibleError, match="measured whole"):
        Mnn().kernels([network()], link, RunSettings(precision="int8", provider="CPU"))


@pytest.mark.parametrize(("name", "mark"), [("onnxruntime", "QLinear"), ("ncnn", '"8": "1"')])
def test_kernels_of_integers_are_the_same_in_two_networks_and_run_alone(name: str, mark: str) -> None:
    """Scales and zeros follow from training: they are no part of a kernel."""
    engine = ENGINES[name]
    one, other = lowered(network(1), network(2), engine=engine)
    assert len([kernel for kernel in one.keys() & other.keys() if mark in kernel.operator + kernel.attributes]) > 5
    models = {kernel.identifier: engine.kernel_model(kernel, 2) for kernel in one.keys() | other.keys()}
    seen = {}
    with find_device("local").open() as link:
        settings = RunSettings(precision="int8", provider=engine.providers[0])
        engine.time_models(models, link, settings, PLANS["quick"], seen.__setitem__)
    assert seen.keys() == models.keys()
    assert all(np.isfinite(features_of(kernel)).all() for kernel in one)


@pytest.mark.parametrize("name", ["onnxruntime", "ncnn"])
def test_work_of_integers_is_that_of_fractions(name: str) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 5, 1, 2, groups=32))
    model = exported(module, shape=(1, 16, 32, 32))
    integers, fractions = (lowered(model, precision=bits, engine=ENGINES[name])[0] for bits in ("int8", "fp32"))
    assert sum(n * work_of(k).madds for k, n in integers.items()) == sum(n * work_of(k).madds for k, n in fractions.items())
    families = {family_of(kernel) for kernel in integers}
    wanted = {"onnxruntime": "com.microsoft::QLinearConv {} uint8", "ncnn": "ncnn::Conv {}"}[name]
    assert {wanted.format(kind) for kind in ("window", "depthwise")} <= families


def test_only_one_input_can_be_calibrated_by_images() -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    inputs = [torch.zeros(1, 4), torch.zeros(1, 4)]
    model = onnx_model.onnx_from_module(Sum(), inputs, input_names=("x", "y")).SerializeToString()
    assert onnx_precisions.quantised(model)
    with pytest.raises(IncompatibleError, match="the model has 2 inputs"):
        onnx_precisions.quantised(model, np.zeros((1, 1, 4)))
