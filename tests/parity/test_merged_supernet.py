"""The merged supernet against the plain loop (tests/oracles/plain_cells.py), in float64: outputs and all gradients."""

import copy

import pytest
import torch
from torch.nn import functional

from mobilenas.core.architecture import Decision
from mobilenas.methods.base import Progress
from mobilenas.methods.darts import Darts
from mobilenas.methods.gdas import Gdas
from mobilenas.methods.switches import Switches
from mobilenas.spaces.base import SupernetPlan, SupernetSize
from mobilenas.spaces.cells import CellSpace
from mobilenas.supernet import ArchitectureParameters
from tests.oracles.plain_cells import PlainCells

SIZE = SupernetSize(channels=8, layers=3)
SPACES = {
    "even": CellSpace(image_size=8, classes=3),
    "odd": CellSpace(image_size=9, classes=3),
    "odd after a reduction": CellSpace(image_size=10, classes=3),
    "fixed reduction": CellSpace(image_size=8, classes=3, reduction="fixed"),
    "imagenet stem": CellSpace(image_size=33, classes=3, stem="imagenet"),
}


def dropped(decisions: tuple[Decision, ...], kept: int) -> tuple[Decision, ...]:
    """Each edge with some of its operators, another choice on each, as P-DARTS leaves them."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        d
        if d.kind == "input"
        else Decision(d.name, tuple(d.options[i] for i in sorted(torch.randperm(8, generator=generator)[:kept].tolist())), "op")
        for d in decisions
    )


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-9))


def check(space, method, switches: Switches, kept: int = 8, checkpoint: bool = False, seed: int = 0) -> None:
    method.switches = switches
    decisions = dropped(method.searched(space), kept)
    torch.manual_seed(seed)
    merged = space.supernet(SupernetPlan(SIZE, decisions, switches.partial_channels, checkpoint)).double()
    plain = PlainCells(copy.deepcopy(merged))
    images, labels = torch.randn(4, *space.image_shape[1:], dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    results = []
    for network, weights in ((merged, merged), (plain, plain.supernet)):
        parameters = ArchitectureParameters(decisions, torch.Generator().manual_seed(seed), space.decisions).double()
        with torch.no_grad():
            for row in parameters.parameters():
                row.mul_(1e3)
        torch.manual_seed(seed + 1)
        mixture = method.relax_architecture(parameters, Progress(0, 3, 5))
        logits = network(images, mixture)
        functional.cross_entropy(logits, labels).backward()
        results.append((logits.detach(), dict(weights.named_parameters()), dict(parameters.named_parameters())))
    (ours, our_weights, our_rows), (theirs, their_weights, their_rows) = results
    assert theirs.abs().max() > 1e-2
    assert relative(ours, theirs) < 1e-9
    for mine, others in ((our_weights, their_weights), (our_rows, their_rows)):
        assert mine.keys() == others.keys()
        for name, value in others.items():
            assert (mine[name].grad is None) == (value.grad is None), name
            if value.grad is not None:
                assert relative(mine[name].grad, value.grad) < 1e-9, name


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", [Darts, Gdas])
def test_merged_equals_plain(space: str, method) -> None:
    for seed in range(3 if method is Gdas else 1):
        check(SPACES[space], method(), Switches(), seed=seed)


@pytest.mark.parametrize("space", ["even", "odd", "fixed reduction"])
@pytest.mark.parametrize("method", [Darts, Gdas])
@pytest.mark.parametrize("parts", [2, 4])
def test_with_partial_channels_and_edge_normalisation(space: str, method, parts: int) -> None:
    check(SPACES[space], method(), Switches(edge_normalisation=True, partial_channels=parts))
    check(SPACES[space], method(), Switches(partial_channels=parts))


@pytest.mark.parametrize("space", ["even", "odd"])
@pytest.mark.parametrize("kept", [5, 3, 2, 1])
def test_with_operators_dropped_from_each_edge(space: str, kept: int) -> None:
    for seed in range(2):
        check(SPACES[space], Darts(), Switches(edge_normalisation=True), kept, seed=seed)
        check(SPACES[space], Gdas(), Switches(), kept, seed=seed)


@pytest.mark.parametrize("method", [Darts, Gdas])
def test_with_cells_computed_again_on_the_way_back(method) -> None:
    check(SPACES["even"], method(), Switches(edge_normalisation=True, partial_channels=2), checkpoint=True)


def test_dropout_of_identities_keeps_their_mean() -> None:
    from mobilenas.spaces.merged_edges import dropped as drop_out

    torch.manual_seed(0)
    x = torch.ones(64, 8, 16, 16)
    three = drop_out(x, 3, 0.4).view(64, 3, 8, 16, 16)
    assert abs(float((three == 0).float().mean()) - 0.4) < 0.005
    assert float(three.max()) == pytest.approx(1 / 0.6)
    assert not torch.equal(three[:, 0], three[:, 1])


@pytest.mark.parametrize("method", [Darts, Gdas])
def test_in_mixed_precision(method) -> None:
    """Under autocast the small-batch path makes way, and the gradients of the logits stay float32."""
    space = SPACES["even"]
    decisions = method().searched(space)
    torch.manual_seed(0)
    network = space.supernet(SupernetPlan(SIZE, decisions))
    parameters = ArchitectureParameters(decisions, torch.Generator().manual_seed(0))
    mixture = method().relax_architecture(parameters, Progress(0, 0, 5))
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(4, *space.image_shape[1:]), mixture)
    functional.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 0])).backward()
    for row in parameters.parameters():
        assert row.grad.dtype == torch.float32
        assert torch.isfinite(row.grad).all()
