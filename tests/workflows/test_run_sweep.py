"""A sweep on a real local Ray: every trial is an ordinary run; what is done is not done again."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mobilenas.config import SweepConfig, load_config
from mobilenas.core.measurement import PLANS
from mobilenas.errors import UnknownNameError, UsageError
from mobilenas.workflows.run_sweep import jobs_of
from tests.conftest import Outcome

SMALL = {
    "data.name": "digits",
    "data.train_fraction": 0.1,
    "space.options.channels": 4,
    "space.options.layers": 3,
    "supernet.channels": 2,
    "supernet.layers": 3,
    "epochs": 1,
    "measure": False,
}


def sweep_config(**more: object) -> SweepConfig:
    flags = {f"search.{key}": value for key, value in SMALL.items()}
    return load_config(SweepConfig, None, [], {**flags, "train.epochs": 1, **more})


def test_trials_are_all_there_is_of_methods_budgets_devices_and_seeds() -> None:
    jobs = jobs_of(sweep_config(methods=("darts", "gdas"), budgets=("40%", "70%"), devices=("local", "ssh://a@b"), seeds=3))
    assert len(jobs) == len({job.name for job in jobs}) == 3 * 2 * 2 * 3, "random search is always one of the methods"
    assert {job.search.method for job in jobs} == {"darts", "gdas", "random"}
    for job in jobs:
        assert (job.train.seed, job.train.data.name) == (job.search.seed, "digits")
        assert all(letter.isalnum() or letter in ".-" for letter in job.name)


def test_a_name_tells_all_that_a_trial_depends_on() -> None:
    first, second = (jobs_of(sweep_config(**more))[0].name for more in ({}, {"train.epochs": 2}))
    assert first != second
    assert first.rpartition("-")[0] == second.rpartition("-")[0] == "darts-40-local-s0"


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"methods": ("dart",)}, UnknownNameError, "did you mean darts"),
        ({"search.method": "darts"}, UsageError, r"search\.method is what a sweep varies: say methods"),
        ({"search.latency_budget": "5ms"}, UsageError, "say budgets"),
        ({"search.epoch": 3}, UsageError, "epoch"),
        ({"preset": "cifar"}, UsageError, "cifar10"),
    ],
)
def test_what_makes_no_sweep_is_refused(more: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        jobs_of(sweep_config(**more))


@pytest.mark.serial
@pytest.mark.slow
def test_a_sweep_is_run_listed_and_goes_on(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = msgspec.structs.replace(
        PLANS["quick"], sweeps=2, maximum_sweeps=2, spread_s=0.0, scale_networks=4, test_networks=4, samples=10
    )
    monkeypatch.setitem(PLANS, "quick", short)
    assert command("profile", "--data", "digits", "--channels", "4", "--layers", "3", "-o", "table").code == 0
    settings = [f"--set=search.{key}={msgspec.json.encode(value).decode()}" for key, value in SMALL.items()]
    arguments = [
        "sweep", "-o", "sweep", "--method", "darts", "--latency-budget", "60%", "--latency-budget", "1e-6ms", "--seeds", "1",
        *settings, f"--set=search.table={tmp_path / 'table'}", "--set=train.epochs=1",
        "--set=train.data.train_fraction=0.1", "--json",
    ]  # fmt: skip
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert [(trial["method"], trial["budget"], bool(trial["reason"])) for trial in result["trials"]] == [
        ("darts", "60%", False),
        ("darts", "1e-6ms", True),
        ("random", "60%", False),
        ("random", "1e-6ms", True),
    ]
    assert all("BudgetError" in trial["reason"] for trial in result["trials"] if trial["budget"] == "1e-6ms")
    assert {group["method"] for group in result["groups"]} == {"darts", "random"}
    assert any(group["is_on_front"] for group in result["groups"])
    assert (tmp_path / "sweep" / "front.svg").exists()
    done = [trial["run"] for trial in result["trials"] if not trial["reason"]]
    for run in done:
        assert (tmp_path / run / "architecture.json").exists()
        assert (tmp_path / run / "train" / "weights.safetensors").exists()
    before = {run: (tmp_path / run / "STATUS").stat().st_mtime_ns for run in done}
    again = json.loads(command(*arguments).out)
    assert {run: (tmp_path / run / "STATUS").stat().st_mtime_ns for run in done} == before, "what is done is not done again"
    assert again["groups"] == result["groups"]
