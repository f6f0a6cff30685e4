"""Bad input is one clear paragraph and the right exit code; nothing half-written stays (cases of tables, runs, values)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenas import workflows
from mobilenas.core import documents
from mobilenas.core.run_directory import Journal
from mobilenas.data import ImageData
from mobilenas.errors import DocumentError
from mobilenas.latency.store import check_replaceable
from mobilenas.runtimes.measure import SweepLog
from mobilenas.search.checkpoints import Checkpoints
from mobilenas.testing import fakes
from mobilenas.workflows import run_search
from tests.conftest import CONFIG, SMALL, Outcome, space

SEARCH = ("search", "--latency-budget", "40%", *SMALL, "--no-measure", "-q", "-o", "out", "--table")


def check(outcome: Outcome, code: int, *said: str) -> None:
    assert outcome.code == code, outcome.err
    for text in said:
        assert text in outcome.err
    assert "Traceback" not in outcome.err
    assert sum(line.startswith("error: ") for line in outcome.err.splitlines()) == 1
    assert outcome.out == ""


def edit_card(table: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the card and sign it anew, as one who knows how would."""
    card = json.loads((table / "card.json").read_text())
    change(card)
    if isinstance(card.get("sha256"), dict):
        del card["sha256"]["card.json"]
        card["sha256"]["card.json"] = documents.digest(card)
    (table / "card.json").write_text(json.dumps(card))


def edit_csv(table: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    """Edit the lines and the checksum that the card holds of them, as one who knows how would."""
    lines = change((table / name).read_text().splitlines())
    text = "".join(line + "\n" for line in lines)
    (table / name).write_text(text)
    edit_card(table, lambda card: card["sha256"].update({name: hashlib.sha256(text.encode()).hexdigest()}))


def with_value(line: str, column: int, value: str) -> str:
    import csv
    import io

    cells = next(csv.reader([line]))
    cells[column] = value
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()


BAD_TABLES: dict[str, tuple[Callable[[Path], object], int, tuple[str, ...]]] = {
    "1 truncated": (lambda t: (t / "card.json").write_text((t / "card.json").read_text()[:300]), 3, ("card.json", "line")),
    "1 not JSON": (lambda t: (t / "card.json").write_text("latency: 5"), 3, ("card.json", "not JSON")),
    "1 UTF-16": (lambda t: (t / "card.json").write_bytes((t / "card.json").read_text().encode("utf-16")), 3, ("not UTF-8",)),
    "1 empty": (lambda t: (t / "card.json").write_text(""), 3, ("card.json",)),
    "1 a list": (lambda t: (t / "card.json").write_text("[]"), 3, ("JSON object",)),
    "2 edited": (lambda t: (t / "kernels.csv").write_text((t / "kernels.csv").read_text() + "\n"), 3, ("SHA-256",)),
    "2 card edited": (
        lambda t: (t / "card.json").write_text((t / "card.json").read_text().replace('"factor": 1.1,', '"factor": 1.2,')),
        3,
        ("card.json", "SHA-256"),
    ),
    "2 no checksums": (lambda t: edit_card(t, lambda c: c.pop("sha256")), 3, ("SHA-256",)),
    "2 checksums a list": (lambda t: edit_card(t, lambda c: c.update(sha256=[])), 3, ("sha256",)),
    "3 NaN": (lambda t: edit_csv(t, "kernels.csv", lambda ls: [*ls[:2], with_value(ls[2], 1, "NaN"), *ls[3:]]), 3, ("line 3",)),
    "3 negative, two of them": (
        lambda t: edit_csv(t, "kernels.csv", lambda ls: [ls[0], *(with_value(line, 1, "-1.0") for line in ls[1:3]), *ls[3:]]),
        3,
        ("2 of the rows", "line 2", "line 3", "value_ms"),
    ),
    "3 text": (
        lambda t: edit_csv(t, "kernels.csv", lambda ls: [*ls[:2], with_value(ls[2], 1, "fast"), *ls[3:]]),
        3,
        ("line 3",),
    ),
    "3 another unit": (
        lambda t: edit_csv(t, "kernels.csv", lambda ls: [*ls[:2], with_value(ls[2], 1, "50000.0"), *ls[3:]]),
        3,
        ("line 3", "10000"),
    ),
    "3 a missing cell": (
        lambda t: edit_csv(t, "kernels.csv", lambda ls: [*ls[:2], ls[2].rpartition(",")[0], *ls[3:]]),
        3,
        ("line 3", "cells"),
    ),
    "4 workloads missing": (
        lambda t: edit_csv(t, "workloads.csv", lambda ls: ls[: len(ls) // 2]),
        3,
        ("lacks the cost of", "profile"),
    ),
    "4 another space": (
        lambda t: edit_card(t, lambda c: c.update(spaces={})) or edit_csv(t, "workloads.csv", lambda ls: ls[:1]),
        3,
        ("does not cover the space", "mobilenas profile"),
    ),
    "5 a row twice": (
        lambda t: edit_csv(t, "kernels.csv", lambda ls: [*ls, with_value(ls[1], 1, "7.5")]),
        3,
        ("kernels.csv", "stands twice", "7.5"),
    ),
    "5 a name twice": (
        lambda t: (t / "card.json").write_text((t / "card.json").read_text().replace('"rows":', '"rows": 7, "rows":')),
        3,
        ("'rows' stands twice", "7"),
    ),
    "6 newer": (lambda t: edit_card(t, lambda c: c.update(schema="mobilenas/latency-table@9")), 3, ("upgrade",)),
    "7 huge": (lambda t: os.truncate(t / "card.json", 300 * 2**20), 3, ("larger than 64 MiB",)),
    "7 deep": (lambda t: (t / "card.json").write_text("[" * 100_000), 3, ("card.json",)),
    "8 another device": (lambda t: edit_card(t, lambda c: c["key"].update(device="phone")), 2, ("phone", "mobilenas profile")),
    "8 another number of threads": (lambda t: edit_card(t, lambda c: c["key"].update(threads=4)), 2, ("threads",)),
    "an unknown key": (lambda t: edit_card(t, lambda c: c.update(scales=1)), 3, ("scales",)),
    "a scale that is not positive": (
        lambda t: edit_card(t, lambda c: next(iter(c["spaces"].values()))["scale"].update(factor=-1.0)),
        3,
        ("scale", "factor"),
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_refused_before_anything_is_trained(
    case: str, table: Path, command: Callable[..., Outcome], tmp_path: Path
) -> None:
    spoil, code, said = BAD_TABLES[case]
    spoil(table)
    check(command(*SEARCH, table), code, *said)
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_never_opened_as_a_table(command: Callable[..., Outcome], tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "opened",))

    (tmp_path / "lut.pkl").write_bytes(pickle.dumps(Bomb()))
    check(command(*SEARCH, tmp_path / "lut.pkl"), 3, "lut.pkl")
    assert not (tmp_path / "opened").exists()


def test_a_missing_table_names_the_profile_command(command: Callable[..., Outcome], tmp_path: Path) -> None:
    check(command("search", "--latency-budget", "40%", *SMALL, "-o", "out"), 3, "mobilenas profile", "--channels 4 --layers 3")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "budget", ["5", "-1ms", "0ms", "abc", "5mss", "nan%", "nanms", "150%", "-3%", "ms", "", "infms", "1e999ms"]
)
def test_a_bad_budget_says_the_accepted_form(budget: str, command: Callable[..., Outcome], tmp_path: Path) -> None:
    check(command("search", "--latency-budget", budget, *SMALL, "-o", "out"), 2, "5ms")
    assert not (tmp_path / "out").exists()


def test_an_infeasible_budget_names_both_bounds(
    command: Callable[..., Outcome], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_synthetic_costs(monkeypatch)
    outcome = command("search", "--latency-budget", "1us", *SMALL, "-o", "out", "--table", str(table), "-q")
    check(outcome, 5, "below what the space can do", " to ", "fastest", "normal.0-2")
    assert not (tmp_path / "out").exists()


def test_a_budget_above_the_slowest_network_is_a_warning(
    command: Callable[..., Outcome], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_synthetic_costs(monkeypatch)
    outcome = command(
        "search", "--latency-budget", "1e6ms", *SMALL, "-o", "out", "--table", str(table), "--no-measure", "--epochs", "1",
        "--set", "selection.rank=['logits']",
        "--set", "supernet.channels=2", "--set", "supernet.layers=3", "--set", "data.train_fraction=0.1",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "does not bind" in outcome.err
    assert "not verified on target" in outcome.out


def use_synthetic_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs without asking the engine, which knows nothing of the synthetic table's kernels."""
    monkeypatch.setattr(run_search, "latency_model", lambda cfg, space, target, link: fakes.make_model(space))


BAD_VALUES = [
    ("search --epochs 0", "epochs"),
    ("search --epochs -3", "epochs"),
    ("search --set rounds=0", "rounds"),
    ("search --budget-quantile 0.4", "budget_quantile"),
    ("search --budget-quantile 1", "budget_quantile"),
    ("search --budget-quantile nan", "budget_quantile"),
    ("search --set selection.keep=0", "selection.keep"),
    ("search --set seed=99999999999999999999999", "seed"),
    ("search --seed -1", "seed"),
    ("search --set weights.lr=-1", "lr"),
    ("search --set weights.momentum=1", "momentum"),
    ("search --set weights.lr=fast", "lr"),
    ("search --set weights.lr=inf", "lr"),
    ("search --set warmup_epochs=5 --epochs 5", "the architecture would never be searched"),
    ("search --set compute.precision=16-mixed", "on a CPU choose 32-true or bf16-mixed"),
    (
        "search --set method_options.order=2 --set method_options.hessian=exact --set compute.precision=bf16-mixed",
        "needs 32-true",
    ),
    ("search --set weights.nesterov=true --set weights.momentum=0.0", "needs a momentum"),
    ("search --set data.batch=1", "at least 2, for BatchNorm"),
    ("search --method p-darts --set method_options.kept=[5,2]", "keep at least 3"),
    ('search --set switches.skip_limit=1 --set space.options.operators=["none","skip_connect"]', "all that edges may be"),
    ("search --set space.options.reduction=fixed --set supernet.channels=6", "supernet.channels is 6"),
    ("search --method p-darts --set method_options.added_layers=5", "Expected `array`"),
    ("search --set method_options.order=true", "method_options.order is True: Expected `int`"),
    ("search --method dense-nas --set method_options.drift=yes", "method_options.drift is 'yes': Expected `bool`"),
    ("export nowhere --set tolerance=inf", "tolerance"),
    ("evaluate nowhere --set batch=100000000000000000000", "batch"),
    ("search --preset cifar11", "cifar10"),
    ("search --method gdas --preset imagenet", "cifar10-frc"),
    ("describe darts-v2 --channels 1", "space.channels"),
    ("describe darts-v2 --stem big", "imagenet"),
    ("describe gdas-frc --channels 35", "divisible by 4"),
    ("describe --drawing x.svg", "name a network"),
    ("search --set switches.partial_channels=3", "divisible by 3"),
    ("search --set switches.skip_dropout=0.3 --set space.options.operators=[\"sep_conv_3x3\"]", "skip_connect"),
    ("search --method p-darts --set switches.skip_dropout=0.5", "method_options.skip_dropout"),
    ("search --method p-darts --set method_options.kept=[3]", "method_options.kept"),
    ("search --set method_options.order=2 --set switches.skip_dropout=0.5", "order 1"),
    ("search --set architecture.beta1=2", "beta1"),
    ("search --set warmup_epochs=-3", "warmup_epochs"),
    ("search --set compute.threads=-1", "threads"),
    ("search --set compute.accelerator=abacus", "abacus"),
    ("search --set compute.precision=3", "precision"),
    ("search --set data.workers=-1", "workers"),
    ("search --set data.batch=0", "batch"),
    ("search --set space.options.classes=5", "of 5 classes"),
    ("search --set space.options.image_channels=3", "3 x 8 x 8"),
    ("search --set space.options.image_size=32", "1 x 32 x 32"),
    ("search --set space.options.chanels=3", "channels"),
    ("search --set space.options.operators=[\"non\"]", "none"),
    ("search --set space.options.operators=5", "space.options.operators"),
    ("search --set space.options.channels=true", "space.options.channels"),
    ("search --set space.options.layers=[1.5]", "space.options.layers"),
    ("search --set data.root=/dev/null", "/dev/null"),
    ("search --set a.b.c=1", "a"),
    ("search --threads 0", "threads"),
    ("profile --threads 99999999", "<= 1024"),
    ("search --epochs 3 --set epochs=1", "--epochs 3 and --set epochs=1 contradict"),
    ("search --precision fp17", "fp32"),
    ("search --device phone", "local"),
    ("search --runtime onnxrt", "onnxruntime"),
    ("search --method dart", "darts"),
    ("search --latency-model tabel", "did you mean table? available: kernel, network, table"),
    ("profile --measure-networks 0", "measure_networks"),
    ("profile --measure-networks 20 --kernels 100", "leave one of them out"),
    ("profile --transfer", "--measure-networks 10"),
    ("profile --transfer --measure-networks 10 --kernels 100", "leave --kernels out"),
    ("search --set method_options.ordr=2", "order"),
    ("search --set method_options.order=3", "order 1 and 2"),
    ("search --method gdas --set method_options.noise=2", "none"),
    ("search --space cell", "cells"),
    ("search --data digit", "digits"),
    ("search --plan fast", "quick"),
    ("profile --plan fast", "quick"),
    ("profile --set space.options.batch=4", "device.batch"),
    ("profile --channels 1000000000", "channels"),
    ("profile --seed -1", "seed"),
    ("profile --set data=5", "data"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), BAD_VALUES)
def test_a_bad_value_names_its_setting(line: str, said: str, command: Callable[..., Outcome], tmp_path: Path) -> None:
    arguments = line.split()
    if arguments[0] == "search":
        arguments += ["-o", "out"]
    check(command(*arguments), 2, said)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused_before_work(command: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for place in ("file", "file/below", "/proc/none"):
        check(command("search", "-o", place, "--epochs", "1"), 8, "cannot be written")
        check(command("profile", "-o", place), 8, "cannot be written")
    assert (tmp_path / "file").read_text() == "kept"


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    if "choices" in data:
        del data["fingerprint"]
    change(data)
    path.write_text(json.dumps(data))


def other_operator(data: dict[str, Any]) -> None:
    name, operator = next(iter(data["choices"].items()))
    data["choices"][name] = "max_pool_3x3" if operator != "max_pool_3x3" else "avg_pool_3x3"


def edit_weights(run: Path, signed: bool = False) -> None:
    """Another number in the weights, or another name of a tensor where the training result is signed anew."""
    path = run / "train" / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content.replace(b".weight", b".weighx", 1) if signed else content[:-3] + b"\x00\x00\x01")
    if signed:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        edit_json(run / "train" / "result.json", lambda d: d.update(sha256=sha256))


def budget(**changed: Any) -> dict[str, Any]:
    times = dict.fromkeys(("lowest_ms", "highest_ms", "expected_ms", "table_ms", "table_low_ms", "table_high_ms"), 1.0)
    measured = {"measured_ms": 1.0, "measured_repeatability_fraction": 0.01, "measured_converged": True}
    return {"text": "5ms", "statistic": "floor", "target_ms": 5.0, **times, **measured, **changed}


BAD_RUNS: dict[str, tuple[Callable[[Path], object], int, tuple[str, ...]]] = {
    "17 unknown operator": (
        lambda r: edit_json(r / "architecture.json", lambda d: d["choices"].update({next(iter(d["choices"])): "sep_conv_3x4"})),
        3,
        ("sep_conv_3x4", "sep_conv_3x3"),
    ),
    "17 unknown edge": (
        lambda r: edit_json(r / "architecture.json", lambda d: d["choices"].update({"normal.9-9": "skip_connect"})),
        3,
        ("normal.9-9",),
    ),
    "17 an edge too few": (
        lambda r: edit_json(r / "architecture.json", lambda d: d["choices"].pop(next(iter(d["choices"])))),
        3,
        ("incoming edges",),
    ),
    "17 a huge network": (
        lambda r: edit_json(r / "architecture.json", lambda d: d["space_options"].update(channels=10**9)),
        2,
        ("channels",),
    ),
    "17 another space": (lambda r: edit_json(r / "architecture.json", lambda d: d.update(space="cell")), 2, ("cells",)),
    "17 choices a list": (lambda r: edit_json(r / "architecture.json", lambda d: d.update(choices=[])), 3, ("choices",)),
    "17 other images": (
        lambda r: edit_json(r / "architecture.json", lambda d: d["space_options"].update(image_channels=3)),
        2,
        ("3 x 8 x 8",),
    ),
    "weights of another network": (
        lambda r: edit_json(r / "architecture.json", other_operator),
        3,
        ("train/result.json", "is of the network", "train it again"),
    ),
    "weights with another number": (lambda r: edit_weights(r), 3, ("weights.safetensors", "SHA-256", "train it again")),
    "weights with another name, signed": (
        lambda r: edit_weights(r, signed=True),
        3,
        ("weights.safetensors", "other tensors", "weighx", "train it again"),
    ),
    "a training result without a checksum": (
        lambda r: edit_json(r / "train/result.json", lambda d: d.pop("sha256")),
        3,
        ("train/result.json", "sha256"),
    ),
    "a budget of nothing": (
        lambda r: edit_json(r / "result.json", lambda d: d.update(budgets=[budget(target_ms=0.0)])),
        3,
        ("result.json", "target_ms", "found 0.0"),
    ),
    "a measured budget of nothing": (
        lambda r: edit_json(r / "result.json", lambda d: d.update(budgets=[budget(measured_ms=-1)])),
        3,
        ("result.json", "measured_ms", "found -1"),
    ),
    "a number over all bounds": (
        lambda r: (r / "result.json").write_text('{"budgets": [], "duration_s": 1e908}'),
        3,
        ("result.json", "duration_s", "inf"),
    ),
    "a long number": (
        lambda r: (r / "architecture.json").write_text('{"schema": ' + "9" * 5000 + "}"),
        3,
        ("architecture.json", "too long"),
    ),
    "half a character": (
        lambda r: edit_json(r / "architecture.json", lambda d: d["space_options"].update(stem="\ud800")),
        3,
        ("architecture.json", "not Unicode"),
    ),
    "10 truncated weights": (
        lambda r: (r / "train/weights.safetensors").write_bytes((r / "train/weights.safetensors").read_bytes()[:999]),
        3,
        ("weights.safetensors",),
    ),
    "10 a header of 2^63 bytes": (
        lambda r: (r / "train/weights.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"x" * 99),
        3,
        ("weights.safetensors",),
    ),
    "17 edited": (
        lambda r: (r / "architecture.json").write_text((r / "architecture.json").read_text().replace("_3x3", "_5x5", 1)),
        3,
        ("architecture.json",),
    ),
    "no result": (lambda r: (r / "result.json").unlink(), 3, ("result.json",)),
    "a result that is a list": (lambda r: (r / "result.json").write_text("[]"), 3, ("result.json",)),
    "a result without budgets": (lambda r: (r / "result.json").write_text("{}"), 3, ("budgets",)),
    "no architecture": (lambda r: (r / "architecture.json").unlink(), 3, ("architecture.json",)),
    "no configuration": (lambda r: (r / "config.toml").unlink(), 3, ("config.toml",)),
    "a training result without accuracy": (
        lambda r: edit_json(r / "train/result.json", lambda d: d.pop("test_accuracy")),
        3,
        ("test_accuracy",),
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_bad_run_is_not_exported(case: str, run: Path, command: Callable[..., Outcome]) -> None:
    spoil, code, said = BAD_RUNS[case]
    spoil(run)
    check(command("export", "run", "--no-device", "-q"), code, *said)
    assert not (run / "export").exists()


def test_the_valid_run_is_exported(run: Path, command: Callable[..., Outcome]) -> None:
    outcome = command("export", "run", "--no-device", "-q", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["trained"]


@pytest.mark.parametrize("verb", ["train", "export"])
def test_a_run_that_is_not_there(verb: str, command: Callable[..., Outcome], tmp_path: Path) -> None:
    check(command(verb, "nowhere"), 3, "nowhere")
    assert not (tmp_path / "nowhere").exists()


BAD_REPORTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "not UTF-8": (lambda r: (r / "metrics.jsonl").write_bytes(b'{"epoch": "\xff"}\n'), ("metrics.jsonl", "UTF-8")),
    "a folder": (lambda r: (r / "metrics.jsonl").mkdir(), ("metrics.jsonl", "cannot be read")),
    "a number": (lambda r: (r / "metrics.jsonl").write_text("5\n"), ("metrics.jsonl:1", "JSON object")),
    "a number over all bounds": (
        lambda r: (r / "metrics.jsonl").write_text('{"lr": 1}\n{"lr": 1e908}\n'),
        ("metrics.jsonl:2", "lr", "inf"),
    ),
    "a budget of nothing": (
        lambda r: (r / "result.json").write_text(
            json.dumps(
                {
                    "method": "darts",
                    "epochs": 1,
                    "duration_s": 1,
                    "fingerprint": "",
                    "params": 1,
                    "madds": 1,
                    "budgets": [budget(target_ms=0)],
                }
            )
        ),
        ("search", "target_ms"),
    ),
    "half a character": (lambda r: (r / "result.json").write_text(r'{"method": "\ud800"}'), ("result.json", "not Unicode")),
    "a configuration with NaN": (lambda r: (r / "config.toml").write_text("x = nan"), ("config.toml", "nan")),
}


@pytest.mark.parametrize("case", BAD_REPORTS)
def test_a_bad_journal_is_named(case: str, run: Path, command: Callable[..., Outcome]) -> None:
    spoil, said = BAD_REPORTS[case]
    spoil(run)
    check(command("report", "run", "--json"), 3, *said)


def test_looking_at_a_run_leaves_it_as_it_is(run: Path, command: Callable[..., Outcome]) -> None:
    (run / "metrics.jsonl").write_text('{"epoch": 9')
    command("report", "run")
    assert (run / "metrics.jsonl").read_text() == '{"epoch": 9'


def test_a_checkpoint_of_another_search_is_refused(command: Callable[..., Outcome], tmp_path: Path) -> None:
    small = ("--set", "supernet.layers=3", "--epochs", "1", "--set", "data.train_fraction=0.1", *SMALL, "-q", "-o")
    for name, width in (("one", 2), ("other", 4)):
        assert command("search", "--set", f"supernet.channels={width}", *small, name).code == 0
    for file in (tmp_path / "one" / "checkpoints" / "stage0").iterdir():
        (tmp_path / "other" / "checkpoints" / "stage0" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other" / "checkpoints" / "stage0" / "000001.backup.json").write_text("not a checkpoint")
    check(command("search", "--set", "supernet.channels=4", *small, "other"), 3, "of another search", "remove it")


def test_a_checkpoint_or_metrics_of_another_training_are_refused(
    run: Path, command: Callable[..., Outcome], tmp_path: Path
) -> None:
    arguments = ("train", "run", "--epochs", "1", "--set", "data.train_fraction=0.1", "-q")
    assert command(*arguments).code == 0
    metrics = run / "train" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + "{}\n")
    check(command(*arguments), 3, "metrics.jsonl:2", "'epoch'")
    metrics.write_text(whole + '{"epoch": "1"}\n')
    check(command(*arguments), 3, "metrics.jsonl:2")
    for state in ({"epoch": 1}, [], {"epoch": 1, "step": 0, "tally": {}, "network": {"stem.weight": torch.zeros(1)}}):
        Checkpoints(run / "train" / "checkpoints").save(state)
        check(command(*arguments), 3, "another search or training", "remove it")


def test_an_overflowing_number_in_the_newest_checkpoint_goes_back_to_the_one_before_it(
    run: Path, command: Callable[..., Outcome]
) -> None:
    arguments = ("train", "run", "--epochs", "2", "--set", "data.train_fraction=0.1")
    assert command(*arguments, "-q").code == 0
    newest = run / "train" / "checkpoints" / "000002.json"
    newest.write_text(newest.read_text().replace('"lr": ', '"lr": 1e908, "_": '))
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err
    assert "is inf" in outcome.err
    assert "going back to the checkpoint before it" in outcome.err


def test_a_hello_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"hello": ["onnxruntime"]}\n')
    with pytest.raises(DocumentError, match=r"rows\.jsonl:1: hello: Expected `object`"):
        SweepLog.resume(Journal(tmp_path / "rows.jsonl"))


def test_arguments_that_are_no_text_are_refused(command: Callable[..., Outcome], tmp_path: Path) -> None:
    for arguments in (("search", "-o", "o\udcff"), ("search", "--set", "data.root=\udcff"), ("report", "r\udcff")):
        check(command(*arguments), 2, "not UTF-8", "rename")
    assert not list(tmp_path.glob("o*"))


def test_a_configuration_that_is_no_file_is_refused(command: Callable[..., Outcome]) -> None:
    check(command("search", "--config", "/dev/zero"), 3, "/dev/zero", "not a regular file")


def test_one_bad_table_hides_no_other(command: Callable[..., Outcome], table: Path, home: Path) -> None:
    shutil.copytree(table, home / "latency_tables" / "good")
    for name, card in (("digits", '{"schema": ' + "9" * 5000 + "}"), ("many", '{"a": [' + "0," * 1_000_001 + "0]}")):
        (home / "latency_tables" / name).mkdir()
        (home / "latency_tables" / name / "card.json").write_text(card)
    outcome = command("table", "list", "--json")
    assert outcome.code == 0, outcome.err
    listed = json.loads(outcome.out)
    assert [Path(t["path"]).name for t in listed["tables"]] == ["good"]
    assert len(listed["damaged"]) == 2


@pytest.mark.parametrize("other", [("--channels", "8"), ("--channels", "4", "--threads", "2")])
def test_a_table_of_another_space_or_target_is_not_overwritten(
    other: tuple[str, ...], command: Callable[..., Outcome], table: Path, home: Path
) -> None:
    before = (table / "card.json").read_bytes()
    check(command("profile", *other, "--layers", "3", "-o", table), 2, "holds the latency table of", space().key, "--output")
    assert (table / "card.json").read_bytes() == before
    assert not home.exists(), "before any measuring"
    check_replaceable(table, workflows.Target.from_config(CONFIG.device).table_key, space().key)
    check_replaceable(table / "none", workflows.Target.from_config(CONFIG.device).table_key, "another")


def test_another_configuration_is_refused_with_the_difference(run: Path, command: Callable[..., Outcome]) -> None:
    assert command("train", "run", "--epochs", "1", "--set", "data.train_fraction=0.1", "-q").code == 0
    before = (run / "train" / "weights.safetensors").read_bytes()
    outcome = command("train", "run", "--epochs", "2", "--set", "data.train_fraction=0.1", "-q")
    check(outcome, 2, "epochs: 1 -> 2", "remove this folder")
    assert (run / "train" / "weights.safetensors").read_bytes() == before


def test_a_start_that_failed_does_not_bind_the_folder(command: Callable[..., Outcome], tmp_path: Path) -> None:
    small = ("--set", "supernet.channels=2", "--set", "supernet.layers=3", "--epochs", "1", *SMALL, "-q", "-o", "out")
    check(command("search", *small, "--set", "data.batch=5000"), 2, "data.batch")
    assert command("search", *small, "--set", "data.train_fraction=0.1").code == 0


def test_a_table_that_was_measured_again_does_not_go_on_with_a_search(
    command: Callable[..., Outcome], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--set", "supernet.channels=2", "--set", "supernet.layers=3", "--epochs", "1", *SMALL, "-q", "-o", "out")
    few = ("--set", "data.train_fraction=0.1", "--set", "selection.steps=8")
    arguments = ("search", "--latency-budget", "1e6ms", *small, "--no-measure", *few)
    first = fakes.make_model(space())
    monkeypatch.setattr(run_search, "latency_model", lambda cfg, space, target, link: first)
    assert command(*arguments).code == 0
    monkeypatch.setattr(run_search, "latency_model", lambda cfg, space, target, link: fakes.make_model(space, 1.2))
    before = (tmp_path / "out" / "result.json").read_bytes()
    check(command(*arguments), 2, f"table (content): {first.table.digest} -> ")
    assert (tmp_path / "out" / "result.json").read_bytes() == before


def test_images_that_changed_do_not_go_on_with_a_training(
    command: Callable[..., Outcome], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", "run", "--epochs", "1", "--set", "data.train_fraction=0.1", "-q")
    assert command(*arguments).code == 0
    real = ImageData.digest
    monkeypatch.setattr(ImageData, "digest", lambda data: real(data)[::-1])
    check(command(*arguments), 2, "data.root (content): ", " -> ")


@pytest.mark.parametrize(
    ("stop", "code", "word"), [(KeyboardInterrupt(), 130, "interrupted"), (SystemExit(143), 143, "terminated")]
)
@pytest.mark.parametrize(("verb", "left"), [("export", "export"), ("verify", "verified")])
def test_a_command_that_is_stopped_says_how_to_go_on(
    verb: str, left: str, stop: BaseException, code: int, word: str, run: Path, command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def stopped(*arguments: object) -> None:
        raise stop

    monkeypatch.setattr(workflows.Target, "measure", stopped)
    outcome = command(verb, "run", "-q")
    assert outcome.code == code
    assert outcome.err.splitlines()[-1] == f"{word}; nothing was written; the same command begins anew"
    assert not (run / left).exists()


def test_an_exported_model_that_was_edited_is_not_measured(run: Path, command: Callable[..., Outcome]) -> None:
    assert command("export", "run", "--no-device", "-q").code == 0
    with open(run / "export" / "model.onnx", "ab") as file:
        file.write(b"x")
    check(command("verify", "run", "-q"), 3, "model.onnx", "export it again")
    assert not (run / "verified").exists()
