"""A device of which no kernel is measured, really: this host with two threads, from its table with one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenas.latency.prediction import Prediction

SMALL = ["--set", "space.options.channels=4", "--set", "space.options.layers=3", "--set", "space.options.nodes=2"]
TINY = [
    *SMALL,
    "--set",
    "supernet.channels=2",
    "--set",
    "supernet.layers=3",
    "--epochs",
    "1",
    "--set",
    "data.train_fraction=0.3",
    "--set",
    "selection.rank=['logits']",
]


def run(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "mobilenas", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_whole_networks_then_a_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path / "home"))
    space = ["--data", "digits", *SMALL]
    alone = run("profile", *space, "--threads", "2", "--transfer", "--measure-networks", "6", expect=3)
    assert "nothing can be transferred" in alone.stderr
    profiled = json.loads(run("profile", *space, "--measure-networks", "15", "--json").stdout)
    assert profiled["network_error"]["networks"] == 40
    searched = json.loads(
        run("search", "--latency-budget", "60%", "--latency-model", "network", "--budget-quantile", "0.8", *TINY,
            "--no-measure", "-o", "one", "--json").stdout
    )  # fmt: skip
    [budget] = searched["budgets"]
    assert (budget["model"], budget["quantile"]) == ("network", 0.8)
    predicted = Prediction(budget["table_ms"], budget["table_low_ms"], budget["table_high_ms"])
    assert predicted.ms < predicted.at_quantile(0.8) <= budget["target_ms"] * (1 + 1e-9)
    assert searched["latency_model"]["origin"] == "measured"

    new = ["--threads", "2"]
    transferred = json.loads(run("profile", *space, *new, "--transfer", "--measure-networks", "8", "--json").stdout)
    assert transferred["networks"] == 8
    assert [proxy["key"]["threads"] for proxy in transferred["proxies"]] == [1]
    assert not list(Path(transferred["folder"]).glob("*.csv"))
    found = run(
        "search", "--latency-budget", "60%", "--latency-model", "network", *new, *TINY, "--no-measure", "-o", "two", "--json"
    )
    assert json.loads(found.stdout)["latency_model"]["origin"] == "transferred"
