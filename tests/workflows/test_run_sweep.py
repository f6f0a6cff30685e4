"""A sweep on a real local Ray: every trial is an ordinary run; what is done is not done again."""

import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mobilenas.config import SweepConfig, load_config
from mobilenas.core.measurement import PLANS
from mobilenas.core.signals import handlers_kept
from mobilenas.errors import UnknownNameError, UsageError
from mobilenas.workflows.run_sweep import BASELINES, jobs_of, run_trial, sweep
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
    "selection.keep": 2,
    "selection.steps": 4,
}


def sweep_config(**more: object) -> SweepConfig:
    flags = {f"search.{key}": value for key, value in SMALL.items()}
    return load_config(SweepConfig, None, [], {**flags, "train.epochs": 1, **more})


def test_trials_are_all_there_is_of_methods_budgets_devices_and_seeds() -> None:
    jobs = jobs_of(sweep_config(methods=("darts", "gdas"), budgets=("40%", "70%"), devices=("local", "ssh://a@b"), seeds=3))
    assert len(jobs) == len({job.name for job in jobs}) == 5 * 2 * 2 * 3, "three baselines are always among the methods"
    assert {job.method for job in jobs} == {"darts", "gdas", *BASELINES}
    assert {job.search.method for job in jobs} == {"darts", "gdas", "random"}
    for job in jobs:
        assert (job.train.seed, job.train.data.name) == (job.search.seed, "digits")
        assert all(letter.isalnum() or letter in ".-" for letter in job.name)


def test_what_is_said_twice_is_one_trial_and_random_search_has_no_settings_of_trained_ones() -> None:
    more = {"search.method_options.order": 2, "search.derivation": "perturbation", "search.switches.beta_decay": 1.0}
    jobs = jobs_of(sweep_config(budgets=("40%", "40%"), devices=("local", "local"), seeds=1, **more))
    assert [job.search.method for job in jobs] == ["darts", "random", "random", "random"]
    assert [job.search.selection.rank for job in jobs] == [None, None, ("logits",), None]
    assert [job.search.derivation for job in jobs] == ["perturbation", "logits", "logits", "parameters"]
    assert jobs[0].search.method_options == {"order": 2}
    assert (jobs[1].search.method_options, jobs[1].search.derivation, jobs[1].search.switches.beta_decay) == (
        {},
        "logits",
        None,
    )


def test_random_search_has_the_space_of_the_first_methods_preset() -> None:
    jobs = jobs_of(
        load_config(SweepConfig, None, [], {"methods": ("dense-nas",), "preset": "quick", "search.data.name": "digits"})
    )
    assert {job.search.space.name for job in jobs} == {jobs[0].search.space.name} != {"cells"}
    assert {job.search.method for job in jobs} == {"dense-nas", "random"}


def test_images_of_a_training_are_those_of_its_search() -> None:
    [job, *_] = jobs_of(
        sweep_config(**{"search.data.name": "image-folder", "search.data.image_size": 96, "search.data.root": "/x"})
    )
    assert (job.train.data.name, job.train.data.image_size, job.train.data.root) == ("image-folder", 96, "/x")


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
        ({"budgets": ("40%", "abc")}, UsageError, "5ms"),
        ({"methods": ("darts", "gdas"), "search.method_options.order": 2}, UsageError, "the method gdas"),
    ],
)
def test_what_makes_no_sweep_is_refused(more: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        jobs_of(sweep_config(**more))


def test_a_cluster_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UsageError, match="where nobody listens"):
        sweep(sweep_config(address=address), tmp_path / "sweep")


def test_a_trial_that_fails_tells_why(tmp_path: Path) -> None:
    [job] = [job for job in jobs_of(sweep_config(seeds=1)) if job.search.method == "darts"]
    with handlers_kept():
        failure = run_trial(job, str(tmp_path / "run"))
    assert failure is not None
    assert failure.reason.startswith("MissingDataError: no latency table of local")
    assert "\n" not in failure.reason
    assert not failure.is_lack


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
        "sweep", "-o", "sweep", "--method", "darts", "--latency-budget", "60%", "--seeds", "1", *settings,
        f"--set=search.table={tmp_path / 'table'}", "--set=train.epochs=1", "--set=train.data.train_fraction=0.1", "--json",
    ]  # fmt: skip
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert [(trial["method"], trial["budget"], trial["reason"]) for trial in result["trials"]] == [
        ("darts", "60%", ""),
        *((baseline, "60%", "") for baseline in BASELINES),
    ]
    assert {group["method"] for group in result["groups"]} == {"darts", *BASELINES}
    images = {trial["method"]: trial["images"] for trial in result["trials"]}
    assert images["darts"] > images["random"] > images["most parameters"] == 0
    most = {trial["method"]: trial["params"] for trial in result["trials"]}
    assert most["most parameters"] >= max(most.values())
    assert any(group["is_on_front"] for group in result["groups"])
    assert (tmp_path / "sweep" / "front.svg").exists()
    runs = [tmp_path / trial["run"] for trial in result["trials"]]
    for run in runs:
        assert (run / "architecture.json").exists()
        assert (run / "train" / "weights.safetensors").exists()
    before = [(run / "STATUS").stat().st_mtime_ns for run in runs]
    again = json.loads(command(*arguments).out)
    assert [(run / "STATUS").stat().st_mtime_ns for run in runs] == before, "what is done is not done again"
    assert again["groups"] == result["groups"]


def test_a_trial_that_lacks_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [job] = [job for job in jobs_of(sweep_config(seeds=1)) if job.search.method == "darts"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    monkeypatch.setattr("mobilenas.workflows.run_sweep.search", full)
    with handlers_kept():
        failure = run_trial(job, str(tmp_path / "run"))
    assert failure is not None
    assert failure.is_lack
    assert "x: No space left on device" in failure.reason
