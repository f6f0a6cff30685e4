"""ncnn and MNN, really converted to and really run: numbers against ONNX Runtime, kernels against the network."""

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

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
from mobilenas.runtimes.base import LARGE_COPIES, PreparedModel, RunSettings, Runtime
from mobilenas.runtimes.mnn import Mnn
from mobilenas.runtimes.ncnn import Ncnn
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace
from mobilenas.spaces.nas_bench_201 import NasBench201Space

SETTINGS = RunSettings(provider="CPU")
SPACES = [CellSpace(channels=8, layers=3, image_size=16), NasBench201Space(channels=4, cells_per_stage=1, image_size=16)]
of_both = pytest.mark.parametrize("engine", [Ncnn(), Mnn()], ids=["ncnn", "mnn"])
of_all_spaces = pytest.mark.parametrize("space", SPACES, ids=["cells", "nas-bench-201"])


def network(space: SearchSpace, seed: int = 0) -> bytes:
    return network_for_timing(space, space.random_architecture(random.Random(seed)))


def exported(*layers: torch.nn.Module, shape: tuple[int, ...]) -> bytes:
    module = torch.nn.Sequential(*layers)
    return onnx_model.slim(onnx_model.onnx_from_module(module, [torch.zeros(shape)])).SerializeToString()


def lowered(engine: Runtime, *models: bytes) -> list[Counter[Kernel]]:
    with find_device("local").open() as link:
        return engine.kernels(models, link, SETTINGS)


@of_both
@of_all_spaces
def test_a_converted_network_computes_what_its_onnx_does(engine: Runtime, space: SearchSpace) -> None:
    model = network(space)
    images = np.random.default_rng(0).standard_normal((3, *space.image_shape)).astype(np.float32)
    session = onnxruntime.InferenceSession(model)
    expected = np.concatenate([session.run(None, {"images": image})[0] for image in images])
    with find_device("local").open() as link:
        found = engine.compute(engine.prepare(model, SETTINGS), images, link, SETTINGS)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3 * float(np.abs(expected).max()))


@of_both
def test_multiply_adds_of_the_kernels_are_those_of_onnx_runtime(engine: Runtime) -> None:
    """Two engines, two graphs, one network; ONNX Runtime pads channels to blocks, so the models have none to pad."""
    model = exported(
        torch.nn.Conv2d(16, 32, 3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 5, 1, 2, groups=32),
        torch.nn.Hardswish(),
        torch.nn.Conv2d(32, 64, 1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
        shape=(1, 16, 32, 32),
    )
    [ours] = lowered(engine, model)
    with find_device("local").open() as link:
        [theirs] = OnnxRuntime().kernels([model], link, RunSettings())
    total, weights = (
        [sum(n * getattr(work_of(kernel), what) for kernel, n in kernels.items()) for kernels in (ours, theirs)]
        for what in ("madds", "weights")
    )
    assert total[0] == total[1] > 0
    assert weights[0] == weights[1] > 0
    families = Counter(family_of(kernel).partition("::")[2] for kernel in ours.elements())
    assert families["Conv window"] == families["Conv depthwise"] == 1
    assert families["Conv pointwise"] + families["Gemm"] == 2
    assert all(np.isfinite(features_of(kernel)).all() for kernel in ours)


@of_both
def test_rows_by_slope_add_up_to_the_network(engine: Runtime) -> None:
    """Within a third: what a loaded machine allows a test to say. Figures are the benchmarks' business."""
    model, best = network(SPACES[0]), {}
    with find_device("local").open() as link:
        [kernels] = engine.kernels([model], link, SETTINGS)
        models = {"network": engine.prepare(model, SETTINGS), "session": engine.session_model()}
        for kernel in kernels:
            models |= {f"{kernel.identifier}-{n}": engine.kernel_model(kernel, n) for n in engine.copies(kernel)}

        def keep(name: str, record) -> None:
            best[name] = min(best.get(name, np.inf), *record.wall_ms)

        for _ in range(4):
            engine.time_models(models, link, SETTINGS, PLANS["quick"], keep)

    def row_ms(kernel: Kernel) -> float:
        few, many = engine.copies(kernel)
        return (best[f"{kernel.identifier}-{many}"] - best[f"{kernel.identifier}-{few}"]) / (many - few)

    total_ms = best["session"] + sum(n * row_ms(kernel) for kernel, n in kernels.items())
    assert total_ms == pytest.approx(best["network"], rel=0.33)


@of_both
def test_every_kernel_of_dense_blocks_can_be_timed_alone(engine: Runtime) -> None:
    space = DenseBlockSpace(image_size=32)
    [kernels] = lowered(engine, network(space))
    models = {kernel.identifier: engine.kernel_model(kernel, engine.copies(kernel)[0]) for kernel in kernels}
    seen = {}
    with find_device("local").open() as link:
        engine.time_models(models, link, SETTINGS, PLANS["quick"], seen.__setitem__)
    assert seen.keys() == models.keys()


def test_every_copy_is_computed_by_ncnn() -> None:
    """An engine that computes only what is asked for must be asked for all: what a model makes depends on each copy."""
    runtime = Ncnn()
    [kernels] = lowered(runtime, network(SPACES[0]))
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


@of_both
def test_large_weights_are_copied_less(engine: Runtime) -> None:
    [kernels] = lowered(engine, exported(torch.nn.Flatten(), torch.nn.Linear(1024, 512), shape=(1, 1024, 1, 1)))
    [large] = [kernel for kernel in kernels if kernel.weight_mib > 1]
    assert engine.copies(large) == LARGE_COPIES
    assert len(engine.kernel_model(large, 1).weights or b"") == pytest.approx(4 * 1024 * 512, rel=0.01)


def test_ncnn_refuses_batches() -> None:
    with pytest.raises(IncompatibleError, match="one image at a time"):
        Ncnn().check(RunSettings(provider="CPU", batch=2))
    with pytest.raises(IncompatibleError, match="one image at a time"):
        Ncnn().prepare(exported(torch.nn.Flatten(), torch.nn.Linear(4, 2), shape=(2, 4, 1, 1)), SETTINGS)


@pytest.mark.parametrize("axis", [1, 2])
def test_ncnn_refuses_what_its_converter_takes_for_another_axis(axis: int) -> None:
    """Converted, the softmax is over another axis: numbers were wrong, and times those of another layer."""
    alone, after_a_pool = exported(torch.nn.Softmax(axis), shape=(1, 4, 8, 8)), exported(
        torch.nn.MaxPool2d(1), torch.nn.Softmax(axis), shape=(1, 4, 8, 8)
    )  # fmt: skip
    with pytest.raises(IncompatibleError, match="without convolution or pool, and Softmax"):
        Ncnn().prepare(alone, SETTINGS)
    images = np.random.default_rng(0).standard_normal((1, 1, 4, 8, 8)).astype(np.float32)
    with find_device("local").open() as link:
        found = Ncnn().compute(Ncnn().prepare(after_a_pool, SETTINGS), images, link, SETTINGS)
    expected = onnxruntime.InferenceSession(after_a_pool).run(None, {"images": images[0]})[0]
    assert found.reshape(expected.shape) == pytest.approx(expected, abs=1e-4)


def test_mnn_takes_batches() -> None:
    model = exported(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 2), shape=(2, 3, 8, 8))
    images = np.random.default_rng(0).standard_normal((1, 2, 3, 8, 8)).astype(np.float32)
    expected = onnxruntime.InferenceSession(model).run(None, {"images": images[0]})[0]
    with find_device("local").open() as link:
        found = Mnn().compute(Mnn().prepare(model, SETTINGS), images, link, SETTINGS)
    assert found.reshape(2, 2) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@of_both
def test_another_provider_is_refused(engine: Runtime) -> None:
    with pytest.raises(IncompatibleError, match="CPU here, not 'CPUExecutionProvider'"):
        engine.check(RunSettings())


@of_both
def test_an_operator_that_the_engine_lacks_is_named(engine: Runtime) -> None:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 4))
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))
    node = helper.make_node("Frobnicate", ["images"], ["y"], name="odd", domain="com.example")
    graph = helper.make_graph([node], "odd", [value], [made])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    with pytest.raises(IncompatibleError, match="Frobnicate"):
        engine.prepare(model, SETTINGS)
    assert engine.prepare(network(SPACES[0]), SETTINGS).content, "the converter goes on"


@of_both
def test_a_model_that_is_cut_off_is_refused_and_the_others_timed(engine: Runtime) -> None:
    model = engine.prepare(network(SPACES[0]), SETTINGS)
    cut = PreparedModel(model.content[:200], weights=model.weights)
    seen: list[str] = []
    with find_device("local").open() as link, pytest.raises(RunnerError, match="cut") as caught:
        engine.time_models({"cut": cut, "whole": model}, link, SETTINGS, PLANS["quick"], lambda name, record: seen.append(name))
    assert list(caught.value.refused) == ["cut"]
    assert seen == ["whole"]


@of_both
def test_the_same_kernel_has_the_same_name_in_two_networks(engine: Runtime) -> None:
    one, other = lowered(engine, network(SPACES[0], 1), network(SPACES[0], 2))
    assert len(one.keys() & other.keys()) > 10
    assert all(json.loads(kernel.attributes) for kernel in one)


@of_both
@of_all_spaces
def test_a_composed_model_has_the_kernels_of_the_exported_network(engine: Runtime, space: SearchSpace) -> None:
    """Neither engine merges what is computed twice, as two pools of one tensor: both models come without such."""
    generator = random.Random(5)
    architectures = [space.random_architecture(generator) for _ in range(3)]
    composed = [onnx_model.compose(space.blueprint(architecture)) for architecture in architectures]
    exported = [network_for_timing(space, architecture) for architecture in architectures]
    kernels = lowered(engine, *composed, *exported)
    assert kernels[:3] == kernels[3:]


def test_a_composed_model_computes_nothing_twice() -> None:
    space = CellSpace(channels=4, layers=3, image_size=8)
    for seed in range(8):
        architecture = space.random_architecture(random.Random(seed))
        nodes = onnx_model.parse_model(onnx_model.compose(space.blueprint(architecture)), "").graph.node
        pools = Counter(
            (n.op_type, *n.input, *(a.SerializeToString() for a in n.attribute)) for n in nodes if "Pool" in n.op_type
        )
        assert set(pools.values()) <= {1}


def sized(channels: int) -> bytes:
    return exported(torch.nn.Conv2d(3, channels, 3), shape=(1, 3, 8, 8))


def weights_of(channels: int) -> int:
    return 4 * (27 * channels + channels)


def test_an_answer_that_was_not_waited_for_is_not_taken_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(Mnn().prepare(sized(8), SETTINGS).weights or b"") == weights_of(8)

    def interrupted(file: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mobilenas.runtimes.mnn_convert.receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Mnn().prepare(sized(16), SETTINGS)
    assert len(Mnn().prepare(sized(24), SETTINGS).weights or b"") == weights_of(24)


def test_threads_get_the_models_that_they_asked_for() -> None:
    sizes = [8, 16, 24, 32] * 3
    models = {channels: sized(channels) for channels in sizes}
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda channels: Mnn().prepare(models[channels], SETTINGS).weights or b"", sizes))
    assert [len(weights) for weights in found] == [weights_of(channels) for channels in sizes]


def test_mnn_reads_constants_that_it_keeps_apart() -> None:
    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.by = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Parameter(torch.randn(1, 16, 16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.convolution(x) + self.by

    [kernels] = lowered(Mnn(), exported(Shifted(), shape=(1, 3, 16, 16)))
    [addition] = [kernel for kernel in kernels if "BinaryOp" in kernel.operator]
    assert any(spec is not None and spec.is_constant and spec.shape == (1, 16, 16, 16) for spec in addition.inputs)


def test_layers_of_ncnn_whose_weights_are_not_known_are_named() -> None:
    with pytest.raises(IncompatibleError, match="the ncnn layer Convolution1D holds weights"):
        lowered(Ncnn(), exported(torch.nn.Conv1d(4, 8, 3), shape=(1, 4, 16)))
