"""The one measuring path, used by profile and export alike: sweeps in fresh processes, spread over time."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from mobilenas import onnx_model
from mobilenas.core import documents
from mobilenas.core.environment import Environment, environment_from_hello
from mobilenas.core.estimators import measurement_from_records, possible_ms, slow_down
from mobilenas.core.measurement import Measurement, MeasurementPlan, SlowDown, SweepRecord
from mobilenas.core.run_directory import Journal
from mobilenas.core.workload import Blueprint, Layer, Workload
from mobilenas.devices.links import Link
from mobilenas.errors import MeasurementError
from mobilenas.runtimes.base import PreparedModel, RunSettings, Runtime

SENTINEL = "sentinel"
"""Name of the model that is timed at the start, in the middle and at the end of each sweep, to see drift."""


EXTRA_PAUSE_S = 10.0
"""Longest pause before the extra sweeps of models that have not converged."""


class JournalEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model's record in one sweep, as the journal keeps it."""

    sweep: int
    model: str
    record: SweepRecord
    at_s: float
    """When it was reported, in seconds since the epoch."""


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
    sentinel_floors_ms: dict[int, float] = field(default_factory=dict)
    """Of each sweep."""
    sentinels: list[tuple[float, float]] = field(default_factory=list)
    """When a sentinel was timed, in seconds since the epoch, and its floor in milliseconds."""

    @classmethod
    def resume(cls, journal: Journal | None) -> SweepLog:
        """Read back what an interrupted run recorded."""
        log = cls(journal)
        for number, entry in enumerate(journal.read() if journal else [], 1):
            where = f"{journal.path if journal else ''}:{number}"
            if "hello" in entry:
                log.hello = documents.convert(entry["hello"], dict[str, Any], f"{where}: hello")
            else:
                log._keep(documents.convert(entry, JournalEntry, where))
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

    def _keep(self, entry: JournalEntry) -> None:
        if entry.model == SENTINEL:
            floor = float(possible_ms(np.asarray(entry.record.wall_ms), np.asarray(entry.record.cpu_ms)).min())
            self.sentinels.append((entry.at_s, floor))
            self.sentinel_floors_ms[entry.sweep] = min(floor, self.sentinel_floors_ms.get(entry.sweep, floor))
        self.records.setdefault(entry.model, {})[entry.sweep] = entry.record

    def quiet_records(self, model: str, drift_fraction: float) -> list[SweepRecord]:
        """A model's records of sweeps in which the sentinel came within ``drift_fraction`` of its best."""
        limit = min(self.sentinel_floors_ms.values(), default=math.inf) * (1 + drift_fraction)
        records = self.records.get(model, {})
        return [record for sweep, record in records.items() if self.sentinel_floors_ms.get(sweep, math.inf) <= limit]

    def measurement(self, model: str, plan: MeasurementPlan, use_cpu_clock: bool) -> Measurement | None:
        """The estimate of one model from its quiet records, ``None`` without any record.

        Where none is quiet it is from all of them, and has not converged however well they agree: the device was slower.
        """
        quiet, every = self.quiet_records(model, plan.drift_fraction), list(self.records.get(model, {}).values())
        if not every:
            return None
        found = measurement_from_records(quiet or every, plan.tolerance_fraction, use_cpu_clock, plan.estimator)
        return found if quiet else msgspec.structs.replace(found, converged=False)

    @property
    def environment(self) -> Environment:
        """The device as it was in the last sweep."""
        return environment_from_hello(self.hello)

    def slow_down(self, plan: MeasurementPlan) -> SlowDown | None:
        """When the device became slower for good by more than the plan lets pass, ``None`` if it did not."""
        return slow_down(self.sentinels, plan.drift_fraction)


def measure(
    models: Mapping[str, PreparedModel],
    link: Link,
    runtime: Runtime,
    settings: RunSettings,
    plan: MeasurementPlan,
    *,
    journal: Journal | None = None,
    seed: int = 0,
    progress: Callable[[MeasureProgress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, Measurement], SweepLog]:
    """Measure every model as ``plan`` says; return the measurements, the sentinel's among them, with the log they come from.

    Sweeps that the sentinel shows to be slow do not count towards ``plan.sweeps``; models whose value does not repeat
    get more sweeps, up to ``plan.maximum_sweeps``, after which their measurement says ``converged: False``. What is in
    ``journal`` already is not measured again. Raises ``DeviceError`` kinds, and ``MeasurementError`` if a model ends
    without a record.
    """
    log = SweepLog.resume(journal)
    everything = {**models, SENTINEL: runtime.prepare(sentinel_model(), settings)}
    use_cpu_clock = settings.threads == 1
    due = clock()
    pause_s = plan.spread_s / max(1, plan.sweeps - 1)
    for sweep in range(plan.maximum_sweeps):
        wanted = _pending(models, log, plan, use_cpu_clock)
        if not wanted:
            break
        missing = [name for name in wanted if sweep not in log.records.get(name, {})]
        if not missing:
            continue
        while (wait_s := due - clock()) > 0:
            progress(MeasureProgress(sweep, plan.sweeps, 0, len(missing), wait_s))
            sleep(min(wait_s, 1.0))
        due = clock() + (pause_s if sweep + 1 < plan.sweeps else min(pause_s, EXTRA_PAUSE_S))
        order = _with_sentinels(missing, random.Random(f"{seed}/{sweep}"))
        done = 0

        def on_record(name: str, record: SweepRecord, sweep: int = sweep, total: int = len(order)) -> None:
            nonlocal done
            done += 1
            log.add(JournalEntry(sweep, name, record, time.time()))
            progress(MeasureProgress(sweep, plan.sweeps, done, total))

        chosen = {name: everything[name] for name in order}
        runtime.time_models(chosen, order, link, settings, plan, on_record, log.greet)
    measurements = {name: log.measurement(name, plan, use_cpu_clock) for name in (*models, SENTINEL)}
    without = [name for name, measurement in measurements.items() if measurement is None]
    if without:
        raise MeasurementError(f"{len(without)} models were never measured, the first is {without[0]}")
    return {name: m for name, m in measurements.items() if m is not None}, log


def _pending(models: Iterable[str], log: SweepLog, plan: MeasurementPlan, use_cpu_clock: bool) -> list[str]:
    """Models that need another sweep: too few quiet records, or a value that does not repeat."""

    def is_pending(name: str) -> bool:
        if len(log.quiet_records(name, plan.drift_fraction)) < plan.sweeps:
            return True
        measurement = log.measurement(name, plan, use_cpu_clock)
        return measurement is None or not measurement.converged

    return sorted(name for name in models if is_pending(name))


def _with_sentinels(names: list[str], generator: random.Random) -> list[str]:
    generator.shuffle(names)
    middle = len(names) // 2
    return [SENTINEL, *names[:middle], SENTINEL, *names[middle:], SENTINEL]


def sentinel_model() -> bytes:
    """One fixed convolution, 3 to 48 channels at 32x32: long enough to time well, short enough to fit a time slice."""
    workload = Workload("stem_cifar", 3, 48, 32, 32)
    return onnx_model.compose(Blueprint((Layer("sentinel", workload, ("images",)),), (1, 3, 32, 32)))
