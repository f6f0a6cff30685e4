import os
from pathlib import Path

import msgspec
import pytest

from mobilenas.core.resources import user_data_directory
from mobilenas.errors import DocumentError, IncompatibleError, MissingDataError, UsageError
from mobilenas.latency.models import TableModel
from mobilenas.latency.store import HISTORY, check_replaceable, keep_history, known_tables, last_kept
from mobilenas.latency.table import SCHEMA_VERSION, LatencyTable
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_lower, make_table

SPACE = CellSpace(channels=4, layers=3, image_size=8)


def made(created: str, scale: float = 1.0) -> LatencyTable:
    table = make_table(SPACE, scale)
    return LatencyTable(msgspec.structs.replace(table.card, created=created), table.rows, table.workload_costs, table.networks)


def test_a_table_that_is_replaced_is_kept_and_not_found_as_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path))
    folder = user_data_directory() / "latency_tables" / "here"
    assert keep_history(folder) is None
    with pytest.raises(MissingDataError, match="no history"):
        last_kept(folder)
    for day in (1, 2, 3):
        keep_history(folder)
        made(f"2026-01-0{day}T00:00:00+00:00", scale=1 + day / 10).save(folder)
    assert LatencyTable.load(last_kept(folder)).card.created.startswith("2026-01-02")
    assert len(list((folder / HISTORY).iterdir())) == 2
    found, damaged = known_tables()
    assert [path for path, _ in found] == [folder]
    assert not damaged


@pytest.mark.parametrize("card", ["older", "damaged"])
def test_a_table_that_cannot_be_read_is_kept_byte_for_byte(card: str, tmp_path: Path) -> None:
    made("2026-01-01T00:00:00+00:00").save(tmp_path)
    text = (tmp_path / "card.json").read_text()
    schema = f"latency-table@{SCHEMA_VERSION}"
    (tmp_path / "card.json").write_text(text.replace(schema, "latency-table@1") if card == "older" else text[:-9])
    os.utime(tmp_path / "card.json", (1e9, 1e9))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(DocumentError):
        LatencyTable.load(tmp_path)
    key = made("2026-01-01T00:00:00+00:00").card.key
    check_replaceable(tmp_path, key, SPACE.key)
    kept = keep_history(tmp_path)
    assert kept is not None
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before
    assert kept.name == ("2026-01-01T000000+0000" if card == "older" else "2001-09-09T014640+0000")
    if card == "older":  # what it is of can still be read
        with pytest.raises(UsageError, match="holds the latency table of"):
            check_replaceable(tmp_path, msgspec.structs.replace(key, threads=7), SPACE.key)


def test_a_budget_on_another_statistic_sees_every_number_in_it() -> None:
    table = make_table(SPACE)
    floor, p90 = (TableModel(t, SPACE, make_lower(SPACE)) for t in (table, table.of_statistic("p90")))
    architecture = table.networks[0].architecture
    assert p90.latency(architecture).ms == pytest.approx(1.25 * floor.latency(architecture).ms)
    assert p90.workload_ms(architecture) == pytest.approx(1.25 * floor.workload_ms(architecture))
    assert table.of_statistic("floor") is table
    card = msgspec.structs.replace(table.space_card(SPACE.key), statistics={})
    with pytest.raises(IncompatibleError, match="--budget-statistic p90"):
        card.of_statistic("p90")
