"""The contract of a runtime: which engine executes a model, and how a device-side runner is asked to time or lower it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from mobilenas import onnx_model
from mobilenas.core import documents
from mobilenas.core.measurement import MeasurementPlan, SweepRecord
from mobilenas.core.resources import shipped
from mobilenas.core.workload import Blueprint, Kernel, Layer, Workload
from mobilenas.devices.links import Link
from mobilenas.errors import DocumentError, IncompatibleError, RunnerError

PROTOCOL = 3
SENTINEL, SESSION = "sentinel", "session"
"""Names of the model that runs beside all others, and of that which computes next to nothing."""
SECONDS_PER_MODEL = 60.0
"""How long a runner may take for one model before it is given up."""


class RunSettings(msgspec.Struct, frozen=True):
    """How an engine is asked to run: with the device and the runtime's name, the identity of every number."""

    precision: str = "fp32"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    batch: int = 1


class PreparedModel(msgspec.Struct, frozen=True):
    """A model in the form that the runner reads. ``optimise`` is off for models that are one kernel already."""

    content: bytes
    optimise: bool = True


class Runtime(ABC):
    """An engine on the device, driven through its runner; every runner prints the same JSON lines."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    runner: ClassVar[str]
    """File name of the program that runs on the device."""

    @abstractmethod
    def prepare(self, onnx: bytes, settings: RunSettings) -> PreparedModel:
        """Convert an ONNX model to what the engine reads; raises ``IncompatibleError`` if it cannot."""

    @abstractmethod
    def kernels(
        self,
        models: Sequence[bytes],
        link: Link,
        settings: RunSettings,
        progress: Callable[[int], None] | None = None,
        on_hello: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> list[Counter[Kernel]]:
        """What the engine on the device executes for each ONNX model; ``progress`` is told how many are done.

        ``on_hello`` is given what the runner says of itself and its engine, before any model. Raises ``RunnerError`` naming
        the engine's complaint.
        """

    @abstractmethod
    def kernel_model(self, kernel: Kernel, copies: int) -> PreparedModel:
        """A model that executes ``kernel`` so many times on the same inputs and weights."""

    @abstractmethod
    def session_model(self) -> PreparedModel:
        """A model that computes next to nothing: the cost of one call."""

    def sentinel_model(self, settings: RunSettings) -> PreparedModel:
        """A model that runs beside all others: one convolution, 3 to 48 channels at 32x32.

        It takes long enough to time well, and short enough to fit a time slice.
        """
        workload = Workload("stem_cifar", 3, 48, 32, 32)
        onnx = onnx_model.compose(Blueprint((Layer("sentinel", workload, ("images",)),), (1, 3, 32, 32)))
        return self.prepare(onnx, settings)

    @property
    def runner_file(self) -> Path:
        """The runner on this host: among the shipped ones, unless a plug-in brings its own."""
        return shipped("export") / "runners" / self.runner

    def check(self, settings: RunSettings) -> None:
        """Raise ``IncompatibleError`` if the engine cannot run so."""
        if settings.precision not in self.precisions:
            raise IncompatibleError(
                f"{self.name} runs {', '.join(self.precisions)} here, not {settings.precision!r}: change --precision"
            )
        if settings.threads < 1:
            raise IncompatibleError(f"--threads is {settings.threads}; it must be at least 1")

    def hello(self, link: Link, settings: RunSettings) -> dict[str, Any]:
        """What the runner says of itself, its engine and the device as it is now. Raises ``RunnerError``."""
        found: dict[str, Any] = {}
        self._run_job({"mode": "time", "models": []}, link, settings, found.update)
        return found

    def time_models(
        self,
        models: Mapping[str, PreparedModel],
        link: Link,
        settings: RunSettings,
        plan: MeasurementPlan,
        on_record: Callable[[str, SweepRecord], None],
        on_hello: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """One sweep in a fresh process: time the models in their order, the sentinel beside them, and report each at once.

        ``on_hello`` is given what the runner says of itself and its engine, before any record. Raises ``RunnerError`` for
        a model that the engine refuses or a report outside the protocol, after all other models were reported.
        """
        pushed = {**models, SENTINEL: self.sentinel_model(settings)}
        for name, model in pushed.items():
            link.push_bytes(model.content, f"{name}.onnx")
        job = {
            "mode": "time",
            "sentinel": f"{SENTINEL}.onnx",
            "sentinel_every_s": plan.sentinel_every_s,
            "samples": plan.samples,
            "maximum_samples": plan.maximum_samples,
            "minimum_s": plan.minimum_s,
            "maximum_s": plan.maximum_s,
            "warmup_runs": plan.warmup_runs,
            "warmup_s": plan.warmup_s,
            "warmup_maximum_s": plan.warmup_maximum_s,
            "warmup_tolerance_fraction": plan.warmup_tolerance_fraction,
            "models": [{"id": name, "path": f"{name}.onnx", "optimise": model.optimise} for name, model in models.items()],
        }

        def receive(report: dict[str, Any]) -> None:
            if report["type"] == "hello":
                on_hello(report)
            else:
                name, record = timing_from_report(report)
                on_record(name, record)

        self._run_job(job, link, settings, receive)
        for name in pushed:
            link.remove(f"{name}.onnx")

    def _run_job(
        self, job: dict[str, Any], link: Link, settings: RunSettings, receive: Callable[[dict[str, Any]], None]
    ) -> None:
        job = {**job, "threads": settings.threads, "provider": settings.provider}
        link.push(self.runner_file, self.runner)
        link.push_bytes(documents.dump_json(job).encode(), "job.json")
        errors: dict[str, str] = {}
        done = False

        def on_line(line: str) -> None:
            nonlocal done
            report = parse_report(line, self.runner)
            if report["type"] == "error":
                errors[str(report["id"])] = " ".join(str(report["message"]).split())
            elif report["type"] == "bye":
                done = True
            else:
                receive(report)

        timeout_s = 60 + SECONDS_PER_MODEL * len(job["models"])
        link.run([link.python, self.runner, "job.json"], timeout_s=timeout_s, on_line=on_line)
        if not done:
            raise RunnerError(f"{self.runner} ended without saying bye: its report is incomplete")
        if errors:
            raise refusal(self.name, errors, len(job["models"]))


def refusal(runtime: str, refused: Mapping[str, str], models: int) -> RunnerError:
    """The error of an engine that would not run some of its ``models``."""
    first, complaint = next(iter(refused.items()))
    return RunnerError(f"{runtime} refused {len(refused)} of {models} models; first: {first}: {complaint}", refused)


def parse_report(line: str, runner: str) -> dict[str, Any]:
    """One line of a runner as a report; raises ``RunnerError`` for anything outside the protocol."""
    try:
        report = documents.parse_json(line, runner)
    except DocumentError as error:
        raise RunnerError(f"{runner} printed something that is not a report: {line[:200]!r}") from error
    if not isinstance(report, dict) or report.get("type") not in ("hello", "timing", "graph", "error", "bye"):
        raise RunnerError(f"{runner} printed a report of unknown type: {line[:200]!r}")
    if report["type"] == "hello" and report.get("protocol") != PROTOCOL:
        raise RunnerError(f"{runner} speaks protocol {report.get('protocol')!r}, this mobilenas {PROTOCOL}: renew the kit")
    return report


def timing_from_report(report: dict[str, Any]) -> tuple[str, SweepRecord]:
    """Model name and record of a "timing" report; raises ``RunnerError`` if times are missing or not positive."""
    facts = {key: report.get(key) for key in ("wall_ms", "cpu_ms", "sentinel_ms", "first_ms", "load_ms", "peak_memory_mib")}
    facts["is_warm"] = report.get("is_warm", False)
    try:
        record = documents.convert(facts, SweepRecord, f"report on {report.get('id')}")
    except DocumentError as error:
        raise RunnerError(str(error)) from error
    for field, times in (("wall_ms", record.wall_ms), ("sentinel_ms", record.sentinel_ms)):
        if not times or not all(0 < time < math.inf for time in times):
            raise RunnerError(f"report on {report.get('id')}: {field} must be positive numbers, one at least")
    if len(record.wall_ms) != len(record.cpu_ms):
        raise RunnerError(f"report on {report.get('id')}: {len(record.wall_ms)} wall_ms need one cpu_ms each")
    return report["id"], record


def numbered(count: int, prefix: str) -> Iterator[str]:
    """File names for ``count`` models."""
    return (f"{prefix}{index:06d}" for index in range(count))
