"""PC-DARTS by hand in float64: which channels pass through, where the shuffle puts them, edge normalisation, the choice."""

import torch
from torch import Tensor

from mobilenas.methods.pc_darts import PCDarts
from mobilenas.spaces.base import SupernetPlan, SupernetSize
from mobilenas.spaces.cells import OPERATORS, CellSpace
from mobilenas.supernet import Mixture

SPACE = CellSpace(channels=8, layers=3, image_size=8, nodes=1, operators=("none", "skip_connect"))


def one_cell(mixture: Mixture) -> tuple[list[Tensor], Tensor]:
    """The two states and the node of a normal cell that only has identities, eight channels, K = 4."""
    supernet = SPACE.supernet(SupernetPlan(SupernetSize(8, 3), SPACE.decisions, 4)).double()
    cell = supernet.cells[0]
    states: list[Tensor] = []
    for module in cell.preprocess:
        module.register_forward_hook(lambda _, inputs, output: states.append(output.detach()))
    nodes: list[Tensor] = []
    cell.register_forward_hook(lambda _, inputs, output: nodes.append(output.detach()))
    supernet(torch.randn(2, 3, 8, 8, dtype=torch.float64), mixture)
    return states, nodes[0]


def test_partial_channels_shuffle_and_edge_normalisation() -> None:
    torch.manual_seed(0)
    rows = {d.name: torch.rand(len(d.options), dtype=torch.float64) for d in SPACE.decisions}
    states, node = one_cell(Mixture.soft(rows))
    parts, channels = 4, 8
    for to in range(channels):
        # shuffle: position g + K * j of the output comes from position g * C / K + j
        group, place = to % parts, to // parts
        source_channel = group * (channels // parts) + place
        expected = torch.zeros(2, 8, 8, dtype=torch.float64)
        for source, state in enumerate(states):
            through = source_channel < channels // parts
            weight = rows[f"normal.{source}-2"][1] if through else 1.0
            expected += rows["normal.node2"][source] * weight * state[:, source_channel]
        assert torch.allclose(node[:, to], expected, rtol=0, atol=1e-14)


def test_without_edge_normalisation_inputs_count_alike() -> None:
    torch.manual_seed(1)
    rows = {d.name: torch.rand(2, dtype=torch.float64) for d in SPACE.decisions if d.kind == "op"}
    states, node = one_cell(Mixture.soft(rows))
    assert torch.allclose(node[:, 1], states[0][:, 2] + states[1][:, 2], rtol=0, atol=1e-14)


def test_the_choice_is_by_operator_times_edge() -> None:
    """Brute force over 200 random tables: per node the two best of all products, at most one operator an edge."""
    space = CellSpace(channels=4, layers=3, image_size=8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        rows = {d.name: torch.randn(len(d.options), generator=generator).double().softmax(0) for d in space.decisions}
        found = space.decode(rows).choices
        for kind in ("normal", "reduce"):
            for node in range(2, 6):
                products = sorted(
                    (
                        (float(rows[f"{kind}.{source}-{node}"][o] * rows[f"{kind}.node{node}"][source]), source, o)
                        for source in range(node)
                        for o in range(1, 8)
                    ),
                    reverse=True,
                )
                first = products[0]
                second = next(p for p in products if p[1] != first[1])
                wanted = {f"{kind}.{source}-{node}": OPERATORS[o] for _, source, o in (first, second)}
                assert {n: o for n, o in found.items() if n.startswith(kind) and n.endswith(f"-{node}")} == wanted


def test_logits_stand_still_for_the_first_30_percent() -> None:
    assert round(PCDarts.warmup_fraction * 50) == 15
    assert PCDarts.switches.partial_channels == 4
    assert {d.kind for d in PCDarts().searched(CellSpace())} == {"op", "input"}
