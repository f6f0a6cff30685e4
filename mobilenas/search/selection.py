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

CLOSE_FRACTION = 0.03
"""How far below its target a candidate is predicted at most, but for the best one; and what a budget may leave unused."""

MeasureNetworks = Callable[[Sequence[Architecture], str], list[Measurement]]
"""Architectures and a label for the journal -> their measurements on the target device."""


class MeasuredCandidate(msgspec.Struct, frozen=True):
    """One candidate of one round, as it was predicted and measured. ``measured_*`` are milliseconds."""

    fingerprint: str
    score: float
    table_ms: float
    measured_ms: float
    measured_high_ms: float


class RankedCandidate(msgspec.Struct, frozen=True):
    """One network that the rankers were asked about; the list of them is in the order of the sum of their ranks."""

    fingerprint: str
    ranks: dict[str, float]
    """Rank by each ranker; 1 is the best."""
    table_ms: float
    measured_ms: float | None


class Round(msgspec.Struct, frozen=True):
    """One round: the target that the derivation was given, its candidates, and the verdict on the one chosen.

    ``correction`` is what networks took here over what they were predicted to take: the next target is the budget divided
    by it.
    """

    derivation_target_ms: float
    candidates: tuple[MeasuredCandidate, ...]
    chosen: str | None
    verdict: Measurement | None
    correction: float


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
    budget_binds: bool = False
    """Whether it is another network than the search method derives without a budget."""
    candidates: tuple[RankedCandidate, ...] = ()
    """Networks that were ranked, the best first; none where the logits alone decide."""
    correlations: dict[str, float] = {}
    """Spearman correlation of each cheap ranker with the dear ones, on the candidates."""
    images: int = 0
    """Images that passed through networks to rank them."""
    share_used: float | None = None
    """Share of the budget that the network uses, by the verdict, or by the prediction where nothing was measured."""


def select(
    space: SearchSpace,
    scores: Mapping[str, np.ndarray],
    budget: Budget,
    *,
    measure: MeasureNetworks | None,
    candidates: int = 8,
    rounds: int = 3,
    restrict: Restrict = lambda program: program,
    preferred: Architecture | None = None,
    on_round: Callable[[Sequence[Round]], None] = lambda _: None,
) -> Selection:
    """Choose ``preferred``, which the search method derives without a budget, if it is within the budget; else the best-scoring
    one that is, otherwise. Measured on the device if ``measure`` is given.

    Candidates are the best network that is predicted to be within the target, and the next best of those close below it. Of
    those that are measured within the budget (``Measurement.is_within``) the best-scoring one is measured again, from the
    start: that is the verdict, by the same rule. What the device took of all candidates over what was predicted corrects the
    target, up or down, for another round: after a round without success; and after one that leaves ``CLOSE_FRACTION`` of
    the budget unused, if a better network fits the corrected target. A network that was measured over the budget is no
    candidate again. ``on_round`` is told of all rounds after each. Raises ``BudgetError`` if none succeeded.
    """
    if measure is None:
        return selection_of(derive(space, scores, budget, restrict=restrict, preferred=preferred)[0], None, (), budget)
    history: list[Round] = []
    over: set[Architecture] = set()
    kept: tuple[Candidate, Measurement] | None = None
    target_ms = budget.target_ms
    while len(history) < rounds:
        corrected, least_ms = replace(budget, target_ms=target_ms), (1 - CLOSE_FRACTION) * target_ms
        try:
            derived = derive(
                space, scores, corrected, candidates, restrict, least_ms=least_ms, without=over, preferred=preferred
            )
        except BudgetError:
            if not history:
                raise
            break  # nothing is left below the corrected target: the error is about the user's own
        derived = [c for c in derived if kept is None or c.rank > kept[0].rank]
        if not derived:
            break
        measured = list(zip(derived, measure([c.architecture for c in derived], f"round{len(history)}"), strict=True))
        over |= {c.architecture for c, m in measured if not m.is_within(budget.target_ms)}
        correction = float(np.median([m.value_ms / c.table.ms for c, m in measured]))
        chosen, verdict = _best_within(measured, budget.target_ms), None
        if chosen is not None:
            [verdict] = measure([chosen.architecture], f"verdict{len(history)}")
            if verdict.is_within(budget.target_ms):
                kept = chosen, verdict
            else:
                over.add(chosen.architecture)
                correction = max(correction, verdict.value_ms / chosen.table.ms)
        listed = tuple(
            MeasuredCandidate(c.architecture.fingerprint, c.score, c.table.ms, m.value_ms, m.high_ms) for c, m in measured
        )
        history.append(Round(target_ms, listed, chosen.architecture.fingerprint if chosen else None, verdict, correction))
        on_round(history)
        if kept is not None and kept[1].value_ms >= (1 - CLOSE_FRACTION) * budget.target_ms:
            break
        target_ms = budget.target_ms / correction
    if kept is None:
        raise none_within(budget, history)
    return selection_of(*kept, history, budget)


def _best_within(measured: Sequence[tuple[Candidate, Measurement]], target_ms: float) -> Candidate | None:
    """The best-scoring candidate within the budget; one that exceeds it by its repeatability only where no other is."""
    fitting = [(m.value_ms <= target_ms, c.rank, c) for c, m in measured if m.is_within(target_ms)]
    return max(fitting, key=lambda found: found[:2])[2] if fitting else None


def _closest(last: Round) -> str:
    """What the last round came to, by the numbers that it was judged by."""
    if last.verdict is not None:
        repeats = f"repeatable within {last.verdict.repeatability_fraction:.1%}"
        settled = "" if last.verdict.converged else ", which is not yet settled"
        return f"the one chosen took {last.verdict.value_ms:.4g} ms when it was measured again, {repeats}{settled}"
    closest = min(last.candidates, key=lambda c: c.measured_ms)
    repeats = f"repeatable within {closest.measured_high_ms / closest.measured_ms - 1:.1%}"
    return f"the closest of the last round took {closest.measured_ms:.4g} ms, {repeats}"


def none_within(budget: Budget, rounds: Sequence[Round]) -> BudgetError:
    """Make the error of a search all of whose ``rounds`` ended over the budget."""
    return BudgetError(
        f"after {len(rounds)} rounds no network was measured within {budget.target_ms:.4g} ms: {_closest(rounds[-1])}; "
        "raise --latency-budget, or profile again if the device has changed"
    )


def selection_of(candidate: Candidate, verdict: Measurement | None, rounds: Sequence[Round], budget: Budget) -> Selection:
    """Make the result of choosing ``candidate``."""
    return Selection(
        architecture=candidate.architecture,
        score=candidate.score,
        workload_ms=candidate.workload_ms,
        table_ms=candidate.table.ms,
        table_low_ms=candidate.table.low_ms,
        table_high_ms=candidate.table.high_ms,
        verdict=verdict,
        rounds=tuple(rounds),
        budget_binds=not candidate.is_preferred,
        share_used=(verdict.value_ms if verdict else budget.bound_ms(candidate.table)) / budget.target_ms,
    )
