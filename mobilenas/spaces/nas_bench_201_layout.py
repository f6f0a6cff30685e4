"""The one cell of NAS-Bench-201: its nodes and edges, what of it is built, and what may be chosen together.

Dong, Yang, ICLR 2020, arXiv 2001.00326. Node 0 is the cell's input and node 3 its output. Edge ``0-2`` leads from node 0 to
node 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mobilenas.supernet import NO_OPERATOR

OPERATORS = (NO_OPERATOR, "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The published operators; an operator's code is its place."""
INCOMING = {1: ("0-1",), 2: ("0-2", "1-2"), 3: ("0-3", "1-3", "2-3")}
"""The edges that enter each node, by source."""
EDGES = tuple(edge for edges in INCOMING.values() for edge in edges)
"""In the order of the published strings and codes."""
OUTPUT = 3
"""The node that is the cell's output."""
UNREAD = ("dropped", "kept")
"""What becomes of nodes and operators that no way leads on from to the output."""


def ends_of(edge: str) -> tuple[int, int]:
    """The node that ``edge`` leaves and the one that it enters."""
    source, _, node = edge.partition("-")
    return int(source), int(node)


def leaving(node: int) -> dict[str, int]:
    """The edges that leave ``node``, and where they lead."""
    return {edge: ends_of(edge)[1] for edge in EDGES if ends_of(edge)[0] == node}


def built_nodes(choices: Mapping[str, str], unread: str) -> list[int]:
    """The nodes, in order, that a cell of these ``choices`` has: all, or those that a way leads on from to the output."""
    if unread == "kept":
        return list(INCOMING)
    built = {OUTPUT}
    for node in sorted(INCOMING, reverse=True):
        if any(choices[edge] != NO_OPERATOR and end in built for edge, end in leaving(node).items()):
            built.add(node)
    return sorted(built)


def built_edges(choices: Mapping[str, str], unread: str) -> dict[str, str]:
    """The edges that a cell of these ``choices`` has, with their operators."""
    entering = (edge for node in built_nodes(choices, unread) for edge in INCOMING[node])
    return {edge: choices[edge] for edge in entering if choices[edge] != NO_OPERATOR}


# ---- variables of a derivation program -----------------------------------------------------------------------------------


def arriving(node: int) -> str:
    """How many edges enter ``node``, where it is built: ``"0"``, ``"1"``, ..."""
    return f"node{node}.arriving"


def built(part: int | str) -> str:
    """Whether a node is built (``"yes"``); the operator of an edge, where the node that it enters is built."""
    return f"node{part}.built" if isinstance(part, int) else f"{part}.built"


FOLLOWING = frozenset({*map(built, EDGES), *map(built, INCOMING), *map(arriving, INCOMING)})
"""Names of what follows from the choices: no decisions, but a linear program needs variables for them."""


@dataclass(frozen=True)
class Rules:
    """``lower <= rows @ z <= upper`` over the 0/1 ``variables`` (name, option)."""

    variables: tuple[tuple[str, str], ...]
    rows: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def rules_of(operators: Sequence[str], unread: str) -> Rules:
    """One of ``operators`` an edge, a way from the input to the output, and everything in ``FOLLOWING`` as it follows.

    There is a way if and only if wherever the nodes are cut in two, input here and output there, an edge crosses over.
    """
    options = dict.fromkeys([*EDGES, *map(built, EDGES)], tuple(operators))
    options |= {arriving(node): tuple(map(str, range(node + 1))) for node in INCOMING}
    options |= {built(node): ("yes",) for node in INCOMING}
    variables = tuple((name, option) for name, known in options.items() for option in known)
    rows, bounds = list[list[float]](), list[tuple[float, float]]()

    def rule(lower: float, upper: float, *terms: Mapping[tuple[str, str], float]) -> None:
        rows.append([sum(term.get(pair, 0.0) for term in terms) for pair in variables])
        bounds.append((lower, upper))

    def one_of(name: str, sign: float = 1.0) -> dict[tuple[str, str], float]:
        return {(name, option): sign for option in options[name]}

    def operator_of(edge: str, sign: float = 1.0) -> dict[tuple[str, str], float]:
        return {(built(edge), operator): sign for operator in operators if operator != NO_OPERATOR}

    inner = [node for node in INCOMING if node != OUTPUT]
    for here in ({0, *some} for size in range(len(inner) + 1) for some in combinations(inner, size)):
        across = [edge for edge in EDGES if ends_of(edge)[0] in here and ends_of(edge)[1] not in here]
        rule(1, len(across), {(edge, operator): 1.0 for edge in across for operator in operators if operator != NO_OPERATOR})
    for edge in EDGES:
        rule(1, 1, one_of(edge))
        rule(0, 0, one_of(built(edge)), one_of(built(ends_of(edge)[1]), -1.0))
        for operator in operators:
            rule(0, 1, {(edge, operator): 1.0, (built(edge), operator): -1.0})
    for node, edges in INCOMING.items():
        rule(0, 0, one_of(arriving(node)), one_of(built(node), -1.0))
        counted = {(arriving(node), count): -float(count) for count in options[arriving(node)]}
        rule(0, 0, counted, *map(operator_of, edges))
        if node == OUTPUT or unread == "kept":
            rule(1, 1, one_of(built(node)))
            continue
        onward = [operator_of(edge, -1.0) for edge in leaving(node)]
        for way in onward:
            rule(0, 1, one_of(built(node)), way)
        rule(-len(onward), 0, one_of(built(node)), *onward)
    lower, upper = np.array(bounds, dtype=float).T
    return Rules(variables, np.array(rows), lower, upper)
