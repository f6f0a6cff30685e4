"""What all tests share: a home of their own, the command line in this process, and a valid table and run to spoil."""

from __future__ import annotations

import ctypes
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # libraries deprecate each other while they are imported
    import lightning_fabric  # noqa: F401
    import torchvision  # noqa: F401


from mobilenas import cli, workflows
from mobilenas.config import SearchConfig, SpaceConfig, dump_config
from mobilenas.core import documents
from mobilenas.data import load_data
from mobilenas.latency.table import LatencyTable
from mobilenas.results import TrainResult
from mobilenas.search.checkpoints import save_tensors
from mobilenas.spaces.base import SearchSpace
from mobilenas.testing import fakes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: then no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's data goes; no tables are shipped beside it."""
    monkeypatch.setenv("MOBILENAS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("mobilenas.latency.store.shipped", lambda folder: tmp_path / "shipped" / folder)
    return tmp_path / "home"


def has_driver() -> bool:
    """Whether TensorRT could run here."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


SMALL = ("--channels", "4", "--layers", "3")
CONFIG = SearchConfig(space=SpaceConfig(options={"channels": 4, "layers": 3}))


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code and what it said on stderr and stdout."""

    code: int
    err: str
    out: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Outcome]:
    """Runs ``mobilenas ARGUMENTS`` in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mobilenas", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        said = capsys.readouterr()
        return Outcome(code, said.err, said.out)

    return run


def space() -> SearchSpace:
    return workflows.space_from_config(CONFIG.space, load_data("digits"), 1)


@pytest.fixture(scope="session")
def valid_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of this host for the small space, its numbers synthetic."""
    folder = tmp_path_factory.mktemp("valid") / "table"
    table = fakes.make_table(space())
    key = workflows.Target.from_config(CONFIG.device).table_key
    card = msgspec.structs.replace(table.card, key=msgspec.structs.replace(key, runtime_version="1"))
    LatencyTable(card, table.rows, table.workload_costs, table.networks).save(folder)
    return folder


@pytest.fixture(scope="session")
def valid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a search and a training leave behind, without having searched or trained."""
    run = tmp_path_factory.mktemp("valid") / "run"
    (run / "train").mkdir(parents=True)
    architecture = space().random_architecture(random.Random(0))
    (run / "architecture.json").write_text(architecture.to_json())
    (run / "config.toml").write_text(dump_config(CONFIG))
    (run / "result.json").write_text(documents.dump_json({"schema": "mobilenas/search-result@1", "budgets": []}))
    network = space().build(architecture)
    weights = run / "train" / "weights.safetensors"
    sha256 = save_tensors(weights, network.state_dict(), {"fingerprint": architecture.fingerprint})
    result = TrainResult("weights.safetensors", sha256, architecture.fingerprint, 0.5, 0.6, 1, 1.0)
    document = {"schema": "mobilenas/train-result@1", **msgspec.to_builtins(result)}
    (run / "train" / "result.json").write_text(documents.dump_json(document))
    return run


@pytest.fixture
def table(valid_table: Path, tmp_path: Path) -> Path:
    """A copy of the valid table to spoil."""
    return Path(shutil.copytree(valid_table, tmp_path / "table"))


@pytest.fixture
def run(valid_run: Path, tmp_path: Path) -> Path:
    """A copy of the valid run to spoil."""
    return Path(shutil.copytree(valid_run, tmp_path / "run"))
