"""DenseNAS's sampling and rescaling (arXiv 1906.09607) against derivations by hand in float64."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from scipy.stats import chisquare

from mobilenas.core.architecture import Decision
from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import Images, InMemory
from mobilenas.errors import UsageError
from mobilenas.methods.base import Moved, Progress, Stage, Step
from mobilenas.methods.dense_nas import DenseNas
from mobilenas.search.descent import AdamSettings, SgdSettings
from mobilenas.search.engine import EngineSettings, SearchEngine
from mobilenas.search.task import Classification
from mobilenas.supernet import ArchitectureParameters, LogitsBefore, Mixture
from mobilenas.testing.contracts import random_costs
from tests.oracles.small_blocks import small_blocks

ROWS = ((0.3, -0.2, 0.1, 1.0), (-0.4, 0.0, 0.8, -1.0))
ROUTES = (0.5, -0.7)
SEARCHING, WARMING_UP = Progress(0, 4, 6, 2), Progress(0, 1, 6, 2)


def parameters_of() -> ArchitectureParameters:
    decisions = [
        *(Decision(f"op{i}", tuple("abcd"), "op") for i in range(2)),
        Decision("stem.next", ("block1", "last"), "route"),
        Decision("block1.next", ("last",), "route"),
    ]
    parameters = ArchitectureParameters(decisions, torch.Generator()).double()
    with torch.no_grad():
        parameters.logits["op4"].copy_(torch.tensor(ROWS))
        parameters.logits["route2"].copy_(torch.tensor([ROUTES]))
    return parameters


def softmax(values: tuple[float, ...]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def test_a_weight_step_runs_one_operator_as_often_as_its_probability_says() -> None:
    """Chi-square over 10,000 draws, p > 1e-3; uniform while warming up, whatever the logits."""
    torch.manual_seed(0)
    method, parameters, draws = DenseNas(), parameters_of(), 10_000
    for progress in (SEARCHING, WARMING_UP):
        counts = np.zeros((2, 4))
        for _ in range(draws):
            mixture = method.relax_weights(parameters, progress)
            for i in range(2):
                [winner] = mixture.active[f"op{i}"]
                counts[i, winner] += 1
        assert mixture.weights["op0"].tolist() == [float(j in mixture.active["op0"]) for j in range(4)]
        assert mixture.weights["stem.next"].tolist() == pytest.approx(softmax(ROUTES))
        for row, logits in zip(counts, ROWS, strict=True):
            expected = softmax(logits) if progress is SEARCHING else [0.25] * 4
            assert chisquare(row, draws * np.array(expected)).pvalue > 1e-3


def test_an_architecture_step_runs_two_drawn_without_replacement() -> None:
    """The pair (i, j) has probability p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j); chi-square over 10,000 draws."""
    torch.manual_seed(1)
    method, parameters, draws = DenseNas(), parameters_of(), 10_000
    pairs = list(combinations(range(4), 2))
    counts = np.zeros(len(pairs))
    for _ in range(draws):
        mixture = method.relax_architecture(parameters, SEARCHING)
        pair = mixture.active["op0"]
        counts[pairs.index((pair[0], pair[1]))] += 1
    p = softmax(ROWS[0])
    expected = np.array([p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in pairs])
    assert chisquare(counts, draws * expected).pvalue > 1e-3


def test_the_two_are_renormalised_for_the_supernet_and_for_the_cost() -> None:
    mixture = DenseNas(temperature=0.5).relax_architecture(parameters_of(), SEARCHING)
    for i, logits in enumerate(ROWS):
        drawn = mixture.active[f"op{i}"]
        wanted = dict(zip(drawn, softmax(tuple(logits[j] / 0.5 for j in drawn)), strict=True))
        assert mixture.weights[f"op{i}"].tolist() == pytest.approx([wanted.get(j, 0.0) for j in range(4)])
        assert mixture.probabilities[f"op{i}"] is mixture.weights[f"op{i}"]
    assert mixture.probabilities["stem.next"].tolist() == pytest.approx(softmax(tuple(b / 0.5 for b in ROUTES)))


def test_quirks_of_the_authors_code() -> None:
    """The temperature reaches the routes only; the routes into the last node pass a second softmax, not so for the cost."""
    method = DenseNas(temperature=0.5, temperature_of="routes", renormalise_last=True)
    mixture = method.relax_architecture(parameters_of(), SEARCHING)
    drawn = mixture.active["op0"]
    assert mixture.weights["op0"][list(drawn)].tolist() == pytest.approx(softmax(tuple(ROWS[0][j] for j in drawn)))
    routes = softmax(tuple(b / 0.5 for b in ROUTES))
    again = softmax((routes[1], 1.0))
    assert mixture.weights["stem.next"].tolist() == pytest.approx([routes[0], again[0]])
    assert mixture.weights["block1.next"].tolist() == pytest.approx([again[1]])
    assert mixture.probabilities["stem.next"].tolist() == pytest.approx(routes)
    assert mixture.probabilities["block1.next"].tolist() == [1.0]


@pytest.mark.parametrize("drift", [False, True])
def test_operators_that_were_not_drawn_keep_their_probability(drift: bool) -> None:
    """After each of twenty steps of Adam with decay and momentum; with ``drift`` the optimiser does move them."""
    torch.manual_seed(2)
    space, method = small_blocks(), DenseNas(drift=drift)
    space = type(space)(**{**space.options, "operators": ()})
    costs = space.option_costs(random_costs(space, 1))
    parameters = ArchitectureParameters(space.decisions, torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        for row in parameters.parameters():
            row.mul_(1e3)
    optimiser = torch.optim.Adam(parameters.parameters(), 0.05, (0.5, 0.999), weight_decay=1e-3)
    changes, drawn_changes = [], []
    for _ in range(20):
        mixture = method.relax_architecture(parameters, SEARCHING)
        method._drawn = dict(mixture.active)
        optimiser.zero_grad()
        torch.autograd.backward(space.expected_cost(mixture.probabilities, costs))
        before = LogitsBefore.of(parameters, optimiser)
        probabilities = {name: row.detach().clone() for name, row in parameters.softmax().items()}
        optimiser.step()
        with torch.no_grad():
            method.after_architecture_step(Moved(parameters, before, optimiser, SEARCHING))
        for name, row in parameters.softmax().items():
            if name in mixture.active:
                others = [j for j in range(len(row)) if j not in mixture.active[name]]
                difference = (row.detach() - probabilities[name]).abs()
                changes += difference[others].tolist()
                drawn_changes += difference[list(mixture.active[name])].tolist()
    assert max(drawn_changes) > 1e-3
    assert max(changes) > 1e-4 if drift else max(changes) < 1e-12


def test_what_the_optimiser_knows_of_the_others_is_put_back() -> None:
    method, parameters = DenseNas(), parameters_of()
    optimiser = torch.optim.Adam(parameters.parameters(), 0.1, weight_decay=0.1)
    row = parameters.logits["op4"]
    for drawn in ((0, 1), (2, 3)):
        method._drawn = {"op0": drawn, "op1": drawn}
        row.grad = torch.ones_like(row)
        before = LogitsBefore.of(parameters, optimiser)
        optimiser.step()
        with torch.no_grad():
            method.after_architecture_step(Moved(parameters, before, optimiser, SEARCHING))
        if drawn == (0, 1):
            first = {key: optimiser.state[row][key].clone() for key in ("exp_avg", "exp_avg_sq")}
            assert all(not value[:, 2:].any() and bool(value[:, :2].all()) for value in first.values())
    for key, value in first.items():
        assert torch.equal(optimiser.state[row][key][:, :2], value[:, :2])
        assert bool(optimiser.state[row][key][:, 2:].all())


def test_logits_and_weights_take_turns_by_epoch_or_by_step() -> None:
    stage = Stage(None, (), 6, 2)
    assert DenseNas().phases(stage, 1) == (("weights",),)
    assert DenseNas().phases(stage, 2) == (("architecture",), ("weights",))
    assert DenseNas(alternation="step").phases(stage, 2) == (("architecture", "weights"),)


def test_an_epoch_goes_once_through_each_half(tmp_path: Path) -> None:
    """11 batches for the weights, 3 for the logits: no image is read twice or left out but for the last, smaller batch."""
    space = small_blocks()
    read: dict[str, list[int]] = {"weights": [], "architecture": []}

    class Counting(DenseNas):
        def relax_weights(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
            read["weights"].append(progress.epoch)
            return super().relax_weights(parameters, progress)

        def architecture_gradient(self, step: Step) -> None:
            read["architecture"].append(step.progress.epoch)
            super().architecture_gradient(step)

    def images(count: int) -> Images:
        pixels = torch.randint(0, 256, (count, *space.image_shape[1:]), dtype=torch.uint8)
        return Images(InMemory(pixels, torch.arange(count) % 3), lambda image: image.float() / 255)

    settings = EngineSettings(
        None, False, 3, 1, 4, 0, SgdSettings(0.05, 0.01, 0.9, 0.0, 5.0), AdamSettings(0.01, 0.5, 0.999, 0.0), 0
    )
    fabric, folder = Fabric(accelerator="cpu", devices=1), RunDirectory(tmp_path)
    halves = (images(45), images(13))
    SearchEngine(space, Counting(), Classification(), halves, (), settings, fabric, folder).run()
    assert [read["weights"].count(epoch) for epoch in range(3)] == [11, 11, 11]
    assert [read["architecture"].count(epoch) for epoch in range(3)] == [0, 3, 3]


def test_bad_options_are_refused() -> None:
    with pytest.raises(UsageError, match="epoch, step"):
        DenseNas(alternation="batch")
    with pytest.raises(UsageError, match="all, routes"):
        DenseNas(temperature_of="ops")
    with pytest.raises(UsageError, match=r"from 0\.01 to 100"):
        DenseNas(temperature=0)
