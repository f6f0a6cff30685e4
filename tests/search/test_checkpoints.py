from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenas.core.signals import StopRequest
from mobilenas.errors import DocumentError
from mobilenas.search.checkpoints import Checkpoints, Saver, Tally
from mobilenas.search.processes import Processes

STATE = {"tensor": torch.arange(3.0), "nested": [{"a": torch.ones(2, dtype=torch.float64)}, 1.5, None], "keys": {0: 1, 2: 3}}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load_latest() is None
    checkpoints.save(STATE)
    assert same(checkpoints.load_latest(), STATE)


def test_two_generations_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in range(4):
        checkpoints.save({"number": number, "tensor": torch.zeros(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000003.json",
        "000003.safetensors",
        "000004.json",
        "000004.safetensors",
    ]
    assert checkpoints.load_latest()["number"] == 3


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 40, lambda data: data[:-3] + b"1e908"],
)
def test_a_damaged_checkpoint_is_announced_and_the_one_before_it_is_taken(tmp_path: Path, suffix: str, damage: Any) -> None:
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, said.append)
    for number in range(2):
        checkpoints.save({"number": number, "tensor": torch.zeros(1)})
    newest = tmp_path / f"000002.{suffix}"
    newest.write_bytes(damage(newest.read_bytes()))
    assert checkpoints.load_latest()["number"] == 0
    assert len(said) == 1
    assert "000002" in said[0]
    oldest = tmp_path / f"000001.{suffix}"
    oldest.write_bytes(damage(oldest.read_bytes()))
    with pytest.raises(DocumentError, match="no checkpoint in"):
        checkpoints.load_latest()


def test_a_saver_saves_every_ten_minutes(tmp_path: Path) -> None:
    times = iter((0.0, 100.0, 599.0, 600.0, 601.0, 900.0, 1200.0, 1201.0, 1202.0))  # begin; each step; after each save
    saves: list[int] = []
    saver = Saver(Checkpoints(tmp_path), lambda: saves.append(1) or {}, StopRequest(), Processes(), clock=lambda: next(times))
    counts = []
    for _ in range(5):
        saver.after_step()
        counts.append(len(saves))
    assert counts == [0, 0, 1, 1, 1]
    saver.after_step()
    assert len(saves) == 2, "at 1201 s, ten minutes after the save of 601 s"


def test_a_tally_sums_and_leaves_out_what_is_not_finite() -> None:
    tally = Tally()
    assert tally.mean_loss() is None
    tally.add(torch.tensor(1.0), 3, 4)
    tally.add(torch.tensor(2.0), 1, 4)
    assert (tally.mean_loss(), tally.accuracy()) == (1.5, 0.5)
    assert Tally(**tally.state()).mean_loss() == 1.5
    tally.add(torch.tensor(float("nan")), 0, 4)
    assert (tally.mean_loss(), tally.accuracy()) == (1.5, 0.5)


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path)
    for number in (1, 2):
        saved.save({"number": number, "tensor": torch.zeros(3)})
    (tmp_path / "000002.safetensors").write_bytes(b"no")
    resumed = Checkpoints(tmp_path)
    assert resumed.load_latest()["number"] == 1
    resumed.save({"number": 3, "tensor": torch.zeros(3)})
    (tmp_path / f"{max(int(path.stem) for path in tmp_path.glob('*.json')):06d}.safetensors").write_bytes(b"no")
    assert Checkpoints(tmp_path).load_latest()["number"] == 1


def test_what_is_not_ours_stays_and_the_end_of_an_epoch_is_kept(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("mine")
    (tmp_path / ".000009.json.abc").write_text("torn")
    saved = Checkpoints(tmp_path)
    saved.save({"number": 0})
    for number in range(1, 5):
        saved.save({"number": number}, is_end=False)
    again = Checkpoints(tmp_path)
    assert again.load_latest()["number"] == 4
    assert again.load_latest(at_end=True)["number"] == 0
    again.save({"number": 5}, is_end=False)
    assert Checkpoints(tmp_path).load_latest(at_end=True)["number"] == 0
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".safetensors")
    assert names == ["000001.json", "000005.json", "000006.json", "notes", "readme.txt"]
