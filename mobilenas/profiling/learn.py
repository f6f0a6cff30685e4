"""From measured networks to a network model: the predictor, its honest error, and its linear stand-in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import KFold

from mobilenas.core.architecture import Architecture
from mobilenas.latency.network_card import NetworkCard, WorkloadCost
from mobilenas.latency.network_model import NetworkModel, uses_of
from mobilenas.latency.prediction import conformal_factor
from mobilenas.latency.predictors.network import NetworkPredictor
from mobilenas.latency.table import ErrorReport, LatencyTable, WorkloadCosts
from mobilenas.profiling import fit
from mobilenas.profiling.networks import SpaceNetworks
from mobilenas.spaces.base import SearchSpace

FOLDS = 10
STAND_IN_NETWORKS = 300
"""Random ones whose predictions the linear stand-in is fitted on."""


def learn_network_model(space: SearchSpace, table: LatencyTable, seed: int = 0) -> NetworkModel:
    """Learn from all networks of ``table``, whatever their role. Error and interval are of networks held out in turn."""
    rows = [row for row in table.networks if row.architecture.space == space.name]
    uses = uses_of(space, [row.architecture for row in rows])
    measured_ms = np.array([row.measured_ms for row in rows])
    predictor = NetworkPredictor(space.workloads_of_options())
    held_out_ms = held_out_predictions(predictor, uses, measured_ms, seed)
    predictor.fit(uses, measured_ms)
    costs = linear_stand_in(space, predictor, seed)
    card = NetworkCard(
        origin="measured",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        key=table.card.key,
        space=space.key,
        options=space.options,
        plan=table.card.plan,
        environment=table.card.environment,
        doubts=table.card.doubts,
        slow_down=table.card.slow_down,
        sentinel_ms=table.card.sentinel_ms,
        networks=len(rows),
        error=ErrorReport.of(held_out_ms, measured_ms),
        interval_factor=conformal_factor(held_out_ms, measured_ms),
        statistics=fit.fit_statistics(rows, rows, held_out_ms, table.card.key.estimator),
        workload_error=costs.error,
        costs=tuple(WorkloadCost(w, cost_ms) for w, cost_ms in costs.costs_ms.items()),
        table=table.digest,
        measured=(),
        proxies=(),
    )
    return NetworkModel(card, predictor, space)


def held_out_predictions(predictor: NetworkPredictor, uses: np.ndarray, measured_ms: np.ndarray, seed: int) -> np.ndarray:
    """``(n,)``: each network as predicted from those of the other folds alone, with all that is chosen chosen anew."""
    predicted = np.empty_like(measured_ms)
    for train, test in KFold(min(FOLDS, len(uses)), shuffle=True, random_state=seed).split(uses):
        predicted[test] = clone(predictor).fit(uses[train], measured_ms[train]).predict(uses[test])
    return predicted


def linear_stand_in(space: SearchSpace, predictor: NetworkPredictor, seed: int) -> WorkloadCosts:
    """Costs of workloads under which networks take what ``predictor`` says; its error is on networks not fitted on."""
    drawn = random_networks(space, STAND_IN_NETWORKS, seed)
    counts = [space.workloads_of(a) for a in drawn]
    return fit.fit_workload_costs(counts, predictor.predict(uses_of(space, drawn)), sorted(space.workloads()))


def random_networks(space: SearchSpace, count: int, seed: int) -> Sequence[Architecture]:
    """Distinct random networks as a campaign draws them; fewer where the space has no more."""
    source, generator = SpaceNetworks(space), random.Random(f"{seed}/{space.key}/{count}")
    found: dict[Architecture, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        found[source.draw(generator)] = None
    return list(found)
