"""The derivation against brute force where whole networks cost something else than the linear costs say."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from mobilenas.core.architecture import Architecture
from mobilenas.core.workload import Kernel
from mobilenas.errors import BudgetError
from mobilenas.latency.budget import Budget, derive, latency_range, score_of
from mobilenas.latency.models import TableModel
from mobilenas.latency.prediction import Prediction, conformal_factor
from mobilenas.latency.table import ErrorReport, LatencyTable, TableRow, WorkloadCosts
from mobilenas.spaces.base import OptionCosts
from mobilenas.spaces.cells import CellSpace
from mobilenas.testing import fakes

SPACE = CellSpace(nodes=2, operators=("none", "max_pool_3x3", "sep_conv_3x3"), channels=4, layers=3, image_size=8)


def model_off_by(share: float) -> TableModel:
    """A table model whose networks take up to ``share`` more than the linear costs say, by a hash of their choices."""
    table = fakes.make_table(SPACE)
    exact = fakes.make_lower(SPACE)
    kernel, row = next(iter(table.rows.items()))
    extra = msgspec.structs.replace(kernel, attributes='{"extra":1}')
    typical_ms = table.networks[0].kernel_sum_ms
    rows = {**table.rows, extra: msgspec.structs.replace(row, kernel=extra, value_ms=typical_ms * share / 100)}

    def lower(architectures: Sequence[Architecture]) -> list[Counter[Kernel]]:
        lowered = exact(architectures)
        for architecture, kernels in zip(architectures, lowered, strict=True):
            kernels[extra] += random.Random(architecture.fingerprint).randrange(101)
        return lowered

    card = table.card.spaces[SPACE.key]
    error = msgspec.structs.replace(card.workload_error, p90_fraction=0.9 * share)
    spaces = {SPACE.key: msgspec.structs.replace(card, workload_error=error)}
    return TableModel(replace(table, rows=rows, card=msgspec.structs.replace(table.card, spaces=spaces)), SPACE, lower)


@pytest.fixture(scope="module")
def model() -> TableModel:
    return model_off_by(0.06)


@pytest.fixture(scope="module")
def everything(model: TableModel) -> dict[Architecture, float]:
    """Table latency of all 2,304 networks."""
    generator = random.Random(0)
    found = list({SPACE.random_architecture(generator): None for _ in range(30_000)})
    assert len(found) == 2304
    return {a: p.ms for a, p in zip(found, model.latencies(found), strict=True)}


def test_bounds_are_those_of_all_networks(model: TableModel, everything: dict[Architecture, float]) -> None:
    bounds = latency_range(SPACE, model)
    assert bounds.lowest.table.ms == min(everything.values())
    assert bounds.highest.table.ms == max(everything.values())


@pytest.mark.parametrize("share", [0.0, 0.003, 0.02, 0.1, 0.3, 0.6, 0.9, 1.0])
def test_what_is_derived_fits_and_nothing_that_fits_scores_much_higher(
    model: TableModel, everything: dict[Architecture, float], share: float
) -> None:
    low, high = min(everything.values()), max(everything.values())
    target_ms = low + share * (high - low)
    ranks = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scores = {d.name: np.log(rng.dirichlet(np.ones(3))) for d in SPACE.decisions}
        found = derive(SPACE, scores, Budget(model, target_ms), count=3)
        program = SPACE.derivation_program(scores, [model.option_costs])
        fitting = sorted((-score_of(program, a) for a, ms in everything.items() if ms <= target_ms))
        assert all(c.table.ms <= target_ms for c in found)
        assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
        assert found[0].score == pytest.approx(score_of(program, found[0].architecture))
        ranks.append(sum(s < -found[0].score - 1e-9 for s in fitting))
    assert sum(rank == 0 for rank in ranks) >= 4, f"ranks among the fitting networks: {ranks}"


def test_exact_costs_give_the_best_network(everything: dict[Architecture, float]) -> None:
    model = fakes.make_model(SPACE)
    latencies = dict(zip(everything, (p.ms for p in model.latencies(list(everything))), strict=True))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scores = {d.name: np.log(rng.dirichlet(np.ones(3))) for d in SPACE.decisions}
        target_ms = float(np.quantile(list(latencies.values()), rng.uniform(0.0, 1.0)))
        [found] = derive(SPACE, scores, Budget(model, target_ms))
        program = SPACE.derivation_program(scores, [model.option_costs])
        best = max(score_of(program, a) for a, ms in latencies.items() if ms <= target_ms)
        assert found.score == pytest.approx(best)


def test_below_the_fastest_network_both_bounds_are_named(model: TableModel, everything: dict[Architecture, float]) -> None:
    low, high = min(everything.values()), max(everything.values())
    scores = {d.name: np.zeros(3) for d in SPACE.decisions}
    with pytest.raises(BudgetError, match=rf"{low:.4g} ms.*{high:.4g} ms"):
        derive(SPACE, scores, Budget(model, 0.999 * low))


def test_networks_that_cannot_be_priced_are_passed_over(model: TableModel, everything: dict[Architecture, float]) -> None:
    """Half of all networks have a kernel without a row; what is derived is the best of the others."""
    unknown = msgspec.structs.replace(next(iter(model.table.rows)), attributes='{"unknown":1}')

    def lower(architectures: Sequence[Architecture]) -> list[Counter[Kernel]]:
        lowered = model.lower(architectures)
        for architecture, kernels in zip(architectures, lowered, strict=True):
            if int(architecture.fingerprint, 16) % 2:
                kernels[unknown] += 1
        return lowered

    lacking = TableModel(model.table, SPACE, lower)
    scores = {d.name: np.random.default_rng(3).normal(size=3) for d in SPACE.decisions if d.kind == "op"}
    target_ms = float(np.percentile(list(everything.values()), 40))
    [found] = derive(SPACE, scores, Budget(lacking, target_ms))
    program = SPACE.derivation_program(scores, [lacking.option_costs])
    priced = [a for a, ms in everything.items() if ms <= target_ms and not int(a.fingerprint, 16) % 2]
    assert found.score == pytest.approx(max(score_of(program, a) for a in priced))


def test_a_kernel_without_a_row_is_measured_when_a_device_is_there(model: TableModel) -> None:
    kernel = min(model.table.rows)
    rows = {k: row for k, row in model.table.rows.items() if k != kernel}
    asked: list[Kernel] = []

    def measure_kernels(kernels: Sequence[Kernel]) -> dict[Kernel, TableRow]:
        asked.extend(kernels)
        return {k: model.table.rows[k] for k in kernels}

    lacking = TableModel(replace(model.table, rows=rows), SPACE, model.lower, measure_kernels)
    architectures = [SPACE.random_architecture(random.Random(seed)) for seed in range(30)]
    assert lacking.latencies(architectures) == model.latencies(architectures)
    assert asked == [kernel]


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_the_quantile_of_the_prediction_is_bound(
    model: TableModel, everything: dict[Architecture, float], quantile: float
) -> None:
    """Oracle: the best score of all networks whose quantile fits. All intervals are as wide here."""
    target_ms = float(np.quantile(list(everything.values()), 0.4))
    scores = {d.name: np.log(np.random.default_rng(3).dirichlet(np.ones(len(d.options)))) for d in SPACE.decisions}
    budget = Budget(model, target_ms, quantile=quantile)
    [found] = derive(SPACE, scores, budget)
    factor = Prediction.within(1.0, model.card.interval_factor).at_quantile(quantile)
    assert budget.bound_ms(found.table) == pytest.approx(factor * everything[found.architecture])
    program = SPACE.derivation_program(scores)
    fitting = [score_of(program, a) for a, ms in everything.items() if factor * ms <= target_ms]
    assert found.score == pytest.approx(max(fitting), abs=1e-6)


def test_a_higher_quantile_never_scores_higher(model: TableModel, everything: dict[Architecture, float]) -> None:
    wide = replace(model, table=_with_interval(model, 1.2))
    target_ms = float(np.quantile(list(everything.values()), 0.4))
    scores = {d.name: np.log(np.random.default_rng(4).dirichlet(np.ones(len(d.options)))) for d in SPACE.decisions}
    found = [derive(SPACE, scores, Budget(wide, target_ms, quantile=q))[0] for q in (0.5, 0.8, 0.95)]
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert found[2].table.high_ms <= target_ms < found[0].table.high_ms


def test_a_quantile_that_no_network_reaches_is_a_budget_error(model: TableModel, everything: dict[Architecture, float]) -> None:
    wide = replace(model, table=_with_interval(model, 1.5))
    scores = {d.name: np.zeros(len(d.options)) for d in SPACE.decisions}
    target_ms = 1.1 * min(everything.values())
    assert derive(SPACE, scores, Budget(wide, target_ms))
    with pytest.raises(BudgetError, match="the fastest found takes"):
        derive(SPACE, scores, Budget(wide, target_ms, quantile=0.95))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_one_outlier_among_ten_networks_does_not_end_in_the_fastest(
    everything: dict[Architecture, float], share: float
) -> None:
    """The interval is that of the outlier, the 90th percentile of the errors hardly sees it; linear costs are exact."""
    off = np.array([1.01, 0.99, 1.02, 0.98, 1.0, 1.015, 0.985, 1.005, 0.995, 1.3])
    exact = fakes.make_model(SPACE)
    card = msgspec.structs.replace(
        exact.card, interval_factor=conformal_factor(off, np.ones(10)), table_error=ErrorReport.of(off, np.ones(10))
    )
    costs = {SPACE.key: replace_error(exact.table.workload_costs[SPACE.key])}
    whole = msgspec.structs.replace(exact.table.card, spaces={SPACE.key: card})
    model = TableModel(replace(exact.table, card=whole, workload_costs=costs), SPACE, exact.lower)
    assert_best_within(model, everything, share, quantile=0.9)


def replace_error(costs: WorkloadCosts) -> WorkloadCosts:
    return msgspec.structs.replace(costs, error=ErrorReport.none())


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_linear_costs_that_are_further_off_than_they_say_are_followed(
    everything: dict[Architecture, float], share: float
) -> None:
    model = fakes.make_model(SPACE)
    costs = model.option_costs
    model.option_costs = OptionCosts(0.7 * costs.fixed, {name: 0.7 * row for name, row in costs.options.items()})
    assert_best_within(model, everything, share, quantile=0.5)


def assert_best_within(model: TableModel, everything: dict[Architecture, float], share: float, quantile: float) -> None:
    """Oracle: the best score of all networks whose bound fits."""
    budget = Budget(model, 1.0, quantile=quantile)
    bounds_ms = dict(zip(everything, map(budget.bound_ms, model.latencies(list(everything))), strict=True))
    low, high = min(bounds_ms.values()), max(bounds_ms.values())
    budget = replace(budget, target_ms=low + share * (high - low))
    scores = {d.name: np.log(np.random.default_rng(1).dirichlet(np.ones(len(d.options)))) for d in SPACE.decisions}
    program = SPACE.derivation_program(scores)
    fitting = [score_of(program, a) for a, ms in bounds_ms.items() if ms <= budget.target_ms]
    [found] = derive(SPACE, scores, budget)
    assert budget.bound_ms(found.table) <= budget.target_ms
    assert found.score == pytest.approx(max(fitting), abs=1e-6)


def _with_interval(model: TableModel, factor: float) -> LatencyTable:
    error = msgspec.structs.replace(model.card.table_error, p90_fraction=factor - 1)
    card = msgspec.structs.replace(model.card, interval_factor=factor, table_error=error)
    return replace(model.table, card=msgspec.structs.replace(model.table.card, spaces={SPACE.key: card}))
