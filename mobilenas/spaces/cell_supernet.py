"""The supernet of the cell space: every edge a mixture of operators, every node the sum of all its edges.

DARTS, arXiv 1806.09055, section 2.2; partial channels and edge normalisation: PC-DARTS, arXiv 1907.05737; the
fixed reduction cell: GDAS, arXiv 1910.04465. Shapes: ``B`` batch, ``C`` channels, ``H``, ``W``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mobilenas import ops
from mobilenas.core.workload import Workload
from mobilenas.errors import IncompatibleError
from mobilenas.spaces.base import SupernetPlan
from mobilenas.spaces.merged_edges import EdgeWeights, MergedEdges, add_up, channels_last_gradient
from mobilenas.supernet import Mixture, Supernet

if TYPE_CHECKING:
    from mobilenas.spaces.cells import CellPlace, CellSpace


class CellSupernet(Supernet):
    """Stem, searched cells and head of the network that ``space`` describes, with every candidate of ``plan``.

    Raises ``IncompatibleError`` where a cell's channels cannot be divided into ``plan.partial_channels`` parts.
    """

    def __init__(self, space: CellSpace, plan: SupernetPlan) -> None:
        super().__init__()
        fixed = space.fixed_layers
        self.stems = nn.ModuleDict(
            {layer.name: ops.build_operator(layer.workload) for layer in fixed if layer.name.startswith("stem")}
        )
        self.cells = nn.ModuleList(
            SearchedCell(space, place, plan) if place.kind in space.kinds else FixedCell(space, place)
            for place in space.places()
        )
        self.head = ops.build_operator(fixed[-1].workload)
        self.checkpoint = plan.checkpoint
        self.nodes = {kind: space.incoming(kind) for kind in space.kinds}
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        states = [images.contiguous(memory_format=torch.channels_last)]
        for stem in self.stems.values():
            states.append(stem(states[-1]))
        before, last = states[1], states[-1]
        weights = {kind: EdgeWeights(nodes, mixture) for kind, nodes in self.nodes.items()}
        for cell in self.cells:
            relaxed = None
            if isinstance(cell, SearchedCell):
                relaxed = RelaxedCell.of(cell, weights[cell.kind], mixture, len(images))
            if self.checkpoint and self.training:
                output = checkpoint(cell, before, last, relaxed, use_reentrant=False)
            else:
                output = cell(before, last, relaxed)
            before, last = last, output
        return cast(Tensor, self.head(last))

    def modules_of(self, choices: Mapping[str, str]) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {**self.stems, "head": self.head}
        for cell in self.cells:
            found |= cast(SearchedCell | FixedCell, cell).modules_of(choices)
        return found


@dataclass(frozen=True)
class RelaxedCell:
    """A mixture as one cell needs it, by source: the scales of its edges, and which of their operators are active."""

    scales: Sequence[Sequence[Tensor]]
    active: Sequence[Sequence[Sequence[int] | None]]
    inputs: Sequence[Tensor]
    """Weight of each edge that enters each node; empty without edge normalisation."""
    zero: Tensor
    skip_dropout: float
    batch: int

    @classmethod
    def of(cls, cell: SearchedCell, weights: EdgeWeights, mixture: Mixture, batch: int) -> RelaxedCell:
        sources = range(len(cell.sources))
        return cls(
            scales=[weights.of_source(source, cell.channels) for source in sources],
            active=[[mixture.active.get(edge) for edge in cell.edges[source]] for source in sources],
            inputs=weights.inputs,
            zero=weights.zero,
            skip_dropout=mixture.skip_dropout,
            batch=batch,
        )


class SearchedCell(nn.Module):
    """One cell with all its edges: two states of the cells before -> ``(B, nodes * C, H', W')``."""

    def __init__(self, space: CellSpace, place: CellPlace, plan: SupernetPlan) -> None:
        super().__init__()
        self.index, self.kind, self.nodes, self.parts = place.index, place.kind, space.nodes, plan.partial_channels
        if place.channels % self.parts:
            raise IncompatibleError(
                f"partial channels 1/{self.parts} need channels divisible by {self.parts}; cell {place.index} of the supernet "
                f"has {place.channels}: set supernet.channels"
            )
        self.channels, self.out_size = place.channels // self.parts, place.out_size
        self.preprocess = nn.ModuleList(ops.build_operator(space.preprocess_workload(place, i), affine=False) for i in (0, 1))
        options = {decision.name: decision.options for decision in plan.decisions}
        entering = list(space.incoming(place.kind).values())
        self.edges = [[edges[source] for edges in entering if source < len(edges)] for source in range(space.nodes + 1)]

        def workload(source: int, operator: str) -> Workload:
            whole = space.edge_workload(place, source, operator)
            return msgspec.structs.replace(whole, in_channels=self.channels, out_channels=self.channels)

        self.sources = nn.ModuleList(
            MergedEdges(space.operators, [options[edge] for edge in edges], partial(workload, source))
            for source, edges in enumerate(self.edges)
        )

    def forward(self, before: Tensor, last: Tensor, relaxed: RelaxedCell) -> Tensor:
        states = [channels_last_gradient(self.preprocess[0](before)), channels_last_gradient(self.preprocess[1](last))]
        arriving: list[list[Tensor | None]] = [[] for _ in range(self.nodes)]
        passing: list[list[Tensor]] = [[] for _ in range(self.nodes)]
        for source, module in enumerate(self.sources):
            edges, first = cast(MergedEdges, module), max(0, source - 1)
            mixed, bypass = self._divide(states[source], edges.stride)
            outputs = edges(mixed, relaxed.scales[source], relaxed.active[source], relaxed.skip_dropout)
            for node, output in enumerate(outputs, first):
                arriving[node].append(output)
                if bypass is not None:
                    passing[node].append(bypass)
            if source >= 1:
                states.append(channels_last_gradient(self._node(first, arriving[first], passing[first], relaxed)))
        return torch.cat(states[2:], dim=1)

    def _divide(self, state: Tensor, stride: int) -> tuple[Tensor, Tensor | None]:
        """The channels that pass through the operators, and the others at the size that those get."""
        if self.parts == 1:
            return state, None
        mixed, bypass = torch.split(state, [self.channels, state.shape[1] - self.channels], dim=1)
        mixed = channels_last_gradient(mixed.contiguous(memory_format=torch.channels_last))
        return mixed, functional.max_pool2d(bypass, 2, 2, ceil_mode=True) if stride == 2 else bypass

    def _node(self, node: int, mixed: Sequence[Tensor | None], bypass: Sequence[Tensor], relaxed: RelaxedCell) -> Tensor:
        """The sum of the edges; of partial channels with the others beside them, shuffled so that each has its turn."""
        total = add_up(mixed)
        if total is None:
            shape = (relaxed.batch, self.channels, self.out_size, self.out_size)
            total = relaxed.zero.expand(shape).contiguous(memory_format=torch.channels_last)
        if not bypass:
            return total
        if relaxed.inputs:
            weights = relaxed.inputs[node]
            others = bypass[0] * weights[0]
            for source, tensor in enumerate(bypass[1:], 1):
                others.addcmul_(tensor, weights[source])
        else:
            others = cast(Tensor, add_up(bypass))
        whole = torch.cat([total, others], dim=1)
        b, c, h, w = whole.shape
        shuffled = whole.permute(0, 2, 3, 1).reshape(b, h, w, self.parts, c // self.parts).transpose(3, 4)
        return shuffled.reshape(b, h, w, c).permute(0, 3, 1, 2)

    def modules_of(self, choices: Mapping[str, str]) -> dict[str, nn.Module]:
        """The modules with weights that a network of these ``choices`` has in this cell, by layer."""
        found = {f"cell{self.index}/preprocess{i}": module for i, module in enumerate(self.preprocess)}
        for names, edges in zip(self.edges, self.sources, strict=True):
            for name, module in zip(names, cast(MergedEdges, edges).candidates, strict=True):
                candidates = cast(nn.ModuleDict, module)
                if name in choices and choices[name] in candidates:
                    found[f"cell{self.index}/edge{name.partition('.')[2]}"] = candidates[choices[name]]
        return found


class FixedCell(nn.Module):
    """GDAS's fixed reduction cell: convolutions and pools of its two inputs -> ``(B, 4 * C, H / 2, W / 2)``."""

    def __init__(self, space: CellSpace, place: CellPlace) -> None:
        super().__init__()
        self.index = place.index
        self.preprocess = nn.ModuleList(ops.build_operator(space.preprocess_workload(place, i), affine=False) for i in (0, 1))
        self.branches = nn.ModuleList(ops.build_operator(w, affine=False) for w in space.fixed_branches(place))

    def forward(self, before: Tensor, last: Tensor, relaxed: RelaxedCell | None) -> Tensor:
        states = [self.preprocess[0](before), self.preprocess[1](last)]
        return torch.cat([branch(states[index % 2]) for index, branch in enumerate(self.branches)], dim=1)

    def modules_of(self, choices: Mapping[str, str]) -> dict[str, nn.Module]:
        """All modules of the cell, by layer; ``choices`` have no part in it."""
        return {
            f"cell{self.index}/{name}{i}": module
            for name, modules in (("preprocess", self.preprocess), ("branch", self.branches))
            for i, module in enumerate(modules)
        }
