"""GDAS against a hand derivation (arXiv 1910.04465, equations 3 to 7) in float64, and its sampling against softmax."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from mobilenas.core.architecture import Decision
from mobilenas.methods.base import Progress
from mobilenas.methods.gdas import Gdas
from mobilenas.spaces.base import SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.supernet import ArchitectureParameters

LOGITS = ((0.3, -0.2, 0.1), (-0.4, 0.0, 0.8))
NOISE = ((0.1, 1.2, -0.5), (2.0, 0.3, -1.0))


def parameters_of(rows: tuple[tuple[float, ...], ...]) -> ArchitectureParameters:
    decisions = [Decision(f"edge{i}", tuple("abc"[: len(row)]), "op") for i, row in enumerate(rows)]
    parameters = ArchitectureParameters(decisions, torch.Generator()).double()
    with torch.no_grad():
        parameters.logits[f"op{len(rows[0])}"].copy_(torch.tensor(rows, dtype=torch.float64))
    return parameters


@pytest.mark.parametrize(("epoch", "tau"), [(0, 10.0), (2, 5.05), (4, 0.1)])
def test_sample_and_gradient_equal_the_hand_derivation(epoch: int, tau: float) -> None:
    parameters = parameters_of(LOGITS)
    noise = torch.tensor(NOISE, dtype=torch.float64)
    mixture = Gdas(noise=lambda _: noise).relax_architecture(parameters, Progress(0, epoch, 5))
    upstream = 1.7
    for row in mixture.weights.values():
        (upstream * row[int(row.detach().argmax())]).backward(retain_graph=True)
    for i, (logits, drawn) in enumerate(zip(LOGITS, NOISE, strict=True)):
        normaliser = math.log(sum(math.exp(a) for a in logits))
        z = [math.exp((a - normaliser + g) / tau) for a, g in zip(logits, drawn, strict=True)]
        p = [value / sum(z) for value in z]
        winner = p.index(max(p))
        assert mixture.weights[f"edge{i}"].tolist() == [float(j == winner) for j in range(3)], "exactly one-hot"
        assert list(mixture.active[f"edge{i}"]) == [winner]
        # d p_k / d z_j = p_k (delta_kj - p_j), z_j = (log softmax(a)_j + g_j) / tau; the log-normaliser is common to all
        # z_j and cancels in the softmax, so d p_k / d a_j = p_k (delta_kj - p_j) / tau
        expected = [upstream * p[winner] * ((j == winner) - p[j]) / tau for j in range(3)]
        gradient = parameters.logits["op3"].grad
        assert gradient is not None
        np.testing.assert_allclose(gradient[i].numpy(), expected, rtol=0, atol=1e-14)


def test_the_cost_sees_soft_probabilities_without_noise_or_temperature() -> None:
    parameters = parameters_of(LOGITS)
    mixture = Gdas().relax_architecture(parameters, Progress(0, 4, 5))
    for i, logits in enumerate(LOGITS):
        expected = torch.tensor(logits, dtype=torch.float64).softmax(0)
        assert torch.allclose(mixture.probabilities[f"edge{i}"], expected, atol=1e-14)


def test_operators_are_drawn_as_often_as_their_probability_says() -> None:
    """At any temperature the winner is categorical with softmax(logits): chi-square over 20,000 draws, p > 1e-3."""
    torch.manual_seed(0)
    parameters = parameters_of(LOGITS)
    draws = 20_000
    counts = np.zeros((2, 3))
    for step in range(draws):
        mixture = Gdas().relax_weights(parameters, Progress(0, step % 5, 5))
        for i in range(2):
            counts[i, mixture.active[f"edge{i}"][0]] += 1
    for i, logits in enumerate(LOGITS):
        expected = torch.tensor(logits, dtype=torch.float64).softmax(0).numpy() * draws
        assert chisquare(counts[i], expected).pvalue > 1e-3


def test_only_drawn_operators_get_gradients() -> None:
    space = CellSpace(channels=2, layers=3, image_size=8, nodes=2, classes=3)
    method = Gdas()
    torch.manual_seed(1)
    edges = method.searched(space)
    supernet = space.supernet(SupernetPlan(SupernetSize(2, 3), edges))
    mixture = method.relax_weights(ArchitectureParameters(edges, torch.Generator().manual_seed(0)), Progress(0, 0, 2))
    supernet(torch.randn(2, *space.image_shape[1:]), mixture).sum().backward()
    for index, operator in enumerate(space.operators):
        for edge in edges:
            kept = supernet.modules_of({edge.name: operator})
            for name, weight in ((name, w) for name, m in kept.items() if "/edge" in name for w in m.parameters()):
                assert (weight.grad is None) == (index not in mixture.active[edge.name]), (edge.name, operator, name)
    drawn = {space.operators[active[0]] for active in mixture.active.values()}
    assert any("conv" in operator for operator in drawn)


def test_where_every_edge_draws_none_the_gradient_is_zero_not_absent() -> None:
    space = CellSpace(channels=2, layers=3, image_size=8, nodes=1, classes=3, operators=("none", "skip_connect"))
    method = Gdas(noise=lambda logits: torch.tensor([50.0, 0.0]).expand_as(logits))
    supernet = space.supernet(SupernetPlan(SupernetSize(2, 3), method.searched(space)))
    parameters = ArchitectureParameters(method.searched(space), torch.Generator().manual_seed(0))
    mixture = method.relax_architecture(parameters, Progress(0, 1, 2))
    assert set(mixture.active.values()) == {(0,)}
    supernet(torch.randn(2, *space.image_shape[1:]), mixture).sum().backward()
    for row in parameters.parameters():
        assert row.grad is not None
        assert not row.grad.any()


def test_noise_has_no_infinite_values() -> None:
    from mobilenas.methods.gdas import gumbel_noise

    torch.manual_seed(0)
    noise: Tensor = gumbel_noise(torch.zeros(1000, 1000))
    assert torch.isfinite(noise).all()
    assert abs(float(noise.mean()) - 0.5772) < 0.01
