"""A stranger's method, space and runtime, as the how-tos write them: the kits pass, and the command line finds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent / "stranger"
sys.path.insert(0, str(HERE))

from stranger.latency_model import MaddsModel  # noqa: E402
from stranger.link import NiceLink  # noqa: E402
from stranger.method import SinglePath  # noqa: E402
from stranger.ranker import FewestLayers  # noqa: E402
from stranger.runtime import OnnxReference  # noqa: E402
from stranger.space import ChainSpace  # noqa: E402

sys.path.remove(str(HERE))  # only the commands below are to find the entry points

from mobilenas import ops  # noqa: E402
from mobilenas.core.registry import Registry  # noqa: E402
from mobilenas.devices.links import Link  # noqa: E402
from mobilenas.errors import UsageError  # noqa: E402
from mobilenas.latency.models import LatencyModel  # noqa: E402
from mobilenas.latency.table import ErrorReport  # noqa: E402
from mobilenas.methods.base import SearchMethod  # noqa: E402
from mobilenas.runtimes.base import RunSettings, Runtime  # noqa: E402
from mobilenas.search.rankers.base import Evidence, Ranker  # noqa: E402
from mobilenas.spaces.base import SearchSpace  # noqa: E402
from mobilenas.spaces.cells import CellSpace  # noqa: E402
from mobilenas.spaces.dense_blocks import DenseBlockSpace  # noqa: E402
from mobilenas.spaces.dense_layout import blocks  # noqa: E402
from mobilenas.testing.contracts import SpaceContract  # noqa: E402
from mobilenas.testing.device_contracts import LinkContract, RuntimeContract  # noqa: E402
from mobilenas.testing.ranker_contracts import RankerContract  # noqa: E402
from mobilenas.testing.search_contracts import LatencyModelContract, MethodContract  # noqa: E402


class TestSinglePath(MethodContract):
    def make(self) -> SearchMethod:
        return SinglePath()


class TestFewestLayers(RankerContract):
    def make(self, evidence: Evidence) -> Ranker:
        return FewestLayers(evidence)


class TestChainSpace(SpaceContract):
    heeds_temperature = False

    def make(self) -> SearchSpace:
        return ChainSpace()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stranger's operators are in the catalogue, by their entry point."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setattr(ops, "OPERATORS", Registry("operator", dict(ops.OPERATORS._built_in)))
    assert ops.OPERATORS.plug_ins == ("max_pool_conv",)


@pytest.mark.usefixtures("installed")
class TestCellsWithAnOperatorOfThePlugIn(SpaceContract):
    samples = 4

    def make(self) -> SearchSpace:
        operators = ("none", "skip_connect", "max_pool_conv", "dil_conv_3x3")
        return CellSpace(channels=4, layers=3, image_size=9, nodes=3, operators=operators)


@pytest.mark.usefixtures("installed")
class TestDenseBlocksWithAnOperatorOfThePlugIn(SpaceContract):
    samples = 4

    def make(self) -> SearchSpace:
        layout = blocks((4, 4, 6), (1, 2, 2), (0, 1, 1), (0, 1, 1))
        return DenseBlockSpace("mbconv", layout, 8, operators=("max_pool_conv", "mbconv_k3_e3"), image_size=8, classes=3)


@pytest.mark.usefixtures("installed")
def test_an_operator_that_nobody_registered_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'max_pool_con'.*did you mean max_pool_conv"):
        CellSpace(operators=("skip_connect", "max_pool_con"))


class TestNiceLink(LinkContract):
    def make(self) -> Link:
        return NiceLink()


class TestMaddsModel(LatencyModelContract):
    def make(self) -> tuple[LatencyModel, SearchSpace]:
        space = CellSpace(channels=4, layers=3, image_size=8, nodes=3)
        return MaddsModel(
            space, fixed_ms=0.01, ms_per_million=0.2, error=ErrorReport.of(np.array([0.9, 1.0]), np.ones(2))
        ), space

    def ask_what_is_missing(self) -> None:
        _, space = self.make()
        MaddsModel(space, fixed_ms=0.01, ms_per_million=0.0, error=ErrorReport.of(np.array([0.9, 1.0]), np.ones(2)))


@pytest.mark.serial
class TestOnnxReference(RuntimeContract):
    settings = RunSettings()

    def make(self) -> Runtime:
        return OnnxReference()


def mobilenas(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(HERE), "MOBILENAS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "mobilenas", *arguments], env=environment, cwd=home, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_all_three_together_through_their_entry_points(tmp_path: Path) -> None:
    """Profile the stranger's space on the stranger's engine, search it by the stranger's method, train, export, measure."""
    space = ("--space", "chain", "--layers", "3", "--channels", "4")
    engine = ("--runtime", "onnx-reference")
    plan = ("--set", "plan=quick")
    profiled = mobilenas(tmp_path, "profile", *space, *engine, *plan, "--json")
    assert profiled.returncode == 0, profiled.stderr
    assert json.loads(profiled.stdout)["kernels"] >= 5
    searched = mobilenas(
        tmp_path, "search", *space, *engine, "--method", "single-path", "--latency-budget", "60%", "--epochs", "1",
        "--set", "supernet.channels=4", "--set", "data.train_fraction=0.3", "--set", "selection.rank=['fewest-layers']",
        "--no-measure", "-o", "run", "--json",
    )  # fmt: skip
    assert searched.returncode == 0, searched.stderr
    found = json.loads(searched.stdout)
    assert found["method"] == "single-path"
    assert found["architecture"]["space"] == "chain"
    assert set(found["selection"]["candidates"][0]["ranks"]) == {"fewest-layers"}
    assert found["budgets"][0]["table_ms"] <= found["budgets"][0]["target_ms"]
    trained = mobilenas(tmp_path, "train", "run", "--epochs", "1", "--set", "data.train_fraction=0.3", "--json")
    assert trained.returncode == 0, trained.stderr
    exported = mobilenas(tmp_path, "export", "run", "--onnx", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["measured"]["value_ms"] > 0


def test_a_plug_in_whose_package_is_missing_says_what_to_install(tmp_path: Path) -> None:
    points = tmp_path / "lacking-1.0.dist-info"
    points.mkdir()
    (points / "METADATA").write_text("Metadata-Version: 2.1\nName: lacking\nVersion: 1.0\n")
    (points / "entry_points.txt").write_text("[mobilenas.runtimes]\nlacking = lacking_engine:Runtime\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MOBILENAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "mobilenas", "profile", "--runtime", "lacking"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 8, done.stderr
    assert "pip install lacking_engine" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_two_packages_claim_is_refused(tmp_path: Path) -> None:
    twin = tmp_path / "twin-1.0.dist-info"
    twin.mkdir()
    (twin / "METADATA").write_text("Metadata-Version: 2.1\nName: twin\nVersion: 1.0\n")
    (twin / "entry_points.txt").write_text("[mobilenas.spaces]\ncells = stranger.space:ChainSpace\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE}"}
    done = subprocess.run(
        [sys.executable, "-m", "mobilenas", "describe"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "two packages provide the space 'cells'" in done.stderr
