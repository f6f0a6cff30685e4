from dataclasses import replace

import msgspec
import numpy as np
import pytest

from mobilenas.core.estimators import measurement_from_records
from mobilenas.core.measurement import Measurement, SweepRecord
from mobilenas.errors import BudgetError
from mobilenas.latency.budget import Budget, latency_range
from mobilenas.search.selection import select
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_model

SPACE = CellSpace(channels=4, layers=3, image_size=8, image_channels=1)
MODEL = make_model(SPACE)
SCORES = {d.name: np.log(np.random.default_rng(0).dirichlet(np.ones(len(d.options)))) for d in SPACE.decisions}


def budget() -> Budget:
    bounds = latency_range(SPACE, MODEL)
    return Budget(MODEL, bounds.lowest.table.ms + 0.3 * (bounds.highest.table.ms - bounds.lowest.table.ms))


def measurement(ms: float, spread: float, converged: bool) -> Measurement:
    records = [
        SweepRecord((ms * factor,), (ms * factor,), (0.1,), 1.0, 1.0, None) for factor in (1 - spread / 2, 1 + spread / 2)
    ]
    return msgspec.structs.replace(measurement_from_records(records, 0.03), converged=converged)


def device(verdict_factor: float, spread: float, converged: bool):
    """A device on which candidates take what the table says, and verdicts ``verdict_factor`` times the budget."""

    def measure(architectures, label):
        if label.startswith("verdict"):
            return [measurement(verdict_factor * budget().target_ms, spread, converged) for _ in architectures]
        return [measurement(MODEL.latency(a).ms, 0.001, True) for a in architectures]

    return measure


def test_the_verdict_may_exceed_the_budget_by_its_repeatability() -> None:
    found = select(SPACE, SCORES, budget(), measure=device(1.01, 0.02, True))
    assert found.table_ms <= budget().target_ms
    assert len(found.rounds) == 1


@pytest.mark.parametrize(("spread", "converged"), [(0.005, True), (0.02, False)])
def test_a_verdict_over_the_budget_ends_the_search_with_a_budget_error(spread: float, converged: bool) -> None:
    with pytest.raises(BudgetError, match="after 3 rounds"):
        select(SPACE, SCORES, budget(), measure=device(1.01, spread, converged))


def test_a_slower_device_is_met_by_a_corrected_target() -> None:
    def measure(architectures, label):
        return [measurement(1.2 * MODEL.latency(a).ms, 0.001, True) for a in architectures]

    found = select(SPACE, SCORES, budget(), measure=measure)
    assert found.verdict is not None
    assert found.verdict.value_ms <= budget().target_ms
    assert found.rounds[-1].derivation_target_ms < budget().target_ms
    assert len(found.rounds) > 1


def test_without_a_device_there_is_no_verdict() -> None:
    assert select(SPACE, SCORES, budget(), measure=None).verdict is None


def test_the_quantile_binds_the_choice_and_the_verdict_is_measured_as_ever() -> None:
    tight = replace(budget(), quantile=0.95)
    found = select(SPACE, SCORES, tight, measure=device(1.01, 0.02, True))
    assert found.table_high_ms <= tight.target_ms
    assert found.verdict is not None
    assert found.score <= select(SPACE, SCORES, budget(), measure=device(1.01, 0.02, True)).score
