"""DenseNAS's space against the paper, its authors' code and brute force.

Oracles: the routes and counts that the authors' code gives (their blocks' lists, 579 + 54 and 310 + 87 logits, the weights of
both supernets with a head of 100 classes); all paths and all networks of small spaces, enumerated here.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mobilenas.core.architecture import Architecture
from mobilenas.core.workload import weighted_sum
from mobilenas.errors import DocumentError, UsageError
from mobilenas.latency.budget import LogCost, extreme_program, solutions, with_skip_share
from mobilenas.methods.dense_nas import DenseNas
from mobilenas.spaces.base import OptionCosts, SupernetPlan
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace, densenas_mbv2, densenas_resnet
from mobilenas.spaces.dense_layout import LAST, STEM, blocks, head, route, stacked
from mobilenas.supernet import SKIP, ArchitectureParameters
from mobilenas.testing.contracts import log_scores, random_costs, random_probabilities

MBV2_SOURCES = [
    [0], [1], [2, 1], [3, 2, 1], [4, 3, 2], [5, 4, 3, 2], [6, 5, 4, 3], [7, 6, 5], [8, 7, 6, 5], [9, 8, 7, 6], [10, 9, 8],
    [11, 10, 9, 8], [12, 11, 10, 9], [13, 12, 11], [14, 13, 12, 11], [15, 14, 13, 12], [16, 15, 14],
]  # fmt: skip

SMALL = tuple(
    DenseBlockSpace("mbconv", layout, 12, reach, ("mbconv_k3_e3", "mbconv_k5_e6"), image_size=size, image_channels=1, classes=3)
    for layout, reach, size in (
        (blocks((4, 4, 6), (1, 2, 2), (0, 1, 2), (0, 1, 1)), 2, 8),
        (blocks((4, 6, 6, 8), (1, 2, 2, 4), (0, 1, 1, 2), (0, 1, 0, 1)), 3, 9),
        (blocks((4, 4, 6, 8), (2, 2, 4, 4), (0, 1, 1, 1), (0, 0, 1, 1)), 4, 28),
        (blocks((4, 6, 8, 8, 10), (1, 1, 2, 2, 2), (0, 0, 1, 1, 1), (0, 0, 0, 1, 0)), 2, 8),
    )
)
SEEDS = range(60)


def paths(space: DenseBlockSpace, path: tuple[str, ...] = (STEM,)) -> Iterator[tuple[str, ...]]:
    if path[-1] == LAST:
        yield path
        return
    for target in space.layout.routes[path[-1]]:
        yield from paths(space, (*path, target))


def networks(space: DenseBlockSpace) -> list[Architecture]:
    """All networks of ``space``."""
    options = {decision.name: decision.options for decision in space.decisions}
    found = []
    for path in paths(space):
        ways = [(route(source), target) for source, target in itertools.pairwise(path)]
        names = [
            name for source, block in itertools.pairwise(path[:-1])
            for name in (head(block, source), *stacked(space.layout.node[block]))
        ]  # fmt: skip
        for chosen in itertools.product(*(options[name] for name in names)):
            found.append(space.architecture([*ways, *zip(names, chosen, strict=True)]))
    return found


@pytest.mark.parametrize(
    ("space", "weights", "alphas", "betas"),
    [(densenas_mbv2(classes=100), 90_430_100, 579, 54), (densenas_resnet(classes=100), 178_131_268, 310, 87)],
    ids=["mbv2", "resnet"],
)
def test_supernets_have_the_authors_weights_and_logits(space: DenseBlockSpace, weights: int, alphas: int, betas: int) -> None:
    with torch.device("meta"):
        supernet = space.supernet(SupernetPlan(None, space.decisions))
    assert sum(parameter.numel() for parameter in supernet.parameters()) == weights
    assert sum(len(d.options) for d in space.decisions if d.kind == "op") == alphas
    assert sum(len(d.options) for d in space.decisions if d.kind == "route") == betas


def test_routes_are_the_authors() -> None:
    def index(name: str) -> int:
        return 0 if name == STEM else int(name.removeprefix("block"))

    space = densenas_mbv2()
    assert [[index(source) for source in sources] for sources in space.layout.sources.values()] == MBV2_SOURCES
    assert [space.size_of(f"block{b}") for b in (1, 2, 5, 11)] == [56, 28, 14, 7]
    assert [densenas_mbv2(image_size=28).size_of(f"block{b}") for b in (1, 2, 5, 11)] == [7, 4, 2, 1]


@pytest.mark.parametrize("number", range(len(SMALL)))
def test_the_chained_cost_is_the_expectation_over_all_paths(number: int) -> None:
    """At temperature t a route of k weighs ``p (k p)^(1/t - 1)``: its probability at 1, what the decode goes by towards 0."""
    space = SMALL[number]
    for seed in SEEDS:
        probabilities, costs = random_probabilities(space, seed, 2.0), space.option_costs(random_costs(space, seed))
        mean = {name: float(row @ torch.as_tensor(costs.options[name])) for name, row in probabilities.items()}
        totals, likelihoods, counts = [], [], []
        for path in paths(space):
            total, likelihood = costs.fixed, 1.0
            counts.append(math.prod(len(space.layout.routes[source]) for source in path[:-1]))
            for before, (source, target) in zip((None, *path), itertools.pairwise(path), strict=False):
                place = space.layout.routes[source].index(target)
                likelihood *= float(probabilities[route(source)][place])
                total += costs.options[route(source)][place]
                if before is not None:
                    total += mean[head(source, before)] + sum(mean[name] for name in stacked(space.layout.node[source]))
            totals.append(total)
            likelihoods.append(likelihood)
        assert math.isclose(sum(likelihoods), 1.0, rel_tol=1e-9)
        for temperature in (1.0, 0.3):
            weights = np.array(likelihoods) ** (1 / temperature) * np.array(counts, dtype=float) ** (1 / temperature - 1)
            wanted = float(weights @ np.array(totals) / weights.sum())
            assert math.isclose(float(space.expected_cost(probabilities, costs, temperature)), wanted, rel_tol=1e-9)


@pytest.mark.parametrize("number", range(len(SMALL)))
def test_viterbi_and_derivation_under_a_budget_are_brute_force(number: int) -> None:
    """The score by hand: log probabilities of routes against equally likely ones, of operators against the best of theirs."""
    space = SMALL[number]
    everything = networks(space)
    assert len(set(everything)) == len(everything) > 30
    options = {decision.name: decision.options for decision in space.decisions}
    generator = random.Random(number)
    for seed in SEEDS:
        probabilities, cost = random_probabilities(space, seed, 2.0), random_costs(space, seed)
        rows = {name: row.log().numpy() for name, row in probabilities.items()}
        best = {name: -math.log(len(row)) if name.endswith(".next") else row.max() for name, row in rows.items()}
        scores = np.array([sum(rows[n][options[n].index(o)] - best[n] for n, o in a.choices.items()) for a in everything])
        assert space.decode(probabilities) == everything[int(scores.argmax())]
        sums = np.array([weighted_sum(space.workloads_of(a), cost) for a in everything])
        target = float(np.quantile(sums, generator.uniform(0.01, 0.6)))
        program = space.derivation_program(log_scores(probabilities), [space.option_costs(cost)])
        found = space.architecture(next(solutions(program, [target])))
        wanted = everything[int(np.where(sums <= target * (1 + 1e-9), scores, -np.inf).argmax())]
        assert found == wanted


@pytest.mark.parametrize("number", range(len(SMALL)))
def test_the_published_choice_is_the_path_of_the_largest_product_of_probabilities(number: int) -> None:
    """By brute force over all networks, and by the program."""
    space, method = SMALL[number], DenseNas(routes="published")
    everything = networks(space)
    parameters = ArchitectureParameters(method.searched(space), torch.Generator().manual_seed(0), space.decisions)
    for spread in (0.0, 2.0):
        with torch.no_grad():
            for row in parameters.parameters():
                row.copy_(spread * torch.randn(row.shape, generator=torch.Generator().manual_seed(number)))
        rows = {name: row.detach().double().log().numpy() for name, row in parameters.softmax().items()}
        kinds = {decision.name: decision for decision in space.decisions}
        best = {name: 0.0 if kinds[name].kind == "route" else row.max() for name, row in rows.items()}
        scores = [sum(rows[n][kinds[n].options.index(o)] - best[n] for n, o in a.choices.items()) for a in everything]
        decoded = method.decode(space, parameters)
        program = space.derivation_program(method.scores(space, parameters))
        for found in (decoded, space.architecture(next(solutions(program)))):
            assert math.isclose(scores[everything.index(found)], max(scores), abs_tol=1e-5)


@pytest.mark.parametrize("number", range(len(SMALL)))
def test_the_cheapest_and_the_dearest_network_are_brute_force(number: int) -> None:
    """Operators score against the best of their decision, so that a score alone could not tell: their cost must."""
    space = SMALL[number]
    for seed in range(20):
        cost = random_costs(space, seed)
        sums = {a: weighted_sum(space.workloads_of(a), cost) for a in networks(space)}
        for sign, extreme in ((-1.0, min(sums.values())), (1.0, max(sums.values()))):
            found = space.architecture(next(solutions(extreme_program(space, space.option_costs(cost), sign))))
            assert math.isclose(sums[found], extreme, rel_tol=1e-9)


def test_a_budget_below_everything_has_no_solution() -> None:
    space = SMALL[0]
    cost = random_costs(space, 1)
    cheapest = min(weighted_sum(space.workloads_of(a), cost) for a in networks(space))
    program = space.derivation_program(log_scores(random_probabilities(space, 1)), [space.option_costs(cost)])
    assert next(solutions(program, [0.999 * cheapest]), None) is None


def test_the_log_objective_and_its_share_for_skips() -> None:
    space = SMALL[1]
    probabilities, costs = random_probabilities(space, 3), space.option_costs(random_costs(space, 3))
    expected = float(space.expected_cost(probabilities, costs))
    assert math.isclose(float(LogCost(space, costs, 0.15, 15.0).term(probabilities)), 0.15 * math.log(expected, 15.0))
    shared = with_skip_share(costs, space, 0.1)
    for decision in space.decisions:
        row, before = shared.options[decision.name], costs.options[decision.name]
        if SKIP in decision.options:
            assert row[-1] == 0.1 * before[0] > before[-1] == 0
            row, before = row[:-1], before[:-1]
        assert np.array_equal(row, before)


BAD = {
    "block2 of space.blocks cannot be reached": blocks((4, 6, 8), (1, 2, 8), (0, 1, 1), (0, 0, 0)),
    "strides and stages must not fall": blocks((4, 6, 8), (1, 4, 2), (0, 1, 1), (0, 0, 0)),
    "the stem, has stride=4": blocks((4, 6), (4, 4), (0, 1), (0, 0)),
    "block1 of space.blocks cannot be reached": blocks((4, 6, 8), (1, 1, 2), (0, 2, 2), (0, 0, 0)),
    "500 is the most": blocks((4, 6), (1, 1), (0, 1), (0, 501)),
    "must be a power of two": blocks((4, 6), (1, 3), (0, 1), (0, 0)),
    r"space.blocks\[1\] is 'width=6'": (*blocks((4,), (1,), (0,), (0,)), "width=6"),
}


def test_a_skip_that_costs_something_keeps_its_cost() -> None:
    space = CellSpace(channels=4, layers=3, image_size=16)
    costs = space.option_costs(random_costs(space, 2))
    shared = with_skip_share(costs, space, 0.1)
    place, first = space.operators.index(SKIP), space.operators.index("max_pool_3x3")
    assert all(np.array_equal(shared.options[name], row) for name, row in costs.options.items() if row[place] > 0)
    free = OptionCosts(0.0, {name: np.where(np.arange(8) == place, 0.0, row) for name, row in costs.options.items()})
    for name, row in with_skip_share(free, space, 0.1).options.items():
        assert row[place] == 0.1 * free.options[name][first] > 0


@pytest.mark.parametrize("said", BAD)
def test_inconsistent_blocks_are_refused_by_name(said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DenseBlockSpace("mbconv", BAD[said], 8, image_size=8)


def test_other_options_are_refused() -> None:
    with pytest.raises(UsageError, match="mbconv_k3_e3"):
        DenseBlockSpace(operators=("mbconv_k3_e4",))
    with pytest.raises(UsageError, match="twice"):
        DenseBlockSpace(operators=("mbconv_k3_e3", "mbconv_k3_e3"))
    with pytest.raises(UsageError, match="basic_block"):
        DenseBlockSpace("basicblock")


def test_architectures_off_the_path_are_refused() -> None:
    space = SMALL[1]
    whole = next(a for a in networks(space) if len(a.choices) > 5)
    for choices, said in (
        ({**whole.choices, "block9.next": "last"}, "no decision 'block9.next'"),
        ({**whole.choices, "stem.next": "last"}, "stem.next is 'last'"),
        ({k: v for k, v in whole.choices.items() if ".head." not in k}, "is not chosen"),
        ({**{d.name: d.options[0] for d in space.decisions}, **whole.choices}, "the path does not lead there"),
    ):
        with pytest.raises(DocumentError, match=said):
            space.blueprint(space.architecture(choices.items()))
