"""Unrolled DARTS (arXiv 1806.09055, equations 7 and 8) against a hand-computed gradient and a naive copy of the networks."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilenas.core.architecture import Decision
from mobilenas.errors import UsageError
from mobilenas.methods.base import Batch, Progress, Step
from mobilenas.methods.darts import Darts
from mobilenas.search.engine import weights_after
from mobilenas.spaces.base import SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.supernet import ArchitectureParameters, Mixture

XI, DECAY, MOMENTUM = 0.1, 0.01, 0.9
TRAIN, VALID = Batch(torch.zeros(1), torch.zeros(1)), Batch(torch.ones(1), torch.ones(1))


def step_of(
    parameters: ArchitectureParameters,
    weights: Sequence[nn.Parameter],
    loss: Callable[[Batch, Mixture], Tensor],
    buffers: Sequence[Tensor],
    constraint: Callable[[Mixture], Tensor] = lambda _: torch.zeros((), dtype=torch.float64),
    batches: tuple[Batch, Batch] = (TRAIN, VALID),
) -> Step:
    def after(gradients: Sequence[Tensor]) -> list[Tensor]:
        return [
            w.detach() - XI * (MOMENTUM * m + g + DECAY * w.detach())
            for w, g, m in zip(weights, gradients, buffers, strict=True)
        ]

    return Step(parameters, *batches, Progress(0, 0, 1), loss, constraint, torch.autograd.backward, weights, after, XI)


@pytest.mark.parametrize("hessian", ["difference", "exact"])
def test_a_scalar_quadratic_by_hand(hessian: str) -> None:
    """L_train = (w - 3 p)^2, L_val = (w - 2)^2 + p, p the first probability; all derivatives by hand."""
    parameters = ArchitectureParameters([Decision("d", ("a", "b"), "op")], torch.Generator().manual_seed(0)).double()
    w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    momentum = torch.tensor(0.4, dtype=torch.float64)

    def loss(batch: Batch, mixture: Mixture) -> Tensor:
        p = mixture.weights["d"][0]
        return (w - 3 * p) ** 2 if batch is TRAIN else (w - 2) ** 2 + p

    Darts(order=2, hessian=hessian).architecture_gradient(step_of(parameters, [w], loss, [momentum]))
    assert float(w.detach()) == 0.7, "the weight was not restored"
    assert w.grad is None
    a = parameters.logits["op2"].detach()[0]
    p = float(a.softmax(0)[0])
    virtual = 0.7 - XI * (MOMENTUM * 0.4 + 2 * (0.7 - 3 * p) + DECAY * 0.7)
    # d L_val / d p = 1, d L_val / d w' = 2 (w' - 2), d/dp d L_train / dw = -6; d p / d a = (p (1 - p), -p (1 - p))
    in_p = 1 - XI * (-6) * 2 * (virtual - 2)
    gradient = parameters.logits["op2"].grad
    assert gradient is not None
    expected = [in_p * p * (1 - p), -in_p * p * (1 - p)]
    assert gradient[0].tolist() == pytest.approx(expected, rel=1e-9)


def supernet_and_loss() -> tuple[nn.Module, ArchitectureParameters, tuple[Batch, Batch]]:
    space = CellSpace(channels=2, layers=3, image_size=8, nodes=2, classes=3)
    torch.manual_seed(1)
    supernet = space.supernet(SupernetPlan(SupernetSize(2, 3), space.decisions)).double()
    parameters = ArchitectureParameters(space.decisions, torch.Generator().manual_seed(0)).double()
    batches = [Batch(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 1])) for _ in range(2)]
    return supernet, parameters, (batches[0], batches[1])


def test_a_supernet_against_copied_networks() -> None:
    """Oracle: the algorithm as the authors describe it, with the network copied for the virtual step; float64."""
    supernet, parameters, batches = supernet_and_loss()
    weights = list(supernet.parameters())
    buffers = [0.01 * torch.randn_like(w) for w in weights]
    alpha = list(parameters.parameters())

    def loss_of(network: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(network(batch.images, Mixture.soft(parameters.softmax())), batch.labels)

    train, valid = batches
    g = torch.autograd.grad(loss_of(supernet, train), weights)
    virtual = copy.deepcopy(supernet)
    with torch.no_grad():
        for w, gradient, m in zip(virtual.parameters(), g, buffers, strict=True):
            w.sub_(XI * (MOMENTUM * m + gradient + DECAY * w))
    direct = torch.autograd.grad(loss_of(virtual, valid), [*alpha, *virtual.parameters()])
    v = direct[len(alpha) :]
    radius = 0.01 / torch.cat([part.flatten() for part in v]).norm()
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(supernet)
        with torch.no_grad():
            for w, part in zip(moved.parameters(), v, strict=True):
                w.add_(sign * radius * part)
        ends.append(torch.autograd.grad(loss_of(moved, train), alpha))
    expected = [d - XI * (plus - minus) / (2 * radius) for d, plus, minus in zip(direct, *ends, strict=False)]

    before = [w.detach().clone() for w in weights]
    step = step_of(
        parameters,
        weights,
        lambda batch, mixture: functional.cross_entropy(supernet(batch.images, mixture), batch.labels),
        buffers,
        batches=batches,
    )
    Darts(order=2).architecture_gradient(step)
    for row, gradient in zip(alpha, expected, strict=True):
        assert row.grad is not None
        assert torch.allclose(row.grad, gradient, rtol=0, atol=1e-12 * float(gradient.abs().max()) / 1e-2)
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True)), "restored bit for bit"


def test_the_exact_product_against_a_small_difference() -> None:
    """Oracle: central differences of the whole unrolled objective in each logit of one edge."""
    supernet, parameters, batches = supernet_and_loss()
    weights = list(supernet.parameters())
    zero = [torch.zeros_like(w) for w in weights]

    def loss(batch: Batch, mixture: Mixture) -> Tensor:
        return functional.cross_entropy(supernet(batch.images, mixture), batch.labels)

    def unrolled() -> float:
        mixture = Mixture.soft(parameters.softmax())
        g = torch.autograd.grad(loss(batches[0], mixture), weights)
        before = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, gradient in zip(weights, g, strict=True):
                w.sub_(XI * (gradient + DECAY * w))
            value = float(loss(batches[1], mixture))
            for w, old in zip(weights, before, strict=True):
                w.copy_(old)
        return value

    Darts(order=2, hessian="exact").architecture_gradient(step_of(parameters, weights, loss, zero, batches=batches))
    row = parameters.logits["op8"]
    assert row.grad is not None
    analytic, numeric, h = row.grad[0].clone(), [], 1e-6
    for index in range(8):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                row[0, index] += sign * h
            ends.append(unrolled())
            with torch.no_grad():
                row[0, index] -= sign * h
        numeric.append((ends[0] - ends[1]) / (2 * h))
    assert analytic.tolist() == pytest.approx(numeric, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("options", [{"order": 3}, {"hessian": "none"}])
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"available|order 1 and 2"):
        Darts(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_virtual_step_is_the_one_that_the_weight_optimiser_makes(nesterov: bool) -> None:
    weights = [nn.Parameter(torch.randn(3, 2, dtype=torch.float64)), nn.Parameter(torch.randn(4, dtype=torch.float64))]
    optimiser = torch.optim.SGD(weights, XI, momentum=MOMENTUM, weight_decay=DECAY, nesterov=nesterov)
    for _ in range(3):
        gradients = [torch.randn_like(weight) for weight in weights]
        foreseen, untouched = weights_after(optimiser, weights, gradients), [weight.detach().clone() for weight in weights]
        assert all(torch.equal(weight.detach(), before) for weight, before in zip(weights, untouched, strict=True))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimiser.step()
        for weight, said in zip(weights, foreseen, strict=True):
            torch.testing.assert_close(weight.detach(), said, rtol=1e-14, atol=1e-14)
