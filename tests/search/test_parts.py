"""Batches in parts: what is computed, and what happens where memory is short."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from mobilenas.errors import ResourceError, UsageError
from mobilenas.methods.base import Batch, Progress, Step
from mobilenas.methods.darts import Darts
from mobilenas.network import Network
from mobilenas.search.checkpoints import Checkpoints, Saver
from mobilenas.search.memory import MemoryEstimate
from mobilenas.search.parts import Parts
from mobilenas.search.processes import Processes
from mobilenas.spaces.cell_supernet import CellSupernet
from mobilenas.spaces.cells import CellSpace
from mobilenas.supernet import ArchitectureParameters, Mixture
from tests.conftest import SMALL, Outcome
from tests.search import together


def estimate(images: int) -> MemoryEstimate:
    return MemoryEstimate(10, 0, images * 192 * 2**20)


@pytest.mark.parametrize("case", ["darts", "darts of second order", "gdas", "pc-darts", "dense-nas", together.TRAINING])
def test_a_batch_in_two_parts_makes_what_one_makes_that_normalises_halves_apart(case: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        whole = together.run(tmp_path / "whole", case, Processes(), is_ghost=True)
        parts = together.run(tmp_path / "parts", case, Processes(), accumulate=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_what_is_differentiated_twice_and_what_half_precision_cannot_do_is_refused(command: Callable[..., Outcome]) -> None:
    exact = ("--set", "method_options.order=2", "--set", "method_options.hessian=exact")
    for sets, said in (
        ((*exact, "--set", "compute.accumulate=2"), "compute.accumulate is 2: darts with these options differentiates twice"),
        ((*exact, "--compute-precision", "bf16-mixed"), "darts with these options needs 32-true"),
        (("--compute-precision", "16-mixed"), "compute.precision 16-mixed is for GPUs"),
        (("--compute-precision", "8"), "available: 32-true, bf16-mixed, 16-mixed"),
        (("--set", "compute.accumulate=25", "--set", "data.batch=48"), "compute.accumulate is 25; it must be at most 24"),
    ):
        outcome = command("search", "--method", "darts", *SMALL, "--data", "digits", *sets, "-o", "run")
        assert outcome.code == 2
        assert said in outcome.err


def test_parts_of_unequal_size_weigh_as_many_as_they_have_and_hold_one_graph_at_a_time() -> None:
    weight, rows = torch.tensor(2.0, requires_grad=True), {"edge": torch.tensor([3.0], requires_grad=True)}
    images, seen = torch.arange(7.0), []

    def compute(part: Batch, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(len(part.labels))
        return (weight * rows["edge"] * part.images).mean()

    found = []
    for parts_count in (1, 3):
        weight.grad, rows["edge"].grad = None, None
        parts = Parts(parts_count, 7, True, print, estimate)
        loss = parts.loss(compute, Batch(images, torch.zeros(7)), rows, [weight], scale=lambda: 4.0)
        (5 * loss).backward()
        found.append((loss.item(), weight.grad.item(), rows["edge"].grad.item()))
    assert seen == [7, 3, 2, 2]
    assert found[0] == (18.0, 45.0, 30.0)
    assert found[1] == pytest.approx(found[0])


def test_memory_that_runs_out_halves_the_batch_three_times_at_most() -> None:
    told: list[str] = []
    parts = Parts(1, 64, True, told.append, estimate)

    def step(fits: int) -> int:
        if parts.count < fits:
            torch.empty(1 << 60)  # the allocator's own refusal
        return parts.count

    assert parts.within_memory(lambda: step(4)) == 4
    assert [text.partition(";")[2] for text in told] == [f" computed in {n} parts from here on" for n in (2, 4)]
    resumed = Parts(1, 64, True, told.append, estimate)
    resumed.load_state(parts.state())
    assert resumed.count == 4
    fewer = Parts(8, 64, True, told.append, estimate)
    fewer.load_state(Parts(16, 64, True, told.append, estimate).state())
    assert fewer.count == 8, "as this run asks for, where memory sufficed"
    with pytest.raises(ResourceError, match=r"a batch of 64 in 8 parts, which takes about 1\.50 GiB: .*data\.batch"):
        parts.within_memory(lambda: step(16))
    with pytest.raises(ResourceError, match=r"out of memory by a batch of 64, which takes about 12\.00 GiB:"):
        Parts(1, 64, False, told.append, estimate).within_memory(lambda: step(1 << 9))
    with pytest.raises(ZeroDivisionError):
        parts.within_memory(lambda: 1 // 0)
    with pytest.raises(UsageError, match="at most 32"):
        Parts(33, 64, True, told.append, estimate)


def test_a_search_and_a_training_that_run_out_of_memory_go_on_in_parts(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first calls ask the allocator for more than there is, as a supernet does that is too large."""
    fits = 12

    def short_of_memory(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def limited(self: torch.nn.Module, images: torch.Tensor, *others: object) -> torch.Tensor:
            if self.training and images.device.type == "cpu" and len(images) > fits:
                torch.empty(1 << 60)
            return forward(self, images, *others)

        return limited

    monkeypatch.setattr(CellSupernet, "forward", short_of_memory(CellSupernet.forward))
    monkeypatch.setattr(Network, "forward_with_auxiliary", short_of_memory(Network.forward_with_auxiliary))
    sets = ("--set", "data.batch=48", "--set", "data.train_fraction=0.1", "--epochs", "1")
    searched = command("search", "--method", "darts", *SMALL, "--data", "digits", *sets, "-o", "run")
    trained = command("train", "run", "--data", "digits", *sets)
    for outcome in (searched, trained):
        assert outcome.code == 0, outcome.err
        assert [line for line in outcome.err.splitlines() if "memory" in line] == [
            "warning: out of memory by a batch of 48; computed in 2 parts from here on",
            "warning: out of memory by a batch of 48 in 2 parts; computed in 4 parts from here on",
        ]
    fits = 4
    failed = command("search", "--method", "darts", *SMALL, "--data", "digits", *sets, "-o", "larger")
    assert failed.code == 8
    assert "error: out of memory by a batch of 48 in 8 parts, which takes about " in failed.err


def test_parts_of_a_run_that_goes_on_with_smaller_batches_keep_two_images_each() -> None:
    parts = Parts(1, 12, False, print, estimate)
    parts.load_state({"least": 24, "halvings": 2})
    assert parts.count == 6


@pytest.mark.parametrize("changed", ["compute.accumulate=2", "supernet.checkpoint_cells=true", "data.workers=1"])
def test_what_saves_memory_may_be_changed_where_a_search_goes_on(
    changed: str, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Saver) -> None:
        raise KeyboardInterrupt

    arguments = ("search", "--method", "darts", *SMALL, "--data", "digits", "--set", "data.train_fraction=0.2", "--set",
                 "data.batch=48", "--set", "space.options.nodes=2", "--epochs", "2", "-o", "run")  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(Saver, "after_epoch", interrupted)
        assert command(*arguments, "--set", "compute.accumulate=4").code == 130
    outcome = command(*arguments, "--set", changed)
    assert outcome.code == 0, outcome.err
    saved = Checkpoints(Path("run/checkpoints/stage0")).load_latest()
    assert saved["parts"] == {"least": 1, "halvings": 0}, "four parts were asked for, not needed"


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_second_order_that_runs_out_of_memory_leaves_the_weights_as_they_were(fails_at: int) -> None:
    weights, calls = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.full((2,), 2.0))], count(1)

    def loss(batch: object, mixture: Mixture) -> torch.Tensor:
        if next(calls) == fails_at:
            torch.empty(1 << 60)
        return torch.cat(list(weights)).square().sum() * next(iter(mixture.weights.values())).sum()

    space = CellSpace(channels=2, layers=3, image_size=8, nodes=2, classes=3)
    batch = Batch(torch.zeros(2), torch.zeros(2))
    step = Step(
        parameters=ArchitectureParameters(space.decisions, torch.Generator()),
        train=batch,
        valid=batch,
        progress=Progress(0, 0, 2),
        loss=loss,
        constraint=lambda mixture: torch.zeros(()),
        backward=torch.autograd.backward,
        weights=weights,
        weights_after=lambda gradients: [w.detach() - gradient for w, gradient in zip(weights, gradients, strict=True)],
        weights_lr=0.1,
    )
    with pytest.raises(RuntimeError, match="allocate"):
        Darts(order=2).architecture_gradient(step)
    assert torch.equal(weights[0], torch.ones(3))
    assert torch.equal(weights[1], torch.full((2,), 2.0))
    assert all(weight.requires_grad for weight in weights)


def test_memory_that_runs_out_outside_a_step_is_one_line(
    command: Callable[..., Outcome], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*arguments: object, **named: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr("mobilenas.search.retrain.evaluate", none_left)
    outcome = command("train", str(run), "--data", "digits", "--epochs", "1", "--set", "data.train_fraction=0.1")
    assert outcome.code == 8
    assert outcome.err.splitlines()[-1].startswith("error: out of memory: ")
