"""A search whose choice fails on the device keeps what it found, and goes on with other settings of the choice."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mobilenas import workflows
from mobilenas.core.measurement import PLANS
from mobilenas.latency.table import LatencyTable
from mobilenas.profiling.learn import learn_network_model
from mobilenas.search.checkpoints import load_tensors
from mobilenas.testing import fakes
from tests.conftest import CONFIG, SMALL, Outcome, space

BY_LOGITS = ("--set", "selection.rank=['logits']")
RECIPE = ("--set", "selection.recipe={weights={lr=0.1}}")
TINY = msgspec.structs.replace(PLANS["quick"], sweeps=2, maximum_sweeps=2, spread_s=0.0, samples=10, minimum_s=0.0)


def search_by_a_predictor(folder: Path, networks: int) -> list[str]:
    """The arguments of a search by a network predictor of this host that was learnt from twice so many made-up networks."""
    table = fakes.make_table(space(), networks=networks)
    key = workflows.Target.from_config(CONFIG.device).table_key
    card = msgspec.structs.replace(table.card, key=msgspec.structs.replace(key, runtime_version="1"))
    table = LatencyTable(card, table.rows, table.workload_costs, table.networks)
    table.save(folder / "table")
    learn_network_model(space(), table).save(folder / "table")
    tiny = ["--set", "supernet.channels=2", "--set", "supernet.layers=3", "--set", "data.train_fraction=0.1", "--epochs", "1"]
    learnt = ["--latency-model", "network", "--table", "table"]
    return ["search", "--data", "digits", *SMALL, *tiny, *learnt, "--set", "selection.keep=2", *BY_LOGITS, "-o", "run"]


@pytest.fixture
def hopeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A search whose predictor promises about a fiftieth of what networks take."""
    for name in ("quick", "standard"):
        monkeypatch.setitem(PLANS, name, msgspec.structs.replace(TINY, name=name))
    promised_ms = fakes.workload_ms
    with monkeypatch.context() as patch:
        patch.setattr(fakes, "workload_ms", lambda workload: 0.02 * promised_ms(workload))
        return search_by_a_predictor(tmp_path, 20)


@pytest.mark.parametrize(("networks", "promised"), [(2, 0.8), (6, 0.9)])
def test_a_quantile_that_too_few_networks_tell_is_warned_of(
    command: Callable[..., Outcome], tmp_path: Path, networks: int, promised: float
) -> None:
    arguments = [*search_by_a_predictor(tmp_path, networks), "--latency-budget", "60%", "--no-measure"]
    found = command(*arguments, "--budget-quantile", "0.9")
    assert found.code == 0, found.err
    assert ("from 4 networks, and promises to hold 80% of others" in found.err) == (networks == 2)
    assert ("promises to hold 80% of networks only" in found.out) == (networks == 2)
    assert json.loads(Path("run/result.json").read_text())["budgets"][0]["coverage_fraction"] == pytest.approx(promised)


def test_a_failed_choice_is_kept_and_goes_on_with_other_settings(command: Callable[..., Outcome], hopeless: list[str]) -> None:
    failed = command(*hopeless, "--latency-budget", "40%")
    assert failed.code == 5, failed.err
    assert "no network was measured within" in failed.err
    logits = load_tensors(Path("run/logits.safetensors"))
    assert {name.partition(".")[0] for name in logits} == {"normal", "reduce"}
    tried = json.loads(Path("run/rounds.json").read_text())["rounds"]
    assert all(c["measured_ms"] > 2 * c["table_ms"] for c in tried[0]["candidates"])
    assert not Path("run/measurements").exists(), "the same command would fail by the same records"

    again = command(*hopeless, "--latency-budget", "40%", "--set", "rounds=1", "--plan", "standard", *RECIPE)
    assert again.code == 5, again.err
    later = json.loads(Path("run/rounds.json").read_text())["rounds"]
    assert [c["fingerprint"] for c in later[0]["candidates"]] == [c["fingerprint"] for c in tried[0]["candidates"]]
    assert len(list(Path("run").glob("measurements-*"))) == 2
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 1, "nothing was searched again"

    other = command(*hopeless, "--latency-budget", "60%")
    assert other.code == 2
    assert "\n  latency_budget: 40% -> 60%" in other.err

    found = command(*hopeless, "--latency-budget", "40%", "--no-measure", "--json")
    assert found.code == 0, found.err
    budget = json.loads(found.out)["budgets"][0]
    assert budget["predicted_gap_fraction"] == pytest.approx(budget["table_ms"] / budget["target_ms"] - 1)
    assert budget["measured_gap_fraction"] is None
    assert budget["rounds"] == 0
    finished = command(*hopeless, "--latency-budget", "40%")
    assert finished.code == 2
    assert "measure: False -> True" in finished.err
