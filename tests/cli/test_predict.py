"""``mobilenas predict`` of models that cannot be predicted: what is wrong, where, and what to do."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from mobilenas import onnx_model
from tests.conftest import Outcome

Command = Callable[..., Outcome]


def model(shape: tuple[int | str, ...] = (1, 3, 8, 8)) -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    return onnx_model.make_model(helper.make_graph([node], "g", [given], [made]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an ONNX model"),
        (b"no model at all", "not an ONNX model"),
        (model((1, 3, "height", "width")).SerializeToString(), "1 x 3 x height x width"),
        (model(("batch", 3, 8, 8)).SerializeToString(), "make_dynamic_shape_fixed"),
    ],
    ids=["empty", "text", "dynamic image", "dynamic batch"],
)
def test_a_model_that_no_device_could_run_as_it_is(content: bytes, said: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    outcome = command("predict", str(path))
    assert outcome.code == 3
    assert said in outcome.err
    assert str(path) in outcome.err


def test_a_model_that_is_not_there(command: Command, tmp_path: Path) -> None:
    outcome = command("predict", str(tmp_path / "no.onnx"))
    assert outcome.code == 3
    assert "No such file" in outcome.err


def test_without_a_table_it_says_how_to_get_one(
    command: Command, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path / "empty"))
    path = tmp_path / "model.onnx"
    path.write_bytes(model().SerializeToString())
    outcome = command("predict", str(path))
    assert outcome.code == 3
    assert "profile --kernels" in outcome.err
    assert command("predict", str(path), "--profile-missing").code == 3, "said before anything is measured"


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    exported = onnx_model.onnx_from_module(nn.Conv2d(3, 8, 3), [torch.zeros(1, 3, 8, 8)])
    whole = onnx_model.parse_model(exported.SerializeToString(), "whole")
    onnx.save(
        exported,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        size_threshold=0,
        location="m.bin",
    )
    assert (tmp_path / "m.bin").exists()
    read = onnx_model.parse_model(onnx_model.read_model(tmp_path / "m.onnx"), "read")
    for one, other in zip(read.graph.initializer, whole.graph.initializer, strict=True):
        assert (onnx.numpy_helper.to_array(one) == onnx.numpy_helper.to_array(other)).all()


def test_a_kernel_table_and_a_space_contradict_each_other(command: Command) -> None:
    outcome = command("profile", "--kernels", "50", "--space", "dense-small")
    assert outcome.code == 2
    assert "leave one of them out" in outcome.err
