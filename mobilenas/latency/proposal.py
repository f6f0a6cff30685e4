"""Networks that use a budget up, drawn by a search's probabilities: what is then trained and measured.

Adding Gumbel noise to log probabilities and taking the best choice draws from the distribution that they stand for where the
options are whole networks (Gumbel 1954; Maddison, Tarlow, Minka, A* Sampling, 2014). Here the noise is on the options of each
decision, and the best choice is that of the exact program under the budget ("perturb and MAP", Papandreou and Yuille 2011): an
approximation, which reaches every network and costs one small integer program a draw.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from mobilenas.core.architecture import Architecture
from mobilenas.latency.budget import LOWERED_TOGETHER, Budget, Candidate, Restrict, allows, candidates_of, solutions
from mobilenas.spaces.base import DerivationProgram, SearchSpace

LEAST_FRACTION = 0.95
"""Least share of a budget that a proposed network uses, unless none is found that does."""
LOWER_FRACTIONS = (0.90, 0.0)
"""Lower shares that are tried in this order where no network is found."""
WAVES = 8
"""Rounds of draws at most; a draw outside the band is solved again with its own ratio of latency to linear cost."""
NEW_FRACTION = 0.1
"""Share of the wanted networks that a wave must find anew, in or outside the band, for another wave to follow."""
ANSWERS = 4
"""Best solutions of one drawn program that are searched for a network not seen yet."""
SEEN = 16
"""Networks whose latency is predicted first, to learn how far linear costs are off."""
LOOKED_THROUGH = 64
"""Best networks at most that are tried without noise where draws did not find enough."""
RAREST = 200
"""Uniform draws are used only where at least one in so many falls into the band."""


@dataclass(frozen=True)
class Proposal:
    """Networks whose predicted bound is between ``least_fraction`` and all of the budget, no two of them the same."""

    candidates: tuple[Candidate, ...]
    least_fraction: float
    """Least share of the budget that they use; lower than asked for where nothing was found there."""


@dataclass
class _Band:
    """State of one proposal: the networks found in and outside the band, and how far linear costs are off."""

    space: SearchSpace
    budget: Budget
    program: DerivationProgram
    least_fraction: float
    without: Collection[Architecture]
    found: dict[Architecture, Candidate] = field(default_factory=dict)
    outside: set[Architecture] = field(default_factory=set)
    ratios: dict[Architecture, float] = field(default_factory=dict)
    """Ratio of predicted bound to linear cost, by network."""

    @property
    def ratio(self) -> float:
        """Return the median ratio; the budget's margin before any network was seen."""
        return float(np.median(list(self.ratios.values()))) if self.ratios else self.budget.margin_factor

    def targets_ms(self, *ratios: float) -> tuple[float, float]:
        """Return the range of linear costs of networks in the band, for ``ratios``, or for all seen if none is given."""
        known = ratios or tuple(self.ratios.values()) or (self.budget.margin_factor,)
        return self.least_fraction * self.budget.target_ms / max(known), self.budget.target_ms / min(known)

    def price(self, architectures: Iterable[Architecture]) -> None:
        """Predict networks and sort them into ``found`` and ``outside``; one with a kernel without a row is outside."""
        new = [a for a in dict.fromkeys(architectures) if a not in self.found and a not in self.outside]
        for architecture, candidate in zip(new, candidates_of(new, self.program, self.budget.model), strict=True):
            bound_ms = self.budget.bound_ms(candidate.table) if candidate else 0.0
            if candidate and candidate.workload_ms > 0:
                self.ratios[architecture] = bound_ms / candidate.workload_ms
            fits = self.least_fraction * self.budget.target_ms <= bound_ms <= self.budget.target_ms
            if candidate and fits and architecture not in self.without:
                self.found[architecture] = candidate
            else:
                self.outside.add(architecture)


def propose(
    space: SearchSpace,
    scores: Mapping[str, np.ndarray],
    budget: Budget,
    count: int,
    generator: np.random.Generator,
    *,
    least_fraction: float = LEAST_FRACTION,
    restrict: Restrict = lambda program: program,
    without: Collection[Architecture] = (),
) -> Proposal:
    """Draw up to ``count`` different networks by ``scores``, which are log probabilities, whose bound is in the band.

    The band reaches from ``least_fraction`` of the budget to all of it; where nothing is found it begins lower, see
    ``LOWER_FRACTIONS``. Fewer networks come back where the band holds no more, or linear costs are too wrong to find them.
    None comes back where nothing fits.
    """
    program = restrict(space.derivation_program(scores, [budget.model.option_costs]))

    def drawn() -> DerivationProgram:
        noise = {name: generator.gumbel(size=len(row)) - np.euler_gamma for name, row in scores.items()}  # zero on average
        noisy = {name: row + noise[name] for name, row in scores.items()}
        return restrict(space.derivation_program(noisy, [budget.model.option_costs]))

    for least in (least_fraction, *(lower for lower in LOWER_FRACTIONS if lower < least_fraction)):
        band = _Band(space, budget, program, least, without)
        _draw_into(band, drawn, count)
        if len(band.found) < count:
            _look_through(band, count)
        if band.found:
            break
    return Proposal(tuple(islice(band.found.values(), count)), least)


def propose_uniformly(
    space: SearchSpace,
    budget: Budget,
    count: int,
    generator: random.Random,
    *,
    least_fraction: float = LEAST_FRACTION,
    restrict: Restrict = lambda program: program,
    without: Collection[Architecture] = (),
) -> Proposal | None:
    """Draw networks uniformly over the space and keep those in the band that a derivation may return; ``None`` where less than
    one in ``RAREST`` is.
    """
    program = restrict(space.derivation_program(space.undecided, [budget.model.option_costs]))
    band = _Band(space, budget, program, least_fraction, without)
    draws = 0
    while len(band.found) < count and draws < RAREST * count:
        some = [space.random_architecture(generator) for _ in range(RAREST // 2)]
        draws += len(some)
        if not band.ratios:
            band.price(a for a in some[:SEEN] if allows(space, program, a))
        low_ms, high_ms = band.targets_ms()
        near = [a for a in dict.fromkeys(some) if low_ms <= budget.model.workload_ms(a) <= high_ms]
        band.price(a for a in near if allows(space, program, a))
        if draws >= RAREST and len(band.found) * RAREST < draws:
            return None
    return Proposal(tuple(islice(band.found.values(), count)), least_fraction) if band.found else None


def _draw_into(band: _Band, drawn: Callable[[], DerivationProgram], count: int) -> None:
    """Draw until the band holds ``count`` networks, ``WAVES`` of draws are done, or a wave meets hardly any that is new."""
    _, high_ms = band.targets_ms()
    band.price(
        band.space.architecture(choice)
        for program in (drawn() for _ in range(SEEN))
        for choice in islice(solutions(program, [high_ms]), 1)
    )
    programs = [(drawn(), band.ratio) for _ in range(count)]
    for _ in range(WAVES):
        known = len(band.found) + len(band.outside)
        answers = [_answer(band, program, ratio) for program, ratio in programs]
        band.price(answer for answer in answers if answer is not None)
        again: list[tuple[DerivationProgram, float]] = []
        for (program, _), answer in zip(programs, answers, strict=True):
            if answer is not None and answer in band.outside:
                again.append((program, band.ratios.get(answer, band.ratio)))
        while len(again) + len(band.found) < count:
            again.append((drawn(), band.ratio))
        programs = again[: max(0, count - len(band.found))]
        if not programs or len(band.found) + len(band.outside) - known <= NEW_FRACTION * count:
            return


def _answer(band: _Band, program: DerivationProgram, ratio: float) -> Architecture | None:
    """Return the best network not seen yet that a drawn program puts in the band; ``None`` if there is none."""
    low_ms, high_ms = band.targets_ms(ratio)
    known = {*band.found, *band.outside}
    answers = (band.space.architecture(choice) for choice in islice(solutions(program, [high_ms], [low_ms]), ANSWERS))
    return next((architecture for architecture in answers if architecture not in known), None)


def _look_through(band: _Band, count: int) -> None:
    """Try the best networks without noise, over the whole range of linear costs, before the band is said to hold no more."""
    low_ms, high_ms = band.targets_ms()
    answers = islice(solutions(band.program, [high_ms], [low_ms]), LOOKED_THROUGH)
    while len(band.found) < count and (some := list(islice(answers, LOWERED_TOGETHER))):
        band.price(band.space.architecture(choice) for choice in some)
