"""Exports in the form of each engine, each really computed by it."""

import json
import platform
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch

from mobilenas.config import TrainConfig, dump_config
from mobilenas.core import documents
from mobilenas.core.measurement import PLANS
from mobilenas.core.run_directory import locked
from mobilenas.errors import IncompatibleError, VerificationError
from mobilenas.export.verify import compare
from mobilenas.results import BudgetOutcome
from mobilenas.runtimes.ncnn import Ncnn
from mobilenas.search.checkpoints import load_tensors, save_tensors
from tests.conftest import Outcome

Command = Callable[..., Outcome]


def test_every_engine_computes_what_torch_does(run: Path, command: Command) -> None:
    exported = json.loads(command("export", str(run), "--ncnn", "--mnn", "--no-device", "--json").out)
    own, ncnn, mnn = exported["engines"]
    assert (own["runtime"], ncnn["runtime"], mnn["runtime"]) == ("onnxruntime", "ncnn", "mnn")
    assert ncnn["engine_version"].startswith("1.")
    assert [Path(file).name for file in ncnn["files"]] == ["model.param", "model.bin"]
    assert [Path(file).name for file in mnn["files"]] == ["model.mnn", "model.mnn.weight"]
    for agreement in (exported["agreement"], own["agreement"], ncnn["agreement"], mnn["agreement"]):
        assert agreement["inputs"] == 360
        assert agreement["relative_difference"] < 1e-3
        assert agreement["top_1_agreement_fraction"] == 1
    assert ncnn["measured"] is None
    listed = (run / "export" / "SHA256SUMS").read_text()
    assert all((run / "export" / name).exists() and name in listed for name in ("model.onnx", "model.bin", "model.mnn.weight"))


def test_the_engine_of_the_search_is_the_first_and_may_compute_in_halves(run: Path, command: Command) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace('runtime = "onnxruntime"', 'runtime = "ncnn"'))
    whole, half = (
        json.loads(command("export", str(run), "--no-device", "--json", *more).out)["engines"][0]
        for more in ((), ("--precision", "fp16"))
    )
    assert (whole["settings"]["precision"], half["settings"]["precision"]) == ("fp32", "fp16")
    assert half["agreement"]["relative_difference"] > 3 * whole["agreement"]["relative_difference"]
    assert half["agreement"]["tolerance"] == 2e-2


def test_a_model_that_disagrees_is_written_under_a_name_that_says_so(run: Path, command: Command) -> None:
    outcome = command("export", str(run), "--ncnn", "--no-device", "--set", "tolerance=1e-9")
    assert outcome.code == 7
    assert "differs from torch" in outcome.err
    assert "allowed 1e-09" in outcome.err
    names = {path.name for path in (run / "export").iterdir()}
    assert {"model.unverified.param", "model.unverified.bin", "report.json", "SHA256SUMS"} <= names
    assert not {"model.param", "model.bin"} & names


def test_a_logit_that_is_no_number_agrees_with_nothing() -> None:
    expected = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert compare(expected, expected, 1e-3).is_within
    for wrong in (np.nan, np.inf):
        found = expected.copy()
        found[1, 0] = wrong
        agreement = compare(expected, found, 1e-3)
        assert not agreement.is_within
        with pytest.raises(VerificationError, match="the model makes logits that are no numbers"):
            agreement.check("the model")


def test_a_model_that_makes_no_numbers_is_written_as_unverified(
    run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenas.workflows.naming.Target.compute", lambda self, model, inputs: np.full((360, 10), np.nan))
    outcome = command("export", str(run), "--no-device", "--kit", "linux-onnxruntime")
    assert outcome.code == 7
    assert "logits that are no numbers" in outcome.err
    report = json.loads((run / "export" / "report.json").read_text())
    assert report["engines"][0]["agreement"]["relative_difference"] is None
    assert report["kits"] == []
    assert (run / "export" / "model.unverified.onnx").exists()


def test_kits_of_an_export_before_are_gone_with_it(run: Path, command: Command) -> None:
    assert command("export", str(run), "--no-device", "--kit", "linux-onnxruntime").code == 0
    assert (run / "export" / "kits" / "linux-onnxruntime").is_dir()
    refused = command("export", str(run), "--no-device", "--kit", "linux-onnxruntime", "--set", "tolerance=1e-12")
    assert refused.code == 7
    assert not (run / "export" / "kits").exists()
    assert "linux-onnxruntime" not in (run / "export" / "report.json").read_text()


def test_agreement_by_hand() -> None:
    expected = np.array([[1.0, 2.0], [-4.0, 3.0], [0.0, 0.5]])
    found = np.array([[1.0, 2.0], [-3.0, 3.0], [0.6, 0.5]])
    agreement = compare(expected, found, 0.25)
    assert agreement.maximum_difference == pytest.approx(1.0)
    assert agreement.relative_difference == pytest.approx(0.25)
    assert agreement.top_1_agreement_fraction == pytest.approx(2 / 3)
    assert agreement.is_within


def test_integers_are_calibrated_and_say_what_they_cost(run: Path, command: Command) -> None:
    exported = json.loads(command("export", str(run), "--ncnn", "--precision", "int8", "--no-device", "--json").out)
    engine, ncnn = exported["engines"]
    assert [Path(file).name for file in engine["files"]] == ["model.int8.onnx"]
    assert [Path(file).name for file in ncnn["files"]] == ["model.int8.param", "model.int8.bin"]
    assert ncnn["agreement"]["top_1_agreement_fraction"] > 0.8
    assert Path(exported["model"]).name == "model.onnx"
    agreement = engine["agreement"]
    assert (
        exported["agreement"]["relative_difference"] < 1e-3 < agreement["relative_difference"] < agreement["tolerance"] == 0.35
    )
    assert agreement["top_1_agreement_fraction"] > 0.8
    assert agreement["torch_accuracy"] == exported["agreement"]["torch_accuracy"]
    assert abs(agreement["accuracy"] - agreement["torch_accuracy"]) < 0.2
    stored = onnx.load(run / "export" / "model.int8.onnx").graph.initializer
    assert any(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4 for tensor in stored)


def test_a_precision_that_an_engine_lacks_is_refused(run: Path, command: Command) -> None:
    outcome = command("export", str(run), "--precision", "fp12", "--no-device", "--ncnn")
    assert outcome.code == 2
    assert "onnxruntime runs fp32, fp16, int8 here, not 'fp12'" in outcome.err
    assert not (run / "export").exists()


def test_a_model_card_tells_what_was_exported_and_how(run: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    short = msgspec.structs.replace(PLANS["quick"], sweeps=2, maximum_sweeps=2, spread_s=0.0, drift_fraction=100.0)
    monkeypatch.setitem(PLANS, "quick", short)
    outcome = command("export", str(run), "--ncnn", "--json")
    assert outcome.code == 0, outcome.err
    exported = json.loads(outcome.out)
    card = (run / "export" / "MODEL_CARD.md").read_text()
    assert "MODEL_CARD.md" in (run / "export" / "SHA256SUMS").read_text()
    for engine in exported["engines"]:
        version, took = engine["engine_version"], engine["measured"]["value_ms"]
        assert f"| {engine['runtime']} {version} | {engine['settings']['provider']} | fp32 | 1 | 1 | {took:.4g} ms" in card
        assert engine["environment"]["versions"]["engine"] == version
    assert f"| Parameters | {exported['params']:,} |" in card
    assert f"| Test accuracy | {exported['test_accuracy']:.2%} |" in card
    assert "digits" in card
    assert exported["device"]["cpu_model"] in card
    assert "governor" in card
    assert f"mobilenas export {run} --onnx --set 'runtimes=[\"ncnn\"]'" in card
    for decision, choice in json.loads((run / "architecture.json").read_text())["choices"].items():
        assert f"| {decision} | {choice} |" in card


def test_a_model_card_of_what_was_not_measured_says_so(run: Path, command: Command) -> None:
    assert command("export", str(run), "--no-device").code == 0
    assert "The exported model was not measured." in (run / "export" / "MODEL_CARD.md").read_text()


def test_an_engine_that_fails_takes_no_other_with_it(run: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise IncompatibleError("ncnn has no layer for it")

    monkeypatch.setattr(Ncnn, "prepare", refuse)
    outcome = command("export", str(run), "--ncnn", "--mnn", "--kit", "linux-onnxruntime", "--no-device")
    assert outcome.code == 2
    assert "ncnn has no layer for it" in outcome.err
    own, ncnn, mnn = json.loads((run / "export" / "report.json").read_text())["engines"]
    assert (ncnn["agreement"], ncnn["files"], ncnn["not_run"]) == (None, [], "ncnn has no layer for it")
    assert own["agreement"]["relative_difference"] < 1e-3 > mnn["agreement"]["relative_difference"]
    assert (run / "export" / "model.mnn").exists()
    assert not (run / "export" / "kits").exists()


def test_halves_that_this_processor_does_not_compute_are_written_and_said_not_to_have_run(run: Path, command: Command) -> None:
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("a processor that may compute halves")
    outcome = command("export", str(run), "--mnn", "--precision", "fp16", "--no-device", "--json")
    assert outcome.code == 0, outcome.err
    own, mnn = json.loads(outcome.out)["engines"]
    assert own["agreement"]
    assert "MNN computes in halves on ARM" in mnn["not_run"]
    assert Path(mnn["files"][0]).name == "model.fp16.unverified.mnn"


def test_a_kit_tells_no_prediction_of_another_precision(run: Path, command: Command) -> None:
    budget = BudgetOutcome("1ms", "floor", 1.0, 0.1, 2.0, 0.8, 0.7, 0.6, 0.8, None, None, None)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(documents.dump_json({**result, "budgets": [msgspec.to_builtins(budget)]}))
    for precision, is_told in (("fp32", True), ("int8", False)):
        outcome = command("export", str(run), "--kit", "linux-onnxruntime", "--precision", precision, "--no-device")
        assert outcome.code == 0, outcome.err
        facts = msgspec.toml.decode((run / "export" / "kits" / "linux-onnxruntime" / "kit.toml").read_text())
        assert ("predicted_ms" in facts) is is_told
        assert facts["checked_against_torch"] == "yes"
        assert "local, onnxruntime fp32, 1 threads, batch 1" in (run / "export" / "MODEL_CARD.md").read_text()


def test_two_exports_of_a_run_do_not_write_at_once(run: Path, command: Command) -> None:
    assert command("export", str(run), "--no-device").code == 0
    before = {path.name: path.read_bytes() for path in (run / "export").iterdir()}
    with locked(run):
        outcome = command("export", str(run), "--no-device", "--ncnn")
    assert outcome.code == 2
    assert "another process works in this folder" in outcome.err
    assert {path.name: path.read_bytes() for path in (run / "export").iterdir()} == before


@pytest.fixture
def short_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    short = msgspec.structs.replace(PLANS["quick"], sweeps=2, maximum_sweeps=2, spread_s=0.0, drift_fraction=100.0)
    monkeypatch.setitem(PLANS, "quick", short)


def report(run: Path) -> dict:
    return json.loads((run / "export" / "report.json").read_text())


def test_an_export_that_measures_nothing_keeps_what_was_measured(run: Path, command: Command, short_plan: None) -> None:
    assert command("export", str(run)).code == 0
    first = report(run)
    again = command("export", str(run), "--no-device", "--kit", "linux-onnxruntime")
    assert again.code == 0, again.err
    second = report(run)
    assert second["measured"] == first["measured"]
    assert second["device"] == first["device"]
    for name in ("measured", "environment", "measured_at", "sha256"):
        assert second["engines"][0][name] == first["engines"][0][name] is not None
    assert f"measured at {first['engines'][0]['measured_at']}, which is kept" in " ".join(again.err.split())
    assert f"measured at {first['engines'][0]['measured_at']}." in (run / "export" / "MODEL_CARD.md").read_text()
    facts = msgspec.toml.decode((run / "export" / "kits" / "linux-onnxruntime" / "kit.toml").read_text())
    assert facts["measured_ms"] == first["measured"]["value_ms"]
    assert not (run / "export" / "earlier").exists(), "nothing was lost"

    whole = (run / "export" / "report.json").read_bytes()
    for name in ("weights.safetensors", "result.json"):  # the network is untrained now: another model
        (run / "train" / name).unlink()
    other = command("export", str(run), "--no-device")
    assert other.code == 0, other.err
    assert "was another model" in " ".join(other.err.split())
    third = report(run)
    assert (third["measured"], third["device"], third["engines"][0]["measured_at"]) == (None, None, None)
    [earlier] = (run / "export" / "earlier").iterdir()
    assert earlier.read_bytes() == whole


def test_a_report_that_cannot_be_read_does_not_stop_an_export(run: Path, command: Command) -> None:
    (run / "export").mkdir()
    (run / "export" / "report.json").write_text("{}")
    outcome = command("export", str(run), "--no-device")
    assert outcome.code == 0, outcome.err
    assert "not taken into account" in outcome.err


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("json_flag", [(), ("--json",)])
@pytest.mark.parametrize("verb", [("evaluate",), ("export", "--no-device")])
def test_weights_that_are_not_finite_end_with_3(
    verb: tuple, json_flag: tuple, value: float, run: Path, command: Command
) -> None:
    rewrite_weights(run, lambda name, tensor: tensor.fill_(value) if tensor.dim() == 4 else tensor)
    outcome = command(verb[0], str(run), *verb[1:], *json_flag)
    assert outcome.code == 3, outcome.err
    assert "not finite" in outcome.err
    assert "weights.safetensors" in outcome.err


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_logits_that_are_not_finite_end_with_7(json_flag: tuple, run: Path, command: Command) -> None:
    rewrite_weights(run, lambda name, tensor: tensor.mul_(1e30) if tensor.is_floating_point() else tensor)
    outcome = command("evaluate", str(run), *json_flag)
    assert outcome.code == 7, outcome.err
    assert "360 of 360 test images" in outcome.err
    assert command("export", str(run), "--no-device").code == 7
    assert "logits that are no numbers" in command("report", str(run)).out


def rewrite_weights(run: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """The weights of ``run``, each tensor changed, with the checksum that the run's own result then has."""
    path, result = run / "train" / "weights.safetensors", run / "train" / "result.json"
    tensors = {name: change(name, tensor) for name, tensor in load_tensors(path).items()}
    fingerprint = json.loads(result.read_text())["fingerprint"]
    document = {**json.loads(result.read_text()), "sha256": save_tensors(path, tensors, {"fingerprint": fingerprint})}
    result.write_text(documents.dump_json(document))
    (run / "train" / "config.toml").write_text(dump_config(TrainConfig()))
