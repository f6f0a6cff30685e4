"""Faults of searches and trainings by their numbers: 12, 20, 21 and 24 (22 is in search/test_stabilisers.py, 23 in
search/test_parts.py, 26 in test_kill.py)."""

import io
import json
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenas.latency.budget import AugmentedLagrangian
from mobilenas.search import checkpoints
from mobilenas.search.checkpoints import Checkpoints, Saver
from tests.conftest import SMALL, Outcome
from tests.search.test_engine_budget import search as search_under_budget

SEARCH = ("search", "--method", "darts", *SMALL, "--data", "digits", "--set", "data.train_fraction=0.2", "--set",
          "data.batch=48", "--set", "warmup_epochs=0", "--set", "space.options.nodes=2")  # fmt: skip


def bomb(marker: Path) -> bytes:
    """A file of torch.save that makes ``marker`` where it is unpickled."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    buffer = io.BytesIO()
    torch.save({"state_dict": Bomb()}, buffer)
    assert pickle.PROTO in buffer.getvalue()
    return buffer.getvalue()


@pytest.mark.parametrize("place", ["architecture", "model", "weights", "checkpoint", "table", "config"])
def test_12_a_pickle_is_never_opened_wherever_it_is_offered(
    place: str, command: Callable[..., Outcome], valid_run: Path, tmp_path: Path
) -> None:
    marker, evil, run = tmp_path / "opened", tmp_path / "evil.pt", tmp_path / "run"
    evil.write_bytes(bomb(marker))
    shutil.copytree(valid_run, run)
    arguments: tuple[object, ...]
    if place == "architecture":
        arguments = ("train", evil, "--data", "digits")
    elif place == "model":
        arguments = ("predict", evil)
    elif place == "weights":
        (run / "train" / "weights.safetensors").write_bytes(evil.read_bytes())
        result = json.loads((run / "train" / "result.json").read_text())
        result["sha256"] = checkpoints.sha256_of(evil)
        (run / "train" / "result.json").write_text(json.dumps(result))
        arguments = ("evaluate", run, "--data", "digits")
    elif place == "checkpoint":
        assert command(*SEARCH, "--epochs", "1", "-o", "search").code == 0
        for path in Path("search").rglob("checkpoints/**/*.safetensors"):
            path.write_bytes(evil.read_bytes())
        (tmp_path / "search" / "STATUS").write_text("interrupted\n")
        arguments = (*SEARCH, "--epochs", "1", "-o", "search")
    elif place == "table":
        arguments = (*SEARCH, "--latency-budget", "40%", "--table", evil)
    else:
        arguments = (*SEARCH, "-c", evil)
    outcome = command(*arguments)
    assert outcome.code == 3, outcome.err
    assert sum(line.startswith("error: ") for line in outcome.err.splitlines()) == 1
    assert "Traceback" not in outcome.err
    assert not marker.exists(), "it was opened"


def test_20_a_search_that_diverges_goes_back_once_and_ends_with_9(command: Callable[..., Outcome]) -> None:
    first = command(*SEARCH, "--epochs", "4", "-o", "run", "--set", "weights.clip_norm=1e30", "--set", "weights.lr=1e30")
    assert first.code == 9
    assert "warning: diverged: " in first.err
    assert "at half the learning rates" in first.err
    assert first.err.splitlines()[-1].startswith("error: ")
    assert "weights.lr" in first.err.splitlines()[-1]
    assert Path("run/STATUS").read_text().startswith("failed")


def test_21_a_multiplier_that_runs_away_is_held_and_told(tmp_path: Path) -> None:
    lagrangian = AugmentedLagrangian()
    for _ in range(1000):
        lagrangian.update(expected_ms=5.0, decoded_ms=5.0, target_ms=1.0)
    assert (lagrangian.multiplier, lagrangian.penalty) == (100.0, 100.0)
    term = lagrangian.term(torch.tensor(5.0, requires_grad=True), 1.0)
    assert term.isfinite()
    for _ in range(50):
        lagrangian.update(expected_ms=0.5, decoded_ms=0.5, target_ms=1.0)
    assert lagrangian.multiplier == 0.0, "it lets go again"
    told: list[str] = []
    report = search_under_budget(tmp_path / "run", 0.5, 1e-4, told.append)
    assert report.budgets[0].multiplier == 100.0
    [line] = [text for text in told if "pushes as hard as it may" in text]
    assert "the budget of 0.0001 ms" in line


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write more than ``size`` bytes into any file, as a disk does that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_24_a_disk_that_gets_full_keeps_the_checkpoint_before(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Saver) -> None:
        raise KeyboardInterrupt

    arguments = (*SEARCH, "--epochs", "3", "-o", "run")
    with monkeypatch.context() as patched:
        patched.setattr(Saver, "after_epoch", interrupted)
        assert command(*arguments).code == 130
    folder = Path("run/checkpoints/stage0")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with files_of_at_most(20_000):
        full = command(*arguments)
    assert full.code == 8, full.err
    assert "cannot be written: File too large" in full.err
    assert Path("run/STATUS").read_text().startswith("failed")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert Checkpoints(folder).load_latest()["position"]["epoch"] == 1
    whole = command(*arguments)
    assert whole.code == 0, whole.err
    assert [json.loads(line)["epoch"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_24_the_room_that_is_asked_for_is_what_checkpoints_take(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    check_room = Checkpoints.check_room
    monkeypatch.setattr(Checkpoints, "check_room", lambda self, size: (asked.append(size), check_room(self, size)))
    more = ("--set", "method_options.added_layers=[0,2]", "--set", "method_options.added_channels=[0,8]",
            "--set", "method_options.kept=[4]", "--set", "method_options.skip_dropout=[0.0,0.2]")  # fmt: skip
    assert command("search", "--method", "p-darts", *SEARCH[3:], *more, "--epochs", "1", "-o", "run").code == 0
    assert command("train", "run", "--data", "digits", "--epochs", "1", "--set", "data.train_fraction=0.2").code == 0
    for size, folder in zip(asked, ("run/checkpoints/stage1", "run/train/checkpoints"), strict=True):
        written = max(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        assert written / checkpoints.ROOM < size < checkpoints.ROOM * written, "of the largest stage, momentum included"


def test_24_too_little_room_is_told_before_the_first_step(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100_000))
    outcome = command(*SEARCH, "--epochs", "1", "-o", "run")
    assert outcome.code == 8
    assert "checkpoints need" in outcome.err
    assert not list(Path("run").rglob("*.safetensors"))
    assert not Path("run/metrics.jsonl").exists()
