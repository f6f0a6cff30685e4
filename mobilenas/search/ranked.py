"""From a distribution over networks to the one delivered: propose, measure, rank by evidence, measure again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from scipy.stats import spearmanr

from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import Measurement
from mobilenas.errors import BudgetError
from mobilenas.latency.budget import Budget, Candidate
from mobilenas.latency.proposal import LEAST_FRACTION, Proposal
from mobilenas.search.rankers.base import Ranker, ranks_of, sum_of_ranks
from mobilenas.search.selection import (
    MeasuredCandidate,
    MeasureNetworks,
    RankedCandidate,
    Round,
    Selection,
    none_within,
    selection_of,
)

LEAST_CORRELATION = 0.2
"""Spearman correlation with the dear rankers below which a cheap ranker is dropped."""
FEWEST = 4
"""Fewest candidates on which rankers are compared."""

Propose = Callable[[Budget, Collection[Architecture]], Proposal]
"""A budget, and networks to leave out -> networks that use the budget up."""


@dataclass(frozen=True)
class Rules:
    """Settings of a ranked selection, see ``SelectionConfig``."""

    keep: int = 8
    rounds: int = 3
    least_fraction: float = LEAST_FRACTION


def select_ranked(
    propose: Propose,
    budget: Budget,
    rankers: Sequence[Ranker],
    rules: Rules,
    *,
    measure: MeasureNetworks | None,
    generator: np.random.Generator,
    on_round: Callable[[Sequence[Round]], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Selection:
    """Choose among proposed networks the one with the best sum of ranks; measured on the device if ``measure`` is given.

    Cheap rankers keep ``rules.keep`` of the networks that ``propose`` draws; the device measures them, which costs less than
    any training, and what it took of what was predicted corrects the next round's proposal, until half of them use the band
    from ``rules.least_fraction`` to all of the budget. The dear rankers are asked about those only. The best by the sum of all
    ranks is measured again, from the start: that is the verdict; one over the budget makes way for the next. Where none is
    left, the verdicts correct the target once more.

    A cheap ranker whose order the dear ones contradict (``LEAST_CORRELATION``) is dropped, and as many networks are drawn
    again without it. Raises ``BudgetError`` where nothing is proposed, or nothing was measured within the budget.
    """
    cheap, dear = [r for r in rankers if r.is_cheap], [r for r in rankers if not r.is_cheap]
    choice = _Choice(propose, budget, rules, measure, generator, on_round, on_note, budget.target_ms)
    choice.find(cheap, rules.keep)
    scores = choice.scores(rankers)
    correlations = _correlations(cheap, dear, scores) if dear and len(choice.finalists) >= FEWEST else {}
    dropped = [name for name, correlation in correlations.items() if correlation < LEAST_CORRELATION]
    believed = [ranker for ranker in rankers if ranker.name not in dropped]
    if dropped:
        on_note(
            f"dropped: {', '.join(dropped)}, which does not order {len(choice.finalists)} candidates as "
            f"{' and '.join(ranker.name for ranker in dear)} does; as many are drawn anew"
        )
        choice.find([ranker for ranker in believed if ranker.is_cheap], rules.keep + len(choice.inside))
        scores = choice.scores(believed)
    best_first, candidates = choice.ranked(scores)
    found = choice.verdict(best_first)
    if found is None:
        on_note("none of the candidates was within the budget when it was measured again: the target is corrected once more")
        choice.correct_by_verdicts()
        choice.find([ranker for ranker in believed if ranker.is_cheap], rules.keep)
        best_first, candidates = choice.ranked(choice.scores(believed))
        found = choice.verdict(best_first)
    if found is None:
        raise none_within(budget, choice.history)
    return msgspec.structs.replace(
        selection_of(*found, choice.history, budget),
        budget_binds=False,
        candidates=candidates,
        correlations=correlations,
        images=choice.images.total(),
    )


@dataclass
class _Choice:
    """The candidates of one choice, with what the device took for them; ``None`` without a device."""

    propose: Propose
    budget: Budget
    rules: Rules
    measure: MeasureNetworks | None
    generator: np.random.Generator
    on_round: Callable[[Sequence[Round]], None]
    on_note: Callable[[str], None]
    target_ms: float
    """Target of the next proposal: the budget divided by what networks took of their prediction."""
    inside: dict[Candidate, Measurement | None] = field(default_factory=dict)
    """Candidates measured in the band."""
    below: dict[Candidate, Measurement | None] = field(default_factory=dict)
    """Candidates measured below the band."""
    over: set[Architecture] = field(default_factory=set)
    history: list[Round] = field(default_factory=list)
    images: Counter[str] = field(default_factory=Counter)
    """Images that ranking has taken, by ranker and by what was ranked."""
    verdicts: int = 0
    slowest: float = 0.0
    """Largest ratio of a verdict to its prediction."""

    @property
    def finalists(self) -> list[Candidate]:
        """Return the candidates in the band, or those below it where there are none."""
        return list(self.inside or self.below)

    def find(self, cheap: Sequence[Ranker], count: int) -> None:
        """Look for ``count`` candidates in the band, in ``rules.rounds`` rounds at most; half of them are enough."""
        budget, first = self.budget, len(self.history)
        enough = len(self.inside) + max(min(2, count), (count - len(self.inside) + 1) // 2)
        while len(self.history) - first < self.rules.rounds and len(self.inside) < enough:
            known = {*self.over, *(candidate.architecture for candidate in (*self.inside, *self.below))}
            proposal = self.propose(replace(budget, target_ms=self.target_ms), known)
            if not proposal.candidates:
                break
            if proposal.least_fraction < self.rules.least_fraction:
                self.on_note(
                    f"no network was found that uses {self.rules.least_fraction:.0%} of {self.target_ms:.4g} ms: from "
                    f"{proposal.least_fraction:.0%} on all are candidates"
                )
            kept = self._best(proposal.candidates, cheap, count - len(self.inside))
            if self.measure is None:
                self.inside.update(dict.fromkeys(kept))
                break
            self._measure(kept, self.measure, proposal.least_fraction)
        if not self.finalists:
            if self.history:
                raise none_within(budget, self.history)
            raise BudgetError(f"no network was found within {budget.target_ms:.4g} ms: raise --latency-budget")

    def _best(self, pool: Sequence[Candidate], cheap: Sequence[Ranker], count: int) -> list[Candidate]:
        """Pick ``count`` networks by cheap rankers, or at random where there are none."""
        if not cheap:
            return [pool[index] for index in self.generator.permutation(len(pool))[:count]]
        scores = {ranker.name: ranker.rank([candidate.architecture for candidate in pool]) for ranker in cheap}
        self.images.update({f"pool, {name}": ranking.images for name, ranking in scores.items()})
        order = np.argsort(-sum_of_ranks(*(ranking.scores for ranking in scores.values())), kind="stable")
        return [pool[index] for index in order[:count]]

    def _measure(self, kept: Sequence[Candidate], measure: MeasureNetworks, least_fraction: float) -> None:
        """Measure one round of candidates, sort them, and correct the target by the median of measured over predicted."""
        found = list(zip(kept, measure([c.architecture for c in kept], f"round{len(self.history)}"), strict=True))
        for candidate, measured in found:
            if not measured.is_within(self.budget.target_ms):
                self.over.add(candidate.architecture)
            elif measured.value_ms >= least_fraction * self.budget.target_ms:
                self.inside[candidate] = measured
            else:
                self.below[candidate] = measured
        correction = float(np.median([measured.value_ms / candidate.table.ms for candidate, measured in found]))
        listed = tuple(
            MeasuredCandidate(c.architecture.fingerprint, c.score, c.table.ms, m.value_ms, m.high_ms) for c, m in found
        )
        self.history.append(Round(self.target_ms, listed, None, None, correction))
        self.on_round(self.history)
        self.target_ms = self.budget.target_ms / correction

    def scores(self, rankers: Sequence[Ranker]) -> dict[str, np.ndarray]:
        """Rank the finalists; return each ranker's scores by its name."""
        networks = [candidate.architecture for candidate in self.finalists]
        rankings = {ranker.name: ranker.rank(networks) for ranker in rankers}
        self.images |= {name: ranking.images for name, ranking in rankings.items()}  # of finalists, those before among them
        return {name: ranking.scores for name, ranking in rankings.items()}

    def verdict(self, best_first: Sequence[Candidate]) -> tuple[Candidate, Measurement | None] | None:
        """Measure candidates again until one is within the budget, and return that one; ``None`` if none is.

        Candidates below the band come last, the slowest of them first.
        """
        if self.measure is None:
            return best_first[0], None
        slowest_first = sorted(self.below, key=lambda candidate: -self._measured_ms(candidate))
        for candidate in dict.fromkeys([*best_first, *slowest_first]):
            [verdict] = self.measure([candidate.architecture], f"verdict{self.verdicts}")
            self.verdicts += 1
            last = msgspec.structs.replace(self.history[-1], chosen=candidate.architecture.fingerprint, verdict=verdict)
            self.history[-1] = last
            self.on_round(self.history)
            if verdict.is_within(self.budget.target_ms):
                return candidate, verdict
            self.slowest = max(self.slowest, verdict.value_ms / candidate.table.ms)
        return None

    def correct_by_verdicts(self) -> None:
        """Set all candidates aside, and propose below what verdicts took of what was predicted."""
        self.over |= {candidate.architecture for candidate in (*self.inside, *self.below)}
        self.inside, self.below = {}, {}
        self.target_ms = self.budget.target_ms / self.slowest

    def ranked(self, scores: Mapping[str, np.ndarray]) -> tuple[list[Candidate], tuple[RankedCandidate, ...]]:
        """Sort the finalists by the sum of their ranks, the best first; return them, and their lines in the result."""
        ranks = {name: ranks_of(row) for name, row in scores.items()}
        order = np.argsort(-sum_of_ranks(*scores.values()), kind="stable")
        best_first = [self.finalists[index] for index in order]
        told = tuple(
            RankedCandidate(
                fingerprint=candidate.architecture.fingerprint,
                ranks={name: float(row[index]) for name, row in ranks.items()},
                table_ms=candidate.table.ms,
                measured_ms=self._measured_ms(candidate) if self.measure else None,
            )
            for index, candidate in zip(order, best_first, strict=True)
        )
        return best_first, told

    def _measured_ms(self, candidate: Candidate) -> float:
        measured = {**self.below, **self.inside}[candidate]
        return measured.value_ms if measured else candidate.table.ms


def _correlations(cheap: Sequence[Ranker], dear: Sequence[Ranker], scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compare each cheap ranker with the sum of ranks of the dear ones; Spearman correlations by name."""
    together = sum_of_ranks(*(scores[ranker.name] for ranker in dear))
    return {ranker.name: _spearman(scores[ranker.name], together) for ranker in cheap}


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return the rank correlation, from -1 to 1; 0 where one of the two does not tell networks apart."""
    return 0.0 if np.ptp(first) == 0 or np.ptp(second) == 0 else float(spearmanr(first, second).statistic)
