"""What a model may allocate in a runner is limited; one that needs more is refused, and the others go on."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobilenas.core.measurement import PLANS
from mobilenas.devices.device import find_device
from mobilenas.errors import RunnerError
from mobilenas.runtimes.base import PreparedModel, RunSettings
from mobilenas.runtimes.onnx_runtime import OnnxRuntime


def expanding(size: int) -> PreparedModel:
    """A model with one input that makes ``size`` numbers of it, and of these one."""
    shape = numpy_helper.from_array(np.array([size], np.int64), "shape")
    nodes = [helper.make_node("Expand", ["x", "shape"], ["wide"]), helper.make_node("ReduceMax", ["wide"], ["y"], keepdims=1)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "expanding", values[:1], values[1:], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return PreparedModel(model.SerializeToString())


@pytest.mark.parametrize(("limit", "size"), [(None, 2**30), ("900", 2**28)], ids=["default", "asked for"])
def test_a_model_that_needs_too_much_is_refused_and_the_others_go_on(
    limit: str | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOBILENAS_RUNNER_MEMORY", raising=False)
    if limit:
        monkeypatch.setenv("MOBILENAS_RUNNER_MEMORY", limit)
    timed: list[str] = []
    models = {"large": expanding(size), "small": expanding(100)}
    with find_device("local").open() as link, pytest.raises(RunnerError, match="MOBILENAS_RUNNER_MEMORY") as caught:
        OnnxRuntime().time_models(models, link, RunSettings(), PLANS["quick"], lambda name, _: timed.append(name))
    assert timed == ["small"]
    assert caught.value.refused.keys() == {"large"}
    assert f"than the {limit or ''}" in str(caught.value)


def test_the_limit_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENAS_RUNNER_MEMORY", "off")
    timed: list[str] = []
    with find_device("local").open() as link:
        OnnxRuntime().time_models(
            {"wide": expanding(2**26)}, link, RunSettings(), PLANS["quick"], lambda name, _: timed.append(name)
        )
    assert timed == ["wide"]
