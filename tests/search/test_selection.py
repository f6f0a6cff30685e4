from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest

from mobilenas.core.estimators import measurement_from_records
from mobilenas.core.measurement import Measurement, SweepRecord
from mobilenas.errors import BudgetError
from mobilenas.latency.budget import Budget, derive, latency_range
from mobilenas.latency.models import TableModel
from mobilenas.search.selection import select
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing.fakes import make_model

SPACE = CellSpace(channels=4, layers=3, image_size=8, image_channels=1)
MODEL = make_model(SPACE)
SCORES = {d.name: np.log(np.random.default_rng(0).dirichlet(np.ones(len(d.options)))) for d in SPACE.decisions}


@cache
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


def test_a_noisy_device_is_judged_by_the_rule_of_the_verdict() -> None:
    """Every candidate is within the budget; all repeat within 6 % only, which no prediction leaves room for."""

    def measure(architectures, label):
        return [measurement(MODEL.latency(a).ms, 0.06, True) for a in architectures]

    found = select(SPACE, SCORES, budget(), measure=measure)
    assert len(found.rounds) == 1
    assert found.score == max(c.score for c in found.rounds[0].candidates)


def test_a_candidate_within_the_budget_goes_before_one_that_exceeds_it_by_its_repeatability() -> None:
    [best, *others] = derive(SPACE, SCORES, budget(), 8, least_ms=0.97 * budget().target_ms)
    assert others

    def measure(architectures, label):
        times = [1.01 if a == best.architecture else 0.99 for a in architectures]
        return [measurement(t * budget().target_ms, 0.06, True) for t in times]

    found = select(SPACE, SCORES, budget(), measure=measure)
    assert found.architecture == others[0].architecture


def test_the_error_compares_what_was_judged() -> None:
    """Candidates are all within the budget; what is over it is what was measured again."""

    def measure(architectures, label):
        times = 1.05 if label.startswith("verdict") else 0.98
        return [measurement(times * budget().target_ms, 0.001, True) for _ in architectures]

    with pytest.raises(
        BudgetError, match=rf"the one chosen took {1.05 * budget().target_ms:.4g} ms when it was measured again"
    ):
        select(SPACE, SCORES, budget(), measure=measure, rounds=1)


def test_candidates_are_the_best_and_what_is_close_below_the_target() -> None:
    found = select(SPACE, SCORES, budget(), measure=device(1.0, 0.01, True))
    first, *others = found.rounds[0].candidates
    target_ms = found.rounds[0].derivation_target_ms
    assert first.score == derive(SPACE, SCORES, budget())[0].score
    assert 1 <= len(others) <= 7
    assert all(0.97 * target_ms <= c.table_ms <= target_ms for c in others)


def test_a_faster_device_is_used_by_a_corrected_target() -> None:
    """Oracle: the derivation by predictions that are right."""

    def measure(architectures, label):
        return [measurement(0.85 * MODEL.latency(a).ms, 0.001, True) for a in architectures]

    found = select(SPACE, SCORES, budget(), measure=measure)
    [right] = derive(SPACE, SCORES, replace(budget(), target_ms=budget().target_ms / 0.85))
    assert found.score == right.score > derive(SPACE, SCORES, budget())[0].score
    assert found.verdict is not None
    assert found.verdict.value_ms <= budget().target_ms < found.table_ms
    assert len(found.rounds) == 2
    assert found.rounds[0].correction == pytest.approx(0.85)


def test_a_budget_that_does_not_bind_takes_one_round() -> None:
    """What the search prefers takes half of it; no correction would find a better one."""
    free = Budget(MODEL, latency_range(SPACE, MODEL).highest.table.ms)
    [preferred] = derive(SPACE, SCORES, free)

    def measure(architectures, label):
        return [measurement(0.5 * MODEL.latency(a).ms, 0.001, True) for a in architectures]

    found = select(SPACE, SCORES, free, measure=measure)
    assert found.architecture == preferred.architecture
    assert len(found.rounds) == 1


def test_what_was_found_is_kept_where_a_further_round_finds_nothing() -> None:
    """The device is fast only up to the budget's own predictions."""
    first = derive(SPACE, SCORES, budget())[0]

    def measure(architectures, label):
        predicted = [MODEL.latency(a).ms for a in architectures]
        return [measurement(ms * (0.85 if ms <= budget().target_ms else 1.5), 0.001, True) for ms in predicted]

    found = select(SPACE, SCORES, budget(), measure=measure)
    assert found.architecture == first.architecture
    assert len(found.rounds) == 2
    assert found.rounds[1].chosen is None


def test_a_correction_does_not_take_back_the_quantiles_margin() -> None:
    """The device takes what is predicted, and the budget binds a fifth more than that."""
    card = msgspec.structs.replace(MODEL.card, interval_factor=1.2)
    whole = msgspec.structs.replace(MODEL.table.card, spaces={SPACE.key: card})
    wide = TableModel(replace(MODEL.table, card=whole), SPACE, MODEL.lower)

    def measure(architectures, label):
        return [measurement(MODEL.latency(a).ms, 0.001, True) for a in architectures]

    tight = Budget(wide, 1.2 * budget().target_ms, quantile=0.95)
    found = select(SPACE, SCORES, tight, measure=measure)
    assert len(found.rounds) == 1
    assert found.table_high_ms <= tight.target_ms


def test_a_candidate_measured_over_the_budget_is_not_measured_again() -> None:
    """The device takes what is predicted, but of the best network: the third round's target would let that in again."""
    best = derive(SPACE, SCORES, budget())[0].architecture
    asked: list[str] = []

    def measure(architectures, label):
        asked.extend(a.fingerprint for a in architectures)
        return [measurement((1.3 if a == best else 1.0) * MODEL.latency(a).ms, 0.001, True) for a in architectures]

    found = select(SPACE, SCORES, budget(), measure=measure, candidates=1)
    targets = [r.derivation_target_ms for r in found.rounds]
    assert targets == pytest.approx([budget().target_ms, budget().target_ms / 1.3, budget().target_ms])
    assert asked.count(best.fingerprint) == 1


def test_a_network_over_the_budget_by_its_verdict_is_no_candidate_again() -> None:
    """The first verdict is over; the second round corrects the target upwards, which would let its network in again."""
    best = derive(SPACE, SCORES, budget())[0].architecture
    asked: list[tuple[str, str]] = []

    def measure(architectures, label):
        asked.extend((label, a.fingerprint) for a in architectures)
        if label.startswith("verdict"):
            return [measurement((1.02 if label == "verdict0" else 0.9) * budget().target_ms, 0.001, True)]
        return [measurement(0.99 * MODEL.latency(a).ms, 0.001, True) for a in architectures]

    found = select(SPACE, SCORES, budget(), measure=measure)
    assert asked.count(("verdict0", best.fingerprint)) == 1
    assert len(found.rounds) == 3
    assert found.rounds[2].derivation_target_ms > budget().target_ms
    assert {label for label, fingerprint in asked if fingerprint == best.fingerprint} == {"round0", "verdict0"}


def preferring(second: int = 1):
    """A network that scores less than the best, and is predicted as far below the budget as others."""
    derived = derive(SPACE, SCORES, budget(), 8)
    return derived[0].architecture, derived[second].architecture


def test_the_preferred_network_is_chosen_where_it_is_within_the_budget() -> None:
    best, preferred = preferring()
    for measure in (None, device(1.0, 0.01, True)):
        found = select(SPACE, SCORES, budget(), measure=measure, preferred=preferred)
        assert found.architecture == preferred != best
        assert not found.budget_binds


def test_a_preferred_network_that_is_measured_over_is_not_chosen() -> None:
    best, preferred = preferring()

    def measure(architectures, label):
        return [measurement((1.1 if a == preferred else 0.99) * budget().target_ms, 0.001, True) for a in architectures]

    found = select(SPACE, SCORES, budget(), measure=measure, preferred=preferred)
    assert found.architecture == best
    assert found.budget_binds


def test_a_preferred_network_is_taken_once_the_device_lets_it_in() -> None:
    """It is predicted above the budget, and the device is faster than its predictions."""
    [best] = derive(SPACE, SCORES, budget())
    wider = replace(budget(), target_ms=1.08 * budget().target_ms)
    preferred = next(
        c.architecture for c in derive(SPACE, SCORES, wider, 8, least_ms=1.01 * budget().target_ms)[1:] if c.score != best.score
    )

    def measure(architectures, label):
        return [measurement(0.85 * MODEL.latency(a).ms, 0.001, True) for a in architectures]

    found = select(SPACE, SCORES, budget(), measure=measure, preferred=preferred)
    assert found.rounds[0].chosen == best.architecture.fingerprint
    assert found.architecture == preferred


def test_every_round_is_told_before_the_error() -> None:
    told = []
    with pytest.raises(BudgetError):
        select(SPACE, SCORES, budget(), measure=device(1.01, 0.005, True), on_round=lambda rounds: told.append(len(rounds)))
    assert told == [1, 2, 3]


def test_without_a_device_there_is_no_verdict() -> None:
    assert select(SPACE, SCORES, budget(), measure=None).verdict is None


def test_the_quantile_binds_the_choice_and_the_verdict_is_measured_as_ever() -> None:
    tight = replace(budget(), quantile=0.95)
    found = select(SPACE, SCORES, tight, measure=device(1.01, 0.02, True))
    assert found.table_high_ms <= tight.target_ms
    assert found.verdict is not None
    assert found.score <= select(SPACE, SCORES, budget(), measure=device(1.01, 0.02, True)).score
