"""NAS-Bench-201: cells of four nodes and six edges, one of five operators on each, the same in all cells.

Dong, Yang: NAS-Bench-201, ICLR 2020, arXiv 2001.00326; structure as in the authors' code (D-X-Y/AutoDL-Projects,
``cell_infers/tiny_network.py`` and ``cell_operations.py``). Node 0 is the cell's input, each later node the sum of all
earlier ones through their edges, node 3 the output. Edge ``0-2`` leads from node 0 to node 2. ``none`` may be chosen: an
edge with it is no layer, and a node that nothing enters is zero.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

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
)
from mobilenas.spaces.nas_bench_201_layout import (
    EDGES,
    FOLLOWING,
    INCOMING,
    OPERATORS,
    OUTPUT,
    UNREAD,
    arriving,
    built,
    built_edges,
    built_nodes,
    ends_of,
    leaving,
    rules_of,
)
from mobilenas.spaces.nas_bench_201_supernet import NasBench201Supernet
from mobilenas.supernet import NO_OPERATOR, Supernet

STAGES = 3


@dataclass(frozen=True)
class NasBench201Space(SearchSpace):
    """Three stages of ``cells_per_stage`` equal cells, ``channels`` wide at first; a residual block between two stages
    doubles the channels and halves the resolution.

    The defaults are the published sizes. ``image_size`` is height and width in pixels, from 8 on. What no way leads on from to
    the cell's output is no part of a network, unless ``unread`` is ``"kept"``: the benchmark's own sizes and latencies
    include it. Raises ``UsageError`` for a value out of range.
    """

    channels: int = 16
    cells_per_stage: int = 5
    image_size: int = 32
    image_channels: int = 3
    classes: int = 10
    operators: tuple[str, ...] = OPERATORS
    unread: str = "dropped"
    batch: int = 1

    name: ClassVar[str] = "nas-bench-201"
    traits: ClassVar[frozenset[str]] = frozenset({"cells"})
    proxy: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_numbers(self, channels=1, cells_per_stage=1)
        if self.unread not in UNREAD:
            raise UsageError(f"space.unread is {self.unread!r}; available: {', '.join(UNREAD)}")
        check_operators(self.operators, OPERATORS)
        if not set(self.operators) - {NO_OPERATOR}:
            raise UsageError("space.operators must name at least one operator besides none")

    @property
    def may_collapse(self) -> bool:
        return True

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.image_channels, self.image_size, self.image_size)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(Decision(edge, self.operators, "op") for edge in EDGES)

    def architecture_of_codes(self, codes: Sequence[int]) -> Architecture:
        """The architecture whose edges, in the order of ``EDGES``, have the operators of these codes, 0 to 4.

        Raises ``DocumentError`` for codes that are not six, out of range, or of an operator that this space lacks.
        """
        if len(codes) != len(EDGES) or not all(0 <= code < len(OPERATORS) for code in codes):
            raise DocumentError(f"architecture: codes {list(codes)}; there must be {len(EDGES)} from 0 to {len(OPERATORS) - 1}")
        architecture = self.architecture((edge, OPERATORS[code]) for edge, code in zip(EDGES, codes, strict=True))
        self._check(architecture)
        return architecture

    def codes_of(self, architecture: Architecture) -> tuple[int, ...]:
        """The inverse of ``architecture_of_codes``."""
        self._check(architecture)
        return tuple(OPERATORS.index(architecture.choices[edge]) for edge in EDGES)

    # ---- structure -------------------------------------------------------------------------------------------------

    def _workload(self, operator: str, c_in: int, c_out: int, size: int, stride: int = 1, inputs: int = 1) -> Workload:
        attributes = (("inputs", inputs),) if inputs > 1 else ()
        return Workload(operator, c_in, c_out, size, size, stride, self.batch, attributes)

    def size_of(self, stage: int) -> int:
        """Height and width in pixels in ``stage``, counted from 0."""
        return -(-self.image_size // (1 << stage))

    def edge_workload(self, stage: int, operator: str) -> Workload:
        """``operator`` on any edge of a cell in ``stage``."""
        channels = self.channels * 2**stage
        return self._workload(operator, channels, channels, self.size_of(stage))

    def node_workload(self, stage: int, count: int) -> Workload | None:
        """What a node that ``count`` edges enter adds to them: zeros where none does, a sum where two or more do."""
        channels = self.channels * 2**stage
        if count == 1:
            return None
        return self._workload("sum" if count else "zeros", channels, channels, self.size_of(stage), inputs=max(1, count))

    def possible_counts(self, node: int) -> range:
        """How many edges may enter ``node``."""
        return range(0 if NO_OPERATOR in self.operators else node, node + 1)

    def fixed_workloads(self) -> dict[str, Workload]:
        """What every network has, by the layers' names."""
        narrow, size = self.channels, self.size_of(0)
        found = {"stem": self._workload("stem_cifar", self.image_channels, narrow, size)}
        for stage in range(1, STAGES):
            channels, size = narrow * 2**stage, self.size_of(stage - 1)
            found[f"reduction{stage}"] = self._workload("residual_reduction", channels // 2, channels, size, 2)
        wide = narrow * 2 ** (STAGES - 1)
        return {**found, "head": self._workload("bn_relu_head", wide, self.classes, self.size_of(STAGES - 1))}

    def workloads(self) -> frozenset[Workload]:
        found = {*self.fixed_workloads().values()}
        for stage in range(STAGES):
            found.update(self.edge_workload(stage, operator) for operator in self.operators if operator != NO_OPERATOR)
            nodes = {self.node_workload(stage, count) for node in INCOMING for count in self.possible_counts(node)}
            found.update(workload for workload in nodes if workload is not None)
        return frozenset(found)

    def body(self) -> Iterator[tuple[str, int]]:
        """What lies between stem and head, in order: a layer's or a cell's name, and its stage."""
        for stage in range(STAGES):
            if stage:
                yield f"reduction{stage}", stage
            for place in range(self.cells_per_stage):
                yield f"cell{stage * self.cells_per_stage + place}", stage

    def blueprint(self, architecture: Architecture) -> Blueprint:
        self._check(architecture)
        fixed = self.fixed_workloads()
        layers = [Layer("stem", fixed["stem"], ("images",))]
        last = "stem"
        for name, stage in self.body():
            if name in fixed:
                layers.append(Layer(name, fixed[name], (last,)))
                last = name
            else:
                cell, last = self._cell(name, stage, last, architecture.choices)
                layers += cell
        return Blueprint((*layers, Layer("head", fixed["head"], (last,))), self.image_shape)

    def _cell(self, name: str, stage: int, source: str, choices: Mapping[str, str]) -> tuple[list[Layer], str]:
        """The layers of one cell that reads ``source``, and the name of the layer that is its output."""
        layers, nodes, operators = list[Layer](), {0: source}, built_edges(choices, self.unread)
        for node in built_nodes(choices, self.unread):
            entering = [edge for edge in INCOMING[node] if edge in operators]
            inputs = tuple(f"{name}/edge{edge}" for edge in entering)
            for edge, layer in zip(entering, inputs, strict=True):
                layers.append(Layer(layer, self.edge_workload(stage, operators[edge]), (nodes[ends_of(edge)[0]],)))
            workload = self.node_workload(stage, len(inputs))
            if workload is not None:
                layers.append(Layer(f"{name}/node{node}", workload, inputs or (source,)))
            nodes[node] = layers[-1].name
        return layers, nodes[OUTPUT]

    def supernet(self, plan: SupernetPlan) -> Supernet:
        return NasBench201Supernet(self, plan)

    # ---- choices ---------------------------------------------------------------------------------------------------

    def _check(self, architecture: Architecture) -> None:
        """Raise ``DocumentError`` unless each edge, and nothing else, has one of the operators."""
        for name, operator in architecture.choices.items():
            if name not in EDGES:
                raise DocumentError(f"architecture: no edge {name!r} in this space{nearest_hint(name, EDGES)}")
            if operator not in self.operators:
                near = nearest_hint(operator, self.operators)
                raise DocumentError(f"architecture: edge {name} has the unknown operator {operator!r}{near}")
        for edge in EDGES:
            if edge not in architecture.choices:
                raise DocumentError(
                    f"architecture: edge {edge} has no operator; where there is to be none, say {NO_OPERATOR!r}"
                )

    def architecture(self, choices: Iterable[tuple[str, str]]) -> Architecture:
        """The architecture with the given pairs; what else a derivation says follows from them and is left out."""
        return super().architecture((name, option) for name, option in choices if name not in FOLLOWING)

    def random_architecture(self, generator: random.Random) -> Architecture:
        return self.architecture((edge, generator.choice(self.operators)) for edge in EDGES)

    def one_hot(self, architecture: Architecture) -> dict[str, Tensor]:
        self._check(architecture)
        return {
            edge: torch.tensor([float(o == architecture.choices[edge]) for o in self.operators], dtype=torch.float64)
            for edge in EDGES
        }

    def decode(self, probabilities: Probabilities) -> Architecture:
        """Per edge the likeliest operator, ``none`` included, as in the authors' search code; ties go to the earlier.

        As there, nothing sees to it that a way leads from the cell's input to its output: that is the derivation's rule.
        """
        rows = {edge: probabilities[edge].detach().cpu().double().tolist() for edge in EDGES}
        return self.architecture((edge, self.operators[row.index(max(row))]) for edge, row in rows.items())

    # ---- costs -----------------------------------------------------------------------------------------------------

    def option_costs(self, cost: Mapping[Workload, float]) -> OptionCosts:
        """Besides the edges' options: per node what it costs to have 0, 1, ... edges enter it (``node2.arriving``)."""
        options = {}
        row = np.zeros(len(self.operators))
        for index, operator in enumerate(self.operators):
            if operator != NO_OPERATOR:
                row[index] = self.cells_per_stage * sum(cost[self.edge_workload(stage, operator)] for stage in range(STAGES))
        for node, edges in INCOMING.items():
            options.update(dict.fromkeys(edges, row))
            counts = np.zeros(node + 1)
            for count in self.possible_counts(node):
                added = [self.node_workload(stage, count) for stage in range(STAGES)]
                counts[count] = self.cells_per_stage * sum(cost[workload] for workload in added if workload is not None)
            options[arriving(node)] = counts
        return OptionCosts(sum(cost[workload] for workload in self.fixed_workloads().values()), options)

    def expected_cost(self, probabilities: Probabilities, costs: OptionCosts, temperature: float = 1.0) -> Tensor:
        """The mean over all architectures, each edge's operator being drawn by itself; ``none`` keeps its probability.

        A node costs what the operators on its edges do and what adds them up, times its chance of being built. That is a
        matter of other edges, so the product is exact. There is nothing for the temperature to sharpen: all decisions are
        always made. Costs of how many edges enter a node may be left out.
        """
        is_none = [float(operator == NO_OPERATOR) for operator in self.operators]
        total = next(iter(probabilities.values())).new_tensor(costs.fixed, dtype=torch.float64)
        absent = {edge: row.double() @ row.new_tensor(is_none, dtype=torch.float64) for edge, row in probabilities.items()}
        chance = dict[int, Tensor]()
        for node in sorted(INCOMING, reverse=True):
            edges = INCOMING[node]
            rows = torch.stack([probabilities[edge] for edge in edges]).double()
            cost = (rows * torch.stack([torch.as_tensor(costs.options[edge]) for edge in edges]).to(rows)).sum()
            if arriving(node) in costs.options:
                counts = arrival_chances(torch.stack([absent[edge] for edge in edges]))
                cost = cost + (counts * torch.as_tensor(costs.options[arriving(node)]).to(counts)).sum()
            chance[node] = torch.ones_like(total)
            if node != OUTPUT and self.unread == "dropped":
                unread = [1 - (1 - absent[edge]) * chance[end] for edge, end in leaving(node).items()]
                chance[node] = 1 - torch.stack(unread).prod()
            total = total + chance[node] * cost
        return total

    def derivation_program(self, scores: Mapping[str, np.ndarray], costs: Sequence[OptionCosts] = ()) -> DerivationProgram:
        """One operator an edge, with a way from the cell's input to its output; the costs are those of what is built.

        An operator of ``k`` scores its log probability plus ``log k``, which is 0 where nothing is decided.
        """
        rules = rules_of(self.operators, self.unread)
        sources = {**{built(edge): edge for edge in EDGES}, **{arriving(node): arriving(node) for node in INCOMING}}
        blank = {name: np.zeros(sum(name == other for other, _ in rules.variables)) for name, _ in rules.variables}

        def column(known: Mapping[str, np.ndarray]) -> np.ndarray:
            return np.concatenate([known.get(name, zeros) for name, zeros in blank.items()])

        prices = [column({name: cost.options[source] for name, source in sources.items()}) for cost in costs]
        return DerivationProgram(
            variables=rules.variables,
            scores=column({edge: scores[edge] + math.log(len(self.operators)) for edge in EDGES}),
            rows=rules.rows,
            lower=rules.lower,
            upper=rules.upper,
            costs=np.array(prices).reshape(-1, len(rules.variables)),
            fixed_costs=np.array([cost.fixed for cost in costs]),
        )


def arrival_chances(absent: Tensor) -> Tensor:
    """Chance ``(E + 1,)`` that 0, 1, ... of ``E`` edges are there, each being absent by itself with that in ``absent (E,)``."""
    chances = [torch.ones_like(absent[0])]
    for chance in absent:
        zero = torch.zeros_like(chance)
        chances = [a * chance + b * (1 - chance) for a, b in zip([*chances, zero], [zero, *chances], strict=True)]
    return torch.stack(chances)
