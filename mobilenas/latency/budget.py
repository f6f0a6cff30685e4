"""Budgets: the constraint in the loss, and the exact derivation of a network that costs no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from mobilenas.core.architecture import Architecture
from mobilenas.core.measurement import Statistic
from mobilenas.errors import BudgetError, MissingKernelError
from mobilenas.latency.models import LatencyModel
from mobilenas.latency.prediction import Prediction
from mobilenas.spaces.base import DerivationProgram, OptionCosts, Probabilities, SearchSpace
from mobilenas.supernet import NO_OPERATOR, SKIP

TARGETS = 8
"""How many targets a derivation program is given at most before the cheapest networks of the space are looked through."""
LOWERED_PER_TARGET, LOWERED_TOGETHER = 32, 16
"""How many answers of a derivation program are lowered for one target at most, and how many in one go."""
EXTREMES_LOWERED = 48
"""How many of the cheapest and of the dearest networks by linear cost are lowered to find a space's bounds."""


@dataclass(frozen=True)
class Budget:
    """An upper bound on one cost; a search takes several, each with its own multiplier and derivation row.

    What is bound is the prediction's ``quantile``: 0.5 is the prediction itself, 0.9 what nine networks in ten stay below.
    """

    model: LatencyModel
    target_ms: float
    statistic: Statistic = "floor"
    quantile: float = 0.5

    def bound_ms(self, prediction: Prediction) -> float:
        """What must not exceed the target for the predicted network to fit."""
        return prediction.at_quantile(self.quantile)

    @property
    def margin_factor(self) -> float:
        """How far the bound lies above the prediction, for what is only an expectation or a linear cost."""
        return self.bound_ms(Prediction.within(1.0, self.model.interval_factor))


@dataclass
class AugmentedLagrangian:
    """The one-sided constraint ``latency <= target`` in the loss (Hestenes 1969, Powell 1969; here in ratio form).

    With ``c = (expected + shift) / target - 1`` the term is ``(max(0, m + r c)^2 - m^2) / (2 r)``: no gradient while the
    multiplier ``m`` is zero and the constraint holds. ``m`` and the penalty ``r`` have no unit. The shift is the gap of
    the last epoch between the decoded network and the expectation: the gradient is the relaxation's, the value the
    decoded network's, so that a relaxation which is slower than what it decodes to does not push below the budget.
    """

    multiplier: float = 0.0
    penalty: float = 1.0
    shift_ms: float = 0.0
    maximum_multiplier: float = 100.0
    maximum_penalty: float = 100.0
    _last_unmet: float = field(default=1e9, repr=False)

    def term(self, expected_ms: Tensor, target_ms: float) -> Tensor:
        """The term to add to the loss; a scalar tensor."""
        violation = (expected_ms + self.shift_ms) / target_ms - 1
        pushed = torch.clamp(self.multiplier + self.penalty * violation, min=0)
        return (pushed**2 - self.multiplier**2) / (2 * self.penalty)

    def update(self, expected_ms: float, decoded_ms: float, target_ms: float) -> None:
        """After an epoch, driven by the decoded network's latency: the relaxation's own can be far from it."""
        violation = decoded_ms / target_ms - 1
        unmet = max(violation, -self.multiplier / self.penalty)  # slack counts only as far as the multiplier still pushes
        self.shift_ms = decoded_ms - expected_ms
        self.multiplier = float(np.clip(self.multiplier + self.penalty * violation, 0.0, self.maximum_multiplier))
        if violation > 0 and violation > 0.75 * self._last_unmet:
            self.penalty = min(1.5 * self.penalty, self.maximum_penalty)
        self._last_unmet = abs(unmet)

    @property
    def is_at_its_limit(self) -> bool:
        """Whether it pushes as hard as it may."""
        return self.multiplier == self.maximum_multiplier

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {
            "multiplier": self.multiplier,
            "penalty": self.penalty,
            "shift_ms": self.shift_ms,
            "last_unmet": self._last_unmet,
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from ``state``."""
        self.multiplier, self.penalty, self.shift_ms = state["multiplier"], state["penalty"], state["shift_ms"]
        self._last_unmet = state["last_unmet"]


@dataclass(frozen=True)
class LogCost:
    """DenseNAS's objective: ``weight * log(cost) / log(base)`` is added to the loss (arXiv 1906.09607).

    It has no target: weight and base alone trade cost for accuracy. ``costs`` are of any unit.
    """

    space: SearchSpace
    costs: OptionCosts
    weight: float
    base: float

    def term(self, probabilities: Probabilities) -> Tensor:
        """The term to add to the loss; a scalar tensor."""
        return self.weight * self.space.expected_cost(probabilities, self.costs).log() / math.log(self.base)


def with_skip_share(costs: OptionCosts, space: SearchSpace, share: float) -> OptionCosts:
    """``costs`` in which a skip that costs nothing costs ``share`` of what the first operator of its decision costs.

    DenseNAS's authors search ResNets with a share of 0.1, lest everything becomes a skip.
    """
    options = dict(costs.options)
    for decision in space.decisions:
        row = options.get(decision.name)
        if row is not None and SKIP in decision.options and row[decision.options.index(SKIP)] == 0:
            first = next((o for o in decision.options if o not in (NO_OPERATOR, SKIP)), SKIP)
            options[decision.name] = row.copy()
            options[decision.name][decision.options.index(SKIP)] = share * row[decision.options.index(first)]
    return OptionCosts(costs.fixed, options)


# ---- exact derivation ----------------------------------------------------------------------------------------------------


def solutions(
    program: DerivationProgram, targets: Sequence[float] = (), least: Sequence[float] = ()
) -> Iterator[tuple[tuple[str, str], ...]]:
    """Choices in order of falling score, each costing at most ``targets[b]`` in cost ``b``, and at least ``least[b]`` where
    that is given; exact, by HiGHS.

    Ends when nothing legal is left. Each (decision, option) tuple is what ``SearchSpace.architecture`` takes.
    """
    n = len(program.variables)
    constraints = [LinearConstraint(program.rows, program.lower, program.upper)]
    if len(targets):
        scale = np.maximum(np.abs(targets), 1e-12)
        room = (np.asarray(targets) - program.fixed_costs) / scale
        fill = (np.asarray(least) - program.fixed_costs) / scale if len(least) else -np.inf
        constraints.append(LinearConstraint(program.costs / scale[:, None], fill, room))
    while True:
        result = milp(
            -program.scores,
            constraints=constraints,
            bounds=Bounds(np.zeros(n), np.ones(n)),
            integrality=np.ones(n),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return
        chosen = result.x > 0.5
        if len(targets) and np.any(program.costs @ chosen + program.fixed_costs > np.asarray(targets) * (1 + 1e-9)):
            constraints.append(_exclude(chosen))  # over by more than rounding: within the solver's tolerance only
            continue
        yield tuple(pair for pair, is_chosen in zip(program.variables, chosen, strict=True) if is_chosen)
        constraints.append(_exclude(chosen))


def _exclude(chosen: np.ndarray) -> LinearConstraint:
    """A row that only ``chosen`` itself violates."""
    return LinearConstraint(np.where(chosen, 1.0, -1.0), -np.inf, chosen.sum() - 1)


@dataclass(frozen=True)
class Candidate:
    """One derived network: its score, the linear cost that the derivation saw, and its table latency."""

    architecture: Architecture
    score: float
    workload_ms: float
    table: Prediction
    is_preferred: bool = False
    """Whether it is the network that the search method derives without a budget."""

    @property
    def rank(self) -> tuple[bool, float]:
        """What candidates are ordered by: the preferred one goes before all others, whatever the scores."""
        return self.is_preferred, self.score


def score_of(program: DerivationProgram, architecture: Architecture) -> float:
    """The score of an architecture under ``program``."""
    chosen = architecture.choices
    return float(
        sum(s for (name, option), s in zip(program.variables, program.scores, strict=True) if chosen.get(name) == option)
    )


def allows(space: SearchSpace, program: DerivationProgram, architecture: Architecture) -> bool:
    """Return whether a derivation by ``program`` may choose ``architecture``."""
    made, chosen = {decision.name for decision in space.decisions}, architecture.choices
    fixed = [float(chosen.get(name) == option) if name in made else None for name, option in program.variables]
    bounds = Bounds([0.0 if value is None else value for value in fixed], [1.0 if value is None else value for value in fixed])
    rules = LinearConstraint(program.rows, program.lower, program.upper)
    return milp(np.zeros(len(fixed)), constraints=rules, bounds=bounds, integrality=np.ones(len(fixed))).x is not None


Restrict = Callable[[DerivationProgram], DerivationProgram]
"""Adds rules of a search method to a space's program."""


def derive(
    space: SearchSpace,
    scores: Mapping[str, np.ndarray],
    budget: Budget,
    count: int = 1,
    restrict: Restrict = lambda program: program,
    *,
    least_ms: float = 0.0,
    without: Collection[Architecture] = (),
    preferred: Architecture | None = None,
) -> list[Candidate]:
    """Derive at most ``count`` networks whose predicted bound is within the target, best rank first.

    ``preferred`` is what the search method derives without a budget: it comes first where it fits. Its rules need not be
    those of ``restrict``, which hold among the others (P-DARTS's loop over skips is no row of a program).

    Besides the best only those count whose bound is at least ``least_ms``. At least one is found, but for those ``without``
    which the choice is to be made.
    The program sees linear costs, and the target less the budget's margin; what counts is the model's own prediction. So the
    program first gets as much room above that as its costs are wrong by in nine of ten networks, and its answers are
    predicted in order of score: the first that fits is the best that the room holds. Where too few of
    ``LOWERED_PER_TARGET`` fit, the next target is the one at which half of the answers so far would have fit, and then the
    one at which all would have, by the ratio of their bound to their linear cost.
    Networks with a kernel that the model cannot price are passed over. Raises ``BudgetError`` with both bounds if nothing fits,
    ``MissingKernelError`` if nothing could be priced.
    """
    model = budget.model
    program = restrict(space.derivation_program(scores, [model.option_costs]))
    linear_ms = budget.target_ms / budget.margin_factor * (1 + model.workload_error.p90_fraction)
    accepted: dict[Architecture, Candidate] = {}
    ratios: list[float] = []

    def fitting(priced: Iterable[Candidate]) -> dict[Architecture, Candidate]:
        fits = (c for c in priced if budget.bound_ms(c.table) <= budget.target_ms)
        return {a: replace(c, score=score_of(program, a), is_preferred=a == preferred) for c in fits for a in [c.architecture]}

    def ranked() -> list[Candidate]:
        best_first = sorted(accepted.values(), key=lambda c: c.rank, reverse=True)
        return best_first[:1] + [c for c in best_first[1:] if budget.bound_ms(c.table) >= least_ms]

    if preferred is not None and preferred not in without:
        accepted |= fitting(c for c in candidates_of([preferred], program, model) if c)
    for number in range(TARGETS):
        answers = (space.architecture(choice) for choice in solutions(program, [linear_ms]))
        allowed = islice((architecture for architecture in answers if architecture not in without), LOWERED_PER_TARGET)
        while len(ranked()) < count and (some := list(islice(allowed, LOWERED_TOGETHER))):
            priced = [c for c in candidates_of(some, program, model) if c]
            accepted |= fitting(priced)
            ratios += [budget.bound_ms(c.table) / c.workload_ms for c in priced if c.workload_ms > 0]
        last_ms, linear_ms = linear_ms, budget.target_ms / float(np.quantile(ratios, 1.0 if number else 0.5)) if ratios else 0.0
        if len(ranked()) >= count or linear_ms >= last_ms or linear_ms <= program.fixed_costs[0]:
            break
    if not accepted:
        cheapest = _extremes(space, model, -1.0, restrict)
        lowest_ms = min(budget.bound_ms(c.table) for c in cheapest)
        if lowest_ms > budget.target_ms:
            highest_ms = max(budget.bound_ms(c.table) for c in _extremes(space, model, 1.0, restrict))
            raise BudgetError(
                f"no network of {space.name} fits {budget.target_ms:.4g} ms: the fastest found takes "
                f"{lowest_ms:.4g} ms, the slowest {highest_ms:.4g} ms; raise --latency-budget"
            )
        accepted |= fitting(c for c in cheapest if c.architecture not in without)
    return ranked()[:count]


def candidates_of(
    architectures: Sequence[Architecture], program: DerivationProgram, model: LatencyModel
) -> list[Candidate | None]:
    """Candidates with their predicted latency; ``None`` for a network with a kernel that has no row."""
    try:
        predictions: list[Prediction | None] = list(model.latencies(architectures))
    except MissingKernelError:
        predictions = [_latency_or_none(model, architecture) for architecture in architectures]
    return [
        Candidate(a, score_of(program, a), model.workload_ms(a), p) if p else None
        for a, p in zip(architectures, predictions, strict=True)
    ]


def _latency_or_none(model: LatencyModel, architecture: Architecture) -> Prediction | None:
    try:
        return model.latency(architecture)
    except MissingKernelError:
        return None


def extreme_program(space: SearchSpace, costs: OptionCosts, sign: float) -> DerivationProgram:
    """The program whose best solution is the cheapest (``sign=-1``) or the dearest (``+1``) network by linear cost."""
    program = space.derivation_program(space.undecided, [costs])
    return replace(program, scores=sign * program.costs[0])


@dataclass(frozen=True)
class LatencyRange:
    """The fastest and the slowest network of a space that were found, by table latency."""

    lowest: Candidate
    highest: Candidate


def latency_range(space: SearchSpace, model: LatencyModel, restrict: Restrict = lambda program: program) -> LatencyRange:
    """Bounds of the space: of the ``EXTREMES_LOWERED`` most extreme networks by linear cost the extreme whole sums."""
    lowest, highest = _extremes(space, model, -1.0, restrict), _extremes(space, model, 1.0, restrict)
    return LatencyRange(min(lowest, key=lambda c: c.table.ms), max(highest, key=lambda c: c.table.ms))


def _extremes(space: SearchSpace, model: LatencyModel, sign: float, restrict: Restrict) -> list[Candidate]:
    """The cheapest (``sign=-1``) or the dearest (``+1``) networks by linear cost that the model can price; at least one."""
    program = restrict(extreme_program(space, model.option_costs, sign))
    found = [space.architecture(choice) for choice in islice(solutions(program), EXTREMES_LOWERED)]
    summed = [c for c in candidates_of(found, program, model) if c is not None]
    if not summed:
        model.latencies(found)  # says which kernel is missing, and how to measure it
    return summed
