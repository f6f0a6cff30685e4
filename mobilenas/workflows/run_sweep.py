"""``mobilenas sweep``: methods x budgets x devices x seeds, each an ordinary search run that is then trained; by Ray."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import msgspec

from mobilenas import config
from mobilenas.config import DataSetConfig, SearchConfig, SweepConfig, TrainConfig, flat, load_config, load_preset, same_data
from mobilenas.core import documents
from mobilenas.core.run_directory import RunDirectory, locked, read_status, status_kept, write_atomic
from mobilenas.core.signals import catch_terminations, handlers_kept
from mobilenas.core.system import resource_error
from mobilenas.core.units import parse_latency_target
from mobilenas.errors import MobileNASError, ResourceError, UsageError
from mobilenas.methods import METHODS
from mobilenas.report.front import Point, draw_front, front_of
from mobilenas.results import SweepGroup, SweepResult, SweepTrial
from mobilenas.workflows.naming import RESULT, Listener, Silent
from mobilenas.workflows.run_search import method_from_config, search
from mobilenas.workflows.run_train import train

RANDOM = "random"
BASELINES: dict[str, dict[str, Any]] = {
    RANDOM: {},
    "random, not ranked": {"selection.rank": ["logits"]},
    "most parameters": {"derivation": "parameters"},
}
"""What every sweep holds besides, for the methods to be compared with: settings of random search, by the name of the trials."""
INSTEAD = {"method": "methods", "latency_budget": "budgets", "seed": "seeds"}
"""Settings of a search that a sweep has by another name."""
OF_TRAINED = ("method_options.", "switches.", "derivation")
"""Settings of a search that random search has no use for."""
RESULT_FILE, FRONT_FILE = "sweep.json", "front.svg"
WAIT_S, CONNECT_S = 1.0, 5.0
ONLY_HERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Variable by which a Ray of this sweep's own listens at 127.0.0.1 only, on any system."""


class Job(msgspec.Struct, frozen=True):
    """One trial: what is searched and how it is trained, and its folder's name."""

    name: str
    method: str
    """That of ``search``, or a baseline's name."""
    search: SearchConfig
    train: TrainConfig


class Failure(NamedTuple):
    """Why a trial failed, in one line; ``is_lack`` where disk, memory or a package was lacking."""

    reason: str
    is_lack: bool


def jobs_of(cfg: SweepConfig) -> list[Job]:
    """All trials; their names tell all that decides their result. Raises ``UsageError`` kinds for names and settings."""
    methods = list(dict.fromkeys([*cfg.methods, *BASELINES]))
    budgets, devices = dict.fromkeys(cfg.budgets), dict.fromkeys(cfg.devices or [None])
    for budget in budgets:
        parse_latency_target(budget)
    for method in cfg.methods:
        METHODS.get(method)
    for name, instead in INSTEAD.items():
        if name in cfg.search:
            raise UsageError(f"search.{name} is what a sweep varies: say {instead}")
    first = _search_config(cfg, methods[0], {})
    where = flat({"space": msgspec.to_builtins(first.space)})
    found = []
    for method, budget, device, seed in product(methods, budgets, devices, range(cfg.seeds)):
        own = {"latency_budget": budget, "device.name": device, "seed": seed}
        is_baseline = method in BASELINES
        searched = _search_config(cfg, RANDOM if is_baseline else method, {**where, **own} if is_baseline else own)
        if is_baseline:
            searched = load_config(SearchConfig, None, [], {**flat(msgspec.to_builtins(searched)), **BASELINES[method]})
        method_from_config(searched)
        data = msgspec.to_builtins(same_data(DataSetConfig(), searched.data))
        trained = load_config(TrainConfig, None, [], {**flat({"data": data, "seed": seed}), **flat(cfg.train)})
        digest = hashlib.sha256((config.dump_config(searched) + config.dump_config(trained)).encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{method}-{budget}-{searched.device.name}-s{seed}")
        found.append(Job(f"{words}-{digest}", method, searched, trained))
    return found


def _search_config(cfg: SweepConfig, method: str, own: Mapping[str, Any]) -> SearchConfig:
    """Of a trial; random search, which has no preset and trains nothing, is told the space of the first method's."""
    preset = load_preset(method, cfg.preset) if cfg.preset and method != RANDOM else None
    asked = flat(cfg.search)
    if method == RANDOM:
        asked = {key: value for key, value in asked.items() if not key.startswith(OF_TRAINED)}
    return load_config(SearchConfig, None, [], {**asked, **own, "method": method}, preset)


def sweep(cfg: SweepConfig, output: Path, listener: Listener | None = None) -> SweepResult:
    """Run what is not finished yet of a sweep, and write what all trials have found into ``output``.

    A trial that fails is listed with its reason. Interrupted, the same command goes on. Raises ``ResourceError`` without Ray,
    and where a trial lacked disk or memory, when all others are done.
    """
    told = listener or Silent()
    begin = time.monotonic()
    jobs = jobs_of(cfg)
    with locked(output), status_kept(output):
        write_atomic(output / "config.toml", config.dump_config(cfg))
        folders = {job.name: output / "trials" / job.name for job in jobs}
        waiting = [job for job in jobs if not _is_done(folders[job.name])]
        failures = _run_on_ray(waiting, folders, cfg, told, len(jobs)) if waiting else {}
        lacking = [(name, failure) for name, failure in failures.items() if failure.is_lack]
        result = None
        with suppress(ResourceError) if lacking else nullcontext():  # what a trial lacked first is what is told
            result = _collect(cfg, output, jobs, folders, failures, begin)
        if lacking or result is None:
            name, failure = lacking[0]
            raise ResourceError(f"{len(lacking)} of {len(jobs)} trials stopped; first {name}: {failure.reason}")
    return result


def _collect(
    cfg: SweepConfig,
    output: Path,
    jobs: Sequence[Job],
    folders: Mapping[str, Path],
    failures: Mapping[str, Failure],
    begin: float,
) -> SweepResult:
    """Write what all trials have found."""
    trials = tuple(_trial(job, folders[job.name], failures.get(job.name)) for job in jobs)
    groups = _groups(trials)
    result = SweepResult(str(output), trials, groups, None, time.monotonic() - begin)
    if groups:
        points = [_point(group) for group in groups]
        best = {point.name for point in front_of(points)}
        marked = tuple(msgspec.structs.replace(g, is_on_front=p.name in best) for g, p in zip(groups, points, strict=True))
        drawing = output / FRONT_FILE
        write_atomic(drawing, draw_front(points, f"{len(trials)} trials of {cfg.seeds} seeds"))
        result = msgspec.structs.replace(result, groups=marked, drawing=str(drawing))
    write_atomic(
        output / RESULT_FILE, documents.dump_json({"schema": "mobilenas/sweep-result@1", **msgspec.to_builtins(result)})
    )
    return result


def run_trial(job: Job, folder: str) -> Failure | None:
    """Search and train, each unless it is done; return the failure, if any."""
    catch_terminations()  # Ray's own handler ends a process on the spot
    run = Path(folder)
    try:
        if not RunDirectory(run).is_finished:
            search(job.search, run)
        if not RunDirectory(run / "train").is_finished:
            train(run, job.train)
    except Exception as error:
        known = error if isinstance(error, MobileNASError) else resource_error(error)
        if known is None:
            raise
        return Failure(f"{type(known).__name__}: {' '.join(str(known).split())}", isinstance(known, ResourceError))
    return None


def _run_on_ray(
    jobs: Sequence[Job], folders: Mapping[str, Path], cfg: SweepConfig, told: Listener, total: int
) -> dict[str, Failure]:
    """Run trials on Ray, here or where ``cfg.address`` says; why those failed that did."""
    _check_answers(cfg.address)
    if cfg.address is None:
        os.environ[ONLY_HERE] = "0"  # read when Ray is imported, and by the processes that it starts
    try:
        import ray
    except ImportError:
        raise ResourceError("a sweep runs on Ray, which is not installed here: pip install 'mobilenas[ray]'") from None
    try:
        with handlers_kept():
            ray.init(address=cfg.address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"address is {cfg.address!r}, where Ray does not answer: {' '.join(str(error).split())}") from error
    try:
        remote: Any = ray.remote(num_cpus=cfg.cpus, num_gpus=cfg.gpus, max_retries=2)(run_trial)
        pending = {remote.remote(job, str(folders[job.name].absolute())): job for job in jobs}
        failures: dict[str, Failure] = {}
        while pending:
            told.progress("trials", total - len(pending), total)
            for reference in ray.wait(list(pending), num_returns=1, timeout=WAIT_S)[0]:
                job = pending.pop(reference)
                try:
                    failure = ray.get(reference)
                except ray.exceptions.RayError as error:  # a bug, or a worker that was killed again and again
                    lack = isinstance(error, ray.exceptions.OutOfMemoryError | ray.exceptions.OutOfDiskError)
                    failure = Failure(" ".join(str(error).strip().splitlines()[-1:]), lack)
                if failure is not None:
                    failures[job.name] = failure
                told.note(f"{job.name}: {failure.reason if failure else 'done'}")
        return failures
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Raise ``UsageError`` where nobody listens at ``host:port``: Ray itself would try again for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"address is {address!r}, where nobody listens: {error}") from error


def _is_done(run: Path) -> bool:
    return RunDirectory(run).is_finished and RunDirectory(run / "train").is_finished


def _trial(job: Job, run: Path, failure: Failure | None) -> SweepTrial:
    cfg = job.search
    trial = SweepTrial(job.name, job.method, cfg.latency_budget or "none", cfg.device.name, cfg.seed, str(run))
    if not _is_done(run):
        status = read_status(run / "train") or read_status(run)
        stands = f"{status.word}: {status.reason}".strip(": ") if status else "not begun"
        return msgspec.structs.replace(trial, reason=failure.reason if failure else stands)
    searched, trained = (RunDirectory(path).read_document(RESULT) for path in (run, run / "train"))
    [budget] = searched["budgets"] or [{"measured_ms": None, "table_ms": None, "target_ms": None}]
    return msgspec.structs.replace(
        trial,
        accuracy=trained["test_accuracy"],
        measured_ms=budget["measured_ms"],
        predicted_ms=budget["table_ms"],
        target_ms=budget["target_ms"],
        params=searched["params"],
        madds=searched["madds"],
        search_s=searched["duration_s"],
        images=searched.get("images"),
        train_s=trained["duration_s"],
    )


def _groups(trials: Sequence[SweepTrial]) -> tuple[SweepGroup, ...]:
    """What the seeds of each method, budget and device have in common; latencies as measured, or predicted where none was."""
    found: dict[tuple[str, str, str], list[SweepTrial]] = {}
    for trial in trials:
        if trial.accuracy is not None and trial.ms is not None:
            found.setdefault((trial.method, trial.budget, trial.device), []).append(trial)
    groups = []
    for (method, budget, device), members in found.items():
        accuracies = [trial.accuracy for trial in members if trial.accuracy is not None]
        measured = [trial.measured_ms for trial in members if trial.measured_ms is not None]
        groups.append(
            SweepGroup(
                method=method,
                budget=budget,
                device=device,
                trials=len(members),
                accuracy=fmean(accuracies),
                lowest_accuracy=min(accuracies),
                highest_accuracy=max(accuracies),
                ms=fmean(measured or [trial.ms for trial in members if trial.ms is not None]),
                search_s=fmean([trial.search_s or 0.0 for trial in members]),
                images=fmean([trial.images or 0 for trial in members]),
            )
        )
    return tuple(groups)


def _point(group: SweepGroup) -> Point:
    name = f"{group.method} {group.budget} {group.device}"
    return Point(name, group.method, group.ms, group.accuracy, group.lowest_accuracy, group.highest_accuracy)
