"""The commands that only look, and those that look again: describe, report, table, devices, evaluate, verify."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mobilenas.console import percent
from mobilenas.core import documents
from mobilenas.core.measurement import PLANS, SlowDown
from mobilenas.latency.kernels import PREDICTOR
from mobilenas.latency.predictors.kernel import KernelPredictor
from mobilenas.latency.store import keep_history
from mobilenas.latency.table import ColdWeights, LatencyTable, NetworkContext
from mobilenas.results import BudgetOutcome
from tests.conftest import SMALL, Outcome, space

Command = Callable[..., Outcome]


def one_object(outcome: Outcome) -> dict:
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert isinstance(found, dict)
    return found


def test_describe_a_space(command: Command) -> None:
    found = one_object(command("describe", *SMALL, "--json"))
    assert found["input_shape"] == [1, 1, 8, 8]
    assert [d["name"] for d in found["decisions"]] == [d.name for d in space().decisions]
    assert found["workloads"] == len(space().workloads())


@pytest.mark.parametrize("path", ["run", "run/architecture.json"])
def test_describe_a_network(path: str, run: Path, command: Command) -> None:
    found = one_object(command("describe", path, "--json"))
    assert sum(o["madds"] for o in found["operators"]) == found["madds"]
    assert sum(o["params"] for o in found["operators"]) == found["params"]
    plain = command("describe", path).out
    assert f"{found['madds']:,}" in plain
    assert found["fingerprint"] in plain


def test_a_table_of_kernels_only_says_what_it_holds(table: Path, command: Command, home: Path) -> None:
    whole = LatencyTable.load(table)
    folder = home / "latency_tables" / "kernels"
    card = msgspec.structs.replace(whole.card, spaces={}, context=NetworkContext((ColdWeights(2.0, 0.0125),)))
    kept = LatencyTable(card, whole.rows, {}, ())
    kept.save(folder)
    assert f"kernels only, {len(whole.rows)} kernels, {card.key.device}" in " ".join(command("table", "list").out.split())
    shown = " ".join(command("table", "show", str(folder)).out.split())
    assert "a call 2 us, the sentinel 100 us" in shown
    assert "a MiB of weights costs more: 12.5 us in kernels with at most 2 MiB" in shown
    assert "learnt from them" not in shown
    predictor = KernelPredictor()
    predictor.families_, predictor.factors_ = {}, {"Conv": 1.25, "Relu": 1.5}
    predictor.common_width_, predictor.learnt_from_ = 0.1, kept.digest
    predictor.save(folder / PREDICTOR)
    shown = " ".join(command("table", "show", str(folder)).out.split())
    assert "2 families, nine kernels in ten within (best and worst) Conv 25 %, Relu 50 % in networks 11 % off" in shown
    assert one_object(command("table", "show", str(folder), "--json"))["predictor"]["factors"] == {"Conv": 1.25, "Relu": 1.5}


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0, "0 %"), (0.0123, "1.2 %"), (0.55, "55 %"), (0.99, "99 %"), (0.999, "100 %"), (1.0, "100 %"), (2.34, "234 %")],
)
def test_percents(fraction: float, text: str) -> None:
    assert percent(fraction) == text


def test_table_list_and_show(table: Path, command: Command, home: Path) -> None:
    assert one_object(command("table", "list", "--json")) == {"tables": [], "predictors": [], "damaged": []}
    table.rename(_made(home / "latency_tables" / "mine"))
    [listed] = one_object(command("table", "list", "--json"))["tables"]
    shown = one_object(command("table", "show", listed["path"], "--json", "--top", "3"))
    values = [row["value_ms"] for row in shown["dearest"]]
    assert len(values) == 3
    assert values == sorted(values, reverse=True)
    assert shown["card"]["origin"] == "estimated"
    assert "known to 1 % at the median network" in command("table", "show", listed["path"]).out
    assert "networks take 1.100 x" in command("table", "show", listed["path"]).out
    assert command("table", "show", listed["path"], "--top", "-1").code == 2
    (Path(listed["path"]) / "card.json").write_text("no card")
    [damaged] = one_object(command("table", "list", "--json"))["damaged"]
    assert "card.json: not JSON" in damaged
    assert damaged in command("table", "list").out


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_table_diff_names_what_moved(table: Path, command: Command, tmp_path: Path) -> None:
    before = LatencyTable.load(table)
    moved, gone, *_ = sorted(before.rows, key=lambda kernel: -before.rows[kernel].value_ms)
    rows = {kernel: row for kernel, row in before.rows.items() if kernel != gone}
    rows[moved] = rows[moved].times(2)
    LatencyTable(before.card, rows, before.workload_costs, before.networks).save(tmp_path / "after")
    found = one_object(command("table", "diff", "table", "after", "--json"))
    assert found["moves"][0]["kernel"] == moved.key
    assert found["moves"][0]["ratio"] == pytest.approx(2)
    assert all(move["ratio"] == 1 for move in found["moves"][1:])
    assert found["only_before"] == [gone.key]
    assert found["median_ratio"] == 1
    assert found["moved_fraction"] == pytest.approx(1 / len(found["moves"]))
    assert "2.00 x net" in command("table", "diff", "table", "after").out
    assert command("table", "diff", "table", "nowhere").code == 3


def test_table_diff_tells_speed_and_noise_from_what_moved(table: Path, command: Command, tmp_path: Path) -> None:
    """A later campaign on a clock that is 12 % slower, with another engine; one row is open, one is wide, one moved."""
    before = LatencyTable.load(table)
    rows = {kernel: row.times(1.12) for kernel, row in before.rows.items()}
    moved, still_open, wide, *_ = sorted(rows, key=lambda kernel: -rows[kernel].value_ms)
    rows[moved] = rows[moved].times(1.5)
    rows[still_open] = msgspec.structs.replace(rows[still_open].times(1.7), converged=False)
    far = rows[wide].times(1.3)
    rows[wide] = msgspec.structs.replace(far, low_ms=0.1 * far.low_ms)
    newer = msgspec.structs.replace(before.card.environment, versions={"engine": "2"}, governor="performance")
    card = msgspec.structs.replace(
        before.card,
        sentinel_ms=1.12 * before.card.sentinel_ms,
        environment=newer,
        doubts=("other processes work",),
        slow_down=SlowDown(1e9, 0.4),
    )
    LatencyTable(card, rows, before.workload_costs, before.networks).save(tmp_path / "after")
    found = one_object(command("table", "diff", "table", "after", "--json"))
    assert found["median_ratio"] == pytest.approx(1.12)
    assert found["median_net_ratio"] == pytest.approx(1)
    assert [move["kernel"] for move in found["moves"] if move["moved"]] == [moved.key]
    assert found["converged"] == len(rows) - 1
    assert found["moved_fraction"] == pytest.approx(1 / (len(rows) - 1))
    assert found["surroundings"] == {"governor": ["None", "performance"], "engine": ["None", "2"]}
    shown = " ".join(command("table", "diff", "table", "after").out.split())
    for words in (
        "100 -> 112 us: the device was 1.120 x as slow",
        "median 1.120 x, 1.000 x net",
        "1 did not converge",
        "engine None -> 2",
        "doubt after other processes work",
        "40% slower",
        "(not converged)",
        "(within the intervals)",
    ):
        assert words in shown, words


def test_a_table_is_compared_with_what_it_replaced(table: Path, command: Command) -> None:
    alone = command("table", "diff", "table")
    assert alone.code == 3
    assert "no history" in alone.err
    keep_history(table)
    assert one_object(command("table", "diff", "table", "--json"))["median_ratio"] == 1


def test_report_tells_what_there_is(run: Path, command: Command) -> None:
    (run / "result.json").write_text(documents.dump_json(_search_result()))
    found = one_object(command("report", "run", "--json"))
    assert found["train"]["test_accuracy"] == 0.5
    assert found["export"] is None
    plain = command("report", "run").out
    assert "test accuracy 50.00%" in plain
    assert "4.8 ms (-4.0% of the budget)" in plain
    assert "4.9 ms (-2.0% of the budget)" in plain
    (run / "result.json").write_text("{}")
    outcome = command("report", "run")
    assert outcome.code == 3
    assert "search" in outcome.err
    assert command("report", "nowhere").code == 3


def test_report_loads_no_torch(run: Path) -> None:
    (run / "result.json").write_text(documents.dump_json(_search_result()))
    code = (
        "import sys; sys.argv = ['mobilenas', 'report', 'run']\n"
        "from mobilenas import cli\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=run.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _search_result() -> dict:
    budget = BudgetOutcome("5ms", "floor", 5.0, 1.0, 9.0, 5.1, 4.9, 4.7, 5.0, 4.8, 0.01, True)
    return {
        "schema": "mobilenas/search-result@1",
        "method": "darts",
        "epochs": 3,
        "duration_s": 7.0,
        "fingerprint": "abc",
        "params": 1000,
        "madds": 2000,
        "budgets": [msgspec.to_builtins(budget)],
    }


def test_evaluate(run: Path, command: Command) -> None:
    assert command("evaluate", "run").code == 3, "the training's configuration is not there"
    (run / "train" / "config.toml").write_text("")
    found = one_object(command("evaluate", "run", "--json"))
    assert found["images"] == 360
    assert 0 <= found["worst_class_accuracy"] <= found["accuracy"] <= found["top_5_accuracy"] <= 1
    assert command("evaluate", "run", "--data", "fashion-mnist").code == 2, "other images"
    (run / "train" / "weights.safetensors").unlink()
    outcome = command("evaluate", "run")
    assert outcome.code == 3
    assert "mobilenas train" in outcome.err


def test_verify_measures_again_and_ends_with_5_over_the_budget(
    run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLANS, "quick", msgspec.structs.replace(PLANS["quick"], spread_s=0.5))  # for time's sake
    found = one_object(command("verify", "run", "--json"))
    assert found["measured"]["value_ms"] > 0
    assert found["budget"] is None
    assert found["budget_met"] is None
    assert json.loads(Path(found["record"]).read_text())["fingerprint"] == found["fingerprint"]
    low = msgspec.structs.replace(
        BudgetOutcome("1us", "floor", 1e-3, 1e-3, 1.0, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 0.01, True), target_ms=1e-4
    )
    (run / "result.json").write_text(documents.dump_json({"budgets": [msgspec.to_builtins(low)]}))
    outcome = command("verify", "run", "-q")
    assert outcome.code == 5
    assert "its budget is 0.0001 ms" in outcome.err
    assert "measured now" in outcome.out
    assert "do not overlap" in outcome.out, "the interval of the table is far below"
    records = [json.loads(path.read_text()) for path in (run / "verified").glob("*.json")]
    assert sorted(str(record["agrees"]) for record in records) == ["False", "None"]
