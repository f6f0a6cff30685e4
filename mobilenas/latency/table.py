"""The latency lookup table: kernel rows, workload costs, measured networks, and a card that says where all came from."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture, OptionValue
from mobilenas.core.environment import Environment
from mobilenas.core.measurement import Estimator, MeasurementPlan, SlowDown, Statistic
from mobilenas.core.run_directory import write_together
from mobilenas.core.text import shell_command
from mobilenas.core.workload import COPIES, Kernel, Workload
from mobilenas.devices.device import LOCAL
from mobilenas.errors import DocumentError, IncompatibleError, MissingKernelError, nearest_names
from mobilenas.latency.prediction import Prediction
from mobilenas.latency.predictors.kernel_features import Context, context_of, is_product

T = TypeVar("T", bound=msgspec.Struct)

Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e4)]
"""A time as tables hold it; ten seconds for one kernel would be another unit by mistake."""

ModelMilliseconds = Annotated[float, msgspec.Meta(ge=1e-4, le=1e6)]
"""A time of a whole model; no call of any runtime takes less than 100 ns."""

SCHEMA_NAME, SCHEMA_VERSION = "latency-table", 8
TINY_MS = 1e-6
MOBILE_NETWORKS = "mobile-networks"
"""What a card calls networks of all kinds; their scale is preferred for a network of none of the known spaces."""


class TableKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a table is about; numbers of two tables with different keys are never mixed."""

    device: str
    runtime: str
    runtime_version: str
    provider: str
    precision: str
    threads: int
    batch: int
    estimator: Estimator = "floor"


class TableRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel's latency: the slope between models of few and of many copies."""

    kernel: Kernel
    value_ms: Milliseconds
    low_ms: Milliseconds
    high_ms: Milliseconds
    few_ms: ModelMilliseconds
    many_ms: ModelMilliseconds
    sweeps: int
    converged: bool
    few_copies: Annotated[int, msgspec.Meta(ge=1)] = COPIES[0]
    many_copies: Annotated[int, msgspec.Meta(ge=2)] = COPIES[1]
    network_factor: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """How many times as long as row and context say it takes in networks, by those that the scale is from (decision 0024)."""

    @property
    def in_networks_ms(self) -> tuple[float, float, float]:
        """The row with its interval, before the context: value, low, high."""
        return (self.network_factor * self.value_ms, self.network_factor * self.low_ms, self.network_factor * self.high_ms)

    def times(self, factor: float) -> TableRow:
        """The same on a device that is so much slower."""
        times = {f: factor * getattr(self, f) for f in ("value_ms", "low_ms", "high_ms", "few_ms", "many_ms")}
        return msgspec.structs.replace(self, **times)


class ErrorReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How predictions compare with the truth on networks that nothing was fitted on; fractions, not percent."""

    networks: int
    mape_fraction: float
    bias_fraction: float
    p90_fraction: float
    worst_fraction: float
    within_5_fraction: float
    within_10_fraction: float
    spearman: float

    @classmethod
    def none(cls) -> ErrorReport:
        """Of predictions that are right by definition."""
        return cls.of(np.ones(1), np.ones(1))

    @classmethod
    def of(cls, predicted: np.ndarray, truth: np.ndarray) -> ErrorReport:
        """Errors of ``predicted`` against ``truth``, both ``(n,)`` and positive."""
        from scipy.stats import spearmanr

        relative = predicted / truth - 1
        size = np.abs(relative)
        is_ranked = len(truth) > 2 and np.ptp(predicted) > 0 and np.ptp(truth) > 0
        rank = float(spearmanr(predicted, truth).statistic) if is_ranked else 0.0
        return cls(
            networks=len(truth),
            mape_fraction=float(size.mean()),
            bias_fraction=float(relative.mean()),
            p90_fraction=float(np.quantile(size, 0.9)),
            worst_fraction=float(size.max()),
            within_5_fraction=float((size <= 0.05).mean()),
            within_10_fraction=float((size <= 0.10).mean()),
            spearman=rank,
        )


class WorkloadCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cost per workload, so that a network is a sum over its workloads; fitted on kernel sums, unscaled.

    ``error`` compares with the kernel sums of networks that were not fitted on.
    """

    costs_ms: dict[Workload, float]
    error: ErrorReport


NetworkRole = Literal["scale", "test", "learn"]
"""What a measured network is for: the scale is fitted on it, it tests the table, or a predictor learns from it."""


class MeasuredNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole network as the device took it; its interval is the measurement's own."""

    architecture: Architecture
    measured_ms: ModelMilliseconds
    low_ms: ModelMilliseconds
    high_ms: ModelMilliseconds
    sweeps: int
    converged: bool
    median_ms: ModelMilliseconds
    p90_ms: ModelMilliseconds | None
    """The bound that nine runs in ten keep; ``None`` where too few were timed."""


class NetworkRow(MeasuredNetwork, frozen=True, forbid_unknown_fields=True):
    """The same in a table, beside what its kernels take."""

    role: NetworkRole
    kernel_sum_ms: ModelMilliseconds
    madds: int


class StatisticFit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another statistic than the estimator: so many times what is predicted, from the networks that the scale is from."""

    factor: Annotated[float, msgspec.Meta(gt=0)]
    interval_factor: Annotated[float, msgspec.Meta(ge=1)]
    error: ErrorReport


def statistic_fit(statistics: Mapping[Statistic, StatisticFit], statistic: Statistic, what: str) -> StatisticFit:
    """The fit of ``statistic``; raises ``IncompatibleError`` where there is none."""
    if statistic not in statistics:
        raise IncompatibleError(
            f"--budget-statistic {statistic}: {what} knows its estimator and {', '.join(statistics) or 'nothing else'}; "
            "profile with a plan that times more runs"
        )
    return statistics[statistic]


class NetworkScale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From the sum ``S`` of a network's kernels to its latency: ``factor * S * (1 + curvature * ln(S / reference_ms))``.

    A network that takes longer than its kernels would is slowed the more the longer it runs (decision 0024).
    """

    factor: Annotated[float, msgspec.Meta(gt=0)]
    curvature: float = 0.0
    reference_ms: ModelMilliseconds = 1.0
    """The kernel sum at which ``factor`` holds: about the median one of the networks that it was fitted on."""

    def network_ms(self, kernel_sums_ms: np.ndarray | float) -> np.ndarray:
        """Latencies for sums in milliseconds, of any shape; never less than half of a sum, however small the network."""
        sums = np.maximum(kernel_sums_ms, TINY_MS)
        return np.maximum(0.5, self.factor * (1 + self.curvature * np.log(sums / self.reference_ms))) * sums

    @property
    def slope(self) -> float:
        """Of the tangent at the reference."""
        return self.factor * (1 + self.curvature)

    @property
    def offset_ms(self) -> float:
        """Where the tangent at the reference starts: no network of positive curvature takes less than it says."""
        return -self.factor * self.curvature * self.reference_ms

    def times(self, factor: float) -> NetworkScale:
        """Of networks that take so many times as long for the same kernels."""
        return msgspec.structs.replace(self, factor=factor * self.factor)


class SpaceCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the table knows of one space. Fields of errors are on the test networks."""

    space: str
    options: dict[str, OptionValue]
    scale: NetworkScale
    scale_spread_fraction: Annotated[float, msgspec.Meta(ge=0)]
    """Standard deviation of what it says of the median network, had others been drawn to fit it, by the bootstrap."""
    interval_factor: Annotated[float, msgspec.Meta(ge=1)]
    """Nine networks in ten take between the prediction divided by it and times it."""
    table_error: ErrorReport
    workload_error: ErrorReport | None
    """``None`` where the table has no costs of workloads, as nothing is searched."""
    madds_baseline_error: ErrorReport
    repeatability_fraction: float
    """Mean repeatability of the test networks' measurements: no prediction can be told apart below it."""
    statistics: dict[Statistic, StatisticFit]
    """By statistic, for budgets that bind it."""

    def predict(self, kernel_sum_ms: float) -> Prediction:
        """What a network takes whose kernels take ``kernel_sum_ms``."""
        return Prediction.within(float(self.scale.network_ms(kernel_sum_ms)), self.interval_factor)

    def of_statistic(self, statistic: Statistic) -> SpaceCard:
        """The card of networks that take another statistic than the estimator; raises ``IncompatibleError`` without a fit."""
        fitted = statistic_fit(self.statistics, statistic, f"the table of {self.space}")
        return msgspec.structs.replace(
            self,
            scale=self.scale.times(fitted.factor),
            interval_factor=fitted.interval_factor,
            table_error=fitted.error,
        )


class ModelFlags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of how many models of kernels and networks a measurement is doubtful, and why."""

    models: int
    """All of them."""
    bimodal: int
    """Whose sweeps fall into two groups."""
    clocks_disagree: int
    """Whose wall clock and CPU clock are 10 % apart; none where several threads work, as the CPU clock is of one."""
    not_warm: int
    """Whose run times had not settled before they were timed, in at least half of the sweeps."""
    disturbed: int
    """Of whose runs more than a tenth took over twice the median."""


class ColdWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a mebibyte of weights costs more, of kernels that hold at most ``up_to_mib`` of them (``None``: of all).

    A kernel with more than a cache holds finds them cold in its row too. So does a matrix product, which uses each weight once,
    far sooner than a convolution, which uses them at every position.
    """

    up_to_mib: Annotated[float, msgspec.Meta(gt=0)] | None
    ms_per_mib: Milliseconds
    kernels: Literal["all", "products", "others"] = "all"
    """Matrix products (linear layers), all others, or both."""

    def is_of(self, kernel: Kernel) -> bool:
        """Whether ``kernel`` pays it."""
        kind = "products" if is_product(kernel) else "others"
        return self.kernels in ("all", kind) and (self.up_to_mib is None or kernel.weight_mib <= self.up_to_mib)


class NetworkContext(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a kernel takes in a network over its row, whose copies share data and weights, warm in the cache (decision 0022)."""

    cold_weights: tuple[ColdWeights, ...] = ()
    """What weights cost more; a kernel pays each price that is of its size."""
    depthwise_factor: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Of depthwise convolutions, over that of other kernels that compute, which the scale holds."""
    moving_factor: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """The same of kernels without multiply-adds and weights."""

    def kernel_ms(self, kernel: Kernel, row_ms: float) -> float:
        """What ``kernel`` adds to a network before the scale, where its row is ``row_ms``."""
        price_ms = math.fsum(cold.ms_per_mib for cold in self.cold_weights if cold.is_of(kernel))
        return self.factors[context_of(kernel)] * row_ms + price_ms * kernel.weight_mib

    @property
    def factors(self) -> dict[Context, float]:
        """By what surrounds a kernel."""
        return {"computing": 1.0, "depthwise": self.depthwise_factor, "moving": self.moving_factor}


class TableCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Provenance of a table. ``origin`` is ``"measured"`` only where ``mobilenas profile`` itself measured it."""

    origin: Literal["measured", "estimated"]
    created: str
    key: TableKey
    plan: MeasurementPlan
    protocol: int
    environment: Environment
    """The device before anything was measured."""
    environment_after: Environment
    """The device in the last sweep."""
    doubts: tuple[str, ...]
    """What spoke against the environment when the measuring began, and what was left out."""
    slow_down: SlowDown | None
    """When the device became slower for good, as one does that throttles."""
    session_ms: Milliseconds
    """Cost of one call of the runtime, whatever the model."""
    context: NetworkContext
    rows: int
    rows_not_converged: int
    flags: ModelFlags
    sentinel_ms: ModelMilliseconds
    """What the sentinel took when the device was as fast as it usually was meanwhile."""
    spaces: dict[str, SpaceCard]


@dataclass(frozen=True)
class LatencyTable:
    """Everything that a search needs to know of a device without having it at hand."""

    card: TableCard
    rows: Mapping[Kernel, TableRow]
    workload_costs: Mapping[str, WorkloadCosts]
    """By the space's key."""
    networks: tuple[NetworkRow, ...]

    @property
    def digest(self) -> str:
        """Hexadecimal digits that change when any number of the table does."""
        return documents.digest([self.card, self._files()])[:16]

    def lookup(self, kernel: Kernel) -> TableRow:
        """The row of ``kernel``; raises ``MissingKernelError`` with the nearest rows and the command that fills it."""
        row = self.rows.get(kernel)
        if row is None:
            same = [known.key for known in self.rows if known.operator == kernel.operator]
            nearest = nearest_names(kernel.key, same)
            raise MissingKernelError(
                f"the table of {self.card.key.device}, {self.card.key.runtime} has no row for the kernel {kernel.key}; "
                f"nearest: {', '.join(nearest) or 'none'}. Measure it: {self.profile_command()}"
            )
        return row

    def kernel_ms(self, kernel: Kernel) -> float:
        """What ``kernel`` adds to a network before the scale; raises ``MissingKernelError``."""
        return self.card.context.kernel_ms(kernel, self.lookup(kernel).in_networks_ms[0])

    def kernel_sum_ms(self, kernels: Counter[Kernel]) -> float:
        """The call's own cost and that of one network's kernels, unscaled; raises ``MissingKernelError``.

        The same to the last bit in whatever order the kernels come.
        """
        return math.fsum([self.card.session_ms, *(n * self.kernel_ms(kernel) for kernel, n in kernels.items())])

    def space_card(self, space_key: str) -> SpaceCard:
        """What is known of a space; raises ``DocumentError`` with the profile command if it was not profiled."""
        try:
            return self.card.spaces[space_key]
        except KeyError:
            known = ", ".join(self.card.spaces) or "none"
            raise DocumentError(
                f"the table of {self.card.key.device} does not cover the space {space_key} (it covers: {known}). "
                f"Profile it: {self.profile_command()} --space ... with the options of your search"
            ) from None

    def costs_ms(self, space_key: str, workloads: Iterable[Workload]) -> dict[Workload, float]:
        """The fitted cost of each workload of a space, unscaled; raises ``DocumentError`` where one is missing."""
        known = self.workload_costs[space_key].costs_ms if space_key in self.workload_costs else {}
        missing = sorted(set(workloads) - known.keys())
        if missing:
            raise DocumentError(
                f"the table of {self.card.key.device} lacks the cost of {len(missing)} workloads of {space_key}, "
                f"first {missing[0]}: profile the space again"
            )
        return {workload: known[workload] for workload in workloads}

    def of_statistic(self, statistic: Statistic) -> LatencyTable:
        """The table whose networks take another statistic than the estimator; raises ``IncompatibleError`` without a fit."""
        if statistic == self.card.key.estimator:
            return self
        cards = {key: card.of_statistic(statistic) for key, card in self.card.spaces.items()}
        return replace(self, card=msgspec.structs.replace(self.card, spaces=cards))

    def profile_command(self) -> str:
        """The command that measures more of what this table is about, with this table's key."""
        return _profile_command(self.card.key)

    # ---- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write kernels.csv, workloads.csv, networks.csv and, last, card.json with their SHA-256; a full disk keeps the old."""
        files = self._files()
        card = {
            "schema": f"mobilenas/{SCHEMA_NAME}@{SCHEMA_VERSION}",
            **msgspec.to_builtins(self.card),
            "sha256": {name: _sha256(content) for name, content in files.items()},
        }
        card["sha256"]["card.json"] = documents.digest(card)
        write_together(folder, {**files, "card.json": documents.dump_json(card)})

    def _files(self) -> dict[str, str]:
        costs = (
            _WorkloadRow(key, workload, cost_ms)
            for key, costs in self.workload_costs.items()
            for workload, cost_ms in sorted(costs.costs_ms.items())
        )
        return {
            "kernels.csv": _csv_from_rows(TableRow, self.rows.values()),
            "workloads.csv": _csv_from_rows(_WorkloadRow, costs),
            "networks.csv": _csv_from_rows(NetworkRow, self.networks),
        }

    @classmethod
    def load(cls, folder: Path) -> LatencyTable:
        """Read what ``save`` wrote; raises ``DocumentError`` for a file that is missing, damaged or was edited."""
        where = str(folder / "card.json")
        if folder.is_file():
            raise DocumentError(
                f"{folder} is a file{_foreign_format(folder)}; a latency table is a folder with card.json, as mobilenas "
                "profile makes it"
            )
        whole = documents.parse_json(documents.read_text(folder / "card.json"), where)
        data = documents.check_schema(whole, SCHEMA_NAME, SCHEMA_VERSION, where, lambda: _renewal(whole))
        digests = documents.convert(data.pop("sha256", {}), dict[str, str], f"{where}: sha256")
        card = documents.convert(data, TableCard, where)
        if digests.pop("card.json", None) != documents.digest({**whole, "sha256": digests}):
            raise DocumentError(f"{where}: changed since it was measured (its SHA-256 is another)")
        texts = {}
        for name in ("kernels.csv", "workloads.csv", "networks.csv"):
            texts[name] = documents.read_text(folder / name)
            if digests.get(name) != _sha256(texts[name]):
                raise DocumentError(f"{folder / name}: changed since it was measured (SHA-256 differs from card.json's)")
        kernels = _rows_from_csv(TableRow, texts["kernels.csv"], folder / "kernels.csv", lambda row: row.value_ms)
        costs: dict[str, dict[Workload, float]] = {key: {} for key in card.spaces}
        for cost in _rows_from_csv(_WorkloadRow, texts["workloads.csv"], folder / "workloads.csv", lambda row: row.cost_ms):
            if cost.space not in costs:
                raise DocumentError(
                    f"{folder / 'workloads.csv'}: the workload {cost.workload.key} is of the space {cost.space}, which the "
                    f"card does not know (it knows {', '.join(costs) or 'none'})"
                )
            costs[cost.space][cost.workload] = cost.cost_ms
        networks = _rows_from_csv(NetworkRow, texts["networks.csv"], folder / "networks.csv", lambda row: row.measured_ms)
        workload_costs = {
            key: WorkloadCosts(costs[key], space.workload_error) for key, space in card.spaces.items() if space.workload_error
        }
        return cls(card, {row.kernel: row for row in kernels}, workload_costs, tuple(networks))


def _profile_command(key: TableKey) -> str:
    device = LOCAL if key.device.startswith(f"{LOCAL}-") else key.device
    words = ["mobilenas", "profile", "--device", device, "--runtime", key.runtime, "--precision", key.precision]
    words += ["--threads", str(key.threads), *([] if key.estimator == "floor" else ["--estimator", key.estimator])]
    return shell_command([*words, "--plan", "strict", *([] if key.batch == 1 else ["--set", f"device.batch={key.batch}"])])


def _renewal(card: Mapping[str, Any]) -> str:
    """How to measure again what an older card is about, as far as it can be read."""
    try:
        key = documents.convert(card.get("key"), TableKey, "key")
        spaces = documents.convert(card.get("spaces"), dict[str, dict[str, Any]], "spaces")
    except DocumentError:
        return "profile again"
    names = [space.get("space") for space in spaces.values()]
    of = " --kernels default" if MOBILE_NETWORKS in names else "".join(f" --space {name}" for name in names[:1])
    return f"profile again: {_profile_command(key)}{of}"


def _foreign_format(path: Path) -> str:
    """What a file looks like that other projects keep tables in; judged by its first bytes, it is never opened as such."""
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except OSError as error:
        raise DocumentError(f"{path}: cannot be read: {error.strerror}") from error
    if start[:1] == b"\x80" or path.suffix in (".pkl", ".pickle"):
        return " that looks like a pickle, which is never opened since opening one runs what it holds"
    return {b"\x1f\x8b": " that looks like a gzip archive", b"PK": " that looks like a zip archive"}.get(start, "")


class _WorkloadRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    space: str
    workload: Workload
    cost_ms: Milliseconds


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _csv_from_rows(kind: type[msgspec.Struct], rows: Iterable[msgspec.Struct]) -> str:
    """One column a field; a field that is a struct, tuple or mapping is written as JSON."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in msgspec.structs.fields(kind)]
    writer.writerow(names)
    for row in rows:
        values = msgspec.to_builtins(row)
        writer.writerow([_cell(values[name]) for name in names])
    return buffer.getvalue()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, order="sorted").decode()


def _rows_from_csv(kind: type[T], text: str, path: Path, value_ms: Callable[[T], float]) -> list[T]:
    """The rows of a file; raises ``DocumentError`` with all that are wrong, or two of the same thing with their values."""
    documents.check_count(text, ",\n", str(path))
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    rows: dict[Hashable, T] = {}
    wrong: list[str] = []
    for number, cells in _lines(text, path):
        if number == 1:
            if cells != list(fields):
                raise DocumentError(f"{path}, line 1: columns are {', '.join(cells)}; expected {', '.join(fields)}")
            continue
        values = {
            name: cell if _is_text(kind_of) else _value(cell)
            for (name, kind_of), cell in zip(fields.items(), cells, strict=False)
        }
        where = f"line {number}{_name(fields, values)}"
        try:
            if len(cells) != len(fields):
                raise DocumentError(f"{where}: {len(cells)} cells, expected {len(fields)}")
            row = documents.convert(values, kind, where)
        except DocumentError as error:
            wrong.append(str(error))
            continue
        before = rows.setdefault(_subject(row), row)
        if before is not row:
            wrong.append(f"{where}: stands twice, with {value_ms(before)} and {value_ms(row)} ms; keep one")
    if wrong:
        raise DocumentError(
            f"{path}: {len(wrong)} of the rows are wrong (times are milliseconds, from 0 to 10000 for a kernel and from 0.0001 "
            f"to 1e6 for a network): {'; '.join(wrong)}"
        )
    return list(rows.values())


def _lines(text: str, path: Path) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text))
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DocumentError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _value(cell: str) -> Any:
    """What a cell holds as JSON; the converter refuses what is none, as the text that it is."""
    try:
        return documents.parse_json(cell, "cell")
    except DocumentError:
        return cell


def _subject(row: msgspec.Struct) -> Hashable:
    """What a row is about: its kernel, its workload in its space, or its network."""
    return tuple(getattr(row, name) for name in ("space", "kernel", "workload", "architecture") if hasattr(row, name))


def _name(fields: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """What a row is about, in words, if that much of it can be read."""
    for name in ("kernel", "workload", "architecture"):
        if name in values:
            try:
                found = documents.convert(values[name], fields[name], name)
            except DocumentError:
                return ""
            return f", {found.fingerprint if isinstance(found, Architecture) else found.key}"
    return ""


def _is_text(kind: Any) -> bool:
    return kind is str or getattr(kind, "__origin__", None) is Literal
