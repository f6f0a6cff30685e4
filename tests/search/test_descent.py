"""Gradients that are not finite, and half precision."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor

from mobilenas.errors import DivergedError
from mobilenas.methods.base import Step
from mobilenas.methods.darts import Darts
from mobilenas.search.retrain import Trainer
from mobilenas.search.task import Classification
from tests.conftest import SMALL, Outcome
from tests.search.test_retrain import trainer


class Infinite(Classification):
    """Its loss is not finite in the steps of ``when``, counted over the whole run."""

    def __init__(self, *when: int) -> None:
        super().__init__()
        self.when, self.calls = when, 0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        found = super().loss(logits, labels)
        self.calls += 1  # two in each step: one is the auxiliary head's
        return found * (float("inf") if (self.calls - 1) // 2 in self.when else 1)


def with_task(folder: Path, task: Classification, told: list[str], fabric: Fabric | None = None) -> Trainer:
    made = trainer(folder, fabric=fabric)
    made.task, made.guard._announce = task, told.append
    return made


def test_one_step_that_is_not_finite_is_left_out_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    made = with_task(tmp_path, Infinite(1, 3, 4), told)
    report = made.run()
    assert told == ["warning: a gradient is not finite: this step is left out"] * 3
    assert report.train_cross_entropy < 3
    lines = made.directory.metrics.read()
    assert [line["lr"] for line in lines] == [pytest.approx(lr) for lr in (0.05, 0.0375, 0.0125)]
    assert all(weight.isfinite().all() for weight in made.network.parameters())


def test_three_in_a_row_go_back_once_at_half_the_rates(tmp_path: Path) -> None:
    told: list[str] = []
    made = with_task(tmp_path, Infinite(6, 7, 8), told)  # the second epoch of five steps
    made.run()
    assert told[-1].startswith("warning: diverged: no gradient was finite in 3 steps in a row; back to where the epoch began")
    lines = made.directory.metrics.read()
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line["lr"] for line in lines] == [pytest.approx(lr) for lr in (0.05, 0.0375 / 2, 0.0125 / 2)]
    with pytest.raises(DivergedError, match=r"at half the learning rates too; lower weights\.lr or architecture\.lr"):
        with_task(tmp_path / "again", Infinite(0, 1, 2, 3, 4, 5), told).run()


def test_a_batch_that_spoils_the_statistics_goes_back_at_once(tmp_path: Path) -> None:
    told: list[str] = []
    made = with_task(tmp_path, Classification(), told)
    draw, calls = made.loader.next, iter(range(99))

    def once_infinite() -> list[Tensor]:
        images, labels = draw()
        return [images * (float("inf") if next(calls) == 7 else 1), labels]

    made.loader.next = once_infinite  # type: ignore[method-assign]
    report = made.run()
    assert [text for text in told if "statistics of BatchNorm" in text]
    assert report.train_cross_entropy < 3
    assert all(buffer.isfinite().all() for buffer in made.network.buffers())


def test_half_precision_finds_its_scale_and_descends_as_full_precision_does(tmp_path: Path) -> None:
    told: list[str] = []
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu")])
    half, full = with_task(tmp_path / "half", Classification(), told, fabric), trainer(tmp_path / "full")
    seen = set()
    for module in half.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    reports = [made.run() for made in (half, full)]
    assert seen == {torch.float16}
    assert half.guard.scale > 1
    assert told == []
    assert reports[0].train_cross_entropy == pytest.approx(reports[1].train_cross_entropy, rel=0.1)
    moved = [
        sum(
            float((weight - start).detach().square().sum())
            for weight, start in zip(made.parameters, trainer(tmp_path).parameters, strict=True)
        )
        for made in (half, full)
    ]
    assert moved[0] == pytest.approx(moved[1], rel=0.05), "gradients are divided by the scale before they are clipped"


def in_half_precision() -> Fabric:
    return Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu")])


def test_half_precision_that_finds_no_scale_has_diverged(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(DivergedError, match="at half the learning rates too"):
        made = with_task(tmp_path, Infinite(*range(1000)), told, in_half_precision())
        made.settings = msgspec.structs.replace(made.settings, epochs=20)
        made.run()
    assert made.guard.scale <= 1
    assert any("warning: diverged: no gradient was finite in 3 steps in a row" in text for text in told)


def test_half_precision_sees_statistics_that_are_spoilt(tmp_path: Path) -> None:
    told: list[str] = []
    made = with_task(tmp_path, Classification(), told, in_half_precision())
    draw, calls = made.loader.next, iter(range(99))

    def once_infinite() -> list[Tensor]:
        images, labels = draw()
        return [images * (float("inf") if next(calls) == 7 else 1), labels]

    made.loader.next = once_infinite  # type: ignore[method-assign]
    made.run()
    assert [text for text in told if "statistics of BatchNorm" in text]
    assert all(buffer.isfinite().all() for buffer in made.network.buffers())


def test_weights_and_logits_that_are_never_stepped_are_each_counted(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_finite(self: Darts, step: Step) -> None:
        for row in step.parameters.parameters():
            row.grad = torch.full_like(row, float("nan"))

    monkeypatch.setattr(Darts, "architecture_gradient", nothing_finite)
    outcome = command(
        "search", "--method", "darts", *SMALL, "--data", "digits", "--set", "data.train_fraction=0.3", "--set", "data.batch=32",
        "--set", "warmup_epochs=0", "--epochs", "2", "--set", "space.options.nodes=2", "-o", "run",
    )  # fmt: skip
    assert outcome.code == 9, outcome.err


def test_a_run_goes_back_to_the_end_of_an_epoch_whatever_was_saved_since(tmp_path: Path) -> None:
    """Otherwise it would end with other bits where a signal, or ten minutes, have saved it within one."""
    weights = []
    for interrupted_at in (None, 6):
        made = with_task(tmp_path / str(interrupted_at), Infinite(7, 8, 9), [])
        if interrupted_at is not None:
            stopped = with_task(tmp_path / str(interrupted_at), Infinite(7, 8, 9), [])
            draw, calls = stopped.loader.next, iter(range(99))

            def draw_and_interrupt(draw=draw, calls=calls, at=interrupted_at) -> list[Tensor]:
                if next(calls) == at:
                    os.kill(os.getpid(), signal.SIGINT)
                return draw()

            stopped.loader.next = draw_and_interrupt  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                stopped.run()
            assert (stopped.epoch, stopped.step) == (1, 2)
            made.task = Infinite(0, 1, 2)  # the steps that are left of those
        made.run()
        assert made.guard.has_halved
        weights.append([weight.detach().clone() for weight in made.network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
