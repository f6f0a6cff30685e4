"""The latency model of whole networks: a predictor that was learnt for one space on one target, and its document."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.torch
from torch import Tensor

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import Statistic
from mobilenas.core.run_directory import write_together
from mobilenas.errors import DocumentError, IncompatibleError, MissingDataError
from mobilenas.latency.models import Sought, cost_of
from mobilenas.latency.network_card import (
    SCHEMA_NAME,
    SCHEMA_VERSION,
    TENSORS,
    NetworkCard,
    WorkloadCost,
    cards_below,
    load_card,
    parse_card,
    read_card,
)
from mobilenas.latency.prediction import Prediction
from mobilenas.latency.predictors.network import NetworkPredictor
from mobilenas.latency.store import NETWORK_CARD, same_target, table_roots, words_of
from mobilenas.latency.table import ErrorReport, LatencyTable, statistic_fit
from mobilenas.spaces.base import OptionCosts, Probabilities, SearchSpace

CERTAIN = 0.01
"""Temperature at which a network's own probabilities leave nothing open."""


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
        """The newest one for the target and the space, the user's own before the shipped ones.

        Raises ``IncompatibleError`` if the one that the user named is of another, ``DocumentError`` if it is damaged,
        ``MissingDataError`` with the command that makes one.
        """
        if sought.folder is not None:
            card = load_card(sought.folder)
            if not same_target(card.key, sought.key) or card.space != sought.space.key:
                raise IncompatibleError(
                    f"{sought.folder / NETWORK_CARD} is of {words_of(card.key)} and the space {card.space}; wanted is one of "
                    f"{words_of(sought.key)} and {sought.space.key}"
                )
            return cls.load(sought.folder, sought.space).of_statistic(sought.statistic)
        unread: list[DocumentError] = []
        for root in table_roots():
            cards, errors = cards_below(root)
            unread += errors
            found = [c for c in cards if same_target(c[1].key, sought.key) and c[1].space == sought.space.key]
            if found:
                newest, _ = max(found, key=lambda c: c[1].created)
                return cls.load(newest, sought.space).of_statistic(sought.statistic)
        also = f" ({len(unread)} cannot be read; the first: {unread[0]})" if unread else ""
        raise MissingDataError(
            f"no network predictor of {words_of(sought.key)} covers the space {sought.space.key}; measure networks for "
            f"one: {sought.profile_command} --measure-networks 100{also}"
        )

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
        said = ("key", "created", "origin", "networks", "sentinel_ms", "error", "interval_factor", "workload_error", "proxies")
        return {"model": "network", **{name: card[name] for name in said}}

    # ---- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the tensors and, last, the card with the SHA-256 of both; nothing is a pickle.

        Raises ``DocumentError``, before anything is written, for what could not be read again.
        """
        NetworkPredictor.from_state(self.predictor.state())
        tensors = self._tensors()
        card = {
            "schema": f"mobilenas/{SCHEMA_NAME}@{SCHEMA_VERSION}",
            **msgspec.to_builtins(self.card),
            "sha256": {TENSORS: _sha256(tensors)},
        }
        card["sha256"][NETWORK_CARD] = documents.digest(card)
        text = documents.dump_json(card)
        parse_card(text, str(folder / NETWORK_CARD))
        write_together(folder, {TENSORS: tensors, NETWORK_CARD: text})

    @classmethod
    def load(cls, folder: Path, space: SearchSpace) -> NetworkModel:
        """Read what ``save`` wrote. Raises ``DocumentError`` for files that are damaged or were edited, or that were learnt
        from another table than the one beside them.
        """
        card, digests = read_card(folder)
        path = folder / TENSORS
        content = documents.read_bytes(path, documents.MAXIMUM_BYTES)
        if _sha256(content) != digests.get(TENSORS):
            raise DocumentError(f"{path}: changed since it was learnt (SHA-256 differs from {NETWORK_CARD}'s)")
        try:
            predictor = NetworkPredictor.from_state(safetensors.torch.load(content))
        except Exception as error:  # the library raises what Rust, JSON and torch raise
            raise DocumentError(f"{path}: not the tensors of a network predictor: {error}") from error
        if card.table is not None and LatencyTable.load(folder).digest != card.table:
            raise DocumentError(
                f"{folder / NETWORK_CARD}: learnt from another table than the one beside it: profile with --measure-networks "
                "again"
            )
        return cls(card, predictor, space)

    def _tensors(self) -> bytes:
        state = {name: tensor.contiguous() for name, tensor in self.predictor.state().items()}
        return bytes(safetensors.torch.save(state))


def uses_of(space: SearchSpace, architectures: Sequence[Architecture]) -> np.ndarray:
    """``(N, F)``: what a predictor sees of networks."""
    return np.array([space.expected_uses(space.one_hot(a), CERTAIN).detach().numpy() for a in architectures])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
