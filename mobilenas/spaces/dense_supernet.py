"""The supernet of dense blocks: every block reads all nodes that lead to it, weighted by their routes.

DenseNAS, arXiv 1906.09607. Shapes: ``B`` batch, ``C`` channels, ``H``, ``W``.
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
from mobilenas.spaces.dense_layout import LAST, STEM, Node, head, route, stacked
from mobilenas.supernet import SKIP, MixedOp, Mixture, Supernet, candidate, sum_of

if TYPE_CHECKING:
    from mobilenas.spaces.dense_blocks import DenseBlockSpace


class DenseSupernet(Supernet):
    """Stem, all blocks with all their operators, a 1x1 convolution per node that leads to the last, and the classifier.

    The weights that multiply a block's inputs come from the routes out of its sources: they do not sum to 1.
    """

    def __init__(self, space: DenseBlockSpace, plan: SupernetPlan) -> None:
        super().__init__()
        self.layout = space.layout
        self.keeps_last = space.kind.keeps_last_convolution
        self.stem = nn.Sequential(*(ops.build_operator(w, affine=not self.keeps_last) for w in space.stem_workloads()))
        self.blocks = nn.ModuleDict({block.name: DenseBlock(space, block) for block in self.layout.searched})
        self.last = nn.ModuleDict({source: candidate(space.last_workload(source)) for source in self.layout.sources[LAST]})
        self.head = ops.build_operator(space.classifier_workload(space.last_width))
        self.checkpoint = plan.checkpoint
        self.to(memory_format=torch.channels_last)
        _initialise(self)

    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        states = {STEM: self.stem(images.contiguous(memory_format=torch.channels_last))}
        for name, block in self.blocks.items():
            inputs = {source: states[source] for source in self.layout.sources[name]}
            run = partial(checkpoint, block, use_reentrant=False) if self.checkpoint and self.training else block
            states[name] = run(inputs, self._route_weights(name, mixture), mixture)
        weights = self._route_weights(LAST, mixture)
        return cast(Tensor, self.head(sum_of([weights[s] * branch(states[s]) for s, branch in self.last.items()])))

    def _route_weights(self, node: str, mixture: Mixture) -> dict[str, Tensor]:
        """The weight of each source that leads to ``node``."""
        routes = self.layout.routes
        return {s: mixture.weights[route(s)][routes[s].index(node)] for s in self.layout.sources[node]}

    def modules_of(self, choices: Mapping[str, str]) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {f"stem{index}": module for index, module in enumerate(self.stem)}
        source = STEM
        while (block := choices[route(source)]) != LAST:
            found |= cast(DenseBlock, self.blocks[block]).modules_of(source, choices)
            source = block
        if self.keeps_last:
            found[LAST] = self.last[source]
        return {**found, "head": self.head}


class DenseBlock(nn.Module):
    """A head operator per source, their weighted sum, then the stacked operators; all of them mixed."""

    def __init__(self, space: DenseBlockSpace, block: Node) -> None:
        super().__init__()
        self.node = block
        options = {decision.name: decision.options for decision in space.decisions}
        self.heads = nn.ModuleDict(
            {
                source: MixedOp(options[head(block.name, source)], partial(space.head_workload, block.name, source))
                for source in space.layout.sources[block.name]
            }
        )
        self.stack = nn.ModuleList(MixedOp(options[n], partial(space.stack_workload, block.name)) for n in stacked(block))

    def forward(self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor], mixture: Mixture) -> Tensor:
        arriving = []
        for source, mixed in self.heads.items():
            name = head(self.node.name, source)
            arriving.append(weights[source] * mixed(inputs[source], mixture.weights[name], mixture.active.get(name)))
        x = sum_of(arriving)
        for name, mixed in zip(stacked(self.node), self.stack, strict=True):
            x = mixed(x, mixture.weights[name], mixture.active.get(name))
        return x

    def modules_of(self, source: str, choices: Mapping[str, str]) -> dict[str, nn.Module]:
        """The modules that a network of these ``choices`` has in this block, by layer."""
        block = self.node.name
        mixed = {f"{block}/head": (self.heads[source], head(block, source))}
        mixed |= {f"{block}/stack{k}": (m, n) for k, (m, n) in enumerate(zip(self.stack, stacked(self.node), strict=True), 1)}
        return {
            layer: cast(MixedOp, module).candidates[choices[name]]
            for layer, (module, name) in mixed.items()
            if choices[name] != SKIP
        }


def _initialise(supernet: nn.Module) -> None:
    """He's normal distribution over the outputs of each group of a convolution, as the authors begin."""
    for module in supernet.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
