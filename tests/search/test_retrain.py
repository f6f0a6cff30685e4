import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import Subset, load_data
from mobilenas.errors import DivergedError
from mobilenas.search.checkpoints import not_finite
from mobilenas.search.descent import SgdSettings
from mobilenas.search.retrain import Trainer, TrainReport, TrainSettings, evaluate
from mobilenas.search.task import Classification
from mobilenas.spaces.cells import CellSpace

SPACE = CellSpace(channels=4, layers=3, image_size=8, image_channels=1)
WEIGHTS = SgdSettings(lr=0.05, min_lr=0.0, momentum=0.9, weight_decay=3e-4, clip_norm=5.0)


def trainer(
    folder: Path, on_epoch=lambda report: None, weights: SgdSettings = WEIGHTS, fabric: Fabric | None = None
) -> Trainer:
    digits = load_data("digits")
    train, test = digits.read()
    torch.manual_seed(0)
    return Trainer(
        network=SPACE.build(SPACE.random_architecture(random.Random(0)), auxiliary=True),
        data=replace(digits, read=lambda: (Subset(train, torch.arange(240)), Subset(test, torch.arange(60)))),
        task=Classification(),
        settings=TrainSettings(3, 48, 0, weights, 0.2, 0.4, True, 1),
        fabric=fabric or Fabric(accelerator="cpu", devices=1),
        directory=RunDirectory(folder),
        on_epoch=on_epoch,
    )


@pytest.mark.parametrize(("precision", "computed"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_convolutions_compute_in_the_precision_that_was_asked_for(
    precision: str, computed: torch.dtype, tmp_path: Path
) -> None:
    trained, seen = trainer(tmp_path, fabric=Fabric(accelerator="cpu", devices=1, precision=precision)), set()
    for module in trained.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    report = trained.run()
    assert seen == {computed}
    assert report.train_cross_entropy < 3
    assert {weight.dtype for weight in trained.network.parameters()} == {torch.float32}


def stop(report: TrainReport) -> None:
    raise KeyboardInterrupt


def test_resumed_training_ends_bit_for_bit_as_one_that_never_stopped(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    report = whole.run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "halved", stop).run()
    epochs: list[int] = []
    resumed = trainer(tmp_path / "halved", lambda r: epochs.append(r.epoch))
    again = resumed.run()
    assert epochs == [1, 2]
    assert again.test_accuracy == report.test_accuracy
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_training_interrupted_in_mid_epoch_saves_and_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run()
    interrupted = trainer(tmp_path / "halved")
    draw, calls = interrupted.loader.next, iter(range(99))

    def draw_and_interrupt() -> list[torch.Tensor]:
        if next(calls) == 7:  # the third of five steps of the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return draw()

    interrupted.loader.next = draw_and_interrupt
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    assert (interrupted.epoch, interrupted.step) == (1, 3), "the step was not finished"
    resumed = trainer(tmp_path / "halved")
    resumed.run()
    assert [line["epoch"] for line in resumed.directory.metrics.read()] == [0, 1, 2]
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"weights\.lr"):
        trainer(tmp_path, weights=SgdSettings(1e30, 1e30, 0.9, 0.0, 1e30)).run()


def test_a_network_whose_logits_are_not_finite_has_no_accuracy(tmp_path: Path) -> None:
    trained = trainer(tmp_path)
    with torch.no_grad():
        next(p for p in trained.network.parameters() if p.dim() == 2).fill_(float("inf"))
    with pytest.raises(DivergedError, match="not finite for 60 of 60 test images"):
        evaluate(trained.network, trained.data, trained.task, trained.fabric)
    assert not_finite({"whole": torch.ones(2), "count": torch.tensor(3), "bad": torch.tensor([1.0, float("nan")])}) == ["bad"]
