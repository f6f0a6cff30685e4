"""What is stored is checked as what arrives: numbers that contradict each other are refused, whatever the checksum says."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import SweepRecord
from mobilenas.core.run_directory import Journal
from mobilenas.core.workload import TensorSpec
from mobilenas.devices.catalogue import DeviceCard, load_card, save_card
from mobilenas.errors import DocumentError
from mobilenas.latency.predictors.kernel import KernelPredictor
from mobilenas.latency.predictors.network import NetworkPredictor
from mobilenas.latency.table import LatencyTable, MeasuredNetwork, TableRow
from mobilenas.latency.table_checks import wrong_with_kernel, wrong_with_network, wrong_with_row
from mobilenas.profiling.campaign import LoweredNetworks
from mobilenas.runtimes.measure import JournalEntry, SweepLog
from mobilenas.search.checkpoints import Checkpoints, check_like
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_lower, make_table
from mobilenas.workflows.naming import budget_of, network_of
from tests.benchmarks.mutate_documents import KERNELS, learnt_kernels, renew
from tests.conftest import space

SPACE = CellSpace(channels=4, layers=3, image_size=8)
TABLE = make_table(SPACE)
ROW = next(iter(TABLE.rows.values()))
Edit = Callable[[dict[str, Any]], Any]


def with_kernel(**changes: Any) -> TableRow:
    return msgspec.structs.replace(ROW, kernel=msgspec.structs.replace(ROW.kernel, **changes))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (msgspec.structs.replace(ROW, high_ms=ROW.value_ms / 2), "high_ms"),
        (msgspec.structs.replace(ROW, low_ms=ROW.value_ms * 2), "low_ms"),
        (msgspec.structs.replace(ROW, many_copies=2), "many_copies 2"),
        (msgspec.structs.replace(ROW, many_ms=2 * ROW.many_ms), "many_ms"),
        (with_kernel(outputs=(TensorSpec((2**30, 2**30), "float32"),)), "elements"),
        (with_kernel(outputs=(TensorSpec((1,), "pickle"),)), "'pickle'"),
        (with_kernel(inputs=(TensorSpec((2,), "float32", values=(1.0, 2.0)),)), "changing"),
        (with_kernel(inputs=(TensorSpec((2,), "float32", True, values=(1.0,)),)), "1 values"),
        (with_kernel(operator="Conv", inputs=(ROW.kernel.inputs[0], None)), "do not go together"),
        (with_kernel(attributes='{"strides": "x"}'), "do not go together"),
    ],
)
def test_a_row_that_contradicts_itself(row: TableRow, said: str) -> None:
    assert wrong_with_row(ROW) is None
    assert said in (wrong_with_row(row) or wrong_with_kernel(row.kernel) or "")


@pytest.mark.parametrize("change", [{"low_ms": 1e3}, {"high_ms": 1e-3}, {"p90_ms": 1e-3}])
def test_a_network_that_contradicts_itself(change: dict[str, float]) -> None:
    row: MeasuredNetwork = TABLE.networks[0]
    assert wrong_with_network(row) is None
    assert wrong_with_network(msgspec.structs.replace(row, **change))


CARDS: dict[str, Edit] = {
    "rows": lambda card: card.update(rows=card["rows"] + 1),
    "not converged": lambda card: card.update(rows_not_converged=3),
    "flags": lambda card: card["flags"].update(bimodal=card["flags"]["models"] + 1),
    "threads": lambda card: card["key"].update(threads=0),
    "estimator": lambda card: card["key"].update(estimator="median"),
    "no date": lambda card: card.update(created="yesterday"),
    "options": lambda card: next(iter(card["spaces"].values()))["options"].update(layers=4),
    "shares": lambda card: next(iter(card["spaces"].values()))["table_error"].update(within_10_fraction=0.5),
    "networks": lambda card: next(iter(card["spaces"].values()))["table_error"].update(networks=99),
    "cores": lambda card: card["environment"].update(cpu_count=-1),
    "plan": lambda card: card["plan"].update(sweeps=-4),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_contradicts_itself_or_its_rows(name: str, tmp_path: Path) -> None:
    TABLE.save(tmp_path)
    whole = json.loads((tmp_path / "card.json").read_text())
    CARDS[name](whole)
    (tmp_path / "card.json").write_text(json.dumps(whole))
    renew(tmp_path / "card.json", "card.json", ("kernels.csv", "workloads.csv", "networks.csv"))
    with pytest.raises(DocumentError, match=r"card\.json"):
        LatencyTable.load(tmp_path)


def test_one_bad_row_does_not_cost_the_others(tmp_path: Path) -> None:
    first, second, *_ = TABLE.rows
    spoilt = {first: {"value_ms": math.inf}, second: {"few_ms": 1e-9}}
    rows = {k: msgspec.structs.replace(row, **spoilt.get(k, {})) for k, row in TABLE.rows.items()}
    table = dataclasses.replace(TABLE, rows=rows)
    table.save(tmp_path)
    again = LatencyTable.load(tmp_path)
    assert again.rows == {kernel: row for kernel, row in TABLE.rows.items() if kernel not in (first, second)}
    assert again.card.rows == len(TABLE.rows) - 2
    assert "2 kernels" in again.card.doubts[-1]
    assert again.digest == table.digest


def test_a_card_with_numbers_that_are_none_is_not_written(tmp_path: Path) -> None:
    card = msgspec.structs.replace(TABLE.card, session_ms=math.nan)
    with pytest.raises(DocumentError, match="session_ms is nan"):
        dataclasses.replace(TABLE, card=card).save(tmp_path / "table")
    assert not (tmp_path / "table").exists()


def test_a_table_of_a_model_with_an_infinite_constant(tmp_path: Path) -> None:
    spec = TensorSpec((), "float32", is_constant=True, values=(-math.inf,))
    row = with_kernel(operator="Max", attributes='{"a": NaN}', inputs=(ROW.kernel.inputs[0], spec))
    dataclasses.replace(TABLE, rows={row.kernel: row}).save(tmp_path)
    [(kernel, found)] = LatencyTable.load(tmp_path).rows.items()
    assert (kernel, found) == (row.kernel, row)
    assert kernel.inputs[1] is not None
    assert kernel.inputs[1].numbers == [-math.inf]


STATES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "nan": lambda state: state.update(bias=torch.tensor(math.nan, dtype=torch.float64)),
    "infinite": lambda state: state["weights"].fill_(math.inf),
    "another length": lambda state: state.update(heights=torch.zeros(1, dtype=torch.float64)),
    "another type": lambda state: state.update(heights=torch.zeros(0)),
    "another rank": lambda state: state.update(length=torch.ones(1, dtype=torch.float64)),
    "no width": lambda state: state.update(length=torch.tensor(0.0, dtype=torch.float64)),
    "one less": lambda state: state.pop("centres"),
    "one more": lambda state: state.update(more=torch.ones(1)),
}


@pytest.mark.parametrize("name", STATES)
def test_tensors_that_are_no_network_predictor(name: str) -> None:
    state = NetworkPredictor.linear(np.ones(3), 1.0, 0.1).state()
    assert NetworkPredictor.from_state(dict(state)).predict(np.ones((1, 3))) == 4.0
    STATES[name](state)
    with pytest.raises(DocumentError):
        NetworkPredictor.from_state(state)


def test_a_kernel_predictor_with_numbers_that_are_none(tmp_path: Path) -> None:
    learnt = learnt_kernels()
    learnt.save(tmp_path / "p")
    assert KernelPredictor.load(tmp_path / "p", KERNELS).factors_ == learnt.factors_
    family = next(iter(learnt.families_.values()))
    above = family.highest_ + 1
    for name, value in (("rest_", math.nan), ("mean_", np.zeros(3)), ("roofline_", -np.ones(4)), ("lowest_", above)):
        before = getattr(family, name)
        setattr(family, name, value)
        learnt.save(tmp_path / "p")
        setattr(family, name, before)
        with pytest.raises(DocumentError, match="damaged"):
            KernelPredictor.load(tmp_path / "p", KERNELS)
    learner = next(f for f in learnt.families_.values() if f.process_ is not None)
    learner.process_._y_train_std = np.ones(2)  # as many as the kernels that a predictor is tried on
    learnt.save(tmp_path / "p")
    with pytest.raises(DocumentError, match="damaged"):
        KernelPredictor.load(tmp_path / "p", KERNELS)


def test_a_device_card_under_the_name_of_another(home: Path) -> None:
    path = save_card(DeviceCard("phone", "adb:1"))
    path.rename(path.with_name("tablet.toml"))
    with pytest.raises(DocumentError, match="'phone'"):
        load_card("tablet")


LOWERED: dict[str, Edit] = {
    "out of range": lambda doc: next(iter(doc["networks"].values())).update({"9999": 1}),
    "below zero": lambda doc: next(iter(doc["networks"].values())).update({"-1": 1}),
    "no number": lambda doc: next(iter(doc["networks"].values())).update({"01": 1}),
    "no copies": lambda doc: next(iter(doc["networks"].values())).update({"0": 0}),
    "nothing": lambda doc: doc["networks"].update({key: {} for key in doc["networks"]}),
    "gone": lambda doc: doc["networks"].popitem(),
    "a kernel twice": lambda doc: doc["kernels"].append(doc["kernels"][0]),
    "a shape": lambda doc: doc["kernels"][0]["outputs"][0].update(shape=[-1]),
}


@pytest.mark.parametrize("name", LOWERED)
def test_lowered_networks_that_no_campaign_wrote(name: str, tmp_path: Path) -> None:
    networks = [SPACE.random_architecture(random.Random(seed)) for seed in range(2)]
    counts = make_lower(SPACE)(networks)
    document = msgspec.to_builtins(LoweredNetworks.from_counts(networks, counts))
    documented = json.loads(json.dumps(document))
    (tmp_path / "lowered.json").write_text(json.dumps(documented))
    assert LoweredNetworks.load(tmp_path / "lowered.json").counts(networks) == counts
    LOWERED[name](documented)
    (tmp_path / "lowered.json").write_text(json.dumps(documented))
    with pytest.raises(DocumentError, match=r"lowered\.json"):
        LoweredNetworks.load(tmp_path / "lowered.json").counts(networks)


def test_a_journal_is_checked_as_the_runner_was(tmp_path: Path) -> None:
    entry = msgspec.to_builtins(JournalEntry(0, "a", SweepRecord((1.0,), (1.0,), (0.1,), 1.0, 1.0, None), 1e9))
    wrong = (
        {**entry, "sweep": -1},
        {**entry, "record": {**entry["record"], "cpu_ms": [1.0, 2.0]}},
        {**entry, "record": {**entry["record"], "wall_ms": [0.0]}},
        {"hello": {"runner": 3}},
        entry,
    )
    for number, line in enumerate(wrong):
        journal = Journal(tmp_path / f"{number}.jsonl")
        journal.append(entry)
        assert SweepLog.resume(journal).records["a"].keys() == {0}
        journal.append(line)
        with pytest.raises(DocumentError, match=r"jsonl:2"):
            SweepLog.resume(journal)


def test_a_checkpoint_with_numbers_that_are_none_is_passed_over(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, said.append)
    checkpoints.save({"w": torch.ones(2), "n": 1})
    checkpoints.save({"w": torch.tensor([1.0, math.nan]), "n": 2})
    assert checkpoints.load_latest()["n"] == 1
    assert "not finite" in said[0]


@pytest.mark.parametrize(
    "edit",
    [
        lambda doc: doc.update(is_end="no"),
        lambda doc: doc.update(more=1),
        lambda doc: doc["state"]["w"].update(__tensor__="gone"),
        lambda doc: doc.update(state=[]),
        lambda doc: doc.update(state=None),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_tensors(edit: Edit, tmp_path: Path) -> None:
    Checkpoints(tmp_path).save({"w": torch.ones(2)})
    path = tmp_path / "000001.json"
    document = json.loads(path.read_text())
    edit(document)
    document["sha256"]["state"] = documents.digest(document["state"])
    path.write_text(json.dumps(document))
    if document["state"] == []:
        with pytest.raises(ValueError, match="state"):
            check_like(Checkpoints(tmp_path).load_latest(), {"w": torch.ones(2)})
    else:
        with pytest.raises(DocumentError, match="000001"):
            Checkpoints(tmp_path).load_latest()


@pytest.mark.parametrize(
    "found",
    [
        {"w": torch.ones(2), "n": -1},
        {"w": torch.ones(2), "n": 1.5},
        {"w": torch.ones(2), "n": True},
        {"w": torch.ones(3), "n": 1},
        {"w": torch.ones(2).double(), "n": 1},
        {"w": torch.ones(2)},
        [],
    ],
)
def test_a_state_of_another_form_is_not_gone_on_from(found: Any) -> None:
    own = {"w": torch.ones(2), "n": 3}
    check_like({"w": torch.zeros(2), "n": 0}, own)
    with pytest.raises(ValueError, match="state"):
        check_like(found, own)


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_results_of_another_network_or_out_of_range(run: Path) -> None:
    architecture = Architecture.load(run / "architecture.json")
    assert network_of(run, space(), architecture)[1] == 0.5
    edited(run / "train" / "result.json", fingerprint="0123456789abcdef")
    with pytest.raises(DocumentError, match="0123456789abcdef"):
        network_of(run, space(), architecture)
    (run / "train" / "weights.safetensors").unlink()
    with pytest.raises(DocumentError, match="gone"):
        network_of(run, space(), architecture)
    edited(run / "result.json", fingerprint="0123456789abcdef")
    with pytest.raises(DocumentError, match="0123456789abcdef"):
        budget_of(run)
