"""The wheel, built and installed in a fresh environment outside the checkout, works and carries the shipped folders."""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "mobilenas/_shipped/export/runners/onnxruntime_runner.py" in names
    assert "mobilenas/_shipped/latency_tables/README.md" in names
    assert "mobilenas/py.typed" in names
    assert not [name for name in names if name.startswith("tests")]

    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, cwd=tmp_path)
    # the dependencies are those of this environment: installing five gigabytes again would show nothing about the wheel
    [site] = (tmp_path / "fresh").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    done = subprocess.run(
        [tmp_path / "fresh" / "bin" / "mobilenas", "env", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    assert facts["latency tables"] == str(site / "mobilenas" / "_shipped" / "latency_tables")
    assert facts["runners"].startswith(str(site))
