import csv
import dataclasses
import hashlib
import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from mobilenas.core import documents
from mobilenas.core.workload import Workload, weighted_sum
from mobilenas.errors import DocumentError, MissingKernelError
from mobilenas.latency.table import LatencyTable
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing import fakes

SPACE = CellSpace(channels=4, layers=3, image_size=8, nodes=2)
TABLE = fakes.make_table(SPACE)
FILES = ("kernels.csv", "workloads.csv", "networks.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TABLE.save(tmp_path / "table")
    return tmp_path / "table"


def test_save_and_load(folder: Path) -> None:
    again = LatencyTable.load(folder)
    assert again == TABLE
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "card.json"])
    assert all(again.lookup(kernel) == row for kernel, row in TABLE.rows.items())


def test_saving_again_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    LatencyTable.load(folder).save(tmp_path / "again")
    for name in (*FILES, "card.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_numbers_keep_every_digit(tmp_path: Path) -> None:
    kernel, row = next(iter(TABLE.rows.items()))
    times = {"value_ms": 0.1 + 0.2, "low_ms": 1e-300, "high_ms": 1 / 3, "few_ms": 0.7, "many_ms": 0.7 + 6 * (0.1 + 0.2)}
    odd = msgspec.structs.replace(row, **times)
    dataclasses.replace(TABLE, rows={kernel: odd}).save(tmp_path)
    assert LatencyTable.load(tmp_path).rows == {kernel: odd}


@pytest.mark.parametrize("name", FILES)
def test_an_edited_csv_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    text = path.read_text()
    position = max(i for i, c in enumerate(text) if c in "12345678")
    path.write_text(text[:position] + str(int(text[position]) + 1) + text[position + 1 :])
    with pytest.raises(DocumentError, match=f"{name}: changed since it was measured"):
        LatencyTable.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_csv_that_lost_its_last_line_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DocumentError, match=name):
        LatencyTable.load(folder)


@pytest.mark.parametrize("name", [*FILES, "card.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DocumentError, match=rf"{name}: cannot be read"):
        LatencyTable.load(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schema": "mobilenas/latency-table@99"}, "upgrade"),
        (
            {"schema": "mobilenas/latency-table@4"},
            "older mobilenas; this one reads mobilenas/latency-table@8: profile again: mobilenas profile --device fake-device",
        ),
        ({"schema": "mobilenas/latency-table@1", "key": "x"}, "older mobilenas"),
        ({"origin": "guessed"}, "origin"),
        ({"session_ms": "0.1"}, "session_ms"),
        ({"sha256": {}}, "changed since it was measured"),
    ],
)
def test_a_wrong_card_is_refused(folder: Path, change: dict, what: str) -> None:
    card = folder / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(DocumentError) as error:
        LatencyTable.load(folder)
    assert what in str(error.value)


def spoiled(folder: Path, name: str, change: Callable[[list[list[str]]], object]) -> str:
    """What loading says after ``change`` of the rows of a file (its header first), signed anew."""
    rows = list(csv.reader((folder / name).read_text().splitlines()))
    change(rows)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    (folder / name).write_text(buffer.getvalue())
    card = json.loads((folder / "card.json").read_text())
    card["sha256"][name] = hashlib.sha256(buffer.getvalue().encode()).hexdigest()
    del card["sha256"]["card.json"]
    card["sha256"]["card.json"] = documents.digest(card)
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(DocumentError) as error:
        LatencyTable.load(folder)
    return str(error.value)


def set_cells(column: str, values: Sequence[str]) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        for row, value in zip(rows[1:], values, strict=False):
            row[rows[0].index(column)] = value

    return change


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "1e999", "fast", "-1.0", "50000.0", "", "9" * 5000, "true", "null"])
def test_all_wrong_rows_are_named_by_their_kernels(folder: Path, bad: str) -> None:
    kernels = list(TABLE.rows)[:12]
    said = spoiled(folder, "kernels.csv", set_cells("value_ms", [bad] * 12))
    assert "kernels.csv: 12 of the rows are wrong" in said
    assert "from 0 to 10000" in said
    for number, kernel in enumerate(kernels, 2):
        assert f"line {number}, {kernel.key}: " in said
    assert bad.removesuffix(".0")[:20] in said or bad in ("", "true", "null")


@pytest.mark.parametrize(
    ("name", "column", "bad"),
    [
        ("kernels.csv", "few_ms", "0.00001"),
        ("kernels.csv", "kernel", "{"),
        ("networks.csv", "measured_ms", "-5"),
        ("networks.csv", "measured_ms", "0"),
        ("networks.csv", "measured_ms", "1e999"),
        ("networks.csv", "architecture", "[" * 100),
        ("workloads.csv", "cost_ms", "-1"),
        ("workloads.csv", "space", "another"),
    ],
)
def test_a_wrong_cell_is_named(folder: Path, name: str, column: str, bad: str) -> None:
    said = spoiled(folder, name, set_cells(column, [bad]))
    assert name in said
    assert column in said
    assert bad[:20] in said or float(bad) < 1e-4


def test_a_kernel_may_cost_nothing_measurable(folder: Path) -> None:
    kernel, row = next(iter(TABLE.rows.items()))
    for value_ms in (0.0, 1e-9):
        free = msgspec.structs.replace(row, value_ms=value_ms, low_ms=0.0, many_ms=row.few_ms + 6 * value_ms)
        dataclasses.replace(TABLE, rows={kernel: free}).save(folder)
        assert LatencyTable.load(folder).rows == {kernel: free}


@pytest.mark.parametrize(
    ("name", "column"), [("kernels.csv", "value_ms"), ("workloads.csv", "cost_ms"), ("networks.csv", "measured_ms")]
)
def test_a_row_that_stands_twice_is_shown_with_both_values(folder: Path, name: str, column: str) -> None:
    def twice(rows: list[list[str]]) -> None:
        again = list(rows[1])
        again[rows[0].index(column)] = "7.5"
        rows.append(again)
        before.append(rows[1][rows[0].index(column)])

    before: list[str] = []
    said = spoiled(folder, name, twice)
    assert f"stands twice, with {before[0]} and 7.5 ms" in said
    assert name in said


def test_a_cell_without_end_is_refused(folder: Path) -> None:
    assert "kernels.csv, line 2: not CSV: field larger than" in spoiled(
        folder, "kernels.csv", set_cells("kernel", ["x" * 200_000])
    )


def test_a_file_of_too_many_rows_is_refused(folder: Path) -> None:
    assert "more than 1,000,000 values" in spoiled(folder, "workloads.csv", lambda rows: rows.extend([["x"]] * 1_000_001))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({}), "looks like a pickle, which is never opened"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"PK\x03\x04", "zip"),
        (b"", "is a file; "),
    ],
)
def test_a_file_of_another_format_is_named_as_what_it_looks_like(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "lut").write_bytes(content)
    with pytest.raises(DocumentError, match=f"{said}.*mobilenas profile makes it"):
        LatencyTable.load(tmp_path / "lut")


def test_a_missing_kernel_names_its_nearest_and_the_command() -> None:
    wide = fakes.kernel_of(Workload("sep_conv_3x3", 4096, 4096, 8, 8))
    with pytest.raises(MissingKernelError) as error:
        TABLE.lookup(wide)
    message = str(error.value)
    assert "fake::sep_conv_3x3 1x4096x8x8 -> 1x4096x8x8" in message
    assert "nearest: fake::sep_conv_3x3 1x" in message
    assert "mobilenas profile --device fake-device --runtime fake --precision fp32 --threads 1" in message
    unknown = msgspec.structs.replace(wide, operator="fake::unknown")
    with pytest.raises(MissingKernelError, match="nearest: none"):
        TABLE.lookup(unknown)


def test_kernels_that_differ_in_attributes_only_are_told_apart() -> None:
    kernel = next(iter(TABLE.rows))
    with pytest.raises(MissingKernelError):
        TABLE.lookup(msgspec.structs.replace(kernel, attributes='{"stride":9}'))


def test_sums_are_rows_and_the_cost_of_a_call() -> None:
    [network, *_] = TABLE.networks
    [kernels] = fakes.make_lower(SPACE)([network.architecture])
    by_hand = fakes.SESSION_MS + sum(TABLE.rows[kernel].value_ms for kernel in kernels.elements())
    assert TABLE.kernel_sum_ms(kernels) == pytest.approx(by_hand, rel=1e-12)
    assert network.kernel_sum_ms == pytest.approx(by_hand, rel=1e-12)
    workloads = SPACE.workloads_of(network.architecture)
    costs = TABLE.workload_costs[SPACE.key]
    assert weighted_sum(workloads, costs.costs_ms) + fakes.SESSION_MS == pytest.approx(by_hand, rel=1e-12)
    first = next(iter(kernels))
    partial = dataclasses.replace(TABLE, rows={k: r for k, r in TABLE.rows.items() if k != first})
    with pytest.raises(MissingKernelError):
        partial.kernel_sum_ms(kernels)
    with pytest.raises(KeyError):
        weighted_sum(workloads, dict.fromkeys(list(workloads)[1:], 1.0))


def test_a_space_that_was_not_profiled() -> None:
    assert TABLE.space_card(SPACE.key).options == SPACE.options
    with pytest.raises(DocumentError, match=f"does not cover the space cells-0.*covers: {SPACE.key}.*mobilenas profile"):
        TABLE.space_card("cells-0")


def test_the_model_refuses_a_network_with_a_missing_kernel() -> None:
    model = fakes.make_model(SPACE)
    architecture = TABLE.networks[0].architecture
    assert model.latency(architecture).ms == pytest.approx(TABLE.networks[0].measured_ms, rel=1e-12)
    tangent_ms = model.card.scale.slope * TABLE.networks[0].kernel_sum_ms + model.card.scale.offset_ms
    assert model.workload_ms(architecture) == pytest.approx(tangent_ms, rel=1e-6)
    first = next(iter(fakes.make_lower(SPACE)([architecture])[0]))
    model.table = dataclasses.replace(TABLE, rows={k: r for k, r in TABLE.rows.items() if k != first})
    model._known.clear()
    with pytest.raises(MissingKernelError):
        model.latency(architecture)
