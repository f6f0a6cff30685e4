"""DenseNAS's space: width, depth and resolution over blocks that are densely connected.

Fang, Sun, Zhang, Li, Liu, Wang: Densely Connected Search Space for More Flexible Neural Architecture Search, CVPR 2020,
arXiv 1906.09607. Every block has a width and a resolution of its own. A network is a path from the stem to the
last node: the route out of each block says which block comes next, whose *head* operator turns the block before into its
width and resolution, and whose *stack* of further operators may be cut short by skips. Decisions are named by their
place: ``block3.next`` is the route out of block 3, ``block3.head.block1`` the head operator of block 3 that reads
block 1, ``block3.stack2`` its second stacked operator.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mobilenas import ops
from mobilenas.core.architecture import Architecture, Decision
from mobilenas.core.workload import Blueprint, Layer, Workload
from mobilenas.errors import DocumentError, UsageError, nearest_hint
from mobilenas.spaces.base import (
    DerivationProgram,
    OptionCosts,
    Probabilities,
    SearchSpace,
    SupernetPlan,
    check_numbers,
    check_operators,
    check_range,
)
from mobilenas.spaces.dense_layout import LAST, MBV2_BLOCKS, RESNET_BLOCKS, SMALL_BLOCKS, STEM, Layout, head, route, stacked
from mobilenas.spaces.dense_supernet import DenseSupernet
from mobilenas.supernet import SKIP, Supernet

LEAST_PROBABILITY = 1e-30


@dataclass(frozen=True)
class Family:
    """The operators of one kind of network. ``widening`` is how much wider a block's output is than its ``width``.

    ``keeps_last_convolution`` says whether the 1x1 convolution before the head is part of the derived network or of the
    supernet only.
    """

    heads: tuple[str, ...]
    widening: int
    keeps_last_convolution: bool
    stem: tuple[str, ...]
    """Operators of the stem; the first has the stem's stride. ResNets have ReLU6 here, as the authors' derived ones do."""


_MBCONVS = tuple(f"mbconv_k{kernel}_e{expansion}" for kernel in (3, 5, 7) for expansion in (3, 6))
FAMILIES = {
    "mbconv": Family(_MBCONVS, 1, True, ("conv3x3_bn_relu6", "mbconv_k3_e1")),
    "basic_block": Family(("basic_block",), 1, False, ("stem_resnet",)),
    "bottleneck": Family(("bottleneck",), ops.BOTTLENECK_EXPANSION, False, ("stem_resnet",)),
}


@dataclass(frozen=True)
class DenseBlockSpace(SearchSpace):
    """Networks on a path through ``blocks``, the first of which describes the stem.

    A block is written ``"width=24 stride=4 stage=1 stack=3"``: its channels, its stride relative to the image, its stage, and
    how many operators may be stacked on its head. From a block, routes lead to the next ``reach`` blocks, up to the first
    that is two stages away or of a stride neither equal nor double; ``last_width`` is that of the 1x1 convolution before
    the head. ``family`` is ``mbconv``, ``basic_block`` or ``bottleneck``; of its ``operators`` all are searched unless some are
    named, those of plug-ins among them, which take any channels to any others at stride 1 and 2. Raises ``UsageError`` for a
    value out of range, and for a block that cannot be reached.
    """

    family: str = "mbconv"
    blocks: tuple[str, ...] = MBV2_BLOCKS
    last_width: int = 1984
    reach: int = 4
    operators: tuple[str, ...] = ()
    image_size: int = 224
    image_channels: int = 3
    classes: int = 1000
    batch: int = 1

    name: ClassVar[str] = "dense-blocks"
    traits: ClassVar[frozenset[str]] = frozenset({"routes"})
    proxy: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_numbers(self, last_width=1, reach=1)
        if self.family not in FAMILIES:
            raise UsageError(f"space.family is {self.family!r}; available: {', '.join(FAMILIES)}")
        check_operators(self.operators, (*self.kind.heads, *ops.OPERATORS.plug_ins))
        check_range(len(self.blocks), 2, "the number of space.blocks", 200)
        self.layout.check()

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.image_channels, self.image_size, self.image_size)

    @property
    def kind(self) -> Family:
        """What the networks of the space are made of."""
        return FAMILIES[self.family]

    @property
    def heads(self) -> tuple[str, ...]:
        """The operators that are searched; stacks have the skip besides."""
        return self.operators or self.kind.heads

    @cached_property
    def layout(self) -> Layout:
        """The nodes and the routes between them."""
        return Layout(self.blocks, self.last_width, self.reach)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        heads, stack, routes = self.heads, (*self.heads, SKIP), self.layout.routes
        found = [Decision(route(STEM), routes[STEM], "route")]
        for block in self.layout.searched:
            found += [Decision(head(block.name, source), heads, "op") for source in self.layout.sources[block.name]]
            found += [Decision(name, stack, "op") for name in stacked(block)]
            found.append(Decision(route(block.name), routes[block.name], "route"))
        return tuple(found)

    # ---- structure -------------------------------------------------------------------------------------------------

    def size_of(self, node: str) -> int:
        """Height and width of a node's output in pixels."""
        return -(-self.image_size // self.layout.node[node].stride)

    def channels_of(self, node: str) -> int:
        """Channels of a node's output."""
        is_block = node not in (STEM, LAST)
        return self.layout.node[node].width * (self.kind.widening if is_block else 1)

    def stem_workloads(self) -> list[Workload]:
        """What reads the images, in order."""
        stem = self.layout.node[STEM]
        first, *others = self.kind.stem
        found = [self._workload(first, self.image_channels, stem.width, self.image_size, stem.stride)]
        return found + [self._workload(name, stem.width, stem.width, self.size_of(STEM)) for name in others]

    def head_workload(self, block: str, source: str, operator: str) -> Workload:
        """``operator`` where ``block`` reads ``source``: turns width and resolution into the block's own."""
        stride = self.layout.node[block].stride // self.layout.node[source].stride
        return self._workload(operator, self.channels_of(source), self.channels_of(block), self.size_of(source), stride)

    def stack_workload(self, block: str, operator: str) -> Workload:
        """``operator`` stacked on the head of ``block``."""
        return self._workload(operator, self.channels_of(block), self.channels_of(block), self.size_of(block))

    def last_workload(self, source: str) -> Workload:
        """The 1x1 convolution after the last block."""
        return self._workload("conv1x1_bn_relu6", self.channels_of(source), self.last_width, self.size_of(source))

    def classifier_workload(self, channels: int) -> Workload:
        """Pooling and the linear layer."""
        return self._workload("head", channels, self.classes, self.size_of(LAST))

    def ending_workloads(self, source: str) -> dict[str, Workload]:
        """What a derived network does with the output of its last block, in order, by the layers' names."""
        if self.kind.keeps_last_convolution:
            return {LAST: self.last_workload(source), "head": self.classifier_workload(self.last_width)}
        return {"head": self.classifier_workload(self.channels_of(source))}

    def _workload(self, operator: str, c_in: int, c_out: int, size: int, stride: int = 1) -> Workload:
        return Workload(operator, c_in, c_out, size, size, stride, self.batch)

    def workloads(self) -> frozenset[Workload]:
        found = {*self.stem_workloads()}
        for source in self.layout.sources[LAST]:
            found.update(self.ending_workloads(source).values())
        for block in self.layout.searched:
            for operator in self.heads:
                found.update(self.head_workload(block.name, source, operator) for source in self.layout.sources[block.name])
                if block.stack:
                    found.add(self.stack_workload(block.name, operator))
        return frozenset(found)

    def blueprint(self, architecture: Architecture) -> Blueprint:
        path = self._path(architecture)
        placed = [(f"stem{index}", workload) for index, workload in enumerate(self.stem_workloads())]
        for source, block in pairwise(path[:-1]):
            operator = architecture.choices[head(block, source)]
            placed.append((f"{block}/head", self.head_workload(block, source, operator)))
            for number, name in enumerate(stacked(self.layout.node[block]), 1):
                if (operator := architecture.choices[name]) != SKIP:
                    placed.append((f"{block}/stack{number}", self.stack_workload(block, operator)))
        placed += self.ending_workloads(path[-2]).items()
        before = ["images", *(name for name, _ in placed)]
        layers = (Layer(name, workload, (source,)) for (name, workload), source in zip(placed, before, strict=False))
        return Blueprint(tuple(layers), self.image_shape)

    def supernet(self, plan: SupernetPlan) -> Supernet:
        return DenseSupernet(self, plan)

    def search_only(self, supernet: Supernet) -> tuple[nn.Module, ...]:
        assert isinstance(supernet, DenseSupernet)
        return () if self.kind.keeps_last_convolution else tuple(supernet.last.values())

    # ---- choices ---------------------------------------------------------------------------------------------------

    def _path(self, architecture: Architecture) -> list[str]:
        """The nodes from the stem to the last; raises ``DocumentError`` unless exactly their decisions are made."""
        choices = architecture.choices
        options = {decision.name: decision.options for decision in self.decisions}
        for name, option in choices.items():
            if name not in options:
                raise DocumentError(f"architecture: no decision {name!r} in this space{nearest_hint(name, options)}")
            if option not in options[name]:
                near = nearest_hint(option, options[name])
                raise DocumentError(f"architecture: {name} is {option!r}{near}; it can be {', '.join(options[name])}")
        path, made = [STEM], set[str]()
        while path[-1] != LAST:
            source = path[-1]
            needed = [route(source)]
            if len(path) > 1:
                needed += [head(source, path[-2]), *stacked(self.layout.node[source])]
            missing = [name for name in needed if name not in choices]
            if missing:
                raise DocumentError(f"architecture: its path leads through {source}, but {missing[0]} is not chosen")
            made.update(needed)
            path.append(choices[route(source)])
        if off := sorted(choices.keys() - made):
            raise DocumentError(f"architecture: {off[0]} is chosen, but the path does not lead there ({' > '.join(path)})")
        return path

    def _choices_on(self, path: Sequence[str], choose: Mapping[str, str]) -> Architecture:
        """The architecture on ``path`` with the operators of ``choose``, which may name others too."""
        found = {route(source): target for source, target in pairwise(path)}
        for source, block in pairwise(path[:-1]):
            for name in (head(block, source), *stacked(self.layout.node[block])):
                found[name] = choose[name]
        return self.architecture(found.items())

    def random_architecture(self, generator: random.Random) -> Architecture:
        """A path drawn uniformly over all paths, then each of its operators uniformly."""
        ways = {LAST: 1}
        for node, targets in reversed(self.layout.routes.items()):
            ways[node] = sum(ways[target] for target in targets)
        path = [STEM]
        while path[-1] != LAST:
            targets = self.layout.routes[path[-1]]
            path += generator.choices(targets, [ways[target] for target in targets])
        return self._choices_on(path, {d.name: generator.choice(d.options) for d in self.decisions if d.kind == "op"})

    def one_hot(self, architecture: Architecture) -> dict[str, Tensor]:
        """A decision off the path has equally likely options: nothing leads there."""
        self._path(architecture)
        probabilities = {}
        for decision in self.decisions:
            row = [float(option == architecture.choices.get(decision.name)) for option in decision.options]
            uniform = [1 / len(row)] * len(row)
            probabilities[decision.name] = torch.tensor(row if any(row) else uniform, dtype=torch.float64)
        return probabilities

    def decode(self, probabilities: Probabilities) -> Architecture:
        """The path with the largest product of ``k p`` over its routes (Viterbi), and on it the likeliest operators.

        A route of probability ``p`` is one of ``k`` that leave its block, so that an undecided one neither helps nor harms its
        path, however long that is. Ties go to the nearer source and to the earlier operator.
        """
        rows = {name: row.detach().cpu().double().tolist() for name, row in probabilities.items()}
        best, came_from = {STEM: 1.0}, dict[str, str]()
        for node, sources in self.layout.sources.items():
            for source in sources:
                targets = self.layout.routes[source]
                reached = best[source] * len(targets) * rows[route(source)][targets.index(node)]
                if node not in best or reached > best[node]:
                    best[node], came_from[node] = reached, source
        path = [LAST]
        while path[-1] != STEM:
            path.append(came_from[path[-1]])
        likeliest = {d.name: d.options[int(np.argmax(rows[d.name]))] for d in self.decisions if d.kind == "op"}
        return self._choices_on(path[::-1], likeliest)

    # ---- costs -----------------------------------------------------------------------------------------------------

    def option_costs(self, cost: Mapping[Workload, float]) -> OptionCosts:
        """The route to the last node carries what depends on the last block: its convolution and its classifier."""
        options: dict[str, np.ndarray] = {}
        for source, targets in self.layout.routes.items():
            options[route(source)] = np.array(
                [sum(cost[w] for w in self.ending_workloads(source).values()) if target == LAST else 0.0 for target in targets]
            )
        heads = self.heads
        for block in self.layout.searched:
            for source in self.layout.sources[block.name]:
                costs = [cost[self.head_workload(block.name, source, operator)] for operator in heads]
                options[head(block.name, source)] = np.array(costs)
            for name in stacked(block):
                options[name] = np.array([*(cost[self.stack_workload(block.name, operator)] for operator in heads), 0.0])
        return OptionCosts(sum(cost[workload] for workload in self.stem_workloads()), options)

    def expected_cost(self, probabilities: Probabilities, costs: OptionCosts, temperature: float = 1.0) -> Tensor:
        """The expectation over all paths, chained from the last node back, as in the paper.

        A temperature ``t`` below 1 sharpens the distribution over whole paths towards the decoded one: a route out of ``k``
        weighs ``p (k p)^(1/t - 1)``, normalised over whole paths.
        """
        own = self._expected_per_decision(probabilities, costs)
        zero = next(iter(probabilities.values())).new_zeros((), dtype=torch.float64)
        onward, log_mass = {LAST: zero}, {LAST: zero}
        for source, targets in reversed(self.layout.routes.items()):
            row = probabilities[route(source)].double().clamp_min(LEAST_PROBABILITY)
            weight = row.log() / temperature + (1 / temperature - 1) * math.log(len(targets))
            mass = weight + torch.stack([log_mass[target] for target in targets])
            log_mass[source] = mass.logsumexp(dim=0)
            ahead = torch.as_tensor(costs.options[route(source)]).to(row) + torch.stack(
                [onward[target] + (own[head(target, source)] if target != LAST else 0.0) for target in targets]
            )
            onward[source] = ((mass - log_mass[source]).exp() * ahead).sum()
            onward[source] = sum((own[name] for name in stacked(self.layout.node[source])), onward[source])
        return costs.fixed + onward[STEM]

    def _expected_per_decision(self, probabilities: Probabilities, costs: OptionCosts) -> dict[str, Tensor]:
        """``sum over o of p_o cost_o`` of every operator decision, all in one go."""
        names = [decision.name for decision in self.decisions if decision.kind == "op"]
        rows = torch.cat([probabilities[name] for name in names]).double()
        cost = torch.cat([torch.as_tensor(costs.options[name]) for name in names]).to(rows)
        place = np.repeat(np.arange(len(names)), [len(costs.options[name]) for name in names])
        summed = rows.new_zeros(len(names)).index_add(0, torch.as_tensor(place, device=rows.device), rows * cost)
        return dict(zip(names, summed.unbind(0), strict=True))

    def derivation_program(self, scores: Mapping[str, np.ndarray], costs: Sequence[OptionCosts] = ()) -> DerivationProgram:
        """One unit flows from the stem to the last node; the operators where it passes are chosen, and only those.

        A longer path is not punished for being long: an operator scores its log probability against the best of its decision,
        a route out of ``k`` its log probability plus ``log k``, which is 0 where nothing is decided.
        """
        variables = [(d.name, option) for d in self.decisions for option in d.options]
        place = {pair: column for column, pair in enumerate(variables)}
        rows: list[np.ndarray] = []

        def balance(enter: Sequence[tuple[str, str]], leave: Sequence[tuple[str, str]]) -> None:
            row = np.zeros(len(variables))
            row[[place[pair] for pair in enter]] += 1
            row[[place[pair] for pair in leave]] -= 1
            rows.append(row)

        def options(decision: str) -> list[tuple[str, str]]:
            return [(decision, option) for option in by_name[decision].options]

        by_name = {decision.name: decision for decision in self.decisions}
        balance((), options(route(STEM)))
        for block in self.layout.searched:
            entering = [(route(source), block.name) for source in self.layout.sources[block.name]]
            balance(entering, options(route(block.name)))
            for pair, source in zip(entering, self.layout.sources[block.name], strict=True):
                balance([pair], options(head(block.name, source)))
            for name in stacked(block):
                balance(entering, options(name))
        bounds = np.zeros(len(rows))
        bounds[0] = -1.0

        def relative(decision: Decision) -> np.ndarray:
            row = scores[decision.name]
            return row + math.log(len(row)) if decision.kind == "route" else row - row.max()

        return DerivationProgram(
            variables=tuple(variables),
            scores=np.concatenate([relative(decision) for decision in self.decisions]),
            rows=np.array(rows),
            lower=bounds,
            upper=bounds,
            costs=np.array([np.concatenate([c.options[d.name] for d in self.decisions]) for c in costs]).reshape(
                -1, len(variables)
            ),
            fixed_costs=np.array([c.fixed for c in costs]),
        )


def densenas_mbv2(image_size: int = 224, image_channels: int = 3, classes: int = 1000, batch: int = 1) -> DenseBlockSpace:
    """The paper's space of mobile networks."""
    return DenseBlockSpace("mbconv", MBV2_BLOCKS, 1984, 4, (), image_size, image_channels, classes, batch)


def dense_small(image_size: int = 32, image_channels: int = 3, classes: int = 10, batch: int = 1) -> DenseBlockSpace:
    """Mobile networks for images of some thirty pixels, small enough to search on a CPU; no 7x7 on maps that are no larger."""
    operators = tuple(name for name in FAMILIES["mbconv"].heads if "k7" not in name)
    return DenseBlockSpace("mbconv", SMALL_BLOCKS, 128, 4, operators, image_size, image_channels, classes, batch)


def densenas_resnet(
    family: str = "basic_block", image_size: int = 224, image_channels: int = 3, classes: int = 1000, batch: int = 1
) -> DenseBlockSpace:
    """The paper's space of ResNets: of basic blocks (DenseNAS-R1, -R2) or of bottlenecks (DenseNAS-R3)."""
    return DenseBlockSpace(family, RESNET_BLOCKS, 512, 10, (), image_size, image_channels, classes, batch)
