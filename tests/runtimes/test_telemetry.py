"""ONNX Runtime collects no data on its use: its files appear as soon as it is imported with its telemetry on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenas.core.resources import shipped

RUNNER = shipped("export") / "runners" / "onnxruntime_runner.py"


@pytest.mark.parametrize(
    "argv", [["-c", "import mobilenas, onnxruntime"], [str(RUNNER), "job.json"]], ids=["package", "runner"]
)
def test_onnx_runtime_leaves_no_file_in_the_home(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"mode": "time", "models": []}))
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, *argv], env=environment, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert not [path for path in tmp_path.rglob("*") if path.name != "job.json"], done
