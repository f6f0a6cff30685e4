"""Published trainings: their settings against the papers and the authors' code, and each of them started."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mobilenas import config
from mobilenas.config import TrainConfig, load_config, load_recipe
from mobilenas.data import load_data
from mobilenas.search.descent import SgdSettings
from mobilenas.search.retrain import Trainer
from mobilenas.workflows.naming import sgd_settings
from tests.conftest import Outcome

NAMES = sorted(path.stem for path in (Path(config.__file__).parent / "presets" / "train").glob("*.toml"))
FACTS = {
    "darts-cifar": ("cifar10", 600, 96, 0.2, 0.4, True, 0.0, 3e-4, 5.0),
    "pdarts-cifar": ("cifar10", 600, 128, 0.3, 0.4, True, 0.0, 3e-4, 5.0),
    "darts-imagenet": ("image-folder", 250, 128, 0.0, 0.4, False, 0.1, 3e-5, 5.0),
    "pc-darts-imagenet": ("image-folder", 250, 1024, 0.0, 0.4, False, 0.1, 3e-5, 5.0),
    "densenas-imagenet": ("image-folder", 240, 1024, 0.0, 0.0, False, 0.1, 4e-5, 1e30),
}
"""Data, epochs, batch, drop path, auxiliary weight, cutout, label smoothing, weight decay, clipping."""
RATES = {
    "darts-cifar": {0: 0.025, 300: 0.0125, 450: 0.025 * 0.1464466},
    "pdarts-cifar": {0: 0.025, 300: 0.0125},
    "darts-imagenet": {0: 0.1, 1: 0.097, 10: 0.1 * 0.97**10, 249: 0.1 * 0.97**249},
    "pc-darts-imagenet": {0: 0.1, 3: 0.4, 4: 0.5, 5: 0.5 * 240 / 245, 244: 0.5 / 245, 245: 0.5 * 5 / 1225, 249: 0.5 / 1225},
    "densenas-imagenet": {0: 0.5, 120: 0.250005, 120.5: 0.2483688},
}
JITTERED = [v2.RandomResizedCrop, v2.RandomHorizontalFlip, v2.ColorJitter, v2.ToDtype, v2.Normalize]
AUGMENTED = {
    "darts-cifar": [v2.RandomCrop, v2.RandomHorizontalFlip, v2.ToDtype, v2.Normalize, "Cutout"],
    "pdarts-cifar": [v2.RandomCrop, v2.RandomHorizontalFlip, v2.ToDtype, v2.Normalize, "Cutout"],
    "darts-imagenet": JITTERED,
    "pc-darts-imagenet": JITTERED,
    "densenas-imagenet": [kind for kind in JITTERED if kind is not v2.ColorJitter],
}


def recipe(name: str) -> TrainConfig:
    return load_config(TrainConfig, None, [], {}, load_recipe(name))


def flat(transform: object) -> list[object]:
    inner = [flat(part) for part in transform.transforms] if isinstance(transform, v2.Compose) else [[transform]]
    return [part for parts in inner for part in parts]


def test_every_recipe_is_tried() -> None:
    assert sorted(FACTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_published_ones(name: str) -> None:
    cfg = recipe(name)
    found = (cfg.data.name, cfg.epochs, cfg.data.batch, cfg.drop_path_fraction, cfg.auxiliary_weight, cfg.cutout)
    assert (*found, cfg.label_smoothing, cfg.weights.weight_decay, cfg.weights.clip_norm) == FACTS[name]
    assert (cfg.weights.momentum, cfg.weights.nesterov, cfg.ema_decay) == (0.9, False, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_those_of_the_papers_by_hand(name: str) -> None:
    cfg = recipe(name)
    for epoch, rate in RATES[name].items():
        assert sgd_settings(cfg.weights).lr_at(epoch, cfg.epochs) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_augmented_as_published(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val"):
        for kind in ("cat", "dog"):
            folder = tmp_path / part / kind
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 30)).save(folder / "a.png")
    cfg = recipe(name)
    data = load_data(cfg.data.name, tmp_path)
    if cfg.data.name == "cifar10":
        digits = load_data("digits")
        monkeypatch.setattr(type(data), "_sources", property(lambda self: digits.read()))
    steps = flat(data.for_training(cfg.cutout, cfg.colour_jitter).transform)
    assert [type(step) if isinstance(step, v2.Transform) else type(step).__name__ for step in steps] == AUGMENTED[name]
    by_kind = {type(step).__name__: step for step in steps}
    if "Cutout" in by_kind:
        assert (by_kind["Cutout"].size, by_kind["RandomCrop"].padding) == (16, [4, 4, 4, 4])
    else:
        assert by_kind["RandomResizedCrop"].scale == (0.08, 1.0)
    if "ColorJitter" in by_kind:
        jitter = by_kind["ColorJitter"]
        assert (jitter.brightness, jitter.contrast, jitter.saturation) == ((0.6, 1.4),) * 3
        assert jitter.hue == (-0.2, 0.2)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_starts_on_noise(name: str, run: Path, command: Callable[..., Outcome]) -> None:
    seen: list[torch.optim.Optimizer] = []
    before = {path.name: path.read_bytes() for path in (run / "train").glob("*.*")}
    init = Trainer.__init__

    def watched(self: Trainer, **arguments: object) -> None:
        init(self, **arguments)
        seen.append(self.weights.optimiser.optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", watched)
        outcome = command(
            "train", str(run), "--preset", name, "--synthetic", "--epochs", "1", "--set", "data.batch=512", "--json"
        )
    assert outcome.code == 0, outcome.err
    assert 0 <= json.loads(outcome.out)["top_5_accuracy"] <= 1
    [optimiser] = seen
    assert type(optimiser) is torch.optim.SGD
    [group] = optimiser.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, FACTS[name][7])
    [line] = [json.loads(line) for line in (run / "train-on-noise" / "metrics.jsonl").read_text().splitlines()]
    assert line["images_per_s"] > 0
    assert {path.name: path.read_bytes() for path in (run / "train").glob("*.*")} == before, "noise replaces no training"


def test_a_schedule_by_the_step_is_finer_than_by_the_epoch() -> None:
    rates = [SgdSettings(0.5, 0.0, 0.9, 0.0, 5.0, per_step=per_step).lr_in(1, 5, 10, 4) for per_step in (False, True)]
    assert rates == [pytest.approx(0.5 * (1 + 0.5**0.5) / 2), pytest.approx(0.5 * (1 + 0.3826834) / 2)]


def test_the_mean_of_the_weights_is_what_is_tested_and_kept(run: Path, command: Callable[..., Outcome]) -> None:
    from mobilenas.search.checkpoints import load_tensors

    for decay in (0.0, 0.9):
        outcome = command(
            "train", str(run), "--data", "digits", "--epochs", "1", "--set", "data.train_fraction=0.1",
            "--set", "data.batch=32", "--set", f"ema_decay={decay}", "--json",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        weights = load_tensors(run / "train" / "weights.safetensors")
        last = load_tensors(max((run / "train" / "checkpoints").glob("*.safetensors")))
        trained = {name.removeprefix("/network/"): tensor for name, tensor in last.items() if name.startswith("/network/")}
        same = [torch.equal(weights[name], trained[name]) for name in weights]
        assert all(same) if decay == 0 else not all(same)
        (run / "train").rename(run / f"train-{decay}")
