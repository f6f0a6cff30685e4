"""The supernet of the cell space: every edge a mixed operator, every node the sum of all its edges.

DARTS, arXiv 1806.09055, section 2.2. Shapes: ``B`` batch, ``C`` channels, ``H``, ``W``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mobilenas import ops
from mobilenas.supernet import MixedOp, MixedOpBuilder, Mixture, Supernet

if TYPE_CHECKING:
    from mobilenas.spaces.cells import CellPlace, CellSpace


class CellSupernet(Supernet):
    """Stem, searched cells and head of the network that ``space`` describes, with every candidate on every edge."""

    def __init__(self, space: CellSpace, mixed_op: MixedOpBuilder) -> None:
        super().__init__()
        fixed = space.fixed_layers
        self.stems = nn.ModuleDict(
            {layer.name: ops.build_operator(layer.workload) for layer in fixed if layer.name.startswith("stem")}
        )
        self.cells = nn.ModuleList(SearchedCell(space, place, mixed_op) for place in space.places())
        self.head = ops.build_operator(fixed[-1].workload)

    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        states = [images]
        for stem in self.stems.values():
            states.append(stem(states[-1]))
        before, last = states[1], states[-1]
        for cell in self.cells:
            before, last = last, cell(before, last, mixture)
        return cast(Tensor, self.head(last))

    def modules_of(self, choices: Mapping[str, str]) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {**self.stems, "head": self.head}
        for module in self.cells:
            cell = cast(SearchedCell, module)
            found |= {f"cell{cell.index}/preprocess{i}": module for i, module in enumerate(cell.preprocess)}
            for name, operator in choices.items():
                if name in cell.edge_of:
                    edge = cast(MixedOp, cell.edge_of[name])
                    found[f"cell{cell.index}/edge{name.partition('.')[2]}"] = edge.candidates[operator]
        return found


class SearchedCell(nn.Module):
    """One cell with all its edges: two states of the cells before -> ``(B, nodes * C, H', W')``."""

    def __init__(self, space: CellSpace, place: CellPlace, mixed_op: MixedOpBuilder) -> None:
        super().__init__()
        self.index = place.index
        self.preprocess = nn.ModuleList(ops.build_operator(space.preprocess_workload(place, i), affine=False) for i in (0, 1))
        decisions = [decision for decision in space.decisions if decision.name.startswith(place.kind)]
        self.incoming: dict[int, list[tuple[int, str]]] = {}
        self.edges = nn.ModuleList()
        for decision in decisions:
            source, node = (int(end) for end in decision.name.partition(".")[2].split("-"))
            self.incoming.setdefault(node, []).append((source, decision.name))
            self.edges.append(mixed_op(decision.options, partial(space.edge_workload, place, source)))
        self.edge_of = {decision.name: edge for decision, edge in zip(decisions, self.edges, strict=True)}

    def forward(self, before: Tensor, last: Tensor, mixture: Mixture) -> Tensor:
        states = [self.preprocess[0](before), self.preprocess[1](last)]
        for sources in self.incoming.values():
            parts = [
                self.edge_of[name](states[source], mixture.weights[name], mixture.active.get(name)) for source, name in sources
            ]
            states.append(cast(Tensor, sum(parts[1:], parts[0])))
        return torch.cat(states[2:], dim=1)
