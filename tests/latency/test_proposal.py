"""Networks drawn within a band of latencies: they lie in it, they differ, and no kind of network is left out."""

import random
from collections import Counter
from functools import cache

import numpy as np
import pytest

from mobilenas.core.architecture import Architecture
from mobilenas.latency.budget import Budget, LatencyRange, allows, latency_range
from mobilenas.latency.models import TableModel
from mobilenas.latency.proposal import propose, propose_uniformly
from mobilenas.methods.random_search import RandomSearch
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace, dense_small
from mobilenas.spaces.dense_layout import LAST, STEM, blocks, route
from mobilenas.spaces.nas_bench_201 import NasBench201Space
from mobilenas.supernet import ArchitectureParameters
from mobilenas.testing.contracts import log_scores, random_probabilities
from mobilenas.testing.fakes import make_model
from tests.latency.test_derive import SPACE as OFF_SPACE
from tests.latency.test_derive import model_off_by
from tests.oracles.small_blocks import small_blocks

RESNET = blocks((4, 4, 6, 8, 8), (1, 2, 2, 4, 4), (0, 1, 1, 2, 2), (0, 1, 2, 1, 1))
SPACES: dict[str, SearchSpace] = {
    "cells": CellSpace(channels=4, layers=5, image_size=8, image_channels=1),
    "imagenet stem": CellSpace(channels=4, layers=3, image_size=33, stem="imagenet"),
    "fixed reduction": CellSpace(channels=8, layers=3, image_size=16, reduction="fixed"),
    "blocks": small_blocks(),
    "dense-small": dense_small(image_size=28, image_channels=1),
    "resnet": DenseBlockSpace("basic_block", RESNET, 8, reach=10, image_size=9, image_channels=1, classes=5),
    "nas-bench-201": NasBench201Space(channels=4, cells_per_stage=2, image_size=8, image_channels=1),
}


@cache
def model_of(name: str) -> TableModel:
    return make_model(SPACES[name])


@cache
def range_of(name: str) -> LatencyRange:
    return latency_range(SPACES[name], model_of(name))


def target_of(name: str, share: float) -> float:
    lowest_ms, highest_ms = range_of(name).lowest.table.ms, range_of(name).highest.table.ms
    return lowest_ms + share * (highest_ms - lowest_ms)


@pytest.mark.parametrize("name", SPACES)
def test_proposed_networks_use_the_budget_up(name: str) -> None:
    space = SPACES[name]
    scores = log_scores(random_probabilities(space, 3))
    generator = random.Random(0)
    drawn = {space.random_architecture(generator) for _ in range(300)}
    for share in (0.1, 0.25, 0.4, 0.6, 0.9):
        budget = Budget(model_of(name), target_of(name, share))
        found = propose(space, scores, budget, 32, np.random.default_rng(0))
        assert found.candidates
        assert len({candidate.architecture for candidate in found.candidates}) == len(found.candidates)
        assert all(found.least_fraction * budget.target_ms <= c.table.ms <= budget.target_ms for c in found.candidates)
        if found.least_fraction < 0.95:
            program = space.derivation_program(scores)
            within = [a for a in drawn if 0.95 * budget.target_ms <= budget.model.latency(a).ms <= budget.target_ms]
            assert not [a for a in within if allows(space, program, a)], "the band was said to hold nothing"


def test_a_proposal_is_within_the_budget_where_linear_costs_are_wrong() -> None:
    model = model_off_by(0.3)
    bounds = latency_range(OFF_SPACE, model)
    budget = Budget(model, (bounds.lowest.table.ms + bounds.highest.table.ms) / 2)
    found = propose(OFF_SPACE, log_scores(random_probabilities(OFF_SPACE, 1)), budget, 32, np.random.default_rng(1))
    assert len(found.candidates) >= 16
    assert all(0.95 * budget.target_ms <= c.table.ms <= budget.target_ms for c in found.candidates)


def test_a_quantile_of_the_prediction_is_what_lies_in_the_band() -> None:
    model = model_off_by(0.06)
    bounds = latency_range(OFF_SPACE, model)
    budget = Budget(model, (bounds.lowest.table.ms + bounds.highest.table.ms) / 2, quantile=0.9)
    found = propose(OFF_SPACE, OFF_SPACE.undecided, budget, 16, np.random.default_rng(2))
    assert found.candidates
    assert all(0.95 * budget.target_ms <= budget.bound_ms(c.table) <= budget.target_ms for c in found.candidates)


def test_a_band_that_holds_nothing_begins_lower() -> None:
    """Of one architecture decision: two networks, 0.6 apart."""
    space = DenseBlockSpace("mbconv", blocks((4, 6), (1, 2), (0, 1), (0, 0)), 8, image_size=8, classes=3)
    model = make_model(space)
    bounds = latency_range(space, model)
    target_ms = bounds.highest.table.ms * 10
    found = propose(space, space.undecided, Budget(model, target_ms), 4, np.random.default_rng(0))
    assert found.least_fraction == 0.0
    assert found.candidates
    assert not propose(
        space, space.undecided, Budget(model, bounds.lowest.table.ms / 2), 4, np.random.default_rng(0)
    ).candidates


def test_likelier_options_are_proposed_more_often() -> None:
    space = SPACES["nas-bench-201"]
    budget = Budget(model_of("nas-bench-201"), target_of("nas-bench-201", 0.6))
    scores = space.undecided
    edge = space.decisions[0]
    favoured = {
        **scores,
        edge.name: np.log([0.9 if o == "nor_conv_1x1" else 0.1 / (len(edge.options) - 1) for o in edge.options]),
    }
    counts = []
    for each in (scores, favoured):
        found = propose(space, each, budget, 32, np.random.default_rng(5))
        counts.append(sum(c.architecture.choices[edge.name] == "nor_conv_1x1" for c in found.candidates))
    assert counts[1] > 2 * counts[0]


def path_of(architecture: Architecture) -> tuple[str, ...]:
    path = [STEM]
    while path[-1] != LAST:
        path.append(architecture.choices[route(path[-1])])
    return tuple(path)


def test_random_search_reaches_every_route_and_every_option() -> None:
    space = SPACES["dense-small"]
    method = RandomSearch()
    drawn = []
    for seed in range(2000):
        parameters = ArchitectureParameters(method.searched(space), torch_generator(seed), space.decisions)
        drawn.append(method.decode(space, parameters))
    generator = random.Random(1)
    assert {path_of(a) for a in drawn} == {path_of(space.random_architecture(generator)) for _ in range(5000)}
    chosen = {pair for a in drawn for pair in a.choices.items()}
    reachable = {pair for _ in range(5000) for pair in space.random_architecture(generator).choices.items()}
    assert chosen >= reachable


def torch_generator(seed: int):
    import torch

    return torch.Generator().manual_seed(seed)


def test_proposals_of_undecided_probabilities_are_as_deep_as_uniform_networks() -> None:
    """Each depth between half and twice its uniform share, or within a factor of four where that is below a twentieth."""
    space, model = SPACES["dense-small"], model_of("dense-small")
    budget = Budget(model, 1e6)
    generator = np.random.default_rng(0)
    proposed = Counter(
        len(path_of(c.architecture))
        for c in propose(space, space.undecided, budget, 600, generator, least_fraction=0.0).candidates
    )
    uniform = random.Random(0)
    drawn = Counter(len(path_of(space.random_architecture(uniform))) for _ in range(5000))
    for depth, count in drawn.items():
        share, ours = count / drawn.total(), proposed[depth] / proposed.total()
        factor = 2 if share >= 0.05 else 4
        assert share / factor <= ours <= share * factor, (depth, share, ours)


def test_uniform_proposals_are_the_uniform_draws_that_fall_into_the_band() -> None:
    space = SPACES["nas-bench-201"]
    budget = Budget(model_of("nas-bench-201"), 0.165)
    found = propose_uniformly(space, budget, 32, random.Random(0))
    assert found is not None
    assert len(found.candidates) == 32
    assert all(0.95 * budget.target_ms <= c.table.ms <= budget.target_ms for c in found.candidates)
    program = space.derivation_program(space.undecided)
    assert all(allows(space, program, c.architecture) for c in found.candidates), "all read their input"
    known = {c.architecture for c in found.candidates}
    more = propose_uniformly(space, budget, 8, random.Random(0), without=list(known)[:24])
    assert more is not None
    assert not {*list(known)[:24]} & {c.architecture for c in more.candidates}


def test_a_band_that_uniform_draws_hardly_meet_is_left_to_the_program() -> None:
    budget = Budget(model_of("cells"), range_of("cells").lowest.table.ms * 1.0001)
    assert propose_uniformly(SPACES["cells"], budget, 8, random.Random(0)) is None
