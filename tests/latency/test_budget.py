import itertools

import numpy as np
import pytest
import torch

from mobilenas.latency.budget import AugmentedLagrangian, score_of, solutions
from mobilenas.spaces.cells import CellSpace

SPACE = CellSpace(nodes=2, operators=("none", "max_pool_3x3", "sep_conv_3x3"), channels=4, layers=3, image_size=8)


def every_architecture():
    real = SPACE.operators[1:]
    cells = []
    for kind in ("normal", "reduce"):
        cells.append(
            [
                [(f"{kind}.0-2", a), (f"{kind}.1-2", b), (f"{kind}.{s}-3", c), (f"{kind}.{t}-3", d)]
                for a, b, c, d in itertools.product(real, repeat=4)
                for s, t in itertools.combinations(range(3), 2)
            ]
        )
    return [SPACE.architecture([*n, *r]) for n, r in itertools.product(*cells)]


def test_derivation_equals_brute_force_in_200_cases() -> None:
    """Oracle: enumeration of all 2,304 networks of a space of two nodes and two operators."""
    architectures = every_architecture()
    assert len(set(architectures)) == 2304
    program = SPACE.derivation_program({d.name: np.zeros(3) for d in SPACE.decisions})
    chosen = np.array([[a.choices.get(n) == o for n, o in program.variables] for a in architectures], float)
    infeasible = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        costs = SPACE.option_costs({w: float(rng.exponential()) for w in SPACE.workloads()})
        scores = {d.name: np.log(rng.dirichlet(np.ones(3))) for d in SPACE.decisions}
        program = SPACE.derivation_program(scores, [costs])
        total = chosen @ program.costs[0] + program.fixed_costs[0]
        target = total.min() + rng.uniform(-0.05, 0.6) * np.ptp(total)
        found = next(solutions(program, [target]), None)
        fitting = total <= target
        if not fitting.any():
            infeasible += 1
            assert found is None
            continue
        assert found is not None
        best = (chosen @ program.scores)[fitting].max()
        architecture = SPACE.architecture(found)
        assert score_of(program, architecture) == pytest.approx(best, abs=1e-6)
        assert total[architectures.index(architecture)] <= target * (1 + 1e-9)
    assert 0 < infeasible < 100


def test_a_target_that_leaves_nothing_beyond_the_fixed_cost_finds_the_free_network() -> None:
    costs = SPACE.option_costs({w: float(w.operator != "max_pool_3x3") for w in SPACE.workloads()})
    program = SPACE.derivation_program({d.name: np.zeros(3) for d in SPACE.decisions}, [costs])
    found = next(solutions(program, [costs.fixed]), None)
    assert found is not None
    assert {operator for _, operator in found} == {"max_pool_3x3"}


def test_constraint_pushes_only_when_the_decoded_network_is_over() -> None:
    lagrangian = AugmentedLagrangian()
    expected = torch.tensor(12.0, requires_grad=True)
    lagrangian.update(expected_ms=12.0, decoded_ms=9.0, target_ms=10.0)
    [gradient] = torch.autograd.grad(lagrangian.term(expected, 10.0), expected)
    assert gradient == 0
    lagrangian.update(expected_ms=12.0, decoded_ms=11.0, target_ms=10.0)
    assert lagrangian.multiplier == pytest.approx(0.1)
    [gradient] = torch.autograd.grad(lagrangian.term(expected, 10.0), expected)
    assert gradient == pytest.approx((0.1 + 1.5 * 0.1) / 10)  # the penalty grew, the gap did not shrink


@pytest.mark.parametrize(
    ("multiplier", "penalty", "expected_ms", "wanted"), [(0.0, 1.0, 0.5, 0.0), (2.0, 1.0, 1.5, 1.125), (2.0, 4.0, 0.25, -0.5)]
)
def test_the_term_has_the_value_of_its_formula(multiplier: float, penalty: float, expected_ms: float, wanted: float) -> None:
    """Oracle: by hand, for a budget of 1 ms: met without a multiplier, exceeded, and met with much to spare."""
    lagrangian = AugmentedLagrangian(multiplier=multiplier, penalty=penalty)
    assert float(lagrangian.term(torch.tensor(expected_ms), 1.0)) == pytest.approx(wanted)
