"""``mobilenas predict`` of models that cannot be predicted: what is wrong, where, and what to do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from mobilenas import onnx_model
from mobilenas.devices.device import find_device
from mobilenas.runtimes.base import RunSettings
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from tests.conftest import Outcome

Command = Callable[..., Outcome]


def model(shape: tuple[int | str, ...] = (1, 3, 8, 8)) -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    return onnx_model.make_model(helper.make_graph([node], "g", [given], [made]))


IMAGES = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 8, 8))


def graph(nodes: list[onnx.NodeProto], *inputs: onnx.ValueInfoProto, kind: int = TensorProto.FLOAT) -> bytes:
    made = helper.make_tensor_value_info("y", kind, None)
    return onnx_model.make_model(helper.make_graph(nodes, "g", list(inputs or [IMAGES]), [made])).SerializeToString()


def sequence() -> bytes:
    cut = helper.make_node("SplitToSequence", ["x"], ["s"], name="cut", axis=1)
    return graph([cut, helper.make_node("ConcatFromSequence", ["s"], ["y"], name="join", axis=1)])


def branches() -> bytes:
    made = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "branch", [], [made])
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    return graph([node], IMAGES, helper.make_tensor_value_info("c", TensorProto.BOOL, (1,)))


def loop() -> bytes:
    shapes = {"i": (TensorProto.INT64, ()), "go": (TensorProto.BOOL, ()), "a": (TensorProto.FLOAT, (1, 4, 8, 8))}
    given = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    made = [helper.make_tensor_value_info("go_on", *shapes["go"]), helper.make_tensor_value_info("b", *shapes["a"])]
    nodes = [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Relu", ["a"], ["b"])]
    body = helper.make_graph(nodes, "body", given, made)
    node = helper.make_node("Loop", ["n", "go", "x"], ["y"], name="again", body=body)
    return graph([node], IMAGES, helper.make_tensor_value_info("n", TensorProto.INT64, ()), given[1])


def external(location: str = "gone.bin") -> bytes:
    node = helper.make_node("Mul", ["x", "w"], ["y"], name="scale")
    weight = onnx.numpy_helper.from_array(np.ones((1, 4, 8, 8), np.float32), "w")
    found = helper.make_graph([node], "g", [IMAGES], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [weight])
    whole = onnx_model.make_model(found)
    onnx.external_data_helper.set_external_data(whole.graph.initializer[0], location)
    whole.graph.initializer[0].ClearField("raw_data")
    return whole.SerializeToString()


WORDS = helper.make_tensor_value_info("x", TensorProto.STRING, (1, 4))
SEQUENCE = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
OPTIONAL = helper.make_value_info("x", helper.make_optional_type_proto(IMAGES.type))
UNKNOWN_RANK = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an ONNX model"),
        (b"no model at all", "not an ONNX model"),
        (model().SerializeToString()[:-200], "not an ONNX model"),
        (model((1, 3, "height", "width")).SerializeToString(), "1 x 3 x height x width"),
        (model(("batch", 3, 8, 8)).SerializeToString(), "--shape x=1,3,8,8"),
        (model((0, 3, 8, 8)).SerializeToString(), "the dimension 0 of the input x is 0"),
        (graph([helper.make_node("Relu", ["x"], ["y"])], UNKNOWN_RANK), "--shape x=SHAPE"),
        (
            graph([helper.make_node("Identity", ["x"], ["y"])], WORDS, kind=TensorProto.STRING),
            "the input x is a tensor(string)",
        ),
        (graph([helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)], SEQUENCE), "the input x is of type seq(tensor("),
        (graph([helper.make_node("OptionalGetElement", ["x"], ["y"])], OPTIONAL), "the input x is of type optional(tensor("),
        (sequence(), "the node 'join' (ConcatFromSequence) reads 's', whose shape the engine did not tell"),
        (branches(), "the node 'choice' (If) holds graphs"),
        (loop(), "the node 'again' (Loop) holds graphs"),
        (external(), "gone.bin"),
        (graph([helper.make_node("Foo", ["x"], ["y"], name="foo")]), "onnxruntime refuses it: "),
    ],
    ids=[
        "empty",
        "text",
        "cut off",
        "dynamic image",
        "dynamic batch",
        "an empty batch",
        "unknown rank",
        "words",
        "a sequence",
        "an optional",
        "a sequence inside",
        "branches",
        "a loop",
        "weights gone",
        "an unknown operator",
    ],
)
def test_a_model_that_no_device_could_run_as_it_is(content: bytes, said: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    outcome = command("predict", str(path))
    assert outcome.code == 3
    assert said in outcome.err
    assert str(path) in outcome.err


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin", "link/secret.bin"])
def test_weights_outside_the_folder_of_a_model_are_not_read(location: str, command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.ones(256, np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "link").symlink_to(tmp_path)
    path = folder / "model.onnx"
    path.write_bytes(external(location))
    outcome = command("predict", str(path))
    assert outcome.code == 3
    assert str(path) in outcome.err
    assert outcome.err.count("error:") == 1


def test_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """ONNX Runtime itself refuses them."""
    path = tmp_path / "twice.onnx"
    pool = helper.make_node("AveragePool", ["a"], ["b"], name="n", kernel_shape=[2, 2], strides=[2, 2])
    path.write_bytes(
        graph([helper.make_node("Relu", ["x"], ["a"], name="n"), pool, helper.make_node("Tanh", ["b"], ["y"], name="n")])
    )
    with find_device("local").open() as link:
        [kernels] = OnnxRuntime().kernels([onnx_model.read_model(path).content], link, RunSettings())
    assert {kernel.operator: kernel.outputs[0].shape for kernel in kernels if kernel.operator in ("Relu", "Tanh")} == {
        "Relu": (1, 4, 8, 8),
        "Tanh": (1, 4, 4, 4),
    }


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
    read = onnx_model.parse_model(onnx_model.read_model(tmp_path / "m.onnx").content, "read")
    for one, other in zip(read.graph.initializer, whole.graph.initializer, strict=True):
        assert (onnx.numpy_helper.to_array(one) == onnx.numpy_helper.to_array(other)).all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--space", "dense-small"], "space.name"),
        (["--space", "cells"], "space.name"),
        (["--data", "digits"], "data.name"),
        (["--set", "space.options.channels=4"], "space.options.channels"),
        (["--config", "job.toml"], "data.name"),
    ],
)
def test_a_kernel_table_and_a_space_contradict_each_other(
    arguments: list[str], named: str, command: Command, tmp_path: Path
) -> None:
    """Even where what is said of the space is what it is by default."""
    (tmp_path / "job.toml").write_text('[data]\nname = "digits"\n')
    outcome = command("profile", "--kernels", "50", *arguments, "--dry-run")
    assert outcome.code == 2
    assert f"--kernels stands for space, data: leave it out, or {named}" in " ".join(outcome.err.split())
    assert command("profile", "--kernels", "50", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("shapes", "batch"),
    [([(2, 3, 8, 8)], 2), ([(2, 3), (2, 5)], None), ([(2, 3, 8, 8), (4, 3, 8, 8)], None), ([(7,), (2, 3, 1, 1)], 2)],
)
def test_only_inputs_of_four_dimensions_have_a_batch(shapes: list[tuple[int, ...]], batch: int | None, tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    (tmp_path / "m.onnx").write_bytes(graph([helper.make_node("Relu", ["x0"], ["y"])], *inputs))
    assert onnx_model.read_model(tmp_path / "m.onnx").batch == batch
