"""What the commands return and leave behind as JSON: plain data, one struct per command."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from mobilenas.core.architecture import Architecture, Decision, OptionValue
from mobilenas.core.environment import Environment
from mobilenas.core.measurement import Measurement, SlowDown, Statistic
from mobilenas.core.outcomes import BudgetOutcome as BudgetOutcome
from mobilenas.core.outcomes import DataFacts as DataFacts
from mobilenas.core.outcomes import Milliseconds, PositiveMilliseconds
from mobilenas.core.outcomes import TrainResult as TrainResult
from mobilenas.export.verify import Agreement
from mobilenas.latency.diff import TableDifference
from mobilenas.latency.kernels import NetworkPrediction
from mobilenas.latency.network_card import Proxy
from mobilenas.latency.table import ErrorReport, ModelFlags, NetworkScale
from mobilenas.runtimes.base import RunSettings
from mobilenas.search.memory import MemoryEstimate
from mobilenas.search.selection import Selection

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ProfileResult(msgspec.Struct, frozen=True):
    """What ``profile`` made: the table's folder and how far it can be trusted."""

    table: str
    kernels: int
    kernels_not_converged: int
    scale: NetworkScale
    """From sums of kernels to networks."""
    scale_spread_fraction: float
    """Of what it says of the median network."""
    table_mape_fraction: float
    table_worst_fraction: float
    baseline_mape_fraction: float
    workload_mape_fraction: float | None
    """``None`` for a table of any network, which no search uses."""
    repeatability_fraction: float
    networks: int
    """Whole networks that were measured."""
    networks_not_converged: int
    doubts: tuple[str, ...]
    """What spoke against the environment."""
    slow_down: SlowDown | None
    flags: ModelFlags
    since: TableDifference | None
    """What has moved since the table was last made."""
    duration_s: float
    network_error: ErrorReport | None = None
    """Of the network predictor, each network predicted without itself; ``None`` where none was learnt."""


class TransferResult(msgspec.Struct, frozen=True):
    """What ``profile --transfer`` made: a network predictor, no table."""

    folder: str
    networks: int
    """Measured on the device; kernels were not."""
    networks_not_converged: int
    error: ErrorReport
    """On these networks, each predicted without itself."""
    interval_factor: float
    coverage_fraction: Fraction
    """Share of networks that the interval promises to hold."""
    workload_mape_fraction: float
    """Of the linear stand-in against the predictor."""
    proxies: tuple[Proxy, ...]
    """Tables of other targets, the one most believed in first."""
    doubts: tuple[str, ...]
    """What spoke against the environment."""
    slow_down: SlowDown | None
    duration_s: float


class SearchPlan(msgspec.Struct, frozen=True):
    """What ``search --dry-run`` says."""

    method: str
    space: str
    images: tuple[int, int]
    """For the weights, and for the architecture."""
    stages: tuple[int, ...]
    """Epochs of each."""
    batch: int
    parts: int
    """That each batch is computed in."""
    memory: MemoryEstimate | None
    """Of a step of the largest stage, in one process; ``None`` where nothing is trained."""
    target_ms: float | None
    lowest_ms: float | None
    """Of the space's networks, by the latency model."""
    highest_ms: float | None


class TrainPlan(msgspec.Struct, frozen=True):
    """What ``train --dry-run`` says."""

    fingerprint: str
    images: int
    epochs: int
    batch: int
    parts: int
    memory: MemoryEstimate


class SearchResult(msgspec.Struct, frozen=True):
    """What ``search`` found; ``result.json`` of its run directory."""

    run: str
    method: str
    architecture: Architecture
    fingerprint: str
    params: int
    madds: int
    budgets: tuple[BudgetOutcome, ...]
    verified_on_target: bool
    selection: Selection | None
    latency_model: dict[str, Any] | None
    epochs: int
    duration_s: float
    collapsed: bool = False
    """Whether in any stage most operators that the search chose were skips or none, although no budget asks for that."""
    restored: bool = False
    """Whether the network is of an epoch before the collapse (``watch = "restore"``)."""
    data: DataFacts | None = None
    images: int = 0
    """That passed through networks, to search and to rank what was found."""


class SweepTrial(msgspec.Struct, frozen=True):
    """One search of a sweep, trained; what it reached is ``None`` where it failed, for the ``reason`` given."""

    name: str
    method: str
    budget: str
    device: str
    seed: int
    run: str
    accuracy: float | None = None
    """On test images, trained from scratch."""
    measured_ms: float | None = None
    predicted_ms: float | None = None
    target_ms: float | None = None
    params: int | None = None
    madds: int | None = None
    search_s: float | None = None
    images: int | None = None
    """That passed through networks while searching, short trainings included."""
    train_s: float | None = None
    reason: str = ""

    @property
    def ms(self) -> float | None:
        """As measured, or predicted where nothing was measured."""
        return self.predicted_ms if self.measured_ms is None else self.measured_ms


class SweepGroup(msgspec.Struct, frozen=True):
    """The trials of a method, a budget and a device that were finished: means over seeds, and how far accuracies reach."""

    method: str
    budget: str
    device: str
    trials: int
    accuracy: float
    lowest_accuracy: float
    highest_accuracy: float
    ms: float
    search_s: float
    images: float
    is_on_front: bool = False
    """Whether no other group is both as quick and more accurate, or as accurate and quicker."""


class SweepResult(msgspec.Struct, frozen=True):
    """What a sweep has found; ``sweep.json`` of its folder."""

    folder: str
    trials: tuple[SweepTrial, ...]
    groups: tuple[SweepGroup, ...]
    drawing: str | None
    """Accuracy against latency."""
    duration_s: float


class SpaceDescription(msgspec.Struct, frozen=True):
    """A search space with its options filled in."""

    space: str
    key: str
    options: dict[str, OptionValue]
    input_shape: tuple[int, ...]
    decisions: tuple[Decision, ...]
    workloads: int


class OperatorShare(msgspec.Struct, frozen=True):
    """What one operator of the catalogue adds to a network, over all places where it stands."""

    operator: str
    count: int
    madds: int
    params: int


class NetworkDescription(msgspec.Struct, frozen=True):
    """A network of a space and what it is made of, the dearest operator first."""

    space: str
    options: dict[str, OptionValue]
    fingerprint: str
    choices: dict[str, str]
    input_shape: tuple[int, ...]
    params: int
    params_with_auxiliary: int
    """With the auxiliary head that it is trained with; for a published network its authors'."""
    madds: int
    paper: str | None
    """Where a published network is from."""
    operators: tuple[OperatorShare, ...]


class EvaluateResult(msgspec.Struct, frozen=True):
    """How a trained network does on test images; accuracies are fractions, ``top_5_accuracy`` from six classes on."""

    weights: str
    data: str
    images: int
    accuracy: float
    top_5_accuracy: float | None
    cross_entropy: float
    worst_class: str
    worst_class_accuracy: float
    data_set: DataFacts | None = None


class VerifyResult(msgspec.Struct, frozen=True):
    """A measurement made after the search, beside what the search had predicted and measured."""

    run: str
    record: str
    fingerprint: str
    exported: bool
    """Whether the exported model was measured, or an untrained network of the architecture."""
    device: str
    budget: BudgetOutcome | None
    measured: Measurement
    environment: Environment
    """The device while it was measured."""
    within_interval: bool | None
    budget_met: bool | None
    agrees: bool | None = None
    """Whether the measured interval and the table's have anything in common."""


class PredictResult(msgspec.Struct, frozen=True):
    """What a model is predicted to take, from its kernels; and what it was measured to take, if asked for."""

    model: str
    device: str
    runtime: str
    predicted: NetworkPrediction
    newly_measured: int
    """Kernels that were measured for this."""
    table: str | None
    """Where their rows are kept."""
    measured: Measurement | None
    data_dependent: tuple[str, ...] = ()
    """Operators, with their nodes, whose outputs depend on the numbers that the model is given: the time is for random ones."""
    agrees: bool | None = None
    """Whether the measured interval and the predicted one have anything in common; ``None`` where nothing was measured."""


class MeasuredTimes(msgspec.Struct, frozen=True):
    """What a model took on a device, in milliseconds; a later measurement lies between ``low_ms`` and ``high_ms``."""

    estimator: Statistic
    """What ``value_ms`` is: the floor, or the median on an idle device of one's own."""
    value_ms: PositiveMilliseconds
    low_ms: PositiveMilliseconds
    high_ms: PositiveMilliseconds
    repeatability_fraction: float
    """How far two halves of these sweeps are apart."""
    p50_ms: PositiveMilliseconds
    """Of all runs."""
    p90_ms: PositiveMilliseconds
    first_ms: PositiveMilliseconds
    """The first run of a new process."""
    load_ms: PositiveMilliseconds
    """Loading the model into the engine."""
    peak_memory_mib: float | None
    """Of the whole process."""
    throughput_per_s: float
    """Runs in a second, one after the other, at the median."""
    load: Fraction | None
    """Share of the device's processors that others took meanwhile; ``None`` where the system does not tell."""
    sentinel_ms: float
    """What a small model beside it took: how fast the device was."""
    sweeps: int
    samples: int
    converged: bool
    """Whether the value repeats as well as the plan wants."""

    @classmethod
    def of(cls, found: Measurement) -> MeasuredTimes:
        """Convert a measurement to the names of the report."""
        return cls(
            estimator=found.estimator,
            value_ms=found.value_ms,
            low_ms=found.low_ms,
            high_ms=found.high_ms,
            repeatability_fraction=found.repeatability_fraction,
            p50_ms=found.wall_median_ms,
            p90_ms=found.wall_p90_ms,
            first_ms=found.first_ms,
            load_ms=found.load_ms,
            peak_memory_mib=found.peak_memory_mib,
            throughput_per_s=1e3 / found.wall_median_ms,
            load=found.load_fraction,
            sentinel_ms=found.sentinel_ms,
            sweeps=found.sweeps,
            samples=found.samples,
            converged=found.converged,
        )


class KernelTime(msgspec.Struct, frozen=True):
    """Kernels of one kind in a model, as the engine's own profile has them."""

    kernel: str
    """Operator and shapes."""
    operator: str
    count: int
    ms: Milliseconds
    """Of all of them, in one run."""
    share_fraction: Fraction
    """Of the sum of all kernels."""


class Failure(msgspec.Struct, frozen=True):
    """Why a model was not measured."""

    exit_code: int
    message: str


class MeasureResult(msgspec.Struct, frozen=True):
    """What one model took by one engine, or why it was not measured."""

    model: str
    device: str
    runtime: str
    engine_version: str | None
    settings: RunSettings
    measured: MeasuredTimes | None
    kernels: tuple[KernelTime, ...]
    """The dearest first, from a run of their own; empty where the engine has no profile of them."""
    data_dependent: tuple[str, ...]
    """Operators, with their nodes, whose outputs depend on the numbers that the model is given."""
    budget_ms: float | None = None
    budget_met: bool | None = None
    environment: Environment | None = None
    """The device while it was measured."""
    failure: Failure | None = None


class EngineExport(msgspec.Struct, frozen=True):
    """A model in the form of one engine, as the engine on the device computed and was timed."""

    runtime: str
    engine_version: str
    settings: RunSettings
    files: tuple[str, ...]
    """Called ``unverified`` where the engine disagrees with torch."""
    agreement: Agreement | None
    """``None`` where the engine has nothing to run on."""
    measured: Measurement | None
    environment: Environment | None = None
    """The device while it was measured."""
    not_run: str | None = None
    """Why it was not run."""
    sha256: tuple[str, ...] = ()
    """Of each file, by which a model is known again."""
    measured_at: str | None = None
    """Time in UTC; earlier than the report's own where an export that measured nothing kept it."""


class ExportResult(msgspec.Struct, frozen=True):
    """What ``export`` wrote and measured; ``report.json`` of the exported folder."""

    folder: str
    model: str
    fingerprint: str
    params: int
    madds: int
    trained: bool
    test_accuracy: float | None
    agreement: Agreement
    """Of the ONNX model, by ONNX Runtime on this host."""
    engines: tuple[EngineExport, ...]
    """That of the search first."""
    kits: tuple[str, ...]
    """Folders that can be copied to a device."""
    budget: BudgetOutcome | None
    measured: Measurement | None
    """By the engine of the search."""
    budget_met: bool | None
    """Whether the exported model, as measured here, is within the budget."""
    device: dict[str, Any] | None
    agrees: bool | None = None
    """Whether the measured interval and the table's have anything in common."""
    data: DataFacts | None = None
    """``None`` for a network of no data set."""
