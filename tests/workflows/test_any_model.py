"""Models of other people: the engine is asked before a file is judged, and what a message advises is accepted."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobilenas import onnx_model, workflows
from mobilenas.config import DeviceConfig, PredictConfig
from mobilenas.errors import DocumentError, IncompatibleError, UsageError
from mobilenas.onnx_model import ModelFile
from mobilenas.runtimes.base import Lowered, RunSettings
from mobilenas.runtimes.ncnn import Ncnn
from mobilenas.workflows import Target
from tests.conftest import Outcome
from tests.workflows.test_run_predict import save, table_of

Command = Callable[..., Outcome]
RNG = np.random.default_rng(0)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array((0.1 * RNG.standard_normal(shape)).astype(np.float32), name)


def whole(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def tensor(name: str, shape: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def conv(given: str = "x", made: str = "y") -> onnx.NodeProto:
    return helper.make_node("Conv", [given, "w"], [made], pads=[1, 1, 1, 1])


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, [tensor("y", None, kind)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def written(folder: Path, made: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(made.SerializeToString())
    return path


def studied(path: Path, **shapes: tuple[int, ...]) -> Lowered:
    target = Target.from_config(DeviceConfig())
    with target.device.open() as link:
        prepared = target.runtime.prepare_file(onnx_model.read_model(path, shapes), target.settings)
        return target.runtime.study(prepared, link, target.settings)


def branch(operator: str, inputs: list[str], made: str) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node(operator, inputs, [made])], made, [], [tensor(made, None)])


def choice(condition: str) -> onnx.NodeProto:
    then, otherwise = branch("Squeeze", ["p", "axis"], "a"), branch("Identity", ["p"], "b")
    return helper.make_node("If", [condition], ["y"], name="choice", then_branch=then, else_branch=otherwise)


POOLED = [conv("x", "c"), helper.make_node("GlobalAveragePool", ["c"], ["p"])]
OF_SHAPE = [
    helper.make_node("Shape", ["p"], ["s"]),
    helper.make_node("Gather", ["s", "three"], ["d"]),
    helper.make_node("Equal", ["d", "one"], ["q"]),
]
SCALARS = [numpy_helper.from_array(np.array(3), "three"), numpy_helper.from_array(np.array(1), "one"), whole("axis", 3)]


class TestControlFlow:
    """Judged after the engine's own optimisation, which folds away what is constant."""

    def test_a_condition_on_constant_shapes_is_predicted(self, tmp_path: Path) -> None:
        nodes = [*POOLED, *OF_SHAPE, choice("q")]
        path = written(tmp_path, model(nodes, [tensor("x", [1, 3, 32, 32])], [weight("w", 8, 3, 3, 3), *SCALARS]))
        lowered = studied(path)
        assert {kernel.operator for kernel in lowered.kernels} >= {"GlobalAveragePool", "Squeeze"}
        assert lowered.data_dependent == ()
        save(table_of(lowered.kernels, 0.5), "ours")
        assert workflows.predict(path, PredictConfig()).predicted.prediction.ms > 0

    def test_a_loop_of_a_constant_number_of_rounds_is_asked_of_the_engine(self, tmp_path: Path) -> None:
        path = written(tmp_path, loop(whole("n", 2)))
        assert studied(path).data_dependent == ("Loop (again)",), "this engine unrolls none"
        with pytest.raises(DocumentError, match="'again'"):
            workflows.predict(path, PredictConfig())

    def test_one_that_depends_on_an_input_is_refused_and_named(self, tmp_path: Path) -> None:
        given = [tensor("x", [1, 3, 32, 32]), tensor("q", [1], TensorProto.BOOL)]
        path = written(tmp_path, model([*POOLED, choice("q")], given, [weight("w", 8, 3, 3, 3), whole("axis", 3)]))
        assert studied(path).data_dependent == ("If (choice)",)
        with pytest.raises(DocumentError, match=r"'choice' \(If\).*mobilenas measure"):
            workflows.predict(path, PredictConfig())


def loop(rounds: onnx.TensorProto) -> onnx.ModelProto:
    given = [tensor("i", (), TensorProto.INT64), tensor("go", (), TensorProto.BOOL), tensor("a", (1, 4))]
    made = [tensor("go_on", (), TensorProto.BOOL), tensor("b", (1, 4))]
    nodes = [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Relu", ["a"], ["b"])]
    body = helper.make_graph(nodes, "body", given, made)
    always = numpy_helper.from_array(np.array(True), "always")
    rounds.ClearField("dims")
    node = helper.make_node("Loop", ["n", "always", "x"], ["y"], name="again", body=body)
    return model([node], [tensor("x", (1, 4))], [rounds, always])


KINDS = ("UINT16", "INT16", "UINT32", "UINT64", "BFLOAT16", "FLOAT8E5M2", "FLOAT8E4M3FNUZ", "BOOL", "INT4", "DOUBLE")


def test_inputs_of_every_type_that_the_engine_takes_are_drawn(tmp_path: Path) -> None:
    kinds = {kind: TensorProto.DataType.Value(kind) for kind in KINDS}
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), conv("f")]
    files = {
        kind: onnx_model.read_model(
            written(tmp_path, model(nodes, [tensor("x", [1, 3, 8, 8], number)], [weight("w", 8, 3, 3, 3)]))
        )
        for kind, number in kinds.items()
    }
    target = Target.from_config(DeviceConfig())
    reports = {}
    with target.device.open() as link:
        models = {kind: target.runtime.prepare_file(file, target.settings) for kind, file in files.items()}
        target.runtime.lower(models, link, target.settings, lambda report: reports.update({report.get("id"): report}))
    assert set(KINDS) <= reports.keys()
    assert all(len(reports[kind]["nodes"]) >= 2 for kind in KINDS)


def test_an_input_of_uint16_is_predicted(command: Command, tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), conv("f")]
    path = written(tmp_path, model(nodes, [tensor("x", [1, 3, 8, 8], TensorProto.UINT16)], [weight("w", 8, 3, 3, 3)]))
    save(table_of(studied(path).kernels, 0.5), "ours")
    assert command("predict", str(path)).code == 0


def test_a_type_that_the_engine_refuses_names_input_and_type(command: Command, tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    path = written(tmp_path, model([node], [tensor("x", [1, 4], TensorProto.COMPLEX64)], kind=TensorProto.COMPLEX64))
    outcome = command("predict", str(path))
    assert outcome.code == 3
    assert "tensor(complex64)" in outcome.err
    assert "KeyError" not in outcome.err


DATA_DEPENDENT = {
    "NonZero": model([helper.make_node("NonZero", ["x"], ["y"])], [tensor("x", [4, 4])], kind=TensorProto.INT64),
    "Unique": model([helper.make_node("Unique", ["x"], ["y"])], [tensor("x", [64])]),
    "Compress": model(
        [helper.make_node("Compress", ["x", "c"], ["y"], axis=0)], [tensor("x", [8, 4]), tensor("c", [8], TensorProto.BOOL)]
    ),
    "NonMaxSuppression": model(
        [helper.make_node("NonMaxSuppression", ["b", "s", "m"], ["y"])],
        [tensor("b", [1, 50, 4]), tensor("s", [1, 1, 50])],
        [whole("m", 5)],
        TensorProto.INT64,
    ),
    "Range": model(
        [helper.make_node("Range", ["x", "e", "d"], ["y"])],
        [tensor("x", [], TensorProto.INT64)],
        [numpy_helper.from_array(np.array(5), "e"), numpy_helper.from_array(np.array(1), "d")],
        TensorProto.INT64,
    ),
}


@pytest.mark.parametrize("operator", DATA_DEPENDENT)
def test_an_operator_whose_output_depends_on_data_is_named(operator: str, tmp_path: Path) -> None:
    [named] = studied(written(tmp_path, DATA_DEPENDENT[operator])).data_dependent
    assert named.startswith(f"{operator} (")


def test_what_follows_from_the_input_shapes_alone_is_not_named(tmp_path: Path) -> None:
    nodes = [
        conv("x", "c"),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "one"], ["first"]),
        helper.make_node("Concat", ["first", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["c", "wanted"], ["r"]),
        helper.make_node("TopK", ["r", "k"], ["y", "where"]),
    ]
    sizes = [whole("zero", 0), whole("one", 1), whole("rest", -1), whole("k", 3), weight("w", 8, 3, 3, 3)]
    assert studied(written(tmp_path, model(nodes, [tensor("x", [1, 3, 8, 8])], sizes))).data_dependent == ()


def test_a_prediction_names_what_depends_on_data(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path, DATA_DEPENDENT["NonZero"])
    save(table_of(studied(path).kernels, 0.5), "ours")
    outcome = command("predict", str(path))
    assert outcome.code == 0
    assert "NonZero" in outcome.err
    assert "random" in outcome.err
    assert workflows.predict(path, PredictConfig()).data_dependent == studied(path).data_dependent


OPEN = {
    "nhwc": (["N", 96, 160, 3], {"x": [1, 96, 160, 3]}),
    "table": (["rows", 12], {"x": [1, 12]}),
    "line": (["b", 3, 48, "width"], {"x": [1, 3, 48, 64]}),
    "unnamed": ([1, 3, None, None], {"x": [1, 3, 64, 64]}),
    "odd name": (["b", 3, 48, "new dim"], {"x": [1, 3, 48, 64]}),
}


@pytest.mark.parametrize("name", OPEN)
def test_the_remedy_for_open_dimensions_is_accepted_as_pasted(name: str, command: Command, tmp_path: Path) -> None:
    shape, expected = OPEN[name]
    made = model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", shape)])
    path = written(tmp_path, made)
    refused = command("predict", str(path))
    assert refused.code == 3
    advice = refused.err[refused.err.index("--shape") :].split(", where")[0]
    flags = shlex.split(advice)
    if any(part.isalpha() or part.startswith("SIZE") for part in flags[1].split("=")[1].replace("_", "").split(",")):
        assert command("predict", str(path), *flags).code == 2, "a size is the user's to choose"
        sizes = flags[1].split("=")[1].split(",")
        flags[1] = "x=" + ",".join(size if size.isdigit() else "64" for size in sizes)
    [(kernel, _)] = studied(path, **{key: tuple(value) for key, value in expected.items()}).kernels.items()
    assert [list(spec.shape) for spec in kernel.inputs if spec] == [expected["x"]]
    save(table_of([kernel], 0.5), "ours")
    assert command("predict", str(path), *flags).code == 0


def test_one_size_fills_a_dimension_wherever_its_name_stands(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "z"], ["y"])
    path = written(tmp_path, model([node], [tensor("x", ["n", 4]), tensor("z", ["n", 4])]))
    parsed = onnx_model.parse_model(onnx_model.read_model(path, {"x": (5, 4)}).content, "m")
    assert [onnx_model.shape_of(value) for value in parsed.graph.input] == [(5, 4), (5, 4)]


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"z": (1, 4)}, "no input 'z', only x"),
        ({"x": (1, 2, 3)}, "has 2 dimensions"),
        ({"x": (1, 5)}, "the dimension 1 of the input x .* is 4, not 5"),
    ],
)
def test_a_shape_that_contradicts_the_file(shapes: dict[str, tuple[int, ...]], said: str, tmp_path: Path) -> None:
    path = written(tmp_path, model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", ["n", 4])]))
    with pytest.raises(UsageError, match=said):
        onnx_model.read_model(path, shapes)


UNBATCHED = {
    "channels first": model(
        [helper.make_node("Unsqueeze", ["x", "axis"], ["u"]), conv("u")],
        [tensor("x", [3, 64, 64])],
        [weight("w", 8, 3, 3, 3), whole("axis", 0)],
    ),
    "sequence first": model(
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)],
        [tensor("x", [20, 1, 16])],
        [weight("w", 1, 32, 16), weight("r", 1, 32, 8)],
    ),
    "eight images": model([conv()], [tensor("x", [8, 3, 8, 8])], [weight("w", 8, 3, 3, 3)]),
}


@pytest.mark.parametrize("name", UNBATCHED)
def test_a_first_dimension_other_than_1_is_predicted_by_the_same_tables(name: str, command: Command, tmp_path: Path) -> None:
    path = written(tmp_path, UNBATCHED[name])
    save(table_of(studied(path).kernels, 0.5), "ours")
    outcome = command("predict", str(path))
    assert outcome.code == 0
    assert ("first dimension of the model's inputs is 8" in outcome.err) is (name == "eight images")


def test_indices_are_drawn_within_the_table_that_they_look_up(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["c"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "c"], ["y"]),
    ]
    path = written(tmp_path, model(nodes, [tensor("ids", [1, 9], TensorProto.INT64)], [weight("table", 7, 4)]))
    assert onnx_model.read_model(path).index_limits == (("ids", 7),)
    assert studied(path).kernels


class TestLargeModels:
    """Weights that no single message holds stay in their file; the limit is lowered here."""

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(onnx_model, "LARGEST_MESSAGE", 1000)
        made = model([conv()], [tensor("x", [1, 3, 8, 8])], [weight("w", 8, 3, 3, 3)])
        onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
        return tmp_path / "m.onnx"

    def test_they_are_lowered_where_they_lie(self, path: Path) -> None:
        file = onnx_model.read_model(path)
        assert (file.folder, file.external) == (path.parent.resolve(), ("m.bin",))
        assert len(file.content) < 1000
        assert any(kernel.operator.endswith("Conv") for kernel in studied(path).kernels)

    def test_weights_outside_the_folder_are_refused(self, path: Path) -> None:
        (path.parent / "m.bin").rename(path.parent.parent / "elsewhere.bin")
        (path.parent / "m.bin").symlink_to(path.parent.parent / "elsewhere.bin")
        with pytest.raises(DocumentError, match=r"'m\.bin'.*outside the model's folder"):
            onnx_model.read_model(path)

    def test_engines_that_cannot_read_them_say_so(self, path: Path) -> None:
        file: ModelFile = onnx_model.read_model(path)
        with pytest.raises(IncompatibleError, match="2 GiB"):
            Ncnn().prepare_file(file, RunSettings(provider="CPU"))
