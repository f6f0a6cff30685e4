"""ncnn, really converted to and really run: numbers against ONNX Runtime, kernels against the layers of the .param."""

import random
from collections import Counter

import ncnn
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from mobilenas import onnx_model
from mobilenas.core.measurement import PLANS
from mobilenas.core.workload import Kernel
from mobilenas.devices.device import find_device
from mobilenas.errors import IncompatibleError, RunnerError
from mobilenas.latency.predictors.kernel_features import family_of, features_of, work_of
from mobilenas.profiling.networks import network_for_timing
from mobilenas.runtimes.base import PreparedModel, RunSettings
from mobilenas.runtimes.ncnn import LARGE_COPIES, Ncnn
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.nas_bench_201 import NasBench201Space

SETTINGS = RunSettings(provider="CPU")
SPACES = [CellSpace(channels=8, layers=3, image_size=16), NasBench201Space(channels=4, cells_per_stage=1, image_size=16)]


def network(space: SearchSpace, seed: int = 0) -> bytes:
    return network_for_timing(space, space.random_architecture(random.Random(seed)))


def lowered(*models: bytes) -> list[Counter[Kernel]]:
    with find_device("local").open() as link:
        return Ncnn().kernels(models, link, SETTINGS)


def run_ncnn(model: PreparedModel, images: np.ndarray, tmp_path) -> np.ndarray:
    (tmp_path / "m.param").write_bytes(model.content)
    (tmp_path / "m.bin").write_bytes(model.weights or b"")
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(tmp_path / "m.param")) == 0
    assert net.load_model(str(tmp_path / "m.bin")) == 0
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(images).clone())
    code, found = extractor.extract(net.output_names()[0])
    assert code == 0
    return np.array(found)


@pytest.mark.parametrize("space", SPACES, ids=["cells", "nas-bench-201"])
def test_a_converted_network_computes_what_its_onnx_does(space: SearchSpace, tmp_path) -> None:
    model = network(space)
    image = np.random.default_rng(0).standard_normal(space.image_shape).astype(np.float32)
    expected = onnxruntime.InferenceSession(model).run(None, {"images": image})[0][0]
    found = run_ncnn(Ncnn().prepare(model, SETTINGS), image[0], tmp_path)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3 * float(np.abs(expected).max()))


@pytest.mark.parametrize("space", SPACES, ids=["cells", "nas-bench-201"])
def test_multiply_adds_of_the_kernels_are_those_of_onnx_runtime(space: SearchSpace) -> None:
    """Two engines, two graphs, one network; ONNX Runtime pads channels to blocks, so the models have none to pad."""
    module = torch.nn.Sequential(
        torch.nn.Conv2d(16, 32, 3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 5, 1, 2, groups=32),
        torch.nn.Hardswish(),
        torch.nn.Conv2d(32, 64, 1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    )
    model = onnx_model.slim(onnx_model.onnx_from_module(module, [torch.zeros(1, 16, 32, 32)])).SerializeToString()
    [ours] = lowered(model)
    with find_device("local").open() as link:
        [theirs] = OnnxRuntime().kernels([model], link, RunSettings())
    total, weights = (
        [sum(n * getattr(work_of(kernel), what) for kernel, n in kernels.items()) for kernels in (ours, theirs)]
        for what in ("madds", "weights")
    )
    assert total[0] == total[1] > 0
    assert weights[0] == weights[1] > 0
    families = Counter(family_of(kernel) for kernel in ours.elements())
    assert families["ncnn::Conv window"] == families["ncnn::Conv depthwise"] == families["ncnn::Conv pointwise"] == 1
    assert families["ncnn::Gemm"] == 1
    assert all(np.isfinite(features_of(kernel)).all() for kernel in ours)


def test_rows_by_slope_add_up_to_the_network() -> None:
    """Within a third: what a loaded machine allows a test to say. Figures are the benchmarks' business."""
    runtime, model, best = Ncnn(), network(SPACES[0]), {}
    with find_device("local").open() as link:
        [kernels] = runtime.kernels([model], link, SETTINGS)
        models = {"network": runtime.prepare(model, SETTINGS), "session": runtime.session_model()}
        for kernel in kernels:
            models |= {f"{kernel.identifier}-{n}": runtime.kernel_model(kernel, n) for n in runtime.copies(kernel)}

        def keep(name: str, record) -> None:
            best[name] = min(best.get(name, np.inf), *record.wall_ms)

        for _ in range(4):
            runtime.time_models(models, link, SETTINGS, PLANS["quick"], keep)

    def row_ms(kernel: Kernel) -> float:
        few, many = runtime.copies(kernel)
        return (best[f"{kernel.identifier}-{many}"] - best[f"{kernel.identifier}-{few}"]) / (many - few)

    total_ms = best["session"] + sum(n * row_ms(kernel) for kernel, n in kernels.items())
    assert total_ms == pytest.approx(best["network"], rel=0.33)


def test_every_copy_is_computed(tmp_path) -> None:
    """An engine that computes only what is asked for must be asked for all: what a model makes depends on each copy."""
    [kernels] = lowered(network(SPACES[0]))
    runtime = Ncnn()
    for kernel in kernels:
        for copies in runtime.copies(kernel):
            param = runtime.kernel_model(kernel, copies).content.decode().splitlines()
            layer = f'"layer": "{param[-2].split()[0]}"'
            assert layer in kernel.attributes
            assert sum(line.split()[1].startswith("copy") for line in param[2:]) == copies
            ends = param[-1].split()
            assert ends[0] == "Noop"
            made = {name for line in param[2:-1] for name in line.split()[4 + int(line.split()[2]) :] if "=" not in name}
            read = {name for line in param[2:] for name in line.split()[4 : 4 + int(line.split()[2])]}
            assert made <= read, "nothing that a copy makes is left unread"


def test_large_weights_are_copied_less() -> None:
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 512))
    model = onnx_model.onnx_from_module(linear, [torch.zeros(1, 1024, 1, 1)]).SerializeToString()
    [kernels] = lowered(model)
    [large] = [kernel for kernel in kernels if kernel.weight_mib > 1]
    assert Ncnn().copies(large) == LARGE_COPIES
    assert len(Ncnn().kernel_model(large, 2).weights or b"") == pytest.approx(2 * 4 * 1024 * 512, rel=0.01)


def test_batches_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="one image at a time"):
        Ncnn().check(RunSettings(provider="CPU", batch=2))
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    model = onnx_model.onnx_from_module(linear, [torch.zeros(2, 4, 1, 1)]).SerializeToString()
    with pytest.raises(IncompatibleError, match="one image at a time"):
        Ncnn().prepare(model, SETTINGS)


def test_another_provider_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="CPU here, not 'CPUExecutionProvider'"):
        Ncnn().check(RunSettings())


def test_an_operator_that_ncnn_lacks_is_named() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="odd", domain="com.example")
    graph = helper.make_graph([node], "odd", [value], [made])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    with pytest.raises(IncompatibleError, match=r"Frobnicate|cannot convert"):
        Ncnn().prepare(model, SETTINGS)


def test_weights_that_are_cut_off_are_refused_by_the_engine() -> None:
    model = Ncnn().prepare(network(SPACES[0]), SETTINGS)
    cut = PreparedModel(model.content, weights=(model.weights or b"")[:100])
    with find_device("local").open() as link, pytest.raises(RunnerError, match="cut"):
        Ncnn().time_models({"cut": cut, "whole": model}, link, SETTINGS, PLANS["quick"], lambda name, record: None)
