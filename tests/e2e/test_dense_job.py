"""DenseNAS from profile to export, really, on this CPU: a space of one's own under a budget, and a published network."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from tests.conftest import Outcome

Command = Callable[..., Outcome]

BLOCKS = """
method = "dense-nas"
epochs = 3

[space]
name = "dense-blocks"

[space.options]
operators = ["mbconv_k3_e3", "mbconv_k3_e6"]
blocks = [
    "width=4 stride=1 stage=0 stack=0",
    "width=6 stride=2 stage=1 stack=1",
    "width=8 stride=2 stage=1 stack=1",
    "width=8 stride=4 stage=2 stack=1",
]
last_width = 16
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.slow
def test_blocks_of_ones_own_are_profiled_searched_trained_and_exported(here: Path, command: Command) -> None:
    (here / "space.toml").write_text(BLOCKS.partition("epochs = 3")[2])
    (here / "search.toml").write_text(BLOCKS)
    profiled = json.loads(command("profile", "--config", "space.toml", "--data", "digits", "-o", "table", "--json").out)
    assert profiled["kernels"] > 10
    arguments = (
        "search", "--config", "search.toml", "--data", "digits", "--table", "table", "--latency-budget", "40%",
        "--set", "architecture.lr=0.01", "--set", "selection.rank=['inherited']", "--no-measure", "--json",
    )  # fmt: skip
    free = json.loads(command(*arguments, "-o", "free").out)
    searched = json.loads(command(*arguments, "--set", "log_cost.weight=20", "--set", "log_cost.base=2", "-o", "run").out)
    assert searched["budgets"][0]["expected_ms"] < free["budgets"][0]["expected_ms"], "the log of the cost is in the loss"
    assert searched["budgets"][0]["table_ms"] <= searched["budgets"][0]["target_ms"]
    assert searched["architecture"]["choices"]["stem.next"].startswith("block")
    trained = json.loads(
        command("train", "run", "--epochs", "15", "--set", "weights.lr=0.1", "--set", "drop_path_fraction=0", "--json").out
    )
    assert trained["test_accuracy"] > 0.4
    exported = json.loads(command("export", "run", "--onnx", "--no-device", "--json").out)
    assert exported["agreement"]["top_1_agreement_fraction"] == 1
    assert exported["params"] == searched["params"]


@pytest.mark.slow
def test_a_published_network_is_exported_by_name(here: Path, command: Command) -> None:
    exported = json.loads(command("export", "densenas-a", "--onnx", "--no-device", "--json").out)
    assert exported["madds"] == 251_334_416
    assert exported["agreement"]["relative_difference"] < 1e-4
    assert not exported["trained"]
    model = onnx.load("runs/densenas-a/export/model.onnx")
    assert sum(tensor.dims[0] == 1984 for tensor in model.graph.initializer if len(tensor.dims) == 4) == 1
    assert command("export", "densenas-a", "--no-device").code == 0
    (here / "runs" / "densenas-b").mkdir()
    taken = command("export", "densenas-b", "--no-device")
    assert taken.code == 2
    assert "does not hold densenas-b" in taken.err
    unknown = command("export", "densenas-d")
    assert unknown.code == 3
    assert "densenas-c" in unknown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "dense-nas"], "needs a space with routes; cells has"),
        (["--method", "darts", "--space", "dense-small"], "needs a space with cells; dense-blocks has routes"),
        (["--method", "dense-nas", "--space", "dense-small", "--set", "supernet.channels=8"], "leave them out"),
        (["--method", "dense-nas", "--space", "dense-small", "--set", "switches.skip_limit=2"], "needs a space with"),
        (["--method", "dense-nas", "--space", "dense-small", "--set", "log_cost.base=1"], "log_cost.base"),
    ],
)
def test_what_does_not_go_together_is_refused(here: Path, command: Command, arguments: list[str], said: str) -> None:
    refused = command("search", "--data", "fashion-mnist", "--epochs", "1", *arguments)
    assert refused.code == 2, refused.err
    assert said in refused.err
    assert not (here / "runs").exists()
