import itertools

import pytest
import torch

from mobilenas.errors import UsageError
from mobilenas.spaces.cells import CellSpace, keep_two_probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
@pytest.mark.parametrize(
    "strengths", [(0.25, 0.22, 0.2, 0.18, 0.15), (0.9, 0.2), (0.8, 0.1), (0.6, 0.12, 0.1), (1.0, 1e-9, 1e-12)]
)
def test_two_edges_are_kept_however_sharp(strengths: tuple[float, ...], temperature: float) -> None:
    """The sum is 2 and has no gradient: a cost that falls when edges merely drift apart would reward the drift."""
    row = torch.tensor(strengths, dtype=torch.float64, requires_grad=True)
    total = keep_two_probabilities(row, temperature).sum()
    assert float(total.detach()) == pytest.approx(2, abs=1e-9)
    [gradient] = torch.autograd.grad(total, row)
    assert (gradient * row).abs().max() < 1e-9


def test_the_probabilities_of_two_draws_by_enumeration() -> None:
    """Oracle: every ordered pair of draws without replacement; and the figures of the design for t = 1."""
    strengths = torch.tensor([0.25, 0.22, 0.20, 0.18, 0.15], dtype=torch.float64)
    p = (strengths / strengths.sum()).tolist()
    kept = [0.0] * 5
    for first, second in itertools.permutations(range(5), 2):
        chance = p[first] * p[second] / (1 - p[first])
        kept[first] += chance
        kept[second] += chance
    found = keep_two_probabilities(strengths, 1.0).tolist()
    assert found == pytest.approx(kept, abs=1e-12)
    assert [round(value, 2) for value in found] == [0.48, 0.44, 0.4, 0.37, 0.31]


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 1},
        {"channels": 10**9},
        {"layers": 2},
        {"image_size": 7},
        {"channels": True},
        {"classes": "ten"},
        {"batch": 0},
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"space.{next(iter(options))}"):
        CellSpace(**options)  # type: ignore[arg-type]
