import json
import random

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from mobilenas import onnx_model
from mobilenas.core.measurement import PLANS
from mobilenas.core.resources import shipped
from mobilenas.core.run_directory import Journal
from mobilenas.core.workload import Kernel
from mobilenas.devices.device import find_device
from mobilenas.errors import IncompatibleError, MeasurementError, RunnerError, UnavailableError
from mobilenas.profiling.networks import network_for_timing
from mobilenas.runtimes.base import RUNNER_LIBRARY, PreparedModel, RunSettings
from mobilenas.runtimes.measure import measure
from mobilenas.runtimes.onnx_runtime import OnnxRuntime, kernels_from_graph
from mobilenas.runtimes.reports import parse_report, timing_from_report
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace, dense_small
from mobilenas.spaces.dense_layout import SMALL_BLOCKS
from mobilenas.spaces.nas_bench_201 import NasBench201Space

SPACE = CellSpace(channels=8, layers=3, image_size=8, image_channels=1)
SETTINGS = RunSettings()


def network(seed: int = 0) -> bytes:
    return network_for_timing(SPACE, SPACE.random_architecture(random.Random(seed)))


@pytest.mark.parametrize(
    ("space", "least"),
    [
        (SPACE, 50),
        (dense_small(28, 1), 10),
        (DenseBlockSpace("bottleneck", SMALL_BLOCKS, 64, image_size=16), 10),
        (NasBench201Space(channels=8, cells_per_stage=1, image_size=9), 10),
        (NasBench201Space(channels=8, cells_per_stage=1, image_size=8, unread="kept"), 10),
    ],
    ids=["cells", "mbconv", "bottleneck", "nas-bench-201", "with layers that nothing reads"],
)
def test_composed_model_lowers_to_the_kernels_of_the_exported_network(space: SearchSpace, least: int) -> None:
    generator = random.Random(3)
    architectures = [space.random_architecture(generator) for _ in range(4)]
    if isinstance(space, NasBench201Space):
        architectures[0] = space.architecture_of_codes((3, 1, 4, 0, 0, 0))  # nothing reads nodes 1 and 2, nothing enters 3
        architectures[1] = space.architecture_of_codes((3, 0, 2, 1, 4, 0))  # nothing reads node 2
    composed = [onnx_model.compose(space.blueprint(a)) for a in architectures]
    exported = [network_for_timing(space, architecture) for architecture in architectures]
    with find_device("local").open() as link:
        kernels = OnnxRuntime().kernels([*composed, *exported], link, SETTINGS)
    for one, other in zip(kernels[:4], kernels[4:], strict=True):
        assert one == other
        assert sum(one.values()) > least


def test_composing_draws_no_random_numbers() -> None:
    onnx_model._fragment.cache_clear()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    onnx_model.compose(SPACE.blueprint(SPACE.random_architecture(random.Random(9))))
    assert torch.equal(torch.get_rng_state(), before)


def test_kernel_models_execute_that_kernel_so_many_times() -> None:
    runtime = OnnxRuntime()
    architecture = SPACE.random_architecture(random.Random(0))
    with find_device("local").open() as link:
        [kernels] = runtime.kernels([onnx_model.compose(SPACE.blueprint(architecture))], link, SETTINGS)
        models = {}
        for index, kernel in enumerate(sorted(kernels)):
            model = runtime.kernel_model(kernel, 8)
            graph = onnx_model.parse_model(model.content, "kernel").graph
            assert len(graph.node) == 8
            assert {node.op_type for node in graph.node} == {kernel.operator.rpartition("::")[2]}
            models[f"k{index}"] = model
        seen = set()
        runtime.time_models(models, link, SETTINGS, PLANS["quick"], lambda name, record: seen.add(name))
    assert seen == set(models)


@pytest.mark.serial
def test_runner_reports_follow_the_schema() -> None:
    schema = json.loads((shipped("export") / "protocol" / "report.schema.json").read_text())
    runtime = OnnxRuntime()
    lines: list[str] = []
    with find_device("local").open() as link:
        runners = shipped("export") / "runners"
        link.push({name: (runners / name).read_bytes() for name in (runtime.runner, RUNNER_LIBRARY)})
        link.push({"good.onnx": runtime.sentinel_model(SETTINGS).content, "bad.onnx": b"not a model"})
        for mode in ("time", "lower"):
            job = {
                "mode": mode,
                "threads": 1,
                "provider": "CPUExecutionProvider",
                "samples": 5,
                "maximum_samples": 9,
                "minimum_s": 0.001,
                "warmup_runs": 1,
                "warmup_s": 0.0,
                "warmup_maximum_s": 0.05,
                "warmup_tolerance_fraction": 0.02,
                "sentinel": "good.onnx",
                "sentinel_every_s": 0.0,
                "models": [{"id": n, "path": f"{n}.onnx", "optimise": True} for n in ("bad", "good")],
            }
            link.push({"job.json": json.dumps(job).encode()})
            link.run([link.python, runtime.runner, "job.json"], timeout_s=60, on_line=lines.append)
    reports = [json.loads(line) for line in lines]
    for report in reports:
        jsonschema.validate(report, schema)
    assert [r["type"] for r in reports] == ["hello", "error", "timing", "bye", "hello", "error", "graph", "bye"]
    timing = reports[2]
    assert reports[0]["state"]["cpu_count"] >= 1
    assert 5 <= len(timing["wall_ms"]) == len(timing["cpu_ms"]) <= 9
    assert len(timing["sentinel_ms"]) == 2 + (len(timing["wall_ms"]) - 1) // 3, "before, after, and after every three runs"


@pytest.mark.serial
def test_measure_resumes_from_its_journal(tmp_path) -> None:
    runtime = OnnxRuntime()
    models = {name: runtime.sentinel_model(SETTINGS) for name in ("a", "b")}
    plan = PLANS["quick"].__class__("tiny", 2, 3, 0.0, 1, 1, 1, samples=5, tolerance_fraction=10.0, drift_fraction=10.0)
    journal = Journal(tmp_path / "rows.jsonl")
    with find_device("local").open() as link:
        first, _ = measure(models, link, runtime, SETTINGS, plan, journal=journal)
        lines = journal.path.read_text().splitlines(keepends=True)
        # a kill in the middle of the last line: what it held is measured again, the rest is not
        journal.path.write_text("".join(lines[:-1]) + lines[-1][:40])
        kept = len(lines) - 1
        second, _ = measure(models, link, runtime, SETTINGS, plan, journal=journal)
    assert first["a"].sweeps == second["a"].sweeps == 2
    assert "".join(journal.path.read_text().splitlines(keepends=True)[:kept]) == "".join(lines[:kept])
    with find_device("local").open() as link:
        measure(models, link, runtime, SETTINGS, plan, journal=journal)
    assert len(journal.read()) <= kept + 3


def test_model_that_the_engine_refuses_is_named() -> None:
    with find_device("local").open() as link, pytest.raises(RunnerError, match="broken"):
        OnnxRuntime().time_models({"broken": PreparedModel(b"nonsense")}, link, SETTINGS, PLANS["quick"], lambda n, r: None)


@pytest.mark.parametrize(
    ("provider", "error", "said"),
    [
        (
            "AzureExecutionProvider",
            RunnerError,
            "AzureExecutionProvider leaves some of the model to the CPU: say Azure.*,CPUExec",
        ),
        ("XNNPACKExecutionProvider", UnavailableError, "this build of ONNX Runtime has no XNNPACKExecutionProvider, only"),
        ("CPUExecutionProvider,XNNPACKExecutionProvider", UnavailableError, "has no XNNPACKExecutionProvider"),
    ],
)
def test_no_provider_takes_the_place_of_another_unasked(provider: str, error: type[RunnerError], said: str) -> None:
    """Every build has Azure's, which executes no operator: ONNX Runtime would run all on the CPU and say nothing."""
    settings, model = RunSettings(provider=provider), PreparedModel(network())
    with find_device("local").open() as link:
        with pytest.raises(error, match=said):
            OnnxRuntime().time_models({"network": model}, link, settings, PLANS["quick"], lambda name, record: None)
        with pytest.raises(error, match=said):
            OnnxRuntime().kernels([network()], link, settings)


def test_a_provider_may_leave_the_rest_to_another_that_is_named() -> None:
    settings = RunSettings(provider="AzureExecutionProvider,CPUExecutionProvider")
    with find_device("local").open() as link:
        [kernels] = OnnxRuntime().kernels([network()], link, settings)
        [alone] = OnnxRuntime().kernels([network()], link, RunSettings())
    assert kernels == alone
    assert {kernel.provider for kernel in kernels} == {"CPUExecutionProvider"}, "who executed it, not who was asked"


@pytest.mark.parametrize("provider", ["", "CPU", "CPUExecutionProvider,", "../ExecutionProvider", "cuda"])
def test_what_cannot_be_a_provider_is_refused(provider: str) -> None:
    with pytest.raises(IncompatibleError, match=r"change device\.provider"):
        OnnxRuntime().check(RunSettings(provider=provider))


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="fp32"):
        OnnxRuntime().check(RunSettings(precision="int4"))


@pytest.mark.parametrize(
    "line",
    ["garbage", "{", '{"type": "surprise"}', "[]", '{"type": "timing", "wall_ms": NaN}', '{"type": "hello", "protocol": 99}'],
)
def test_lines_outside_the_protocol_are_refused(line: str) -> None:
    with pytest.raises(RunnerError):
        parse_report(line, "runner")


REPORT = {
    "type": "timing",
    "id": "m",
    "wall_ms": [1.0],
    "cpu_ms": [1.0],
    "sentinel_ms": [1.0],
    "first_ms": 1.0,
    "load_ms": 1.0,
    "peak_memory_mib": None,
    "provider": "P",
}


@pytest.mark.parametrize("wrong", [[], [0.0], [-1.0], ["x"], None])
@pytest.mark.parametrize("field", ["wall_ms", "sentinel_ms"])
def test_timings_that_are_not_positive_numbers_are_refused(field: str, wrong: object) -> None:
    parse_report(json.dumps(REPORT), "runner")
    with pytest.raises(RunnerError, match=field):
        parse_report(json.dumps({**REPORT, field: wrong}), "runner")


def test_each_run_has_a_cpu_time() -> None:
    with pytest.raises(RunnerError, match="2 wall_ms need one cpu_ms each"):
        timing_from_report({**REPORT, "wall_ms": [1.0, 2.0]})


def test_two_engine_versions_are_never_mixed(tmp_path) -> None:
    runtime = OnnxRuntime()
    plan = PLANS["quick"].__class__("tiny", 1, 1, 0.0, 1, 1, 1, samples=5)
    journal = Journal(tmp_path / "rows.jsonl")
    with find_device("local").open() as link:
        _, log = measure({"a": runtime.sentinel_model(SETTINGS)}, link, runtime, SETTINGS, plan, journal=journal)
        _, again = measure({"a": runtime.sentinel_model(SETTINGS)}, link, runtime, SETTINGS, plan, journal=journal)
        assert log.hello == again.hello, "nothing is measured again, yet the engine's version is known"
        text = journal.path.read_text()
        journal.path.write_text(text.replace(log.hello["engine_version"], "0.9.0"))
        models = {name: runtime.sentinel_model(SETTINGS) for name in ("a", "b")}
        before = journal.path.read_text()
        with pytest.raises(MeasurementError, match=r"engine_version 0\.9\.0"):
            measure(models, link, runtime, SETTINGS, plan, journal=journal)
    assert journal.path.read_text() == before


def test_nodes_that_the_engine_left_without_a_name_are_found_by_operator_and_order() -> None:
    """A HardSwish after a Flatten is inlined into nodes without names; ONNX Runtime reports them as ``Operator_number``."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Hardswish(), nn.Linear(8, 4), nn.Hardswish())
    model = onnx_model.onnx_from_module(module, [torch.zeros(1, 3, 2, 2)]).SerializeToString()
    with find_device("local").open() as link:
        [kernels] = OnnxRuntime().kernels([model], link, RunSettings())
    gates = {kernel.outputs[0].shape: n for kernel, n in kernels.items() if kernel.operator == "HardSigmoid"}
    assert gates == {(1, 8): 1, (1, 4): 1}


def test_a_node_that_was_not_reported_is_an_error() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1,))],
    )
    other = {"name": "Tanh_1", "provider": "", "outputs": []}
    with pytest.raises(RunnerError, match="Relu"):
        kernels_from_graph(onnx_model.make_model(graph).SerializeToString(), [other])


def test_a_trained_bias_of_one_channel_is_not_part_of_a_kernel_but_an_exponent_is() -> None:
    def lowered(bias: float, exponent: float) -> set[Kernel]:
        convolution = nn.Conv2d(4, 1, 1)
        with torch.no_grad():
            convolution.bias.fill_(bias)
        tensor = onnx.numpy_helper.from_array(np.array(exponent, np.float32), "exponent")
        model = onnx_model.onnx_from_module(convolution, [torch.zeros(1, 4, 8, 8)], output_name="c")
        model.graph.node.append(helper.make_node("Pow", ["c", "exponent"], ["y"], name="pow"))
        model.graph.initializer.append(tensor)
        model.graph.output[0].name = "y"
        with find_device("local").open() as link:
            return set(OnnxRuntime().kernels([model.SerializeToString()], link, SETTINGS)[0])

    assert lowered(0.5, 2.0) == lowered(0.25, 2.0)
    assert lowered(0.5, 2.0) != lowered(0.5, 2.5)
