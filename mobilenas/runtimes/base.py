"""The contract of a runtime: which engine executes a model, and how a device-side runner is asked to time or lower it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from mobilenas import onnx_model
from mobilenas.core import documents
from mobilenas.core.measurement import MeasurementPlan, SweepRecord
from mobilenas.core.resources import shipped
from mobilenas.core.workload import COPIES, Blueprint, Kernel, Layer, Workload
from mobilenas.devices.links import Link
from mobilenas.errors import (
    CrashError,
    DeviceTimeoutError,
    DocumentError,
    IncompatibleError,
    LostLinkError,
    RunnerError,
    UnavailableError,
)
from mobilenas.onnx_model import ModelFile
from mobilenas.runtimes.reports import ANSWERS, Conversation, timing_from_report

SENTINEL, SESSION = "sentinel", "session"
"""Names of the model that runs beside all others, and of that which computes next to nothing."""
JOB, RUNNER_LIBRARY = "job.json", "mobilenas_runner.py"
"""Files that lie beside a runner on the device: what it is to do, and what all runners do alike."""
LARGE_WEIGHTS_MIB, LARGE_COPIES = 0.5, (1, 2)
LOWER_BATCH = 64
"""Models lowered by one runner process."""
LOST_LINKS, CRASHES = 5, 5
"""How many times in a row a connection may break, or a runner end, without an answer in between."""
_FAILURE = re.compile(r"(?i)fail|error|invalid|not support|unsupported|what\(\)")
"""In a converter's words."""
SILENCE_S = 120.0
"""How long a runner may print nothing before it is given up: it loads its engine, or one model."""


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
    weights: bytes | None = None
    """In a file of their own, for an engine that wants them so."""
    source: ModelFile | None = None
    """The file that it was made of: tells which inputs are given, and where weights lie that are too large to be copied."""
    profiled_runs: int = 1
    """How often a model runs that is lowered; where it is more than once, the engine tells how long each node takes."""

    @property
    def files(self) -> tuple[bytes, ...]:
        """What goes to the device: the model and, where they are apart, its weights."""
        return (self.content,) if self.weights is None else (self.content, self.weights)


class NodeTime(msgspec.Struct, frozen=True):
    """One node that an engine executed. ``kernel`` is ``None`` where no row of a table could hold it."""

    name: str
    operator: str
    kernel: Kernel | None
    ms: float | None
    """Of one run, by the engine's own profile; ``None`` where it was not asked for or the engine has none."""


class Lowered(msgspec.Struct, frozen=True):
    """What an engine makes of one model."""

    nodes: tuple[NodeTime, ...]
    data_dependent: tuple[str, ...] = ()
    """Operators, with their nodes, whose outputs or time depend on the numbers that the model is given."""
    complaint: str | None = None
    """Why the nodes cannot all be kernels."""

    @property
    def kernels(self) -> Counter[Kernel]:
        """How often each kernel is executed; raises ``DocumentError`` for a model that is made of more than kernels."""
        if self.complaint is not None:
            raise DocumentError(self.complaint)
        return Counter(node.kernel for node in self.nodes if node.kernel is not None)


class Runtime(ABC):
    """An engine on the device, driven through its runner; every runner prints the same JSON lines."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    providers: ClassVar[tuple[str, ...]] = ("CPUExecutionProvider",)
    """What may execute inside the engine; the first unless another one is asked for."""
    runner: ClassVar[str]
    """File name of the program that runs on the device."""
    shares_weights: ClassVar[bool] = True
    """Whether the copies of a kernel in one model read the same weights."""
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    """Of the files of a prepared model."""
    tells_node_times: ClassVar[bool] = False
    """Whether the runner profiles the nodes of a model that it lowers several times."""

    @abstractmethod
    def prepare(self, onnx: bytes, settings: RunSettings, calibration: np.ndarray | None = None) -> PreparedModel:
        """Convert an ONNX model to what the engine reads; raises ``IncompatibleError`` if it cannot.

        ``calibration``, ``(calls, ...)``, are inputs that tell the range of activations, for a precision of integers. Without
        any, noise does, which is enough to be timed.
        """

    @abstractmethod
    def kernels_of(self, model: PreparedModel, graph: bytes | None, nodes: Sequence[Mapping[str, Any]]) -> Counter[Kernel]:
        """The kernels of a model from the runner's report on its ``nodes``, and the ``graph`` that the engine made of it if the
        engine writes one. Raises ``RunnerError`` if the report does not cover a node.
        """

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
        self.check_kernels(settings)
        distinct = list(dict.fromkeys(models))
        lowered: dict[bytes, Counter[Kernel]] = {}
        for start in range(0, len(distinct), LOWER_BATCH):
            batch = distinct[start : start + LOWER_BATCH]
            prepared = {str(start + index): self.prepare(model, settings) for index, model in enumerate(batch)}

            def receive(report: dict[str, Any], prepared: Mapping[str, PreparedModel] = prepared) -> None:
                if report["type"] == "hello":
                    on_hello(report)
                    return
                path = report.get("path")
                graph = link.pull(path) if path else None
                lowered[distinct[int(report["id"])]] = self.kernels_of(prepared[report["id"]], graph, report["nodes"])
                link.remove([path] if path else [])
                if progress:
                    progress(len(lowered))

            self.lower(prepared, link, settings, receive)
        return [lowered[model] for model in models]

    def prepare_file(self, file: ModelFile, settings: RunSettings) -> PreparedModel:
        """Convert a file; raises ``IncompatibleError`` for what the engine, or its converter here, does not take."""
        if file.external:
            raise IncompatibleError(
                f"a model above 2 GiB keeps its weights in files of their own, which {self.name} in {settings.precision} does "
                "not read here: onnxruntime in fp32 does"
            )
        if file.inputs:
            raise IncompatibleError(
                f"{self.name} is timed on random inputs here: leave --input out, or say --runtime onnxruntime"
            )
        return self.prepare(file.content, settings)

    def study(
        self,
        model: PreparedModel,
        link: Link,
        settings: RunSettings,
        on_hello: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> Lowered:
        """Lower one model on the device, node by node. Raises ``RunnerError`` kinds."""
        self.check_kernels(settings)
        found: list[Lowered] = []

        def receive(report: dict[str, Any]) -> None:
            if report["type"] == "hello":
                on_hello(report)
                return
            path = report.get("path")
            graph = link.pull(path) if path else None
            link.remove([path] if path else [])
            found.append(self.lowered_from(model, graph, report["nodes"]))

        self.lower({"model": model}, link, settings, receive)
        return found[0]

    def lowered_from(self, model: PreparedModel, graph: bytes | None, nodes: Sequence[Mapping[str, Any]]) -> Lowered:
        """Convert the runner's report to what ``study`` returns; engines that report more than kernels override it."""
        kernels = self.kernels_of(model, graph, nodes)
        return Lowered(tuple(NodeTime("", kernel.operator, kernel, None) for kernel in kernels.elements()))

    def lower(
        self,
        models: Mapping[str, PreparedModel],
        link: Link,
        settings: RunSettings,
        receive: Callable[[dict[str, Any]], None],
    ) -> None:
        """Hand ``receive`` the runner's "hello", and a "graph" report on each model by its name."""
        paths = self._keep(models.values(), link)
        pairs = zip(models.items(), paths, strict=True)
        entries = [{"id": name, "path": path, **_asked(model, link)} for (name, model), path in pairs]
        self._run_job(self.job("lower", entries, settings), link, receive)
        link.remove(f"{Path(path).stem}{suffix}" for path in paths for suffix in self.suffixes)

    @abstractmethod
    def kernel_model(self, kernel: Kernel, copies: int) -> PreparedModel:
        """A model that executes ``kernel`` so many times on the same inputs and weights."""

    def copies(self, kernel: Kernel) -> tuple[int, int]:
        """How often a kernel stands in the two models that it is measured by: few and many.

        Of large weights that copies do not share there are fewer: eight times as many outgrow a cache that holds a network's.
        """
        return COPIES if self.shares_weights or kernel.weight_mib <= LARGE_WEIGHTS_MIB else LARGE_COPIES

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

    def knows_provider(self, provider: str) -> bool:
        """Whether the engine may be asked to execute by it; a device need not have it."""
        return provider in self.providers

    def check(self, settings: RunSettings) -> None:
        """Raise ``IncompatibleError`` if the engine cannot run so."""
        if settings.precision not in self.precisions:
            raise IncompatibleError(
                f"{self.name} runs {', '.join(self.precisions)} here, not {settings.precision!r}: change --precision"
            )
        if not self.knows_provider(settings.provider):
            raise IncompatibleError(
                f"{self.name} runs by {', '.join(self.providers)} here, not {settings.provider!r}: change device.provider"
            )
        if settings.threads < 1:
            raise IncompatibleError(f"--threads is {settings.threads}; it must be at least 1")

    def check_kernels(self, settings: RunSettings) -> None:
        """Raise ``IncompatibleError`` if the engine cannot run so, or shows no kernels that could be run alone."""
        self.check(settings)

    def hello(self, link: Link, settings: RunSettings) -> dict[str, Any]:
        """What the runner says of itself, its engine and the device as it is now. Raises ``RunnerError``."""
        found: dict[str, Any] = {}
        self._run_job(self.job("time", [], settings), link, found.update)
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
        sentinel, *paths = self._keep([self.sentinel_model(settings), *models.values()], link)
        entries = [
            {"id": name, "path": path, "optimise": model.optimise, **_asked(model, link)}
            for (name, model), path in zip(models.items(), paths, strict=True)
        ]
        job = self.timing_job(settings, plan, sentinel, entries)

        def receive(report: dict[str, Any]) -> None:
            if report["type"] == "hello":
                on_hello(report)
            else:
                name, record = timing_from_report(report)
                on_record(name, record)

        self._run_job(job, link, receive)

    def job(self, mode: str, models: Sequence[Mapping[str, Any]], settings: RunSettings, **more: Any) -> dict[str, Any]:
        """What a runner is told: each model has an ``id`` and a ``path``."""
        asked = {"threads": settings.threads, "provider": settings.provider, "precision": settings.precision}
        return {"mode": mode, **asked, **more, "models": list(models)}

    def timing_job(
        self, settings: RunSettings, plan: MeasurementPlan, sentinel: str, models: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What a runner is told that shall time models: each with an ``id``, a ``path``, and whether to ``optimise`` it."""
        return self.job(
            "time",
            models,
            settings,
            sentinel=sentinel,
            sentinel_every_s=plan.sentinel_every_s,
            samples=plan.samples,
            maximum_samples=plan.maximum_samples,
            minimum_s=plan.minimum_s,
            maximum_s=plan.maximum_s,
            warmup_runs=plan.warmup_runs,
            warmup_s=plan.warmup_s,
            warmup_maximum_s=plan.warmup_maximum_s,
            warmup_tolerance_fraction=plan.warmup_tolerance_fraction,
        )

    def compute(self, model: PreparedModel, inputs: np.ndarray, link: Link, settings: RunSettings) -> np.ndarray:
        """What the engine on the device makes of ``inputs``, ``(calls, ...)`` each of the model's input: ``(calls, numbers)``.

        Both are float32, whatever the precision in between. Raises ``RunnerError`` if the engine refuses the model.
        """
        [path] = self._keep([model], link)
        [numbers] = link.keep([[np.ascontiguousarray(inputs, "<f4").tobytes()]], [".inputs"])
        found: list[bytes] = []

        def receive(report: dict[str, Any]) -> None:
            if report["type"] == "outputs":
                found.append(link.pull(report["path"]))
                link.remove([report["path"]])

        job = self.job("compute", [{"id": "model", "path": path}], settings, inputs=numbers, calls=len(inputs))
        self._run_job(job, link, receive)
        link.remove([numbers])
        return np.frombuffer(found[0], "<f4").reshape(len(inputs), -1)

    def _keep(self, models: Iterable[PreparedModel], link: Link) -> list[str]:
        """Where the models lie on the device, once they do."""
        return link.keep((model.files for model in models), self.suffixes)

    def _run_job(self, job: dict[str, Any], link: Link, receive: Callable[[dict[str, Any]], None]) -> None:
        """Have the runner do a job; where the connection breaks, the models without an answer are asked for again.

        A model at which the runner crashes twice, or falls silent, counts as refused, and the others go on.
        """
        errors: dict[str, str] = {}
        unavailable: set[str] = set()
        suspected: set[str] = set()
        waiting = {model["id"]: model for model in job["models"]}
        lost = crashes = 0
        is_working = False

        def take(report: dict[str, Any]) -> None:
            nonlocal lost, crashes, is_working
            is_working = True
            if report["type"] == "error":
                errors[report["id"]] = " ".join(report["message"].split())
                unavailable.update([report["id"]] if report.get("unavailable") else [])
            elif report["type"] != "bye":
                receive(report)
            if waiting.pop(report.get("id"), None):
                lost = crashes = 0

        while True:
            is_working = False
            try:
                self._converse({**job, "models": list(waiting.values())}, link, take)
                break
            except LostLinkError:
                lost += 1
                if lost == LOST_LINKS:
                    raise
            except (CrashError, DeviceTimeoutError) as error:
                crashes += 1
                is_to_blame = is_working and bool(waiting)
                if crashes == CRASHES or (crashes > 1 and not is_to_blame):
                    raise
                if not is_to_blame:
                    continue
                blamed = next(iter(waiting))
                if isinstance(error, CrashError) and blamed not in suspected:  # it may have been killed for another's memory
                    suspected.add(blamed)
                    waiting[blamed] = waiting.pop(blamed)
                    continue
                errors[blamed] = " ".join(str(error).split())
                del waiting[blamed]
                if not waiting:
                    break
        if errors and unavailable == errors.keys():
            raise UnavailableError(f"{self.name} cannot run here: {next(iter(errors.values()))}")
        if errors:
            raise refusal(self.name, errors, len(job["models"]))

    def _converse(self, job: dict[str, Any], link: Link, take: Callable[[dict[str, Any]], None]) -> None:
        """One run of the runner; ``take`` is given each of its reports."""
        library = shipped("export") / "runners" / RUNNER_LIBRARY
        programs = {self.runner: self.runner_file.read_bytes(), RUNNER_LIBRARY: library.read_bytes()}
        link.push({**programs, JOB: documents.dump_json(job).encode()})
        conversation = Conversation(self.runner, (model["id"] for model in job["models"]), ANSWERS[job["mode"]])
        try:
            link.run([link.python, self.runner, JOB], timeout_s=SILENCE_S, on_line=lambda line: take(conversation.take(line)))
        except RunnerError as error:
            raise _without_engine(error, link.python) or error from None
        conversation.check_whole()


def _asked(model: PreparedModel, link: Link) -> dict[str, Any]:
    """Copy the files that a model needs to the device, and return the entries of its job beyond its path."""
    asked: dict[str, Any] = {} if model.profiled_runs == 1 else {"profiled_runs": model.profiled_runs}
    source = model.source
    if source is None:
        return asked
    if source.index_limits:
        asked["index_limits"] = dict(source.index_limits)
    if source.inputs:
        places = link.keep(([values] for _, values in source.inputs), [".npy"])
        asked["inputs"] = dict(zip((name for name, _ in source.inputs), places, strict=True))
    if source.folder is not None:
        asked["weights_folder"] = link.place(source.folder, source.external)
    return asked


def _without_engine(error: RunnerError, python: str) -> RunnerError | None:
    """What is lacking where the interpreter on the device has no such package."""
    missing = re.search(r"No module named '([\w.]+)'", str(error))
    if missing is None:
        return None
    return RunnerError(
        f"{python} on the device has no package {missing[1]!r}: install it there, {python} -m pip install {missing[1]}"
    )


def telling_lines(words: str) -> str:
    """Of what a converter has said the last lines that tell of a failure, or the last ones at all, in one line."""
    lines = [line for line in words.splitlines() if line.strip() and "WARNING" not in line.upper()]
    telling = [line for line in lines if _FAILURE.search(line)]
    return " / ".join(" ".join(line.split()) for line in (telling or lines)[-3:])


def refusal(runtime: str, refused: Mapping[str, str], models: int) -> RunnerError:
    """The error of an engine that would not run some of its ``models``."""
    first, complaint = next(iter(refused.items()))
    return RunnerError(f"{runtime} refused {len(refused)} of {models} models; first: {first}: {complaint}", refused)
