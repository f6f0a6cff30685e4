"""The DARTS cell space: a normal and a reduction cell of four nodes, stacked.

Liu, Simonyan, Yang: DARTS, ICLR 2019, arXiv 1806.09055, section 2.1 and appendix A. A cell's nodes 0 and 1 are the
outputs of the two cells before it; each later node is the sum of two earlier ones, each through one operator; the
cell's output is the concatenation of the later nodes. Edges are named ``normal.0-2``: cell type, source, node.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from mobilenas import ops
from mobilenas.core.architecture import Architecture, Decision
from mobilenas.core.workload import Blueprint, Layer, Workload
from mobilenas.errors import DocumentError, IncompatibleError, UsageError, nearest_hint
from mobilenas.spaces.base import (
    DerivationProgram,
    OptionCosts,
    Probabilities,
    SearchSpace,
    SupernetPlan,
    check_numbers,
    check_operators,
)
from mobilenas.spaces.cell_supernet import CellSupernet
from mobilenas.spaces.merged_edges import MergedEdges
from mobilenas.supernet import NO_OPERATOR, Supernet

OPERATORS = (
    NO_OPERATOR,
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The eight candidates of every edge, in the order of DARTS's logits."""

STEMS = ("cifar", "imagenet")
REDUCTIONS = ("searched", "fixed")
KEPT_EDGES = 2
"""How many incoming edges a node keeps."""


@dataclass(frozen=True)
class CellPlace:
    """One cell at its place in the stack. ``source_channels`` and ``source_sizes`` are those of its two inputs."""

    index: int
    kind: str
    channels: int
    source_channels: tuple[int, int]
    source_sizes: tuple[int, int]

    @property
    def size(self) -> int:
        """Height and width of the cell's input nodes in pixels."""
        return self.source_sizes[1]

    @property
    def out_size(self) -> int:
        """Height and width of the cell's output in pixels."""
        return -(-self.size // 2) if self.kind == "reduce" else self.size


@dataclass(frozen=True)
class CellSpace(SearchSpace):
    """Networks of ``layers`` cells, ``channels`` wide at first and doubled by the reductions at 1/3 and 2/3 of the depth.

    ``image_size`` is height and width in pixels; any size from 8 on works, odd ones included. ``stem`` is ``"cifar"``
    (one convolution) or ``"imagenet"`` (three of stride 2). ``reduction`` is ``"searched"``, or ``"fixed"`` for GDAS's fixed
    reduction cell (arXiv 1910.04465), which needs channels divisible by 4. ``operators`` are DARTS's unless some are named;
    operators of plug-ins may be among them, which keep the channels at stride 1 and 2. Raises ``UsageError`` for a value out
    of range.
    """

    channels: int = 16
    layers: int = 8
    image_size: int = 32
    image_channels: int = 3
    classes: int = 10
    stem: str = "cifar"
    nodes: int = 4
    reduction: str = "searched"
    operators: tuple[str, ...] = OPERATORS
    batch: int = 1

    name: ClassVar[str] = "cells"
    traits: ClassVar[frozenset[str]] = frozenset({"cells", "edge normalisation", "partial channels", "skips"})

    def __post_init__(self) -> None:
        check_numbers(self, channels=2, layers=3, image_size=8 if self.stem == "cifar" else 32, nodes=1)
        for name, value, known in (("stem", self.stem, STEMS), ("reduction", self.reduction, REDUCTIONS)):
            if value not in known:
                raise UsageError(f"space.{name} is {value!r}; available: {', '.join(known)}")
        if self.reduction == "fixed" and (self.nodes != 4 or 2 * self.channels % ops.FIXED_REDUCE_GROUPS):
            raise UsageError(
                f"space.channels is {self.channels}, space.nodes {self.nodes}; a fixed reduction cell has 4 nodes "
                f"and needs channels divisible by {ops.FIXED_REDUCE_GROUPS // 2}"
            )
        check_operators(self.operators, (*OPERATORS, *ops.OPERATORS.plug_ins))
        if not set(self.operators) - {NO_OPERATOR}:
            raise UsageError("space.operators must name at least one operator besides none")

    @property
    def may_collapse(self) -> bool:
        return self.reduction == "searched"

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.image_channels, self.image_size, self.image_size)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        entering = [item for kind in self.kinds for item in self.incoming(kind).items()]
        edges = [Decision(edge, self.operators, "op") for _, edges in entering for edge in edges]
        inputs = [Decision(node, tuple(map(str, range(len(edges)))), "input") for node, edges in entering]
        return (*edges, *inputs)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of cell that are searched."""
        return ("normal",) if self.reduction == "fixed" else ("normal", "reduce")

    def incoming(self, kind: str) -> dict[str, list[str]]:
        """The nodes of a cell of type ``kind``, each with the edges that enter it, by source."""
        return {f"{kind}.node{node}": [_edge(kind, source, node) for source in range(node)] for node in self._nodes}

    @property
    def stem_channels(self) -> int:
        """Channels of the stem's output."""
        return 3 * self.channels if self.stem == "cifar" else self.channels

    @property
    def _nodes(self) -> range:
        return range(2, 2 + self.nodes)

    def places(self) -> Iterator[CellPlace]:
        """The stacked cells in order (section 1.3 of the paper's appendix: reductions at 1/3 and 2/3 of the depth)."""
        channels = self.channels
        source_channels = (self.stem_channels, self.stem_channels)
        if self.stem == "cifar":
            source_sizes = (self.image_size, self.image_size)
        else:
            source_sizes = (-(-self.image_size // 4), -(-self.image_size // 8))
        for index in range(self.layers):
            reduces = index in (self.layers // 3, 2 * self.layers // 3)
            channels *= 2 if reduces else 1
            place = CellPlace(index, "reduce" if reduces else "normal", channels, source_channels, source_sizes)
            yield place
            source_channels = (source_channels[1], self.nodes * channels)
            source_sizes = (source_sizes[1], place.out_size)

    def searched_places(self) -> Iterator[CellPlace]:
        """The cells whose edges are searched."""
        return (place for place in self.places() if place.kind in self.kinds)

    # ---- structure -------------------------------------------------------------------------------------------------

    def blueprint(self, architecture: Architecture) -> Blueprint:
        edges = self._kept_edges(architecture)
        places = list(self.places())
        layers = [Layer(name, workload, inputs) for name, workload, inputs in self._stem_layers()]
        outputs = [layers[0].name, layers[-1].name]
        for place in places:
            layers += self._cell_layers(place, edges.get(place.kind), outputs)
            outputs = [outputs[1], layers[-1].name]
        layers.append(Layer("head", self._head(places[-1]), (outputs[1],)))
        return Blueprint(tuple(layers), self.image_shape, _cell(2 * self.layers // 3, "concat"))

    def _stem_layers(self) -> list[tuple[str, Workload, tuple[str, ...]]]:
        size, channels = self.image_size, self.stem_channels
        if self.stem == "cifar":
            return [("stem", self._workload("stem_cifar", self.image_channels, channels, size), ("images",))]
        first = self._workload("stem_imagenet", self.image_channels, channels, size, 4)
        second = self._workload("stem_imagenet_second", channels, channels, -(-size // 4), 2)
        return [("stem", first, ("images",)), ("stem_second", second, ("stem",))]

    def _cell_layers(
        self, place: CellPlace, edges: Mapping[int, Mapping[int, str]] | None, sources: Sequence[str]
    ) -> list[Layer]:
        layers = [
            Layer(_cell(place.index, f"preprocess{i}"), self.preprocess_workload(place, i), (sources[i],)) for i in (0, 1)
        ]
        states = [layer.name for layer in layers]
        if edges is None:
            for index, workload in enumerate(self.fixed_branches(place)):
                inputs = (states[index % 2],)
                layers.append(Layer(_cell(place.index, f"branch{index}"), workload, inputs, may_drop=True))
            branches = tuple(layer.name for layer in layers[2:])
            return [*layers, Layer(_cell(place.index, "concat"), self._concat(place), branches)]
        for node in self._nodes:
            names = []
            for source, operator in sorted(edges[node].items()):
                names.append(_cell(place.index, f"edge{source}-{node}"))
                workload = self.edge_workload(place, source, operator)
                layers.append(Layer(names[-1], workload, (states[source],), may_drop=True))
            states.append(_cell(place.index, f"node{node}"))
            layers.append(Layer(states[-1], self._sum(place), tuple(names)))
        return [*layers, Layer(_cell(place.index, "concat"), self._concat(place), tuple(states[2:]))]

    def _workload(
        self,
        operator: str,
        c_in: int,
        c_out: int,
        size: int,
        stride: int = 1,
        attributes: tuple[tuple[str, int], ...] = (),
    ) -> Workload:
        return Workload(operator, c_in, c_out, size, size, stride, self.batch, attributes)

    def preprocess_workload(self, place: CellPlace, which: int) -> Workload:
        """What brings input ``which`` (0 or 1) of a cell to its channels, and input 0 to the size of input 1."""
        c_in, size = place.source_channels[which], place.source_sizes[which]
        if size != place.size:
            return self._workload("factorized_reduce", c_in, place.channels, size, 2)
        return self._workload("relu_conv1x1_bn", c_in, place.channels, size)

    def edge_workload(self, place: CellPlace, source: int, operator: str) -> Workload:
        """``operator`` on the edges that leave ``source`` in this cell; of stride 2 from a reduction cell's inputs."""
        reduces = place.kind == "reduce" and source < 2
        size = place.size if source < 2 else place.out_size
        return self._workload(operator, place.channels, place.channels, size, 2 if reduces else 1)

    def fixed_branches(self, place: CellPlace) -> list[Workload]:
        """The four nodes of a fixed reduction cell: convolutions of its two inputs, then pools of them."""
        operators = ("fixed_reduce_conv", "fixed_reduce_conv", "fixed_reduce_pool", "fixed_reduce_pool")
        return [self._workload(name, place.channels, place.channels, place.size, 2) for name in operators]

    def _concat(self, place: CellPlace) -> Workload:
        inputs = (("inputs", self.nodes),)
        return self._workload("concat", place.channels, self.nodes * place.channels, place.out_size, attributes=inputs)

    def _sum(self, place: CellPlace) -> Workload:
        return self._workload("sum", place.channels, place.channels, place.out_size, attributes=(("inputs", KEPT_EDGES),))

    def _head(self, last: CellPlace) -> Workload:
        return self._workload("head", self.nodes * last.channels, self.classes, last.out_size)

    def workloads(self) -> frozenset[Workload]:
        fixed = {layer.workload for layer in self.fixed_layers}
        edges = {
            self.edge_workload(place, source, operator)
            for place in self.searched_places()
            for source in range(1 + self.nodes)
            for operator in self.operators
            if operator != NO_OPERATOR
        }
        return frozenset(fixed | edges)

    @cached_property
    def fixed_layers(self) -> tuple[Layer, ...]:
        """The layers that every network of the space has: an arbitrary one's without its edges."""
        whole = self.blueprint(self.random_architecture(random.Random(0)))
        return tuple(layer for layer in whole.layers if "/edge" not in layer.name)

    def auxiliary_head(self, architecture: Architecture, second_norm: bool = False) -> nn.Module:
        place = list(self.places())[2 * self.layers // 3]
        return ops.auxiliary_head(self.nodes * place.channels, place.out_size, self.classes, second_norm)

    def supernet(self, plan: SupernetPlan) -> Supernet:
        if plan.size is None:
            return CellSupernet(self, plan)
        if self.reduction == "fixed" and 2 * plan.size.channels % ops.FIXED_REDUCE_GROUPS:
            raise IncompatibleError(
                f"supernet.channels is {plan.size.channels}; a fixed reduction cell needs channels divisible by "
                f"{ops.FIXED_REDUCE_GROUPS // 2}"
            )
        options = {**self.options, "channels": plan.size.channels, "layers": plan.size.layers}
        return CellSupernet(CellProxy(**cast(Any, options)), plan)

    def search_only(self, supernet: Supernet) -> tuple[nn.Module, ...]:
        return tuple(module.pool_norm for module in supernet.modules() if isinstance(module, MergedEdges))

    # ---- choices ---------------------------------------------------------------------------------------------------

    def _kept_edges(self, architecture: Architecture) -> dict[str, dict[int, dict[int, str]]]:
        """``kind -> node -> source -> operator``; raises ``DocumentError`` where a node has not its legal edges."""
        decisions = {decision.name for decision in self.decisions if decision.kind == "op"}
        edges: dict[str, dict[int, dict[int, str]]] = {k: {n: {} for n in self._nodes} for k in self.kinds}
        for name, operator in architecture.choices.items():
            if name not in decisions:
                raise DocumentError(f"architecture: no edge {name!r} in this space{nearest_hint(name, decisions)}")
            if operator not in self.operators or operator == NO_OPERATOR:
                near = nearest_hint(operator, self.operators)
                raise DocumentError(f"architecture: edge {name} has the unknown operator {operator!r}{near}")
            kind, source, node = _parse_edge(name)
            edges[kind][node][source] = operator
        for kind, by_node in edges.items():
            for node, kept in by_node.items():
                if len(kept) != KEPT_EDGES:
                    raise DocumentError(
                        f"architecture: node {node} of the {kind} cell has {len(kept)} incoming edges, not {KEPT_EDGES}"
                    )
        return edges

    def random_architecture(self, generator: random.Random) -> Architecture:
        operators = [operator for operator in self.operators if operator != NO_OPERATOR]
        return self.architecture(
            (_edge(kind, source, node), generator.choice(operators))
            for kind in self.kinds
            for node in self._nodes
            for source in generator.sample(range(node), KEPT_EDGES)
        )

    def one_hot(self, architecture: Architecture) -> dict[str, Tensor]:
        """A dropped edge is certain of ``none``; in a space without ``none`` its operators are equally likely.

        A node's inputs need no probabilities where its edges are certain.
        """
        self._kept_edges(architecture)
        probabilities = {}
        for decision in (d for d in self.decisions if d.kind == "op"):
            chosen = architecture.choices.get(decision.name, NO_OPERATOR)
            row = [float(option == chosen) for option in decision.options]
            uniform = [1 / len(row)] * len(row)
            probabilities[decision.name] = torch.tensor(row if any(row) else uniform, dtype=torch.float64)
        return probabilities

    def decode(self, probabilities: Probabilities) -> Architecture:
        """DARTS section 2.4: per node the two edges with the likeliest operator other than ``none``, and that operator.

        An edge's strength is its operator's probability times, with edge normalisation, its own (PC-DARTS).
        Ties go to the lower source and the earlier operator.
        """
        choices = []
        for kind in self.kinds:
            for node, names in self.incoming(kind).items():
                inputs = probabilities.get(node)
                ranked = []
                for source, name in enumerate(names):
                    row = probabilities[name].detach().cpu().double()
                    best = max(self._real_options, key=row.tolist().__getitem__)
                    strength = float(row[best]) * (1.0 if inputs is None else float(inputs[source]))
                    ranked.append((-strength, source, name, self.operators[best]))
                choices += [(name, operator) for _, _, name, operator in sorted(ranked)[:KEPT_EDGES]]
        return self.architecture(choices)

    @property
    def _real_options(self) -> list[int]:
        return [index for index, operator in enumerate(self.operators) if operator != NO_OPERATOR]

    # ---- costs -----------------------------------------------------------------------------------------------------

    def option_costs(self, cost: Mapping[Workload, float]) -> OptionCosts:
        fixed = sum(cost[layer.workload] for layer in self.fixed_layers)
        options = {decision.name: np.zeros(len(self.operators)) for decision in self.decisions if decision.kind == "op"}
        for place in self.searched_places():
            for names in self.incoming(place.kind).values():
                for source, name in enumerate(names):
                    for index in self._real_options:
                        options[name][index] += cost[self.edge_workload(place, source, self.operators[index])]
        return OptionCosts(fixed, options)

    def expected_cost(self, probabilities: Probabilities, costs: OptionCosts, temperature: float = 1.0) -> Tensor:
        """Operators renormalised without ``none``, each edge weighted by the probability that its node keeps it."""
        total = torch.tensor(costs.fixed, dtype=torch.float64)
        for kind in self.kinds:
            for node, names in self.incoming(kind).items():
                real = torch.stack([probabilities[name] for name in names])[:, self._real_options].double()
                cost = torch.stack([torch.as_tensor(costs.options[name]) for name in names])[:, self._real_options]
                operators = real / real.sum(dim=1, keepdim=True).clamp_min(1e-12)
                strengths = real.amax(dim=1)
                if (inputs := probabilities.get(node)) is not None:
                    strengths = strengths * inputs.double()
                kept = keep_two_probabilities(strengths, temperature)
                total = total.to(real.device) + (kept * (operators * cost.to(real)).sum(dim=1)).sum()
        return total

    def derivation_program(self, scores: Mapping[str, np.ndarray], costs: Sequence[OptionCosts] = ()) -> DerivationProgram:
        """At most one operator an edge and exactly two edges a node. The score of (edge, operator) is its log probability:
        the operator's against the edge's best, plus the edge's strength, which is that of its best; and ``log k`` for its
        ``k`` operators, so that it is 0 where nothing is decided. Where a node's inputs have scores of their own, they add to
        the strength in the same way.
        """
        pairs = [(d.name, index) for d in self.decisions if d.kind == "op" for index in self._real_options]
        edges = list(dict.fromkeys(name for name, _ in pairs))
        nodes = list(dict.fromkeys(_parse_edge(name)[::2] for name in edges))
        rows = np.zeros((len(edges) + len(nodes), len(pairs)))
        for column, (name, _) in enumerate(pairs):
            rows[edges.index(name), column] = 1
            rows[len(edges) + nodes.index(_parse_edge(name)[::2]), column] = 1
        return DerivationProgram(
            variables=tuple((name, self.operators[index]) for name, index in pairs),
            scores=np.array([_against_undecided(scores[name], index) + _input_score(name, scores) for name, index in pairs]),
            rows=rows,
            lower=np.array([0.0] * len(edges) + [KEPT_EDGES] * len(nodes)),
            upper=np.array([1.0] * len(edges) + [KEPT_EDGES] * len(nodes)),
            costs=np.array([[c.options[name][index] for name, index in pairs] for c in costs]).reshape(-1, len(pairs)),
            fixed_costs=np.array([c.fixed for c in costs]),
        )


@dataclass(frozen=True)
class CellProxy(CellSpace):
    """What is trained while searching, where it is smaller: its stem is three times as wide, also for ImageNet (PC-DARTS)."""

    @property
    def stem_channels(self) -> int:
        return 3 * self.channels


def keep_two_probabilities(strengths: Tensor, temperature: float) -> Tensor:
    """Chance of each edge ``(E,)`` to be among two drawn without replacement, proportionally to ``strengths^(1/t)``.

    With p the normalised powers, ``p_e + sum over j != e of p_j p_e / (1 - p_j)``. The sum is 2 for two edges or more.
    """
    logits = strengths.clamp_min(1e-12).log() / temperature
    log_p = logits.log_softmax(dim=0)
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    # 1 - p_j as the sum of the others: a difference would lose an edge whose rival is nearly certain
    log_rest = log_p.expand(len(logits), -1).masked_fill(itself, -torch.inf).logsumexp(dim=1)
    second = (log_p[:, None] + (log_p - log_rest)[None, :]).masked_fill(itself, -torch.inf).exp()
    return log_p.exp() + second.sum(dim=1)


def _input_score(edge: str, scores: Mapping[str, np.ndarray]) -> float:
    kind, source, node = _parse_edge(edge)
    inputs = scores.get(f"{kind}.node{node}")
    return 0.0 if inputs is None else _against_undecided(inputs, source)


def _against_undecided(row: np.ndarray, index: int) -> float:
    """How far a log probability lies above that of options which are all equally likely."""
    return float(row[index]) + math.log(len(row))


def _edge(kind: str, source: int, node: int) -> str:
    return f"{kind}.{source}-{node}"


def _parse_edge(name: str) -> tuple[str, int, int]:
    kind, _, ends = name.partition(".")
    source, _, node = ends.partition("-")
    return kind, int(source), int(node)


def _cell(index: int, part: str) -> str:
    return f"cell{index}/{part}"
