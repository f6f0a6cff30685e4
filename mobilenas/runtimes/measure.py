"""The one measuring path, used by profile and export alike: sweeps in fresh processes, spread over time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np

from mobilenas.core import documents
from mobilenas.core.environment import Environment, environment_from_hello
from mobilenas.core.estimators import measurement_from_records, slow_down, usual_sentinel_ms
from mobilenas.core.measurement import Measurement, MeasurementPlan, SlowDown, SweepRecord
from mobilenas.core.run_directory import Journal
from mobilenas.devices.links import Link
from mobilenas.errors import DocumentError, MeasurementError, RunnerError
from mobilenas.runtimes.base import PreparedModel, RunSettings, Runtime

EXTRA_PAUSE_S = 10.0
"""Longest pause before the extra sweeps of models that have not converged."""
STRAGGLERS_FRACTION = 0.1
"""Of models that are compared, how many may get further sweeps without the others."""
DRIFT_WINDOWS = 100
"""Parts of a campaign whose sentinels are compared, to see a device become slower for good."""


class JournalEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model's record in one sweep, as the journal keeps it."""

    sweep: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    model: str
    record: SweepRecord
    at_s: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    """When it was reported, in seconds since the epoch."""


class _Hello(msgspec.Struct):
    """What a journal's records are compared by; the rest is the runner's own."""

    runner: str
    engine_version: str
    state: dict[str, Any] | None = None


def check_hello(hello: Any, where: str) -> dict[str, Any]:
    """Return what a journal keeps of a runner; raises ``DocumentError`` for what no runner may say."""
    documents.convert(hello, _Hello, where)
    try:
        environment_from_hello(hello)
    except RunnerError as error:
        raise DocumentError(f"{where}: {error}") from error
    found: dict[str, Any] = hello
    return found


@dataclass(frozen=True)
class MeasureProgress:
    """Told after each model: ``done`` of ``total`` models in sweep ``sweep`` of at least ``sweeps``; or waiting."""

    sweep: int
    sweeps: int
    done: int
    total: int
    wait_s: float = 0.0

    @property
    def text(self) -> str:
        """Which sweep this is, for people; sweeps beyond the plan's are those of models that have not converged."""
        number, extra = self.sweep + 1, self.sweep + 1 - self.sweeps
        return f"sweep {number}/{self.sweeps}" if extra <= 0 else f"extra sweep {extra} for what has not converged"


@dataclass
class SweepLog:
    """What has been recorded, by model and sweep; appended to the journal as it comes."""

    journal: Journal | None
    hello: dict[str, Any] = field(default_factory=dict)
    """What the runner last said of itself, its engine and its device."""
    records: dict[str, dict[int, SweepRecord]] = field(default_factory=dict)
    sentinels: list[tuple[float, float]] = field(default_factory=list)
    """When a record was reported, in seconds since the epoch, and the floor of the sentinel beside it in milliseconds."""

    @classmethod
    def resume(cls, journal: Journal | None) -> SweepLog:
        """Read back what an interrupted run recorded."""
        log = cls(journal)
        for number, entry in enumerate(journal.lines() if journal else (), 1):
            where = f"{journal.path if journal else ''}:{number}"
            if "hello" in entry:
                log.hello = check_hello(entry["hello"], f"{where}: hello")
            else:
                log._keep_once(documents.convert(entry, JournalEntry, where), where)
        return log

    def greet(self, hello: dict[str, Any]) -> None:
        """Take a runner's hello; raises ``MeasurementError`` if what was recorded before is of another engine."""
        for key in ("runner", "engine_version"):
            before, now = self.hello.get(key), hello.get(key)
            if self.hello and before != now:
                raise MeasurementError(
                    f"{self.journal.path if self.journal else 'this measurement'} was begun with {key} {before}, the device "
                    f"now has {now}: two engines are never mixed; move {self.journal.path.parent if self.journal else 'it'} "
                    "away to measure anew"
                )
        if self.journal:
            self.journal.append({"hello": hello})
        self.hello = hello

    def add(self, entry: JournalEntry) -> None:
        """Record one model of one sweep, on disk first."""
        if self.journal:
            self.journal.append(entry)
        self._keep(entry)

    def _keep_once(self, entry: JournalEntry, where: str) -> None:
        if entry.sweep in self.records.get(entry.model, {}):
            raise DocumentError(f"{where}: sweep {entry.sweep} of {entry.model} stands twice: remove one of the lines")
        self._keep(entry)

    def _keep(self, entry: JournalEntry) -> None:
        self.sentinels.append((entry.at_s, entry.record.sentinel_floor_ms))
        self.records.setdefault(entry.model, {})[entry.sweep] = entry.record

    @property
    def sentinel_ms(self) -> float:
        """What the sentinel takes when the device is not disturbed: how fast it is."""
        return usual_sentinel_ms([floor for _, floor in self.sentinels])

    def measurements(self, models: Iterable[str], plan: MeasurementPlan, use_cpu_clock: bool) -> dict[str, Measurement]:
        """The estimate of each model that has records; floors are of sweeps in which the device was about as fast as usual."""
        sentinel_ms = self.sentinel_ms if self.sentinels else None
        return {
            model: measurement_from_records(
                list(self.records[model].values()),
                plan.tolerance_fraction,
                use_cpu_clock,
                plan.estimator,
                sentinel_ms,
                plan.drift_fraction,
                plan.sweeps,
            )
            for model in models
            if model in self.records
        }

    @property
    def environment(self) -> Environment:
        """The device as it was in the last sweep."""
        return environment_from_hello(self.hello)

    def slow_down(self, plan: MeasurementPlan) -> SlowDown | None:
        """When the device became slower for good by more than the plan lets pass, ``None`` if it did not."""
        windows = np.array_split(np.array(self.sentinels), min(len(self.sentinels), DRIFT_WINDOWS)) if self.sentinels else []
        return slow_down([(float(w[0, 0]), float(w[:, 1].min())) for w in windows], plan.drift_fraction)


def measure(
    models: Mapping[str, PreparedModel],
    link: Link,
    runtime: Runtime,
    settings: RunSettings,
    plan: MeasurementPlan,
    *,
    journal: Journal | None = None,
    seed: int = 0,
    compared: Collection[str] = (),
    refused: dict[str, str] | None = None,
    progress: Callable[[MeasureProgress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, Measurement], SweepLog]:
    """Measure every model as ``plan`` says; return the measurements, with the log they come from.

    Of a floor, records beside which the sentinel was much slower or faster than usual do not count towards ``plan.sweeps``.
    Models whose value does not repeat get more sweeps, up to ``plan.maximum_sweeps``, after which their measurement says
    ``converged: False``. Those that are to be ``compared`` with each other share their sweeps until nearly all have
    converged: what the sentinel does not see of the device, as how much of its memory's speed others take, is then the same
    for all. Where ``refused`` is given, each model runs in a process of its own, and what the engine says against one is noted
    there, while the others go on. What is in ``journal`` already is not measured again. Raises ``DeviceError`` kinds, and
    ``MeasurementError`` if a model ends without a record.
    """
    log = SweepLog.resume(journal)
    use_cpu_clock = settings.threads == 1
    due = clock()
    pause_s = plan.spread_s / max(1, plan.sweeps - 1)
    for sweep in range(plan.maximum_sweeps):
        wanted = _pending(models, log, plan, use_cpu_clock, compared)
        if not wanted:
            break
        missing = [name for name in wanted if sweep not in log.records.get(name, {})]
        if not missing:
            continue
        while (wait_s := due - clock()) > 0:
            progress(MeasureProgress(sweep, plan.sweeps, 0, len(missing), wait_s))
            sleep(min(wait_s, 1.0))
        due = clock() + (pause_s if sweep + 1 < plan.sweeps else min(pause_s, EXTRA_PAUSE_S))
        random.Random(f"{seed}/{sweep}").shuffle(missing)
        done = 0

        def on_record(name: str, record: SweepRecord, sweep: int = sweep, total: int = len(missing)) -> None:
            nonlocal done
            done += 1
            log.add(JournalEntry(sweep, name, record, time.time()))
            progress(MeasureProgress(sweep, plan.sweeps, done, total))

        for names in [missing] if refused is None else [[name] for name in missing]:
            try:
                runtime.time_models({name: models[name] for name in names}, link, settings, plan, on_record, log.greet)
            except RunnerError as error:
                if refused is None or not error.refused:
                    raise
                refused |= error.refused
        models = {name: model for name, model in models.items() if name not in (refused or ())}
    measurements = log.measurements(models, plan, use_cpu_clock)
    without = [name for name in models if name not in measurements]
    if without:
        raise MeasurementError(f"{len(without)} models were never measured, the first is {without[0]}")
    return measurements, log


def _pending(
    models: Iterable[str], log: SweepLog, plan: MeasurementPlan, use_cpu_clock: bool, compared: Collection[str]
) -> list[str]:
    """Models that need another sweep: too few count, the value does not repeat, or others need one that it is compared with."""
    found = log.measurements(models, plan, use_cpu_clock)
    wanted = {name for name in models if name not in found or not found[name].converged}
    if len(wanted.intersection(compared)) > STRAGGLERS_FRACTION * len(compared):
        wanted |= set(compared)
    return sorted(wanted)
