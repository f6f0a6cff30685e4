"""The supernet of NAS-Bench-201: every edge a mixture of operators, every node the sum of all its edges.

Dong, Yang: NAS-Bench-201, ICLR 2020, arXiv 2001.00326. Shapes: ``B`` batch, ``C`` channels, ``H``, ``W``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobilenas import ops
from mobilenas.spaces.base import SupernetPlan
from mobilenas.spaces.nas_bench_201_layout import EDGES, INCOMING, built_edges
from mobilenas.supernet import MixedOp, Mixture, Supernet, sum_of

if TYPE_CHECKING:
    from mobilenas.spaces.nas_bench_201 import NasBench201Space


class NasBench201Supernet(Supernet):
    """The network that ``space`` describes with all operators on every edge. As in the authors' search code pools have no
    BatchNorm behind them, and what lies between the cells is as in a derived network.
    """

    def __init__(self, space: NasBench201Space, plan: SupernetPlan) -> None:
        super().__init__()
        fixed = space.fixed_workloads()
        self.stem, self.head = ops.build_operator(fixed["stem"]), ops.build_operator(fixed["head"])
        self.body = nn.ModuleDict(
            {
                name: ops.build_operator(fixed[name]) if name in fixed else MixedCell(space, stage)
                for name, stage in space.body()
            }
        )
        self.checkpoint, self.unread = plan.checkpoint, space.unread
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        for part in self.body.values():
            run = partial(checkpoint, part, use_reentrant=False) if self.checkpoint and self.training else part
            x = run(x, mixture) if isinstance(part, MixedCell) else run(x)
        return cast(Tensor, self.head(x))

    def modules_of(self, choices: Mapping[str, str]) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {"stem": self.stem, "head": self.head}
        for name, part in self.body.items():
            if not isinstance(part, MixedCell):
                found[name] = part
                continue
            for edge, operator in built_edges(choices, self.unread).items():
                found[f"{name}/edge{edge}"] = cast(MixedOp, part.edges[edge]).candidates[operator]
        return found


class MixedCell(nn.Module):
    """One cell with a mixture on every edge: ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, space: NasBench201Space, stage: int) -> None:
        super().__init__()
        workload = partial(space.edge_workload, stage)
        self.edges = nn.ModuleDict({edge: MixedOp(space.operators, workload, pool_norm=False) for edge in EDGES})

    def forward(self, x: Tensor, mixture: Mixture) -> Tensor:
        nodes = [x]
        for edges in INCOMING.values():
            arriving = [
                self.edges[edge](source, mixture.weights[edge], mixture.active.get(edge))
                for source, edge in zip(nodes, edges, strict=True)
            ]
            nodes.append(sum_of(arriving))
        return nodes[-1]
