"""How dense blocks lie: nodes from the stem to the last one, and the routes between them.

DenseNAS, arXiv 1906.09607; which routes there are as in the authors' code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from mobilenas.errors import UsageError
from mobilenas.spaces.base import check_range

STEM, LAST = "stem", "last"
"""The nodes before the first and after the last block."""

MOST_LAYERS = 500
"""Stacked operators of a space, all blocks together."""

_BLOCK = re.compile(r"width=(\d{1,5}) stride=(\d{1,5}) stage=(\d{1,3}) stack=(\d{1,3})")


@dataclass(frozen=True)
class Node:
    """A block, the stem or the last node. ``stride`` is that of its output relative to the image."""

    name: str
    width: int
    stride: int
    stage: int
    stack: int

    @classmethod
    def from_text(cls, text: str, index: int) -> Node:
        """Parse ``"width=24 stride=4 stage=1 stack=3"``; block 0 is the stem."""
        found = _BLOCK.fullmatch(text)
        where = f"space.blocks[{index}]"
        if found is None:
            raise UsageError(f'{where} is {text!r}; write a block as "width=24 stride=4 stage=1 stack=3"')
        width, stride, stage, stack = map(int, found.groups())
        check_range(width, 1, f"width of {where}")
        if stride & (stride - 1) or stride == 0:
            raise UsageError(f"stride of {where} is {stride}; it is relative to the image and must be a power of two")
        return cls(STEM if index == 0 else f"block{index}", width, stride, stage, stack)

    def leads_to(self, later: Node) -> bool:
        """Whether there may be a route: one stage and one halving at most, and none before the last node."""
        halvings = (1,) if later.name == LAST else (1, 2)
        return later.stage - self.stage <= 1 and later.stride in [self.stride * n for n in halvings]


def blocks(widths: Sequence[int], strides: Sequence[int], stages: Sequence[int], stacks: Sequence[int]) -> tuple[str, ...]:
    """The texts of blocks, the stem's first."""
    return tuple(
        f"width={width} stride={stride} stage={stage} stack={stack}"
        for width, stride, stage, stack in zip(widths, strides, stages, stacks, strict=True)
    )


MBV2_BLOCKS = blocks(
    (16, 24, 32, 40, 48, 56, 64, 72, 96, 112, 128, 160, 176, 192, 320, 352, 384),
    (2, 4, 8, 8, 8, *[16] * 6, *[32] * 6),
    (0, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6),
    (0, *[3] * 13, 0, 0, 0),
)
"""The space of DenseNAS-A, -B, -C and -Large."""
RESNET_BLOCKS = blocks(
    (32, 48, 56, 64, 72, 96, 112, *range(128, 225, 16), *range(240, 289, 16), 480, 496, 512),
    (2, *[4] * 3, *[8] * 3, *[16] * 7, *[32] * 7),
    (0, *[1] * 3, *[2] * 3, *[3] * 4, *[4] * 3, *[5] * 4, *[6] * 3),
    (0, *[0] * 3, *[5] * 3, *[15] * 4, *[5] * 7, *[1] * 3),
)
"""The space of DenseNAS-R1 and -R2 (of -R3 with bottlenecks)."""
SMALL_BLOCKS = blocks((16, 16, 24, 32, 40, 48, 64), (2, 2, 2, 4, 4, 8, 8), (0, 1, 1, 2, 2, 3, 3), (0, 1, 1, 1, 1, 1, 1))
"""Nobody's: for images of some thirty pixels."""


@dataclass(frozen=True)
class Layout:
    """Nodes and routes of ``blocks``."""

    blocks: tuple[str, ...]
    last_width: int
    reach: int

    def check(self) -> None:
        """Raise ``UsageError`` for blocks that are not consistent, or one that cannot be reached.

        As strides and stages never fall, a block that no route leaves would leave the one after it unreachable.
        """
        stem, *searched = self.nodes[:-1]
        if stem.stride > 2 or stem.stack:
            raise UsageError(
                f"space.blocks[0], the stem, has stride={stem.stride} stack={stem.stack}; stride must be 1 or 2, stack 0"
            )
        if (layers := sum(block.stack for block in searched)) > MOST_LAYERS:
            raise UsageError(f"space.blocks stack {layers} operators in all; {MOST_LAYERS} is the most")
        for before, block in pairwise(self.nodes[:-1]):
            if block.stride < before.stride or block.stage < before.stage:
                raise UsageError(
                    f"{block.name} of space.blocks (stride {block.stride}, stage {block.stage}) comes after {before.name} "
                    f"(stride {before.stride}, stage {before.stage}): strides and stages must not fall"
                )
        for block in searched:
            if not self.sources[block.name]:
                raise UsageError(
                    f"{block.name} of space.blocks cannot be reached: none of the {self.reach} nodes before it leads to stage "
                    f"{block.stage} and stride {block.stride} (at most one stage and one halving away)"
                )

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The stem, the blocks, and the last node, which is one stage on."""
        found = [Node.from_text(text, index) for index, text in enumerate(self.blocks)]
        return (*found, Node(LAST, self.last_width, found[-1].stride, found[-1].stage + 1, 0))

    @property
    def searched(self) -> tuple[Node, ...]:
        """The nodes between the stem and the last."""
        return self.nodes[1:-1]

    @cached_property
    def node(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def routes(self) -> dict[str, tuple[str, ...]]:
        """Where each node leads to, nearest first: up to ``reach`` nodes on, and no further than the first it cannot."""
        found: dict[str, tuple[str, ...]] = {}
        for index, node in enumerate(self.nodes[:-1]):
            targets: list[str] = []
            for target in self.nodes[index + 1 : index + 1 + self.reach]:
                if not node.leads_to(target):
                    break
                targets.append(target.name)
            found[node.name] = tuple(targets)
        return found

    @cached_property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """The nodes that lead to each node, nearest first."""
        return {
            node.name: tuple(name for name, targets in reversed(self.routes.items()) if node.name in targets)
            for node in self.nodes[1:]
        }


# ---- names of decisions ------------------------------------------------------------------------------------------------


def route(node: str) -> str:
    """The decision where ``node`` leads to."""
    return f"{node}.next"


def head(block: str, source: str) -> str:
    """The decision which operator of ``block`` reads ``source``."""
    return f"{block}.head.{source}"


def stacked(block: Node) -> tuple[str, ...]:
    """The decisions which operators are stacked in ``block``."""
    return tuple(f"{block.name}.stack{number}" for number in range(1, block.stack + 1))
