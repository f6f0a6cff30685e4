"""``measure`` by the real engine: what is told of a model, which inputs it is given, and how failures and budgets end."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mobilenas import onnx_model, workflows
from mobilenas.config import MeasureConfig
from mobilenas.core.measurement import PLANS
from mobilenas.errors import DocumentError, UsageError
from tests.conftest import Outcome
from tests.workflows.test_any_model import DATA_DEPENDENT, conv, loop, model, tensor, weight, whole, written
from tests.workflows.test_run_predict import TINY, lowered, save, table_of

Command = Callable[..., Outcome]
PLAN = ("--plan", "tiny")
CFG = MeasureConfig(plan="tiny")


@pytest.fixture(autouse=True)
def tiny_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "tiny", TINY)


def image_model(size: int | str = 32) -> onnx.ModelProto:
    return model([conv()], [tensor("x", [1, 3, size, size])], [weight("w", 16, 3, 3, 3)])


class TestOneModel:
    def test_its_times_kernels_and_load_are_told(self, command: Command, tmp_path: Path) -> None:
        outcome = command("measure", written(tmp_path, image_model()), *PLAN, "--json")
        assert outcome.code == 0
        found = json.loads(outcome.out)
        times = found["measured"]
        assert 0 < times["low_ms"] < times["value_ms"] < times["high_ms"]
        assert times["value_ms"] <= 1.01 * times["p50_ms"] <= 1.02 * times["p90_ms"]
        assert times["throughput_per_s"] == pytest.approx(1e3 / times["p50_ms"])
        assert min(times[key] for key in ("first_ms", "load_ms", "peak_memory_mib")) > 0
        assert 0 <= times["load"] <= 1
        assert found["data_dependent"] == []
        assert sum(kernel["share_fraction"] for kernel in found["kernels"]) == pytest.approx(1)
        assert found["kernels"][0]["operator"] == "com.microsoft.nchwc::Conv", "the dearest first"
        assert 0.2 < sum(kernel["ms"] for kernel in found["kernels"]) / times["value_ms"] < 20

    def test_a_person_reads_the_dearest_kernels(self, command: Command, tmp_path: Path) -> None:
        outcome = command("measure", written(tmp_path, image_model()), *PLAN, "--top", "1")
        assert outcome.code == 0
        assert outcome.out.count("::") == 1

    @pytest.mark.parametrize("name", ["NonZero", "Range"])
    def test_what_depends_on_data_is_named(self, name: str, tmp_path: Path) -> None:
        [found] = workflows.measure([written(tmp_path, DATA_DEPENDENT[name])], CFG)
        assert [operator.split()[0] for operator in found.data_dependent] == [name]

    def test_models_without_a_row_in_any_table_are_measured(self, tmp_path: Path) -> None:
        """Control flow, text and sequences, which ``predict`` refuses."""
        text = model(
            [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
            [tensor("x", [3], TensorProto.STRING)],
            kind=TensorProto.STRING,
        )
        cut = helper.make_node("SplitToSequence", ["x"], ["s"], axis=1)
        joined = helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=1)
        models = {"loop": loop(whole("n", 2)), "text": text, "sequence": model([cut, joined], [tensor("x", [1, 4])])}
        found = workflows.measure([written(tmp_path, made, f"{name}.onnx") for name, made in models.items()], CFG)
        assert [result.failure for result in found] == [None] * 3
        assert all(result.measured and result.kernels for result in found)

    def test_weights_above_the_limit_of_a_message_stay_in_their_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx_model, "LARGEST_MESSAGE", 1000)
        onnx.save(image_model(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
        [found] = workflows.measure([tmp_path / "m.onnx"], CFG)
        assert found.failure is None
        assert found.kernels


class TestInputs:
    def test_values_from_a_file_decide_what_is_computed(self, tmp_path: Path) -> None:
        path = written(tmp_path, DATA_DEPENDENT["Compress"])
        for name, keep in (("none", 0), ("all", 8)):
            np.save(tmp_path / f"{name}.npy", np.arange(8) < keep)
        cfg = [MeasureConfig(plan="tiny", inputs={"c": str(tmp_path / f"{name}.npy")}) for name in ("none", "all")]
        none, every = (workflows.measure([path], each)[0].kernels[0].kernel for each in cfg)
        assert (none.split()[-1], every.split()[-1]) == ("0x4", "8x4")

    def test_they_fill_open_dimensions(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.zeros((1, 3, 24, 24), np.float32))
        path = written(tmp_path, image_model("size"))
        [found] = workflows.measure([path], MeasureConfig(plan="tiny", inputs={"x": str(tmp_path / "x.npy")}))
        assert any("1x3x24x24" in kernel.kernel for kernel in found.kernels)
        [found] = workflows.measure([path], MeasureConfig(plan="tiny", shapes={"x": (1, 3, 16, 16)}))
        assert any("1x3x16x16" in kernel.kernel for kernel in found.kernels)

    @pytest.mark.parametrize(
        ("array", "name", "code"),
        [
            (np.zeros((1, 3, 32, 32)), "x", 2),
            (np.zeros((1, 3, 8, 8), np.float32), "x", 2),
            (np.zeros(3, np.float32), "x", 2),
            (np.zeros((1, 3, 32, 32), np.float32), "z", 2),
            (np.array([{}], object), "x", 3),
            (None, "x", 3),
        ],
        ids=["another type", "another size", "another rank", "another name", "pickled", "no file"],
    )
    def test_values_that_do_not_fit_are_refused(
        self, array: np.ndarray | None, name: str, code: int, command: Command, tmp_path: Path
    ) -> None:
        if array is not None:
            np.save(tmp_path / "x.npy", array, allow_pickle=True)
        outcome = command("measure", written(tmp_path, image_model()), *PLAN, "--input", f"{name}={tmp_path / 'x.npy'}")
        assert outcome.code == code
        assert name in outcome.err

    @pytest.mark.timeout(60)
    def test_a_pipe_is_no_file_of_values(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.npy")
        cfg = MeasureConfig(plan="tiny", inputs={"x": str(tmp_path / "x.npy")})
        [found] = workflows.measure([written(tmp_path, image_model())], cfg)
        assert found.failure is not None
        assert found.failure.exit_code == DocumentError.exit_code
        assert "not a regular file" in found.failure.message


class TestSeveral:
    def test_a_failure_costs_the_others_nothing(self, command: Command, tmp_path: Path) -> None:
        good = written(tmp_path, image_model(), "good.onnx")
        refused = written(tmp_path, model([helper.make_node("Foo", ["x"], ["y"])], [tensor("x", [1])]), "refused.onnx")
        outcome = command("measure", tmp_path / "gone.onnx", refused, good, *PLAN, "--json")
        assert outcome.code == 3
        results = json.loads(outcome.out)["results"]
        assert [result["failure"] and result["failure"]["exit_code"] for result in results] == [3, 3, None]
        assert results[2]["measured"]["value_ms"] > 0
        assert "gone.onnx" in outcome.err
        assert "refused.onnx" in outcome.err

    def test_each_runtime_has_a_row(self, command: Command, tmp_path: Path) -> None:
        outcome = command("measure", written(tmp_path, image_model()), *PLAN, "--runtime", "onnxruntime,ncnn")
        assert outcome.code == 0
        rows = outcome.out.splitlines()
        assert [row.split()[1] for row in rows] == ["runtime", "onnxruntime", "ncnn"]

    def test_nothing_is_measured_of_no_model(self) -> None:
        with pytest.raises(UsageError):
            workflows.measure([], CFG)


class TestBudget:
    @pytest.mark.parametrize(("budget", "code", "met"), [("1us", 5, False), ("1s", 0, True)])
    def test_exceeding_it_ends_with_5_after_the_result(
        self, budget: str, code: int, met: bool, command: Command, tmp_path: Path
    ) -> None:
        outcome = command("measure", written(tmp_path, image_model()), *PLAN, "--json", "--budget", budget)
        assert outcome.code == code
        assert json.loads(outcome.out)["budget_met"] is met

    @pytest.mark.parametrize("budget", ["5", "40%", "-1ms", ""])
    def test_one_that_is_no_time_is_refused_before_anything_is_measured(
        self, budget: str, command: Command, tmp_path: Path
    ) -> None:
        outcome = command("measure", tmp_path / "gone.onnx", "--budget", budget)
        assert outcome.code == 2
        assert "--budget" in outcome.err


def test_a_prediction_that_contradicts_the_measurement_ends_with_6(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path, model([helper.make_node("Relu", ["x"], ["y"], name="r")], [tensor("x", [1, 3, 8, 8])]))
    save(table_of(lowered("Relu"), 50.0), "ours")
    outcome = command("predict", path, "--measure", *PLAN, "--json")
    assert outcome.code == 6
    found = json.loads(outcome.out)
    assert found["agrees"] is False
    assert found["measured"]["high_ms"] < found["predicted"]["prediction"]["low_ms"]
    assert "nothing in common" in outcome.err


def test_an_unreadable_file_of_one_model_is_a_document_error(tmp_path: Path) -> None:
    [found] = workflows.measure([tmp_path / "gone.onnx"], CFG)
    assert found.failure == msgspec.structs.replace(found.failure, exit_code=DocumentError.exit_code)
    assert found.measured is None
