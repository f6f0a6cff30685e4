"""``predict`` with the real engine and synthetic tables: which tables count, and what is said of the others."""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mobilenas import onnx_model, workflows
from mobilenas.config import DeviceConfig, PredictConfig
from mobilenas.core.measurement import PLANS
from mobilenas.core.workload import Kernel, TensorSpec
from mobilenas.errors import DocumentError, IncompatibleError, MissingDataError, MissingKernelError, UsageError
from mobilenas.latency.kernels import PREDICTOR
from mobilenas.latency.predictors.kernel import KernelPredictor
from mobilenas.latency.store import single_kernels_folder, table_folder
from mobilenas.latency.table import LatencyTable, TableKey, TableRow
from mobilenas.runtimes.measure import measure
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_table
from mobilenas.workflows import Target
from tests.conftest import Outcome

SPACE = CellSpace(channels=4, layers=3, image_size=8)
VERSION = onnxruntime.__version__
TINY = msgspec.structs.replace(
    PLANS["quick"],
    name="tiny",
    drift_fraction=4.0,
    sweeps=1,
    maximum_sweeps=1,
    spread_s=0.0,
    samples=5,
    maximum_samples=5,
    warmup_s=0.0,
)


@pytest.fixture(autouse=True)
def tiny_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "tiny", TINY)


def model_of(*operators: str, shape: tuple[int, ...] = (1, 3, 8, 8)) -> bytes:
    names = [f"x{index}" for index in range(len(operators) + 1)]
    nodes = [helper.make_node(o, [a], [b], name=f"{o}-{a}") for o, a, b in zip(operators, names, names[1:], strict=False)]
    given = helper.make_tensor_value_info(names[0], TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, shape)
    return onnx_model.make_model(helper.make_graph(nodes, "g", [given], [made])).SerializeToString()


def written(folder: Path, *operators: str, **options: tuple[int, ...]) -> Path:
    path = folder / f"{'-'.join(operators)}.onnx"
    path.write_bytes(model_of(*operators, **options))
    return path


def lowered(*operators: str) -> Counter[Kernel]:
    target = Target.from_config(DeviceConfig())
    with target.device.open() as link:
        return target.runtime.kernels([model_of(*operators)], link, target.settings)[0]


def key(version: str = VERSION, **changes: int) -> TableKey:
    return msgspec.structs.replace(Target.from_config(DeviceConfig()).table_key, runtime_version=version, **changes)


def table_of(kernels: Iterable[Kernel], ms: float, created: str = "2026-01-01", version: str = VERSION) -> LatencyTable:
    """Whole networks of a space, and a row of ``ms`` for each kernel."""
    known = make_table(SPACE, networks=10)
    rows = {k: TableRow(k, ms, 0.9 * ms, 1.1 * ms, 0.01 + 2 * ms, 0.01 + 8 * ms, 4, True) for k in kernels}
    card = msgspec.structs.replace(
        known.card, key=key(version), created=f"{created}T00:00:00+00:00", sentinel_ms=sentinel_ms(), plan=TINY
    )
    return LatencyTable(card, {**known.rows, **rows}, known.workload_costs, known.networks)


@functools.cache
def sentinel_ms() -> float:
    """What the sentinel takes on this host, so that synthetic tables can be joined with rows that are measured."""
    target = Target.from_config(DeviceConfig())
    with target.device.open() as link:
        models = {"model": target.runtime.session_model()}
        return measure(models, link, target.runtime, target.settings, TINY)[1].sentinel_ms


def save(table: LatencyTable, name: str) -> Path:
    folder = table_folder(table.card.key, name)
    table.save(folder)
    return folder


class TestOtherVersions:
    """Numbers of two versions of an engine are never mixed, whichever is newer."""

    def test_tables_of_the_devices_version_count_however_old(self, tmp_path: Path) -> None:
        relu = lowered("Relu")
        save(table_of(relu, 0.5, "2026-01-01"), "ours")
        other = save(table_of(relu, 0.1, "2026-06-01", version="0.9"), "other")
        found = workflows.predict(written(tmp_path, "Relu"), PredictConfig()).predicted
        [share] = found.kernels
        assert share.each_ms == 0.5
        assert found.left_out == (f"{other} was measured with onnxruntime 0.9, the device has {VERSION}",)

    def test_without_one_of_the_devices_version_it_says_what_is_there_and_what_to_do(self, tmp_path: Path) -> None:
        other = save(table_of(lowered("Relu"), 0.1, version="0.9"), "other")
        with pytest.raises(MissingDataError, match=f"onnxruntime {VERSION} holds whole networks") as error:
            workflows.predict(written(tmp_path, "Relu"), PredictConfig(profile_missing=True))
        assert f"{other} was measured with onnxruntime 0.9" in str(error.value)
        assert "mobilenas profile --kernels default" in str(error.value)

    def test_a_named_table_must_be_of_the_devices_version(self, tmp_path: Path) -> None:
        other = save(table_of(lowered("Relu"), 0.1, version="0.9"), "other")
        with pytest.raises(IncompatibleError, match=f"0.9, the device has {VERSION}.*mobilenas profile"):
            workflows.predict(written(tmp_path, "Relu"), PredictConfig(table=str(other)))

    def test_what_is_measured_is_kept_by_version_and_beside_what_was(self, tmp_path: Path) -> None:
        save(table_of(lowered("Relu"), 0.5), "ours")
        save(table_of(lowered("Tanh"), 0.5, version="0.9"), "kernels/0.9/before")
        for operators in (("Relu", "Tanh"), ("Sigmoid",)):
            workflows.predict(written(tmp_path, *operators), PredictConfig(profile_missing=True, plan="tiny"))
        kept = [LatencyTable.load(folder) for folder in sorted(single_kernels_folder(key()).iterdir())]
        assert sorted(kernel.operator for table in kept for kernel in table.rows) == ["Sigmoid", "Tanh"]
        assert {table.card.key.runtime_version for table in kept} == {VERSION}
        found = workflows.predict(written(tmp_path, "Tanh", "Sigmoid", "Relu"), PredictConfig()).predicted
        assert {share.source for share in found.kernels} == {"measured"}

    def test_a_named_table_is_used_alone_but_for_what_is_measured_now(self, tmp_path: Path) -> None:
        named = save(table_of(lowered("Relu"), 0.5), "ours")
        save(table_of(lowered("Tanh"), 0.5), "kernels/another-space")
        path = written(tmp_path, "Relu", "Tanh")
        alone = workflows.predict(path, PredictConfig(table=str(named))).predicted
        assert {share.kernel.operator: share.source for share in alone.kernels} == {"Relu": "measured", "Tanh": "estimated"}
        measured = workflows.predict(path, PredictConfig(table=str(named), profile_missing=True, plan="tiny"))
        assert measured.newly_measured == 1


class TestOtherSpeeds:
    """Rows that were measured while the device was faster or slower are not added to the others."""

    @pytest.mark.parametrize(("ratio", "word"), [(5.5, "slower"), (0.15, "faster")])
    def test_a_table_of_another_speed_is_left_out_and_named(self, ratio: float, word: str, tmp_path: Path) -> None:
        save(table_of(lowered("Relu"), 0.5), "ours")
        table = table_of(lowered("Tanh"), 0.5, "2026-06-01")
        card = msgspec.structs.replace(table.card, sentinel_ms=ratio * table.card.sentinel_ms, spaces={})
        other = save(LatencyTable(card, table.rows, {}, ()), "kernels/other")
        found = workflows.predict(written(tmp_path, "Relu"), PredictConfig()).predicted
        [text] = found.left_out
        assert text.startswith(f"{other} was measured while the device was {word}")
        assert f"{ratio:.2f} times; the plan tiny allows 5.00" in text
        with pytest.raises(MissingKernelError, match=f"Tanh.*{other}"):
            workflows.predict(written(tmp_path, "Tanh"), PredictConfig())

    def test_rows_of_another_table_are_brought_to_the_speed_of_the_networks(self, tmp_path: Path) -> None:
        save(table_of(lowered("Relu"), 0.5), "ours")
        table = table_of(lowered("Tanh"), 0.5, "2026-06-01")
        slower = msgspec.structs.replace(table.card, sentinel_ms=1.25 * table.card.sentinel_ms, spaces={})
        save(LatencyTable(slower, table.rows, {}, ()), "kernels/slower")
        relu, tanh = (
            workflows.predict(written(tmp_path, operator), PredictConfig()).predicted.kernels[0]
            for operator in ("Relu", "Tanh")
        )
        assert tanh.ms == pytest.approx(relu.ms / 1.25)
        assert (tanh.low_ms, tanh.high_ms) == (pytest.approx(relu.low_ms / 1.25), pytest.approx(relu.high_ms / 1.25))

    def test_kernels_that_were_measured_while_it_was_slower_say_so(self, tmp_path: Path) -> None:
        table = table_of(lowered("Relu"), 0.5)
        save(replace(table, card=msgspec.structs.replace(table.card, sentinel_ms=sentinel_ms() / 25)), "ours")
        with pytest.raises(MissingKernelError, match="1 of them were measured just now, but not while the device") as error:
            workflows.predict(written(tmp_path, "Tanh"), PredictConfig(profile_missing=True, plan="tiny"))
        [folder] = single_kernels_folder(key()).iterdir()
        assert f"Not used: {folder} was measured while the device was slower" in str(error.value)
        assert "--profile-missing" not in str(error.value)

    def test_a_model_that_is_measured_at_another_speed_says_so(self, tmp_path: Path, command: Callable[..., Outcome]) -> None:
        table = table_of(lowered("Relu"), 0.5)
        save(replace(table, card=msgspec.structs.replace(table.card, sentinel_ms=3 * sentinel_ms())), "ours")
        path = str(written(tmp_path, "Relu"))
        shown = " ".join(command("predict", path, "--measure", "--plan", "tiny").out.split())
        assert re.search(r"; the device was [0-9.]+% faster than when its table was made", shown)
        found = json.loads(command("predict", path, "--measure", "--plan", "tiny", "--json").out)
        assert found["predicted"]["sentinel_ms"] > 1.5 * found["measured"]["sentinel_ms"]

    def test_what_is_measured_says_how_fast_the_device_was(self, tmp_path: Path) -> None:
        save(table_of(lowered("Relu"), 0.5), "ours")
        workflows.predict(written(tmp_path, "Tanh"), PredictConfig(profile_missing=True, plan="tiny"))
        [folder] = single_kernels_folder(key()).iterdir()
        assert 1 / 5 < LatencyTable.load(folder).card.sentinel_ms / sentinel_ms() < 5


class TestUnreadableTables:
    """A table that cannot be read is never left out in silence."""

    @pytest.fixture
    def spoiled(self) -> Path:
        folder = save(table_of(lowered("Relu"), 0.1), "spoiled")
        (folder / "kernels.csv").write_text("kernel")
        return folder

    def test_where_nothing_else_is_there(self, spoiled: Path, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError, match=f"{spoiled}/kernels.csv: changed since it was measured"):
            workflows.predict(written(tmp_path, "Relu"), PredictConfig())

    def test_where_another_one_serves(self, spoiled: Path, tmp_path: Path, command: Callable[..., Outcome]) -> None:
        save(table_of(lowered("Relu"), 0.5), "ours")
        path = written(tmp_path, "Relu")
        [text] = workflows.predict(path, PredictConfig()).predicted.left_out
        assert text.startswith(f"{spoiled}/kernels.csv: changed")
        shown = command("predict", str(path))
        assert shown.code == 0
        assert f"not used  {spoiled}" in " ".join(shown.out.split()).replace("not used", "not used ")

    def test_one_of_an_older_mobilenas_says_how_to_renew_it(self, spoiled: Path, tmp_path: Path) -> None:
        card = (spoiled / "card.json").read_text()
        (spoiled / "card.json").write_text(card.replace("latency-table@8", "latency-table@4"))
        with pytest.raises(MissingDataError, match=r"older mobilenas.*profile again: mobilenas profile --device local"):
            workflows.predict(written(tmp_path, "Relu"), PredictConfig())


class TestRefusedKernels:
    """A Reshape whose shape is computed while the network runs: alone it is given zeros, which the engine refuses."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        nodes = [
            helper.make_node("Tanh", ["x"], ["t"], name="tanh"),
            helper.make_node("Add", ["given", "wanted"], ["shape"], name="add"),
            helper.make_node("Reshape", ["t", "shape"], ["y"], name="reshape"),
        ]
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8)),
            helper.make_tensor_value_info("given", TensorProto.INT64, (2,)),
        ]
        wanted = helper.make_tensor("wanted", TensorProto.INT64, (2,), (1, 192))
        made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        path = tmp_path / "reshape.onnx"
        path.write_bytes(onnx_model.make_model(helper.make_graph(nodes, "g", inputs, made, [wanted])).SerializeToString())
        return path

    def test_they_are_estimated_and_the_others_are_kept(self, path: Path) -> None:
        save(table_of(lowered("Relu"), 0.5), "ours")
        for measured in (2, 0):  # the second time there is none but the refused one to measure
            result = workflows.predict(path, PredictConfig(profile_missing=True, plan="tiny"))
            assert result.newly_measured == measured
            sources = {share.kernel.operator: share.source for share in result.predicted.kernels}
            assert sources == {"Tanh": "measured", "Add": "measured", "Reshape": "estimated"}
        [folder] = single_kernels_folder(key()).iterdir()
        assert sorted(kernel.operator for kernel in LatencyTable.load(folder).rows) == ["Add", "Tanh"]

    def test_one_that_takes_most_of_the_time_is_refused_by_name(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mobilenas.latency.kernels.ESTIMATED_AT_MOST", 0.0)
        save(table_of(lowered("Relu"), 0.5), "ours")
        with pytest.raises(MissingKernelError, match=r"Reshape 1x3x8x8 2 -> 1x192, .*\(.*ReshapeHelper") as error:
            workflows.predict(path, PredictConfig(profile_missing=True, plan="tiny"))
        assert "Tanh" not in str(error.value)
        assert "--profile-missing" not in str(error.value), "it was just said"

    def test_they_are_predicted_where_there_were_others_to_learn_from(self, path: Path) -> None:
        table = table_of([*lowered("Relu"), *reshapes()], 0.5)
        learnt = KernelPredictor().fit(table.rows.values())
        learnt.learnt_from_, learnt.common_width_ = table.digest, 0.1
        learnt.save(save(table, "ours") / PREDICTOR)
        result = workflows.predict(path, PredictConfig(profile_missing=True, plan="tiny"))
        assert {share.kernel.operator: share.source for share in result.predicted.kernels} == {
            "Tanh": "measured",
            "Add": "measured",
            "Reshape": "predicted",
        }
        assert result.newly_measured == 2


def reshapes() -> list[Kernel]:
    """As that of the fixture, at sizes around its."""
    shape = TensorSpec((2,), "int64")
    return [
        Kernel(
            "Reshape",
            "{}",
            (TensorSpec((1, channels, size, size), "float32"), shape),
            (TensorSpec((1, channels * size * size), "float32"),),
            "CPUExecutionProvider",
        )
        for channels in (1, 2, 3, 4, 6)
        for size in (4, 8, 16)
        if (channels, size) != (3, 8)
    ]


def test_a_damaged_predictor_stops_only_what_needs_it(tmp_path: Path) -> None:
    folder = save(table_of(lowered("Relu"), 0.5), "ours")
    (folder / PREDICTOR).write_bytes(b"damaged")
    assert workflows.predict(written(tmp_path, "Relu"), PredictConfig()).predicted.predicted_share_fraction == 0
    with pytest.raises(DocumentError, match=f"{folder / PREDICTOR}: not a predictor"):
        workflows.predict(written(tmp_path, "Tanh"), PredictConfig())


def test_predictions_at_the_same_time_wait_or_are_told_and_lose_nothing(tmp_path: Path) -> None:
    save(table_of(lowered("Relu"), 0.5), "ours")
    models = [written(tmp_path, *operators) for operators in (("Tanh",), ("Tanh",), ("Tanh", "Sigmoid"), ("Sigmoid",))]

    def outcome(model: Path) -> str:
        try:
            workflows.predict(model, PredictConfig(profile_missing=True, plan="tiny"))
        except UsageError as error:
            return str(error)
        return "predicted"

    with ThreadPoolExecutor(len(models)) as pool:
        outcomes = list(pool.map(outcome, models))
    assert all(text == "predicted" or "another process works in this folder" in text for text in outcomes)
    assert outcomes.count("predicted") >= 3, "only those of the same kernels keep each other waiting"
    for model in models:
        found = workflows.predict(model, PredictConfig()).predicted
        assert {share.source for share in found.kernels} == {"measured"}
        assert found.left_out == ()
