"""Every kit, copied to an empty folder and started by its script where nothing but its engine can be imported."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import distribution
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement

from mobilenas.errors import UnknownNameError
from mobilenas.export.kits import kit_named, kit_names
from tests.conftest import Outcome, has_driver

Command = Callable[..., Outcome]
INSTALLED = {"tensorrt": "tensorrt-rtx"}
"""Which of our packages stands in for one that a device brings."""


def needed(packages: Iterable[str]) -> set[str]:
    """The packages with all that they need."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def python_with(packages: Iterable[str], folder: Path) -> Path:
    """An interpreter that finds the standard library and these packages, and nothing else."""
    site = folder / "site"
    site.mkdir(parents=True)
    for name in needed(packages):
        whole = distribution(name)
        for top in {file.parts[0] for file in whole.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(whole.locate_file(top))))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("name", kit_names())
def test_a_kit_runs_alone(name: str, run: Path, command: Command, tmp_path: Path) -> None:
    outcome = command("export", str(run), "--kit", name, "--no-device", "--json")
    assert outcome.code == 0, outcome.err
    [folder] = json.loads(outcome.out)["kits"]
    kit = Path(shutil.move(folder, tmp_path / "elsewhere"))
    shutil.rmtree(run)
    packages = [INSTALLED.get(package, package) for package in kit_named(name).packages]
    python = python_with(packages, tmp_path / "clean")
    lacking = subprocess.run([python, "-c", "import mobilenas"], cwd="/", capture_output=True, check=False)
    assert lacking.returncode != 0
    done = subprocess.run(
        ["sh", str(kit / "run.sh")], cwd="/", env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    facts = msgspec.toml.decode((kit / "kit.toml").read_text())
    assert facts["name"] == name
    assert facts["data"] == "digits"
    assert facts["input_shape"] == [1, 1, 8, 8]
    readme = (kit / "README.md").read_text()
    assert "run.sh" in readme
    assert all(package in readme for package in facts["packages"])
    if facts["runtime"] == "tensorrt" and not has_driver():
        assert done.returncode == 1
        assert "the engine refuses model: " in done.stderr
        assert "no NVIDIA driver" in done.stderr or "libcudart.so, is not installed" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    *reports, latency = done.stdout.splitlines()
    assert [json.loads(line)["type"] for line in reports] == ["hello", "timing", "bye"]
    times = json.loads(reports[1])["wall_ms"]
    assert latency.startswith(f"model: lowest {min(times):.4g} ms, median ")
    assert facts["largest_difference_from_torch"] < 1e-3


def test_a_kit_that_was_changed_does_not_run(run: Path, command: Command, tmp_path: Path) -> None:
    command("export", str(run), "--kit", "linux-onnxruntime", "--no-device")
    kit = run / "export" / "kits" / "linux-onnxruntime"
    (kit / "job.json").write_text((kit / "job.json").read_text().replace('"threads": 1', '"threads": 2'))
    done = subprocess.run(["sh", str(kit / "run.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a file of this kit was changed" in done.stderr


def test_a_kit_says_what_its_engine_said(run: Path, command: Command, tmp_path: Path) -> None:
    command("export", str(run), "--kit", "linux-onnxruntime", "--no-device")
    kit = run / "export" / "kits" / "linux-onnxruntime"
    (kit / "model.onnx").write_bytes(b"nonsense")
    (kit / "SHA256SUMS").write_text("")
    script = (kit / "run.sh").read_text().replace("sha256sum -c", "true")
    (kit / "run.sh").write_text(script)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    done = subprocess.run(["sh", str(kit / "run.sh")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the engine refuses model: " in done.stderr


def test_a_kit_that_is_not_there_is_named_beside_those_that_are(run: Path, command: Command) -> None:
    outcome = command("export", str(run), "--kit", "linux-onnx")
    assert outcome.code == 2
    assert "no kit named 'linux-onnx'" in outcome.err
    assert "linux-onnxruntime" in outcome.err
    assert not (run / "export").exists()
    with pytest.raises(UnknownNameError):
        kit_named("../runners")
