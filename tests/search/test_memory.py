"""The estimate of memory against what torch's own profiler sees, and what --dry-run says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mobilenas.search.memory import estimate, on_meta
from mobilenas.spaces.base import SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.supernet import ArchitectureParameters, Mixture
from tests.conftest import SMALL, Outcome

TINY = (*SMALL, "--data", "digits", "--set", "space.options.nodes=2", "--set", "supernet.layers=3")
SPACE = CellSpace(channels=4, layers=5, image_size=16)


def peak_bytes(step: Callable[[], None]) -> int:
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_estimate_is_what_the_profiler_sees(checkpoint: bool) -> None:
    plan = SupernetPlan(SupernetSize(4, 5), SPACE.decisions, checkpoint=checkpoint)
    rows = {name: row.detach() for name, row in ArchitectureParameters(SPACE.decisions, torch.Generator()).softmax().items()}
    peaks = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            supernet = SPACE.supernet(plan).train()
            images, labels = torch.zeros(32, 3, 16, 16), torch.zeros(32, dtype=torch.int64)
        made = on_meta(rows) if device == "meta" else {name: row.requires_grad_() for name, row in rows.items()}

        def loss(supernet=supernet, images=images, labels=labels, made=made) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(supernet(images, Mixture.soft(made)), labels)

        peaks.append(estimate(supernet, loss).step_bytes)
        if device == "cpu":
            seen = peak_bytes(lambda loss=loss: torch.autograd.backward(loss()))
    assert peaks[0] == pytest.approx(seen, rel=0.01)
    assert peaks[1] == pytest.approx(seen, rel=0.1), "without data some layouts come out a little smaller"


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(
    command: Callable[..., Outcome], valid_run: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    sizes = []
    for more in ((), ("--set", "supernet.checkpoint_cells=true"), ("--set", "compute.accumulate=4")):
        outcome = command("search", "--method", "darts", *TINY, "--epochs", "3", "--dry-run", "--json", *more)
        assert outcome.code == 0, outcome.err
        plan = json.loads(outcome.out)
        assert (plan["stages"], plan["images"], plan["batch"], plan["target_ms"]) == ([3], [718, 719], 64, None)
        sizes.append(plan["memory"]["step_bytes"])
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] == pytest.approx(sizes[0] / 4, rel=0.1)
    stages = json.loads(command("search", "--method", "p-darts", *TINY, "--dry-run", "--json").out)
    assert stages["stages"] == [50, 50, 50]
    nothing = json.loads(command("search", "--method", "random", *TINY, "--dry-run", "--json").out)
    assert (nothing["stages"], nothing["memory"]) == ([], None)
    trained = json.loads(command("train", str(valid_run), "--data", "digits", "--dry-run", "--json").out)
    assert (trained["images"], trained["epochs"], trained["batch"]) == (1437, 600, 96)
    assert trained["memory"]["step_bytes"] > 1_000_000
    shared = command("train", str(valid_run), "--data", "digits", "--devices", "4", "--dry-run", "--json")
    assert json.loads(shared.out)["memory"]["step_bytes"] < 0.5 * trained["memory"]["step_bytes"]
    mean = command("train", str(valid_run), "--data", "digits", "--set", "ema_decay=0.9", "--dry-run", "--json")
    assert json.loads(mean.out)["memory"]["weights_bytes"] == 1.5 * trained["memory"]["weights_bytes"]
    named = command("train", "darts-v2", "--set", "data.name=digits", "--dry-run")
    assert "32 x 32 images" in named.err
    for more in (("--set", "data.batch=49", "--devices", "2"), ("--set", "compute.accumulate=1000")):
        assert command("search", "--method", "darts", *TINY, "--dry-run", *more).code == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert command("search", "--method", "darts", *TINY, "--latency-budget", "40%", "--dry-run").code == 3
