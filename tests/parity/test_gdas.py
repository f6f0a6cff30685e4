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
from mobilenas.spaces.base import SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.supernet import NO_OPERATOR, ArchitectureParameters

LOGITS = ((0.3, -0.2, 0.1), (-0.4, 0.0, 0.8))
NOISE = ((0.1, 1.2, -0.5), (2.0, 0.3, -1.0))


def parameters_of(rows: tuple[tuple[float, ...], ...]) -> ArchitectureParameters:
    decisions = [Decision(f"edge{i}", tuple("abc"[: len(row)]), "op") for i, row in enumerate(rows)]
    parameters = ArchitectureParameters(decisions, torch.Generator()).double()
    with torch.no_grad():
        parameters.logits[str(len(rows[0]))].copy_(torch.tensor(rows, dtype=torch.float64))
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
        gradient = parameters.logits["3"].grad
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


def test_only_drawn_operators_run_and_get_gradients() -> None:
    space = CellSpace(channels=2, layers=3, image_size=8, nodes=2, classes=3)
    method = Gdas()
    torch.manual_seed(1)
    supernet = space.supernet(SupernetSize(2, 3), method.mixed_op)
    parameters = ArchitectureParameters(space.decisions, torch.Generator().manual_seed(0))
    mixture = method.relax_weights(parameters, Progress(0, 0, 2))
    ran: set[str] = set()
    for name, module in supernet.named_modules():
        parent = name.rpartition(".")[0]
        if parent.endswith("candidates"):
            module.register_forward_hook(lambda *_, path=name: ran.add(path))
    images = torch.randn(2, *space.image_shape[1:])
    supernet(images, mixture).sum().backward()
    drawn = {space.operators[active[0]] for active in mixture.active.values()} - {NO_OPERATOR}
    assert {path.rpartition(".")[2] for path in ran} == drawn
    for name, weight in supernet.named_parameters():
        if ".candidates." in name:
            candidate = name.split(".candidates.")[0] + ".candidates." + name.split(".candidates.")[1].split(".")[0]
            assert (weight.grad is None) == (candidate not in ran), name


def test_where_every_edge_draws_none_the_gradient_is_zero_not_absent() -> None:
    space = CellSpace(channels=2, layers=3, image_size=8, nodes=1, classes=3, operators=("none", "skip_connect"))
    method = Gdas(noise=lambda logits: torch.tensor([50.0, 0.0]).expand_as(logits))
    supernet = space.supernet(SupernetSize(2, 3), method.mixed_op)
    parameters = ArchitectureParameters(space.decisions, torch.Generator().manual_seed(0))
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
