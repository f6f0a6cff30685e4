"""The whole product, really, on this CPU: profile, search under a budget, train, export, measure."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mobilenas.latency.table import LatencyTable

SMALL = ["--set", "space.options.channels=4", "--set", "space.options.layers=3", "--set", "space.options.nodes=2"]


def run(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "mobilenas", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_profile_search_train_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profiled = json.loads(run("profile", "--data", "digits", *SMALL, "--json").stdout)
    table = LatencyTable.load(Path(profiled["table"]))
    assert table.card.origin == "measured"
    assert profiled["kernels"] == len(table.rows) > 20
    assert profiled["table_mape_fraction"] < 0.2

    few = ["--set", "supernet.channels=2", "--set", "supernet.layers=3", "--set", "data.train_fraction=0.3"]
    tiny = [*SMALL, *few, "--epochs", "1", "--set", "selection.keep=4", "--set", "selection.steps=8"]
    infeasible = run("search", "--latency-budget", "1us", *tiny, "-o", "no", expect=5)
    assert "fastest" in infeasible.stderr
    assert not Path("no").exists()

    searched = json.loads(run("search", "--latency-budget", "40%", *tiny, "-o", "run", "--json").stdout)
    budget = searched["budgets"][0]
    assert budget["predicted_gap_fraction"] == budget["table_ms"] / budget["target_ms"] - 1
    assert 1 <= budget["rounds"] == len(searched["selection"]["rounds"]) <= 3
    assert budget["table_ms"] <= max(r["derivation_target_ms"] for r in searched["selection"]["rounds"])
    assert searched["verified_on_target"]
    assert budget["measured_ms"] <= budget["target_ms"] * (1 + budget["measured_repeatability_fraction"])
    assert Path("run/STATUS").read_text().split()[0] == "ok"
    epoch = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert epoch["budgets"][0]["table_ms"] > 0

    refused = run("search", "--latency-budget", "50%", *tiny, "-o", "run", expect=2)
    assert "50%" in refused.stderr

    trained = json.loads(run("train", "run", "--epochs", "2", "--json").stdout)
    assert 0.1 < trained["test_accuracy"] <= 1
    exported = json.loads(run("export", "run", "--onnx", "--json").stdout)
    assert exported["agreement"]["top_1_agreement_fraction"] == 1
    assert exported["agreement"]["relative_difference"] < 1e-4
    assert exported["params"] == searched["params"]
    assert exported["measured"]["value_ms"] > 0

    for line in Path("run/export/SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256(Path("run/export", name).read_bytes()).hexdigest() == digest
    model = onnx.load("run/export/model.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["fingerprint"] == searched["fingerprint"]
    assert json.loads(metadata["preprocessing"])["image_size"] == 8
    session = onnxruntime.InferenceSession("run/export/model.onnx")
    assert session.run(None, {"images": np.zeros((1, 1, 8, 8), np.float32)})[0].shape == (1, 10)

    predicted = json.loads(run("predict", "run/export/model.onnx", "--profile-missing", "--measure", "--json").stdout)
    ms = predicted["predicted"]["prediction"]
    assert predicted["predicted"]["predicted_share_fraction"] == 0
    assert ms["low_ms"] < ms["ms"] < ms["high_ms"]
    assert 0.6 < ms["ms"] / predicted["measured"]["value_ms"] < 1.6, "of the same network, whose kernels are all measured"
    run("predict", "run/export/SHA256SUMS", expect=3)
