"""From finished logits to one network that meets its budget: derive, measure, correct, derive again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import Measurement
from mobilenas.errors import BudgetError
from mobilenas.latency.budget import Budget, Candidate, Restrict, derive
from mobilenas.spaces.base import SearchSpace

MeasureNetworks = Callable[[Sequence[Architecture], str], list[Measurement]]
"""Architectures and a label for the journal -> their measurements on the target device."""


class MeasuredCandidate(msgspec.Struct, frozen=True):
    """One candidate of one round, as it was predicted and measured. ``measured_*`` are milliseconds."""

    fingerprint: str
    score: float
    table_ms: float
    measured_ms: float
    measured_high_ms: float


class Round(msgspec.Struct, frozen=True):
    """One round: the target that the derivation was given, its candidates, and the verdict on the one chosen."""

    derivation_target_ms: float
    candidates: tuple[MeasuredCandidate, ...]
    chosen: str | None
    verdict: Measurement | None


class Selection(msgspec.Struct, frozen=True):
    """The network chosen. ``verdict`` is a measurement of its own, made after the choice; ``None`` without a device."""

    architecture: Architecture
    score: float
    workload_ms: float
    table_ms: float
    table_low_ms: float
    table_high_ms: float
    verdict: Measurement | None
    rounds: tuple[Round, ...]


def select(
    space: SearchSpace,
    scores: Mapping[str, np.ndarray],
    budget: Budget,
    *,
    measure: MeasureNetworks | None,
    candidates: int = 8,
    rounds: int = 3,
    restrict: Restrict = lambda program: program,
) -> Selection:
    """The best-scoring network within the budget; measured on the device if ``measure`` is given.

    Half of the candidates are derived at the budget, half at the budget less the model's error. Of those whose
    measured interval lies within the budget the best-scoring one is measured again, from the start: that is the verdict.
    It may exceed the budget by its repeatability, but only where the measurement has converged.
    A round without a success corrects the target by the measured gap. Raises ``BudgetError`` after the last round.
    """
    if measure is None:
        return _selection(derive(space, scores, budget, restrict=restrict)[0], None, ())
    history: list[Round] = []
    target_ms = budget.target_ms
    for number in range(rounds):
        try:
            derived = _candidates(space, scores, budget, target_ms, candidates, restrict)
        except BudgetError:
            if not history:
                raise
            break  # nothing is left below the corrected target: the error is about the user's own
        measurements = measure([c.architecture for c in derived], f"round{number}")
        listed = tuple(
            MeasuredCandidate(c.architecture.fingerprint, c.score, c.table.ms, m.value_ms, m.high_ms)
            for c, m in zip(derived, measurements, strict=True)
        )
        fitting = [c for c, m in zip(derived, measurements, strict=True) if m.high_ms <= budget.target_ms]
        if not fitting:
            history.append(Round(target_ms, listed, None, None))
            gaps = [m.value_ms / budget.bound_ms(c.table) for c, m in zip(derived, measurements, strict=True)]
            target_ms = min(target_ms, budget.target_ms / float(np.median(gaps))) * 0.99
            continue
        best = max(fitting, key=lambda c: c.score)
        [verdict] = measure([best.architecture], f"verdict{number}")
        history.append(Round(target_ms, listed, best.architecture.fingerprint, verdict))
        if verdict.is_within(budget.target_ms):
            return _selection(best, verdict, tuple(history))
        target_ms *= 0.99 * budget.target_ms / verdict.value_ms
    last = history[-1]
    closest = min(c.measured_ms for c in last.candidates)
    raise BudgetError(
        f"after {len(history)} rounds no network was measured within {budget.target_ms:.4g} ms; the closest of the last "
        f"round took {closest:.4g} ms; raise --latency-budget, or profile again if the device has changed"
    )


def _candidates(
    space: SearchSpace,
    scores: Mapping[str, np.ndarray],
    budget: Budget,
    target_ms: float,
    count: int,
    restrict: Restrict,
) -> list[Candidate]:
    """Networks at ``target_ms`` and, so that not all of them are on the edge, below it by the model's own error."""
    margin = budget.model.error.p90_fraction
    found: dict[Architecture, Candidate] = {}
    for target, wanted in ((target_ms, -(-count // 2)), (target_ms * (1 - margin), count // 2)):
        if not wanted:
            continue
        try:
            derived = derive(space, scores, replace(budget, target_ms=target), wanted, restrict)
        except BudgetError:
            if found:
                continue
            raise
        found |= {candidate.architecture: candidate for candidate in derived}
    return sorted(found.values(), key=lambda c: -c.score)


def _selection(candidate: Candidate, verdict: Measurement | None, rounds: tuple[Round, ...]) -> Selection:
    return Selection(
        architecture=candidate.architecture,
        score=candidate.score,
        workload_ms=candidate.workload_ms,
        table_ms=candidate.table.ms,
        table_low_ms=candidate.table.low_ms,
        table_high_ms=candidate.table.high_ms,
        verdict=verdict,
        rounds=rounds,
    )
