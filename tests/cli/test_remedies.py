"""What a message says to do is done, as pasted, and works."""

import json
import random
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from mobilenas import workflows
from mobilenas.config import DataConfig, SearchConfig, SpaceConfig, TrainConfig, dump_config
from mobilenas.core import documents
from mobilenas.data import load_data
from mobilenas.results import TrainResult
from mobilenas.search.checkpoints import save_tensors
from tests.conftest import SMALL, Outcome

Command = Callable[..., Outcome]
SIZE = ("--set", "data.image_size=16")


def pictures(root: Path, *folders: str) -> Path:
    """Three small pictures in each folder."""
    generator = np.random.default_rng(0)
    for name in folders:
        (root / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return pictures(tmp_path / "my photos", "train/cat", "train/dog", "val/cat", "val/dog")


@pytest.fixture
def trained(photos: Path, tmp_path: Path) -> Path:
    """A run that was searched and trained on pictures which lie elsewhere by now."""
    data = DataConfig(name="image-folder", root=str(tmp_path / "gone"), image_size=16, batch=2)
    searched = SearchConfig(space=SpaceConfig(options={"channels": 4, "layers": 3}), data=data)
    space = workflows.space_from_config(searched.space, load_data("image-folder", photos, 16), 1)
    architecture, run = space.random_architecture(random.Random(0)), tmp_path / "trained"
    (run / "train").mkdir(parents=True)
    (run / "architecture.json").write_text(architecture.to_json())
    (run / "config.toml").write_text(dump_config(searched))
    (run / "train" / "config.toml").write_text(dump_config(TrainConfig(data=data)))
    (run / "result.json").write_text(documents.dump_json({"schema": "mobilenas/search-result@1", "budgets": []}))
    weights = run / "train" / "weights.safetensors"
    sha256 = save_tensors(weights, space.build(architecture).state_dict(), {"fingerprint": architecture.fingerprint})
    result = TrainResult("weights.safetensors", sha256, architecture.fingerprint, 0.5, 0.6, 1, 1.0)
    document = {"schema": "mobilenas/train-result@1", **msgspec.to_builtins(result)}
    (run / "train" / "result.json").write_text(documents.dump_json(document))
    return run


@pytest.mark.parametrize(
    "line",
    [
        "describe darts-v2 --data image-folder",
        "describe --space cells --data image-folder",
        "describe darts-v2 --data image-folder -o made",
        "evaluate trained",
        "evaluate trained --data image-folder",
        "export trained --no-device",
        "search --data image-folder --channels 4 --layers 3 --set data.image_size=16 --set data.batch=2 --dry-run",
        "profile --data image-folder --channels 4 --layers 3 --set data.image_size=16 --dry-run",
        "train trained/architecture.json --data image-folder --set data.image_size=16 --set data.batch=2 --dry-run",
    ],
)
def test_a_missing_data_set_is_found_where_the_message_says(
    line: str, trained: Path, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command(*shlex.split(line))
    assert first.code == 3, first.err
    said = " ".join(first.err.split())
    assert "--set data.root=DIR" in said
    pasted = command(*shlex.split(line), "--set", f"data.root={photos}")
    assert pasted.code == 0, pasted.err
    if "MOBILENAS_DATA" in said and "trained " not in f"{line} ":
        monkeypatch.setenv("MOBILENAS_DATA", str(photos))
        assert command(*shlex.split(line.replace("made", "other"))).code == 0


def test_the_command_after_describe_names_the_folder(photos: Path, command: Command) -> None:
    data = ("--data", "image-folder", "--set", f"data.root={photos}", *SIZE)
    made = command("describe", "darts-v2", *data, *SMALL, "-o", "made run")
    assert made.code == 0, made.err
    printed = shlex.split(re.search(r"mobilenas (train .*)", " ".join(made.out.split()))[1])
    assert command(*printed, "--set", "data.batch=2", "--dry-run").code == 0


def test_a_folder_of_classes_is_divided_as_the_message_says(tmp_path: Path, command: Command) -> None:
    root = pictures(tmp_path / "flat", "cat", "dog")
    search = ("search", "--data", "image-folder", *SIZE, *SMALL, "--set", "data.batch=2", "--dry-run")
    first = command(*search, "--set", f"data.root={root}")
    assert (first.code, "--set data.split=0.2" in " ".join(first.err.split())) == (3, True)
    assert command(*search, "--set", f"data.root={root}", "--set", "data.split=0.2").code == 0
    shutil.move(str(pictures(tmp_path / "half", "train/cat", "train/dog")), tmp_path / "train only")
    half = command(*search, "--set", f"data.root={tmp_path / 'train only'}")
    assert half.code == 3
    again = command(*search, "--set", f"data.root={tmp_path / 'train only' / 'train'}", "--set", "data.split=0.2")
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("line", "replaced", "code"),
    [
        ("search --channels 4 --layers 3 --set data.train_fraction=0.001 --dry-run", r"--set data.train_fraction=\S+", 2),
        ("search --channels 4 --layers 3 --set data.batch=5000 --dry-run", r"--set data.batch=\S+", 2),
        ("search --channels 4 --layers 3 --set data.batch=9 --devices 2 --dry-run", r"--set data.batch=\S+", 2),
        ("train run --set data.batch=5000 --dry-run", r"--set data.batch=\S+", 2),
        ("profile --runtime ncnn --set device.batch=4 --dry-run --channels 4 --layers 3", r"--set device.batch=\S+", 2),
    ],
)
def test_a_setting_that_a_message_proposes_is_accepted(
    line: str, replaced: str, code: int, run: Path, command: Command
) -> None:
    first = command(*shlex.split(line))
    assert first.code == code, first.err
    proposed = re.findall(r"--set [a-z_.]+=[\d.]*\d", " ".join(first.err.split()))
    assert proposed, first.err
    pasted = command(*shlex.split(re.sub(replaced, "", line)), *shlex.split(" ".join(proposed)))
    assert pasted.code == 0, pasted.err


def test_a_split_is_in_results_and_refused_when_it_changes(tmp_path: Path, command: Command) -> None:
    root = pictures(tmp_path / "flat", "cat", "dog")
    (root / "cat" / "notes.txt").write_text("x")
    data = ("--data", "image-folder", "--set", f"data.root={root}", *SIZE, "--set", "data.split=0.4")
    small = (*SMALL, "--set", "supernet.channels=2", "--set", "supernet.layers=3", "--set", "data.batch=2", "--epochs", "1")
    searched = command("search", *data, *small, "--json", "-o", "out")
    assert searched.code == 0, searched.err
    facts = json.loads(searched.out)["data"]
    assert (facts["train_images"], facts["test_images"], facts["split"]) == (4, 2, 0.4)
    assert "1 .txt" in facts["notes"][0]
    assert f"# data.root {facts['digest']}" in (tmp_path / "out" / "config.toml").read_text()
    trained = command("train", "out", *data, "--set", "data.batch=2", "--epochs", "1", "--seed", "3")
    assert trained.code == 0, trained.err
    assert trained.err.count("1 .txt") == 1
    own = json.loads((tmp_path / "out" / "train" / "result.json").read_text())["data"]
    assert own["digest"] != facts["digest"], "drawn by another seed"
    for verb, field in (("evaluate", "data_set"), ("export", "data")):
        found = command(verb, "out", "--json", *(("--no-device",) if verb == "export" else ()))
        assert found.code == 0, found.err
        assert json.loads(found.out)[field] == own, "the images that the network was not trained on"
    card = (tmp_path / "out" / "export" / "MODEL_CARD.md").read_text()
    for said in ("EXIF orientation obeyed", "a share of 0.4 of each class", own["digest"], "txt"):
        assert said in card
