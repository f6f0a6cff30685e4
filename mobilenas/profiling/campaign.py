"""A profiling campaign: networks on a device become a latency table; interrupted, it goes on where it stopped."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.environment import Gate
from mobilenas.core.measurement import Measurement, MeasurementPlan
from mobilenas.core.run_directory import Journal, working_in, write_atomic
from mobilenas.core.workload import Count, Kernel
from mobilenas.devices.device import Device
from mobilenas.devices.links import Link
from mobilenas.errors import DocumentError, RunnerError
from mobilenas.latency.predictors.kernel_features import family_of
from mobilenas.latency.table import (
    LatencyTable,
    NetworkRole,
    TableCard,
    TableRow,
)
from mobilenas.latency.table_checks import wrong_with_fields, wrong_with_kernel, wrong_with_row
from mobilenas.profiling import fit
from mobilenas.profiling.cards import card_of, examine, network_row, row_counts, space_card
from mobilenas.profiling.kernels import allow_none, measure_accepted, row_of, words_of_refused
from mobilenas.profiling.networks import NetworkSource
from mobilenas.runtimes.base import SESSION, PreparedModel, RunSettings, Runtime
from mobilenas.runtimes.measure import MeasureProgress
from mobilenas.runtimes.reports import PROTOCOL

SECONDS_PER_NETWORK_SWEEP, LIKELY_SWEEPS = 0.15, 1.5
"""For the estimate of a dry run only: loading and timing one network, and how many times the plan's sweeps there will be, with
those of what has not converged.
"""

ROWS_OF_A_FAMILY = 16
"""Kernels of a family that something can be learnt from."""


@dataclass(frozen=True)
class CampaignProgress:
    """Told as the campaign goes: its stage in words, and how many of how many are done."""

    stage: str
    done: int
    total: int

    @classmethod
    def of_sweep(cls, p: MeasureProgress) -> CampaignProgress:
        """Of a measurement."""
        return cls(f"{p.text}, next in {p.wait_s:.0f} s" if p.wait_s else p.text, p.done, p.total)


class CampaignNetworks(NamedTuple):
    """The networks of a campaign by what they are for; the last kind is only lowered, not measured."""

    scale: tuple[Architecture, ...]
    test: tuple[Architecture, ...]
    learn: tuple[Architecture, ...]
    lowered: tuple[Architecture, ...]

    @property
    def measured(self) -> list[tuple[NetworkRole, Architecture]]:
        """With their roles in the table."""
        roles: dict[NetworkRole, tuple[Architecture, ...]] = {"scale": self.scale, "test": self.test, "learn": self.learn}
        return [(role, architecture) for role, part in roles.items() for architecture in part]


@dataclass(frozen=True)
class Campaign:
    """Everything that decides what is measured. ``root`` holds one folder per campaign."""

    source: NetworkSource
    device: Device
    runtime: Runtime
    settings: RunSettings
    plan: MeasurementPlan
    root: Path
    seed: int = 0
    maximum_kernels: int | None = None
    """Kernels that are measured at most, but for those of measured networks and a few of each rare family."""
    gate: Gate = "warn"
    """What an environment does that is not fit for measuring."""
    learnt_networks: int = 0
    """Whole networks that are measured besides the plan's, for a predictor to learn from."""

    @property
    def name(self) -> str:
        """Hash of device, runtime, settings, source, plan and seed: the same command finds the same campaign."""
        identity = [
            PROTOCOL,
            self.device.card.identity,
            self.runtime.name,
            self.settings,
            self.source.name,
            self.source.options,
            self.plan,
            self.seed,
            self.maximum_kernels,
            self.learnt_networks,
        ]
        return hashlib.sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where the campaign keeps what it has measured."""
        return self.root / self.name

    @cached_property
    def networks(self) -> CampaignNetworks:
        """All distinct; fewer, from the last kind on, where the source has no more."""
        generator = random.Random(f"{self.name}/networks")
        plan = self.plan
        wanted = [plan.scale_networks, plan.test_networks, self.learnt_networks, plan.lowered_networks]
        found: dict[Architecture, None] = {}
        for _ in range(20 * sum(wanted)):
            if len(found) == sum(wanted):
                break
            found[self.source.draw(generator)] = None
        drawn = iter(found)
        scale, test, learn, lowered = (tuple(islice(drawn, count)) for count in wanted)
        return CampaignNetworks((*self.source.published, *scale), test, learn, lowered)

    def describe(self) -> dict[str, Any]:
        """The plan in numbers, for a dry run; kernels are known only after lowering, so their number is typical."""
        drawn = self.plan.scale_networks + self.plan.test_networks + self.learnt_networks
        measured = len(self.source.published) + drawn
        kernels = max(self.maximum_kernels or 0, self.source.likely_kernels(drawn))
        lowered_s = self.source.lowering_s * (measured + self.plan.lowered_networks) + 0.5 * measured
        sweep_s = SECONDS_PER_NETWORK_SWEEP * measured + self.source.kernel_sweep_s * kernels
        return {
            "campaign": str(self.folder),
            "networks_of": self.source.key,
            "networks_measured": measured,
            "networks_lowered": self.plan.lowered_networks,
            "kernels_likely": kernels,
            "sweeps": self.plan.sweeps,
            "maximum_sweeps": self.plan.maximum_sweeps,
            "estimated_s": round(lowered_s + max(self.plan.spread_s, LIKELY_SWEEPS * self.plan.sweeps * sweep_s)),
        }

    @contextmanager
    def running(self) -> Iterator[Campaign]:
        """Hold the campaign's folder alone; raises ``UsageError`` if another process works in it.

        Left without an error it sets the finished campaign aside, so that the same command measures anew; the records
        are kept.
        """
        with working_in(self.folder):
            yield self

    def run(self, progress: Callable[[CampaignProgress], None] = lambda _: None) -> LatencyTable:
        """Lower, measure, fit. Raises ``DeviceError`` and ``MeasurementError`` kinds; what was measured stays."""
        measured_networks = [architecture for _, architecture in self.networks.measured]
        write_atomic(self.folder / "campaign.json", documents.dump_json(self.describe()))
        with self.device.open() as link:
            environment, doubts = examine(self.runtime, link, self.settings, self.gate, self.folder)
            kernels = self._lower(list(itertools.chain(*self.networks)), link, progress)
            distinct = self._chosen(kernels)
            measurements, log, refused = measure_accepted(
                distinct,
                self._whole_models(measured_networks, progress),
                link,
                self.runtime,
                self.settings,
                self.plan,
                journal=Journal(self.folder / "rows.jsonl"),
                seed=self.seed,
                progress=lambda p: progress(CampaignProgress.of_sweep(p)),
                on_refused=(lambda _: None) if self.source.may_lack_kernels else allow_none,
            )
        rows = {kernel: row_of(kernel, measurements, self.runtime) for kernel in distinct if kernel not in refused}
        unfit = {kernel: words for kernel, row in rows.items() if (words := wrong_with_fields(row) or wrong_with_row(row))}
        if refused or unfit:
            doubts = (*doubts, self._left_out({**refused, **unfit}, kernels))
            rows = {kernel: row for kernel, row in rows.items() if kernel not in unfit}
        card = card_of(self.device, self.runtime, self.settings, self.plan, log, measurements)
        card = msgspec.structs.replace(card, environment=environment, doubts=doubts)
        return self._table(card, rows, kernels, measurements)

    def _left_out(self, refused: Mapping[Kernel, str], kernels: Sequence[Counter[Kernel]]) -> str:
        """What is said of the networks with kernels that have no rows; raises ``RunnerError`` where half of them have some."""
        measured = kernels[: len(self.networks.measured)]
        lacking = sum(not refused.keys().isdisjoint(network) for network in measured)
        told = (
            f"{len(refused)} kernels have no row, as the engine refuses to run them alone or their times are none, and "
            f"{lacking} of the {len(measured)} measured networks, which have some of them, are left out: "
            f"{words_of_refused(refused)}"
        )
        if 2 * lacking >= len(measured):
            raise RunnerError(f"{told}. Too few are left to tell how far sums of kernels are off")
        return told

    def _chosen(self, kernels: Sequence[Counter[Kernel]]) -> list[Kernel]:
        """Return the kernels to measure: those of measured networks, and enough others, rare families first.

        Families with fewer than ``ROWS_OF_A_FAMILY`` kernels among these are filled up to that number in any case.
        """
        if self.maximum_kernels is None:
            return sorted(set().union(*kernels))
        wanted = set().union(*kernels[: len(self.networks.measured)])
        seen, others = Counter(family_of(kernel) for kernel in wanted), []
        for kernel in dict.fromkeys(k for network in kernels for k in sorted(network) if k not in wanted):
            others.append((seen[family_of(kernel)], kernel))
            seen[family_of(kernel)] += 1
        needed = sum(rank < ROWS_OF_A_FAMILY for rank, _ in others)
        rarest = [kernel for _, kernel in sorted(others)]
        return sorted([*wanted, *rarest[: max(needed, self.maximum_kernels - len(wanted))]])

    def _lower(
        self, networks: Sequence[Architecture], link: Link, progress: Callable[[CampaignProgress], None]
    ) -> list[Counter[Kernel]]:
        """Kernels of every network; written down at the end, so that a campaign that goes on skips this."""
        path = self.folder / "lowered.json"
        if path.exists():
            return LoweredNetworks.load(path).counts(networks)

        def on_done(count: int) -> None:
            progress(CampaignProgress("lowering", count, len(networks)))

        models = []
        for index, architecture in enumerate(networks):
            progress(CampaignProgress("composing", index, len(networks)))
            models.append(self.source.model_for_lowering(architecture))
        kernels = self.runtime.kernels(models, link, self.settings, on_done)
        write_atomic(path, documents.dump_json(LoweredNetworks.from_counts(networks, kernels)))
        return kernels

    def _whole_models(
        self, networks: Sequence[Architecture], progress: Callable[[CampaignProgress], None]
    ) -> dict[str, PreparedModel]:
        models = {SESSION: self.runtime.session_model()}
        for index, architecture in enumerate(networks):
            progress(CampaignProgress("exporting", index, len(networks)))
            models[architecture.fingerprint] = self.runtime.prepare(self.source.model_for_timing(architecture), self.settings)
        return models

    def _table(
        self,
        card: TableCard,
        rows: dict[Kernel, TableRow],
        kernels: Sequence[Counter[Kernel]],
        measurements: dict[str, Measurement],
    ) -> LatencyTable:
        """Networks with a kernel that has no row tell nothing."""
        session_ms = card.session_ms
        known = [(a, c) for a, c in zip(itertools.chain(*self.networks), kernels, strict=True) if c.keys() <= rows.keys()]
        roles = {architecture: role for role, architecture in self.networks.measured}
        terms = fit.NetworkTerms.of([counts for _, counts in known], rows, session_ms)
        scaling = np.array([roles.get(a) == "scale" for a, _ in known])
        measured_ms = np.array([measurements[a.fingerprint].value_ms for a, _ in known if roles.get(a) == "scale"])
        fitted = fit.fit_networks(terms.take(scaling), measured_ms)
        factors = {row.kernel: factor for row, factor in zip(terms.rows, fitted.row_factors.tolist(), strict=True)}
        rows = {k: msgspec.structs.replace(row, network_factor=factors.get(k, 1.0)) for k, row in rows.items()}
        sums = fitted.kernel_sums_ms(terms)
        networks = [
            network_row(a, roles[a], measurements[a.fingerprint], float(total), self.source.madds(a))
            for (a, _), total in zip(known, sums, strict=True)
            if a in roles
        ]
        costs = self.source.workload_costs([architecture for architecture, _ in known], sums - session_ms)
        card_of_space = space_card(
            self.source,
            fitted.scale,
            fit.scale_spread_fraction(terms.take(scaling), measured_ms),
            fit.left_out_ms(terms.take(scaling), measured_ms),
            networks,
            costs.error if costs else None,
            self.plan.estimator,
        )
        card = msgspec.structs.replace(
            card,
            **row_counts(rows),
            context=fitted.context,
            spaces={self.source.key: card_of_space},
        )
        return LatencyTable(card, rows, {self.source.key: costs} if costs else {}, tuple(networks)).storable()

    def lowered_kernels(self) -> dict[str, Counter[Kernel]]:
        """Fingerprint -> kernels of every network that was lowered; once the campaign has run."""
        stored = LoweredNetworks.load(self.folder / "lowered.json")
        networks = [a for part in self.networks for a in part]
        return {a.fingerprint: kernels for a, kernels in zip(networks, stored.counts(networks), strict=True)}


class LoweredNetworks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which kernels each network is made of, as a campaign writes it down."""

    kernels: tuple[Kernel, ...]
    networks: dict[str, dict[str, Count]]
    """Fingerprint -> position in ``kernels`` (as text) -> count."""

    @classmethod
    def load(cls, path: Path) -> LoweredNetworks:
        """Read what a campaign has written down; raises ``DocumentError``."""
        found = documents.convert(documents.parse_json(documents.read_text(path), str(path)), cls, str(path))
        again = f"{path}: {{}}: remove the file, and its networks are lowered again"
        if len(set(found.kernels)) < len(found.kernels):
            raise DocumentError(again.format("a kernel stands twice"))
        for kernel in found.kernels:
            if words := wrong_with_kernel(kernel):
                raise DocumentError(again.format(words))
        positions = {str(index) for index in range(len(found.kernels))}
        for fingerprint, counts in found.networks.items():
            if not counts or not counts.keys() <= positions:
                told = ", ".join(sorted(counts.keys() - positions)) or "nothing"
                raise DocumentError(again.format(f"the network {fingerprint} is of {told}, of {len(positions)} kernels"))
        return found

    @classmethod
    def from_counts(cls, networks: Sequence[Architecture], counts: Sequence[Counter[Kernel]]) -> LoweredNetworks:
        """Pack the kernels of every network."""
        kernels = tuple(sorted(set().union(*counts)))
        position = {kernel: str(index) for index, kernel in enumerate(kernels)}
        packed = [{position[kernel]: n for kernel, n in sorted(c.items())} for c in counts]
        return cls(kernels, dict(zip((a.fingerprint for a in networks), packed, strict=True)))

    def counts(self, networks: Sequence[Architecture]) -> list[Counter[Kernel]]:
        """Unpack the kernels of ``networks``; raises ``DocumentError`` for one that is not there."""
        missing = [a.fingerprint for a in networks if a.fingerprint not in self.networks]
        if missing:
            raise DocumentError(
                f"the campaign's lowered.json lacks {len(missing)} networks, first {missing[0]}: remove the file, and they are "
                "lowered again"
            )
        return [Counter({self.kernels[int(index)]: n for index, n in self.networks[a.fingerprint].items()}) for a in networks]
