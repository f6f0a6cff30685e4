"""The latency model of whole networks: a predictor that was learnt for one space on one target, and its document."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import safetensors.torch
from torch import Tensor

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture, OptionValue
from mobilenas.core.environment import Environment
from mobilenas.core.measurement import MeasurementPlan, Statistic
from mobilenas.core.run_directory import write_together
from mobilenas.core.workload import Workload
from mobilenas.errors import DocumentError, IncompatibleError, MissingDataError
from mobilenas.latency.models import Sought, cost_of
from mobilenas.latency.prediction import Prediction
from mobilenas.latency.predictors.network import NetworkPredictor
from mobilenas.latency.store import files_named, same_target, table_roots, words_of
from mobilenas.latency.table import (
    ErrorReport,
    LatencyTable,
    Milliseconds,
    ModelMilliseconds,
    StatisticFit,
    TableKey,
    statistic_fit,
)
from mobilenas.spaces.base import OptionCosts, Probabilities, SearchSpace

CARD, TENSORS = "network-predictor.json", "network-predictor.safetensors"
"""File names in the folder of the target's table."""
SCHEMA_NAME, SCHEMA_VERSION = "network-predictor", 1
CERTAIN = 0.01
"""Temperature at which a network's own probabilities leave nothing open."""


class WorkloadCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one workload adds to the linear stand-in."""

    workload: Workload
    cost_ms: Milliseconds


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


class Proxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of another target that a transfer started from; ``weight_fraction`` is how much it is believed in."""

    key: TableKey
    digest: str
    weight_fraction: float


class NetworkCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Provenance of a predictor. ``origin`` says whether it was learnt from the target alone, or with tables of others."""

    origin: Literal["measured", "transferred"]
    created: str
    key: TableKey
    space: str
    """The space's key."""
    options: dict[str, OptionValue]
    plan: MeasurementPlan
    environment: Environment
    """The device before anything was measured."""
    doubts: tuple[str, ...]
    """What spoke against it."""
    networks: int
    """How many measured ones it was learnt from."""
    error: ErrorReport
    """On measured networks, each predicted without itself."""
    interval_factor: Annotated[float, msgspec.Meta(ge=1)]
    statistics: dict[Statistic, StatisticFit]
    """By statistic, for budgets that bind it."""
    workload_error: ErrorReport
    """Of the linear stand-in against the predictor, on random networks that it was not fitted on."""
    costs: tuple[WorkloadCost, ...]
    """The linear stand-in, complete: nothing is to be added."""
    table: str | None
    """Digest of the table beside it, whose networks it was learnt from; ``None`` where no kernels were measured."""
    measured: tuple[MeasuredNetwork, ...]
    """The networks of a transfer, which no table holds."""
    proxies: tuple[Proxy, ...]


@dataclass
class NetworkModel:
    """What a network takes by the predictor; what the derivation chooses by is the card's linear stand-in."""

    card: NetworkCard
    predictor: NetworkPredictor
    space: SearchSpace
    factor: float = 1.0
    """What is predicted, over what the predictor says, which is the estimator's value."""

    @classmethod
    def find(cls, sought: Sought) -> NetworkModel:
        """The newest one for the target and the space. Raises ``IncompatibleError`` if the one that the user named is of
        another, ``DocumentError`` if it is damaged, ``MissingDataError`` with the command that makes one.
        """
        if sought.folder is not None:
            card = load_card(sought.folder)
            if not same_target(card.key, sought.key) or card.space != sought.space.key:
                raise IncompatibleError(
                    f"{sought.folder / CARD} is of {words_of(card.key)} and the space {card.space}; wanted is one of "
                    f"{words_of(sought.key)} and {sought.space.key}"
                )
            return cls.load(sought.folder, sought.space).of_statistic(sought.statistic)
        cards, unread = _known_cards()
        found = [c for c in cards if same_target(c[0].key, sought.key) and c[0].space == sought.space.key]
        if not found:
            also = f" ({len(unread)} cannot be read; the first: {unread[0]})" if unread else ""
            raise MissingDataError(
                f"no network predictor of {words_of(sought.key)} covers the space {sought.space.key}; measure networks for "
                f"one: {sought.profile_command} --measure-networks 100{also}"
            )
        return cls.load(max(found, key=lambda c: c[0].created)[1], sought.space).of_statistic(sought.statistic)

    def __post_init__(self) -> None:
        costs_ms = {cost.workload: cost.cost_ms for cost in self.card.costs}
        missing = self.space.workloads() - costs_ms.keys()
        if missing:
            raise DocumentError(
                f"the network predictor of {self.card.key.device} lacks {len(missing)} workloads of {self.space.key}, first "
                f"{min(missing)}: profile the space again"
            )
        self._option_costs = self.space.option_costs(costs_ms)
        options = sum(len(row) for row in self._option_costs.options.values())
        if len(self.predictor.weights_) != options:
            raise DocumentError(
                f"the network predictor of {self.card.key.device} was learnt over {len(self.predictor.weights_)} options; "
                f"{self.space.key} has {options}: profile with --measure-networks again"
            )

    def of_statistic(self, statistic: Statistic) -> NetworkModel:
        """The model of another statistic than the estimator; raises ``IncompatibleError`` without a fit."""
        if statistic == self.card.key.estimator:
            return self
        fitted = statistic_fit(self.card.statistics, statistic, f"the network predictor of {self.card.space}")
        costs = tuple(WorkloadCost(cost.workload, fitted.factor * cost.cost_ms) for cost in self.card.costs)
        card = msgspec.structs.replace(self.card, error=fitted.error, interval_factor=fitted.interval_factor, costs=costs)
        return NetworkModel(card, self.predictor, self.space, fitted.factor)

    @property
    def option_costs(self) -> OptionCosts:
        return self._option_costs

    @property
    def workload_error(self) -> ErrorReport:
        return self.card.workload_error

    @property
    def error(self) -> ErrorReport:
        return self.card.error

    @property
    def interval_factor(self) -> float:
        return self.card.interval_factor

    @property
    def digest(self) -> str:
        return documents.digest([self.card, _sha256(self._tensors())])[:16]

    def latency(self, architecture: Architecture) -> Prediction:
        return self.latencies([architecture])[0]

    def latencies(self, architectures: Sequence[Architecture]) -> list[Prediction]:
        predicted = self.predictor.predict(uses_of(self.space, architectures))
        return [Prediction.within(self.factor * float(ms), self.card.interval_factor) for ms in predicted]

    def workload_ms(self, architecture: Architecture) -> float:
        return cost_of(self.space, self.option_costs, architecture)

    def expected_ms(self, probabilities: Probabilities, temperature: float = 1.0) -> Tensor:
        """The predictor's answer for the expected uses of all options, differentiable."""
        return self.factor * self.predictor.expected_ms(self.space.expected_uses(probabilities, temperature))

    def describe(self) -> dict[str, Any]:
        card = msgspec.to_builtins(self.card)
        said = ("key", "created", "origin", "networks", "error", "interval_factor", "workload_error", "proxies")
        return {"model": "network", **{name: card[name] for name in said}}

    # ---- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the tensors and, last, the card with the SHA-256 of both; nothing is a pickle."""
        tensors = self._tensors()
        card = {
            "schema": f"mobilenas/{SCHEMA_NAME}@{SCHEMA_VERSION}",
            **msgspec.to_builtins(self.card),
            "sha256": {TENSORS: _sha256(tensors)},
        }
        card["sha256"][CARD] = documents.digest(card)
        write_together(folder, {TENSORS: tensors, CARD: documents.dump_json(card)})

    @classmethod
    def load(cls, folder: Path, space: SearchSpace) -> NetworkModel:
        """Read what ``save`` wrote. Raises ``DocumentError`` for files that are damaged or were edited, or that were learnt
        from another table than the one beside them.
        """
        card, digests = _read_card(folder)
        path = folder / TENSORS
        try:
            content = path.read_bytes()
            if _sha256(content) != digests.get(TENSORS):
                raise DocumentError(f"{path}: changed since it was learnt (SHA-256 differs from {CARD}'s)")
            predictor = NetworkPredictor.from_state(safetensors.torch.load(content))
        except OSError as error:
            raise DocumentError(f"{path}: cannot be read: {error.strerror}") from error
        except (KeyError, safetensors.SafetensorError) as error:
            raise DocumentError(f"{path}: not the tensors of a network predictor: {error}") from error
        if card.table is not None and LatencyTable.load(folder).digest != card.table:
            raise DocumentError(
                f"{folder / CARD}: learnt from another table than the one beside it: profile with --measure-networks again"
            )
        return cls(card, predictor, space)

    def _tensors(self) -> bytes:
        state = {name: tensor.contiguous() for name, tensor in self.predictor.state().items()}
        return bytes(safetensors.torch.save(state))


def load_card(folder: Path) -> NetworkCard:
    """The card alone; raises ``DocumentError`` if it is missing, damaged or was edited."""
    return _read_card(folder)[0]


def _known_cards() -> tuple[list[tuple[NetworkCard, Path]], list[DocumentError]]:
    """Every card that a search looks through with its folder, and what is wrong with those that cannot be read."""
    cards: list[tuple[NetworkCard, Path]] = []
    errors: list[DocumentError] = []
    for path in (path for root in table_roots() for path in files_named(CARD, root)):
        try:
            cards.append((load_card(path.parent), path.parent))
        except DocumentError as error:
            errors.append(error)
    return cards, errors


def uses_of(space: SearchSpace, architectures: Sequence[Architecture]) -> np.ndarray:
    """``(N, F)``: what a predictor sees of networks."""
    return np.array([space.expected_uses(space.one_hot(a), CERTAIN).detach().numpy() for a in architectures])


def _read_card(folder: Path) -> tuple[NetworkCard, Mapping[str, str]]:
    where = str(folder / CARD)
    whole = documents.parse_json(documents.read_text(folder / CARD), where)
    data = documents.check_schema(whole, SCHEMA_NAME, SCHEMA_VERSION, where)
    digests = documents.convert(data.pop("sha256", {}), dict[str, str], f"{where}: sha256")
    card = documents.convert(data, NetworkCard, where)
    if digests.pop(CARD, None) != documents.digest({**whole, "sha256": digests}):
        raise DocumentError(f"{where}: changed since it was learnt (its SHA-256 is another)")
    return card, digests


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
