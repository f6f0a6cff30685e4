"""NAS-Bench-201 against its published sizes, hand derivations and all 15,625 architectures.

Published oracle: the least and the greatest size in the benchmark, in millions, as users of its API quote them: for CIFAR-10
0.073306 and 1.531546 parameters, 7.78305 and 220.11969 FLOPs, for CIFAR-100 0.079156 and 1.537396, 7.7889 and 220.12554.
The authors' FLOPs are multiply-adds that count the classifier's bias too (``utils/flop_benchmark.py``): one per class.
"""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

from mobilenas.core.architecture import Architecture
from mobilenas.core.workload import Workload, weighted_sum
from mobilenas.errors import DocumentError, IncompatibleError, UsageError
from mobilenas.latency.budget import extreme_program, score_of, solutions
from mobilenas.methods.darts import Darts
from mobilenas.methods.gdas import Gdas
from mobilenas.methods.p_darts import PDarts
from mobilenas.methods.pc_darts import PCDarts
from mobilenas.methods.switches import Switches
from mobilenas.network import count_madds, count_params
from mobilenas.spaces.base import OptionCosts, SupernetPlan
from mobilenas.spaces.nas_bench_201 import NasBench201Space
from mobilenas.spaces.nas_bench_201_layout import EDGES, OPERATORS
from mobilenas.supernet import ArchitectureParameters, MixedOp, Mixture
from mobilenas.testing.contracts import log_scores, random_costs, random_probabilities

NONE, SKIP, CONV1, CONV3, POOL = range(5)
ALL_CODES = np.array(list(itertools.product(range(5), repeat=6)))
ENDS = {edge: tuple(map(int, edge.split("-"))) for edge in EDGES}


@pytest.mark.parametrize(
    ("classes", "code", "million_params", "million_flops"),
    [
        (10, CONV3, 1.531546, 220.11969),
        (10, NONE, 0.073306, 7.78305),
        (100, CONV3, 1.537396, 220.12554),
        (100, NONE, 0.079156, 7.7889),
    ],
)
def test_published_sizes(classes: int, code: int, million_params: float, million_flops: float) -> None:
    space = NasBench201Space(classes=classes, unread="kept")
    architecture = space.architecture_of_codes((code,) * 6)
    assert space.params(architecture) == round(million_params * 1e6)
    assert space.madds(architecture) + classes == round(million_flops * 1e6)


def test_sizes_derived_by_hand() -> None:
    """Every 3x3 costs 9 C^2 weights and 2 C of its BatchNorm, every 1x1 C^2 and 2 C, and an edge is in 5 cells of 3 stages."""
    space = NasBench201Space(unread="kept")
    stem, classifier = (9 * 3 * 16 + 2 * 16, 9 * 3 * 16 * 32**2), (2 * 64 + 64 * 10 + 10, 64 * 10)
    between = [(9 * c * 2 * c + 9 * 4 * c**2 + c * 2 * c, 2 * 2 * 2 * c, (32 * 16 // c // 2) ** 2) for c in (16, 32)]
    fixed_params = stem[0] + classifier[0] + sum(weights + norms for weights, norms, _ in between)
    fixed_madds = stem[1] + classifier[1] + sum(weights * pixels for weights, _, pixels in between)
    generator = random.Random(0)
    for architecture in [space.random_architecture(generator) for _ in range(30)]:
        operators = list(architecture.choices.values())
        params, madds = fixed_params, fixed_madds
        for c in (16, 32, 64):
            weights = {"nor_conv_3x3": 9 * c * c, "nor_conv_1x1": c * c}
            for operator, weight in weights.items():
                params += 5 * operators.count(operator) * (weight + 2 * c)
                madds += 5 * operators.count(operator) * weight * (32 * 16 // c) ** 2
        assert space.params(architecture) == params
        assert space.madds(architecture) == madds


@pytest.mark.parametrize(("unread", "edges"), [("kept", 1), ("dropped", 0)])
def test_an_operator_that_nothing_reads(unread: str, edges: int) -> None:
    """Edge 0-1 leads nowhere here; the benchmark's sizes and latencies have it all the same."""
    space = NasBench201Space(unread=unread)
    architecture = space.architecture_of_codes((CONV3, NONE, NONE, SKIP, NONE, NONE))
    built = space.build(architecture)
    assert count_params(built) == space.params(architecture) == 73_306 + edges * 1_458_240 // 6
    assert count_madds(built, space.image_shape) == space.madds(architecture)


def test_what_is_dropped_makes_no_difference() -> None:
    """Both ways the same function of the same weights; every layer of what is dropped is read by none that is left."""
    kept = NasBench201Space(channels=4, cells_per_stage=1, image_size=8, unread="kept")
    dropped = NasBench201Space(channels=4, cells_per_stage=1, image_size=8)
    images, generator, differ = torch.randn(3, 3, 8, 8), random.Random(0), 0
    for codes in (generator.choices(range(5), [2, 1, 1, 1, 1], k=6) for _ in range(40)):
        whole = kept.build(kept.architecture_of_codes(codes)).eval()
        blueprint = dropped.blueprint(dropped.architecture_of_codes(codes))
        assert blueprint.layers == blueprint.read_layers == kept.blueprint(kept.architecture_of_codes(codes)).read_layers
        part = dropped.build(dropped.architecture_of_codes(codes)).eval()
        part.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in part.state_dict()})
        assert torch.equal(whole(images), part(images))
        differ += len(whole.layers) != len(part.layers)
    assert 5 < differ < 35


def test_nodes_that_nothing_enters_are_zero() -> None:
    """Without a way from node 0 to node 3 the images make no difference; what reads a zero node runs all the same."""
    space = NasBench201Space(channels=4, cells_per_stage=1, image_size=8)
    images = torch.randn(3, 3, 8, 8)
    for codes in ((NONE,) * 6, (CONV3, SKIP, POOL, NONE, NONE, NONE), (NONE, NONE, CONV3, NONE, SKIP, CONV1)):
        built = space.build(space.architecture_of_codes(codes)).eval()
        logits = built(images)
        assert torch.equal(logits[0], logits[1])
        assert torch.isfinite(logits).all()
    counts = space.workloads_of(space.architecture_of_codes((NONE, NONE, CONV3, NONE, SKIP, CONV1)))
    assert sum(n for w, n in counts.items() if w.operator == "zeros") == 3  # node 1, in one cell of each stage
    assert sum(n for w, n in counts.items() if w.operator == "nor_conv_3x3") == 3


def test_codes_of_all_architectures_in_order() -> None:
    """Oracle: the published strings, in which a node's edges stand together, ordered by source."""
    space = NasBench201Space()
    assert tuple(ENDS.values()) == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert OPERATORS == ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    seen = set()
    for codes in map(tuple, ALL_CODES.tolist()):
        architecture = space.architecture_of_codes(codes)
        assert space.codes_of(architecture) == codes
        seen.add(architecture.fingerprint)
    assert len(seen) == 15_625
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    parsed = {
        f"{source}-{node}": operator
        for node, edges in enumerate(text.split("+"), 1)
        for operator, source in (edge.split("~") for edge in edges.strip("|").split("|"))
    }
    assert space.architecture_of_codes((CONV3, NONE, SKIP, POOL, CONV1, NONE)).choices == parsed


@pytest.mark.parametrize("codes", [(0,) * 5, (0,) * 7, (0, 0, 0, 0, 0, 5), (-1, 0, 0, 0, 0, 0)])
def test_wrong_codes_are_refused(codes: tuple[int, ...]) -> None:
    with pytest.raises(DocumentError, match="codes"):
        NasBench201Space().architecture_of_codes(codes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"0-1": "nor_conv_3"}, "nor_conv_3x3"),
        ({"0-4": "none"}, "no edge '0-4'"),
        ({"2-3": None}, "edge 2-3 has no operator"),
    ],
)
def test_illegal_choices_are_refused(change: dict[str, str | None], said: str) -> None:
    space = NasBench201Space()
    choices = {**space.architecture_of_codes((SKIP,) * 6).choices, **change}
    architecture = Architecture(space.name, space.options, {name: o for name, o in choices.items() if o is not None})
    with pytest.raises(DocumentError, match=said):
        space.blueprint(architecture)


def enumerated_cost(codes: np.ndarray, cost: dict[Workload, float], space: NasBench201Space) -> np.ndarray:
    """Cost ``(n,)`` of each architecture in ``codes (n, 6)``, added up here: operators, sums, zeros and what is fixed."""
    total = np.full(len(codes), sum(cost[workload] for workload in space.fixed_workloads().values()))
    by_name = {(w.operator, w.in_channels, w.inputs): value for w, value in cost.items()}
    is_on = {edge: codes[:, column] != NONE for column, edge in enumerate(EDGES)}
    is_read = {3: np.ones(len(codes), dtype=bool), 2: is_on["2-3"], 1: is_on["1-3"] | (is_on["1-2"] & is_on["2-3"])}
    for channels in (space.channels, 2 * space.channels, 4 * space.channels):
        for node in (1, 2, 3):
            columns = [column for column, (_, end) in enumerate(ENDS.values()) if end == node]
            arriving = (codes[:, columns] != NONE).sum(axis=1)
            sums = [by_name["zeros", channels, 1], 0.0, *(by_name["sum", channels, n] for n in range(2, node + 1))]
            operators = [0.0, *(by_name[operator, channels, 1] for operator in OPERATORS[1:])]
            added = np.array(sums)[arriving] + np.array(operators)[codes[:, columns]].sum(axis=1)
            total += space.cells_per_stage * np.where(is_read[node] | (space.unread == "kept"), added, 0.0)
    return total


@pytest.mark.parametrize("unread", ["dropped", "kept"])
@pytest.mark.parametrize("seed", [0, 1])
def test_expected_cost_is_the_mean_over_all_architectures(seed: int, unread: str) -> None:
    space = NasBench201Space(channels=4, cells_per_stage=2, image_size=8, unread=unread)
    cost, probabilities = random_costs(space, seed), random_probabilities(space, seed, 2.0)
    costs = enumerated_cost(ALL_CODES, cost, space)
    chances = np.prod([probabilities[edge].numpy()[ALL_CODES[:, i]] for i, edge in enumerate(EDGES)], axis=0)
    assert math.isclose(chances.sum(), 1.0, rel_tol=1e-12)
    expected = float(space.expected_cost(probabilities, space.option_costs(cost)))
    assert math.isclose(expected, float(chances @ costs), rel_tol=1e-9)
    for index in random.Random(seed).sample(range(15_625), 50):
        architecture = space.architecture_of_codes(ALL_CODES[index].tolist())
        assert math.isclose(weighted_sum(space.workloads_of(architecture), cost), costs[index], rel_tol=1e-9)


def has_way(codes: np.ndarray) -> np.ndarray:
    """``(n,)``: whether a way without ``none`` leads from node 0 to node 3 in each of ``codes (n, 6)``."""
    is_on = {edge: codes[:, column] != NONE for column, edge in enumerate(EDGES)}
    through_1, through_2 = is_on["0-1"] & is_on["1-3"], is_on["0-2"] & is_on["2-3"]
    return is_on["0-3"] | through_1 | through_2 | (is_on["0-1"] & is_on["1-2"] & is_on["2-3"])


@pytest.mark.parametrize("unread", ["dropped", "kept"])
def test_all_networks_that_read_the_images_can_be_derived_and_no_others(unread: str) -> None:
    """Oracle: all networks of two operators, of which 64 choices of edges there are."""
    space = NasBench201Space(channels=4, cells_per_stage=1, image_size=8, operators=("none", "skip_connect"), unread=unread)
    program = space.derivation_program(log_scores(random_probabilities(space, 0)))
    codes = np.array([space.codes_of(space.architecture(choice)) for choice in solutions(program)])
    every = np.array(list(itertools.product((NONE, SKIP), repeat=6)))
    assert sorted(map(tuple, codes.tolist())) == sorted(map(tuple, every[has_way(every)].tolist()))
    assert (~has_way(ALL_CODES)).sum() == 341


def test_a_decode_that_ignores_the_images_is_not_what_is_derived() -> None:
    """``none`` is likeliest on every edge: ``decode`` says so, as published; the derivation's best has one way at least."""
    space = NasBench201Space(channels=4, cells_per_stage=1, image_size=8)
    probabilities = {edge: torch.tensor([0.4, 0.1, 0.1, 0.3, 0.1], dtype=torch.float64) for edge in EDGES}
    assert set(space.decode(probabilities).choices.values()) == {"none"}
    costs = space.option_costs(random_costs(space, 0))
    for targets in ((), (1e9,)):
        program = space.derivation_program(log_scores(probabilities), [costs] if targets else [])
        found = space.architecture(next(solutions(program, targets)))
        assert space.codes_of(found) == (NONE, NONE, NONE, CONV3, NONE, NONE)
    cheapest = space.architecture(next(solutions(extreme_program(space, costs, -1.0))))
    assert has_way(np.array([space.codes_of(cheapest)])).all()


@pytest.mark.parametrize("unread", ["dropped", "kept"])
@pytest.mark.parametrize("seed", [0, 1])
def test_derivation_within_two_budgets_is_brute_force_over_all_architectures(seed: int, unread: str) -> None:
    space = NasBench201Space(channels=4, cells_per_stage=2, image_size=8, unread=unread)
    both = [random_costs(space, seed), random_costs(space, seed + 10)]
    sums = np.stack([enumerated_cost(ALL_CODES, cost, space) for cost in both])
    option_costs: list[OptionCosts] = [space.option_costs(cost) for cost in both]
    probabilities = random_probabilities(space, seed, 2.0)
    scores = log_scores(probabilities)
    total = sum(scores[edge][ALL_CODES[:, i]] + math.log(len(OPERATORS)) for i, edge in enumerate(EDGES))
    free = space.derivation_program(scores)
    for share in (0.1, 20, 60):
        targets = np.percentile(sums, share, axis=1)
        fits = np.all(sums <= targets[:, None], axis=0) & has_way(ALL_CODES)
        found = next(solutions(space.derivation_program(scores, option_costs), targets), None)
        if not fits.any():
            assert found is None
            continue
        assert found is not None
        architecture = space.architecture(found)
        place = int(np.flatnonzero((space.codes_of(architecture) == ALL_CODES).all(axis=1))[0])
        assert fits[place]
        assert math.isclose(score_of(free, architecture), float(np.max(total[fits])), rel_tol=1e-9)
    reading = sums[0][has_way(ALL_CODES)]
    for sign, extreme in ((-1.0, reading.min()), (1.0, reading.max())):
        choice = space.architecture(next(solutions(extreme_program(space, option_costs[0], sign))))
        assert math.isclose(weighted_sum(space.workloads_of(choice), both[0]), float(extreme), rel_tol=1e-9)


def test_a_drawn_mixture_runs_one_operator_an_edge_and_pools_have_no_batchnorm() -> None:
    space = NasBench201Space(channels=4, cells_per_stage=1, image_size=8)
    supernet = space.supernet(SupernetPlan(None, space.decisions))
    ran: list[str] = []
    for module in supernet.modules():
        if isinstance(module, MixedOp):
            for name, candidate in module.candidates.items():
                candidate.register_forward_hook(lambda *_, name=name: ran.append(name))
            assert isinstance(module.candidates["avg_pool_3x3"], torch.nn.AvgPool2d)
    parameters = ArchitectureParameters(space.decisions, torch.Generator().manual_seed(0))
    architecture = space.architecture_of_codes((CONV3, NONE, SKIP, POOL, CONV1, SKIP))
    mixture = Mixture(
        weights={name: row.float() for name, row in space.one_hot(architecture).items()},
        probabilities=parameters.softmax(),
        active={d.name: (d.options.index(architecture.choices[d.name]),) for d in space.decisions},
    )
    supernet(torch.randn(2, 3, 8, 8), mixture)
    assert ran == ["nor_conv_3x3", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "skip_connect"] * 3


def test_checkpointing_changes_nothing() -> None:
    space = NasBench201Space(channels=4, cells_per_stage=1, image_size=8)
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        supernet = space.supernet(SupernetPlan(None, space.decisions, checkpoint=checkpoint))
        probabilities = {d.name: torch.full((5,), 0.2, requires_grad=True) for d in space.decisions}
        supernet(torch.randn(2, 3, 8, 8), Mixture.soft(probabilities)).square().sum().backward()
        gradients.append([row.grad for row in probabilities.values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_methods_that_fit_and_those_that_say_why_not() -> None:
    space = NasBench201Space()
    for method in (Darts(), Darts(order=2), Gdas()):
        method.check(space)
    with pytest.raises(IncompatibleError, match="grows the supernet"):
        PDarts().check(space)
    with pytest.raises(IncompatibleError, match="edge_normalisation"):
        PCDarts().check(space)
    for switches in (Switches(partial_channels=2), Switches(skip_dropout=0.1), Switches(skip_limit=1)):
        darts = Darts()
        darts.switches = switches
        with pytest.raises(IncompatibleError, match="nas-bench-201"):
            darts.check(space)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="cells_per_stage"):
        NasBench201Space(cells_per_stage=0)
    with pytest.raises(UsageError, match="dropped, kept"):
        NasBench201Space(unread="drop")
    with pytest.raises(UsageError, match="besides none"):
        NasBench201Space(operators=("none",))
    with pytest.raises(UsageError, match="nor_conv_3x3"):
        NasBench201Space(operators=("nor_conv_3x",))
