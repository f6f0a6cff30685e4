"""The latency lookup table: kernel rows, workload costs, measured networks, and a card that says where all came from."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

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
from mobilenas.latency.table_checks import (
    wrong_between,
    wrong_with_card,
    wrong_with_fields,
    wrong_with_network,
    wrong_with_row,
)
from mobilenas.latency.table_files import csv_from_rows, rows_from_csv

Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e4)]
"""A time as tables hold it; ten seconds for one kernel would be another unit by mistake."""

ModelMilliseconds = Annotated[float, msgspec.Meta(ge=1e-4, le=1e6)]
"""A time of a whole model; no call of any runtime takes less than 100 ns."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Factor = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Error = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
"""Of a prediction, relative to the truth."""

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
    threads: Positive
    batch: Positive
    estimator: Estimator = "floor"


class TableRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel's latency: the slope between models of few and of many copies."""

    kernel: Kernel
    value_ms: Milliseconds
    low_ms: Milliseconds
    high_ms: Milliseconds
    few_ms: ModelMilliseconds
    many_ms: ModelMilliseconds
    sweeps: Positive
    converged: bool
    few_copies: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = COPIES[0]
    many_copies: Annotated[int, msgspec.Meta(ge=2, le=2**31 - 1)] = COPIES[1]
    network_factor: Factor = 1.0
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

    networks: Positive
    mape_fraction: Error
    bias_fraction: Annotated[float, msgspec.Meta(ge=-1, le=1e9)]
    p90_fraction: Error
    worst_fraction: Error
    within_5_fraction: Share
    within_10_fraction: Share
    spearman: Annotated[float, msgspec.Meta(ge=-1.000001, le=1.000001)]

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
    sweeps: Positive
    converged: bool
    median_ms: ModelMilliseconds
    p90_ms: ModelMilliseconds | None
    """The bound that nine runs in ten keep; ``None`` where too few were timed."""


class NetworkRow(MeasuredNetwork, frozen=True, forbid_unknown_fields=True):
    """The same in a table, beside what its kernels take."""

    role: NetworkRole
    kernel_sum_ms: ModelMilliseconds
    madds: Count


class StatisticFit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another statistic than the estimator: so many times what is predicted, from the networks that the scale is from."""

    factor: Factor
    interval_factor: Annotated[float, msgspec.Meta(ge=1, le=1e6)]
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

    factor: Factor
    curvature: Annotated[float, msgspec.Meta(ge=-1e3, le=1e3)] = 0.0
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
    scale_spread_fraction: Error
    """Standard deviation of what it says of the median network, had others been drawn to fit it, by the bootstrap."""
    interval_factor: Annotated[float, msgspec.Meta(ge=1, le=1e6)]
    """Nine networks in ten take between the prediction divided by it and times it."""
    table_error: ErrorReport
    workload_error: ErrorReport | None
    """``None`` where the table has no costs of workloads, as nothing is searched."""
    madds_baseline_error: ErrorReport
    repeatability_fraction: Error
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

    models: Count
    """All of them."""
    bimodal: Count
    """Whose sweeps fall into two groups."""
    clocks_disagree: Count
    """Whose wall clock and CPU clock are 10 % apart; none where several threads work, as the CPU clock is of one."""
    not_warm: Count
    """Whose run times had not settled before they were timed, in at least half of the sweeps."""
    disturbed: Count
    """Of whose runs more than a tenth took over twice the median."""


class ColdWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a mebibyte of weights costs more, of kernels that hold at most ``up_to_mib`` of them (``None``: of all).

    A kernel with more than a cache holds finds them cold in its row too. So does a matrix product, which uses each weight once,
    far sooner than a convolution, which uses them at every position.
    """

    up_to_mib: Factor | None
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
    depthwise_factor: Factor = 1.0
    """Of depthwise convolutions, over that of other kernels that compute, which the scale holds."""
    moving_factor: Factor = 1.0
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
    protocol: Positive
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
    rows: Count
    rows_not_converged: Count
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
        """Hexadecimal digits that change when any number of the table, as it is written, does."""
        table = self.storable()
        return documents.digest([table.card, table._files()])[:16]

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

    def storable(self) -> LatencyTable:
        """Return the table as it is written: the card counts its rows, and what could not be read again is left out, which its
        doubts say: one row never costs the others.
        """
        wrong = {row.kernel: words for row in self.rows.values() if (words := wrong_with_fields(row) or wrong_with_row(row))}
        unfit = [row for row in self.networks if wrong_with_fields(row) or wrong_with_network(row)]
        rows = {kernel: row for kernel, row in self.rows.items() if kernel not in wrong}
        card = msgspec.structs.replace(
            self.card,
            rows=len(rows),
            rows_not_converged=sum(not row.converged for row in rows.values()),
            doubts=(*self.card.doubts, left_out(wrong, len(unfit))) if wrong or unfit else self.card.doubts,
        )
        return replace(self, card=card, rows=rows, networks=tuple(row for row in self.networks if row not in unfit))

    def save(self, folder: Path) -> None:
        """Write kernels.csv, workloads.csv, networks.csv and, last, card.json with their SHA-256; a full disk keeps the old.

        Rows that could not be read again are left out. Raises ``DocumentError``, before anything is written, for numbers that
        are not finite or contradict each other.
        """
        table = self.storable()
        files = table._files()
        card = {
            "schema": f"mobilenas/{SCHEMA_NAME}@{SCHEMA_VERSION}",
            **msgspec.to_builtins(table.card),
            "sha256": {name: _sha256(content) for name, content in files.items()},
        }
        card["sha256"]["card.json"] = documents.digest(card)
        files["card.json"] = documents.dump_json(card)
        self._parsed(files, folder)
        write_together(folder, files)

    def _files(self) -> dict[str, str]:
        costs = (
            _WorkloadRow(key, workload, cost_ms)
            for key, costs in self.workload_costs.items()
            for workload, cost_ms in sorted(costs.costs_ms.items())
        )
        return {
            "kernels.csv": csv_from_rows(TableRow, self.rows.values()),
            "workloads.csv": csv_from_rows(_WorkloadRow, costs),
            "networks.csv": csv_from_rows(NetworkRow, self.networks),
        }

    @classmethod
    def load(cls, folder: Path) -> LatencyTable:
        """Read what ``save`` wrote; raises ``DocumentError`` for a file that is missing, damaged, was edited, or whose numbers
        contradict each other.
        """
        if folder.is_file():
            raise DocumentError(
                f"{folder} is a file{_foreign_format(folder)}; a latency table is a folder with card.json, as mobilenas "
                "profile makes it"
            )
        names = ("card.json", "kernels.csv", "workloads.csv", "networks.csv")
        return cls._parsed({name: documents.read_text(folder / name) for name in names}, folder)

    @classmethod
    def _parsed(cls, texts: Mapping[str, str], folder: Path) -> LatencyTable:
        """Parse a table from the ``texts`` of its four files; raises as ``load``."""
        where = str(folder / "card.json")
        whole = documents.parse_json(texts["card.json"], where)
        data = documents.check_schema(whole, SCHEMA_NAME, SCHEMA_VERSION, where, lambda: _renewal(whole))
        digests = documents.convert(data.pop("sha256", {}), dict[str, str], f"{where}: sha256")
        card = documents.convert(data, TableCard, where)
        if digests.pop("card.json", None) != documents.digest({**whole, "sha256": digests}):
            raise DocumentError(f"{where}: changed since it was measured (its SHA-256 is another)")
        for name in ("kernels.csv", "workloads.csv", "networks.csv"):
            if digests.get(name) != _sha256(texts[name]):
                raise DocumentError(f"{folder / name}: changed since it was measured (SHA-256 differs from card.json's)")
        if words := wrong_with_card(card):
            raise DocumentError(f"{where}: {words}")
        kernels = rows_from_csv(
            TableRow, texts["kernels.csv"], folder / "kernels.csv", lambda row: row.value_ms, wrong_with_row
        )
        costs: dict[str, dict[Workload, float]] = {key: {} for key in card.spaces}
        for cost in rows_from_csv(_WorkloadRow, texts["workloads.csv"], folder / "workloads.csv", lambda row: row.cost_ms):
            if cost.space not in costs:
                raise DocumentError(
                    f"{folder / 'workloads.csv'}: the workload {cost.workload.key} is of the space {cost.space}, which the "
                    f"card does not know (it knows {', '.join(costs) or 'none'})"
                )
            costs[cost.space][cost.workload] = cost.cost_ms
        for key, space in card.spaces.items():
            if space.workload_error is None and costs[key]:
                raise DocumentError(
                    f"{where}: workload_error of {key} is null, and workloads.csv has {len(costs[key])} workloads of it"
                )
        networks = rows_from_csv(
            NetworkRow, texts["networks.csv"], folder / "networks.csv", lambda row: row.measured_ms, wrong_with_network
        )
        workload_costs = {
            key: WorkloadCosts(costs[key], space.workload_error) for key, space in card.spaces.items() if space.workload_error
        }
        found = cls(card, {row.kernel: row for row in kernels}, workload_costs, tuple(networks))
        if words := wrong_between(found):
            raise DocumentError(f"{where}: {words}")
        return found


def left_out(rows: Mapping[Kernel, str], networks: int = 0) -> str:
    """Format the doubt about rows that cannot be written down."""
    first = next((f"; the first: {kernel.key}: {words}" for kernel, words in rows.items()), "")
    return f"{len(rows)} kernels and {networks} networks are left out, whose numbers are none that can be{first}"


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
    with documents.opened(path, None) as file:
        start = file.read(2)
    if start[:1] == b"\x80" or path.suffix in (".pkl", ".pickle"):
        return " that looks like a pickle, which is never opened since opening one runs what it holds"
    return {b"\x1f\x8b": " that looks like a gzip archive", b"PK": " that looks like a zip archive"}.get(start, "")


class _WorkloadRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    space: str
    workload: Workload
    cost_ms: Milliseconds


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
