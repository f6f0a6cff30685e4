"""The papers' published architectures by name.

Cells are written as in the papers' genotypes, node by node: ``operator<source``, sources 0 and 1 being the outputs of the two
cells before. Sizes are the ones that each paper trained: 36 channels and 20 cells for CIFAR, 48 to 52 channels and 14 cells for
ImageNet. Each can be had at any other size. DenseNAS's networks are written block by block, as width, head operator and stacked
operators; of its networks only A, B and C were published whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mobilenas.core.architecture import Architecture, OptionValue
from mobilenas.core.registry import Registry
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.cells import CellSpace
from mobilenas.spaces.dense_blocks import DenseBlockSpace
from mobilenas.spaces.dense_layout import LAST, STEM, head, route, stacked
from mobilenas.supernet import SKIP

_OPERATORS = {
    "skip": "skip_connect",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}
_CIFAR: dict[str, OptionValue] = {"channels": 36, "layers": 20}
_IMAGENET: dict[str, OptionValue] = {"channels": 48, "layers": 14, "classes": 1000, "image_size": 224, "stem": "imagenet"}


class Published(ABC):
    """A published network: what it was written in, and how it is made at any size."""

    paper: str
    space: ClassVar[str]
    """Registered name of its space."""

    @abstractmethod
    def options(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """The options of the paper's network, overridden by those that are ``given``."""

    @abstractmethod
    def architecture(self, space: SearchSpace) -> Architecture:
        """The network in ``space``."""

    def auxiliary_head(self, space: SearchSpace) -> nn.Module | None:
        """The authors' auxiliary head, ``None`` where they had none."""
        return None


@dataclass(frozen=True)
class PublishedCells(Published):
    """A pair of cells. ``reduce`` is empty for GDAS's fixed reduction cell; ``imagenet_channels`` is the paper's width there.

    ``auxiliary_norm`` tells whether the authors' auxiliary head for ImageNet has a second BatchNorm.
    """

    paper: str
    normal: str
    reduce: str
    imagenet_channels: int = 48
    auxiliary_norm: bool = False
    space: ClassVar[str] = "cells"

    def options(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        paper = {**_IMAGENET, "channels": self.imagenet_channels} if given.get("stem") == "imagenet" else _CIFAR
        return {**paper, "reduction": "searched" if self.reduce else "fixed", **given}

    def architecture(self, space: SearchSpace) -> Architecture:
        return space.architecture(
            (f"{kind}.{source}-{node}", _OPERATORS[operator])
            for kind, cell in (("normal", self.normal), ("reduce", self.reduce))
            for node, edges in enumerate(cell.split("|") if cell else (), 2)
            for operator, _, source in (edge.partition("<") for edge in edges.split())
        )

    def auxiliary_head(self, space: SearchSpace) -> nn.Module:
        assert isinstance(space, CellSpace)
        return space.auxiliary_head(self.architecture(space), self.auxiliary_norm)


@dataclass(frozen=True)
class PublishedBlocks(Published):
    """A path through DenseNAS's mobile space: per block its width, its head operator and those stacked on it."""

    paper: str
    blocks: str
    space: ClassVar[str] = "densenas-mbv2"

    def options(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        return dict(given)

    def architecture(self, space: SearchSpace) -> Architecture:
        assert isinstance(space, DenseBlockSpace)
        by_width = {str(node.width): node for node in space.layout.searched}
        choices, source = {}, STEM
        for text in self.blocks.split("|"):
            width, *operators = text.split()
            block = by_width[width]
            choices[route(source)] = block.name
            names = (head(block.name, source), *stacked(block))
            written = [f"mbconv_{kernel}_{expansion}" for kernel, expansion in ((o[:2], o[2:]) for o in operators)]
            choices |= zip(names, [*written, *[SKIP] * (len(names) - len(written))], strict=True)
            source = block.name
        return space.architecture([*choices.items(), (route(source), LAST)])


PUBLISHED: Registry[Published] = Registry(
    "published architecture",
    {
        "darts-v1": PublishedCells(
            "Liu, Simonyan, Yang, arXiv 1806.09055, first release",
            "sep3<1 sep3<0|skip<0 sep3<1|skip<0 sep3<1|sep3<0 skip<2",
            "max<0 max<1|skip<2 max<0|max<0 skip<2|skip<2 avg<0",
        ),
        "darts-v2": PublishedCells(
            "Liu, Simonyan, Yang, ICLR 2019, arXiv 1806.09055",
            "sep3<0 sep3<1|sep3<0 sep3<1|sep3<1 skip<0|skip<0 dil3<2",
            "max<0 max<1|skip<2 max<1|max<0 skip<2|skip<2 max<1",
        ),
        "gdas-v1": PublishedCells(
            "Dong, Yang, CVPR 2019, arXiv 1910.04465",
            "skip<0 skip<1|skip<0 sep5<2|sep3<3 skip<0|sep5<4 sep3<3",
            "sep5<0 sep3<1|sep5<2 sep5<1|dil5<2 sep3<1|sep5<0 sep5<1",
            imagenet_channels=50,
        ),
        "gdas-frc": PublishedCells(
            "Dong, Yang, CVPR 2019, arXiv 1910.04465, fixed reduction cell",
            "skip<0 skip<1|skip<0 sep3<2|skip<0 sep3<2|skip<0 sep3<2",
            "",
            imagenet_channels=52,
        ),
        "p-darts": PublishedCells(
            "Chen, Xie, Wu, Tian, ICCV 2019, arXiv 1904.12760",
            "skip<0 dil3<1|skip<0 sep3<1|sep3<1 sep3<3|sep3<0 dil5<4",
            "avg<0 sep5<1|sep3<0 dil5<2|max<0 dil3<1|dil3<1 dil5<3",
            auxiliary_norm=True,
        ),
        "pc-darts-cifar": PublishedCells(
            "Xu et al., ICLR 2020, arXiv 1907.05737, searched on CIFAR-10",
            "sep3<1 skip<0|sep3<0 dil3<1|sep5<0 sep3<1|avg<0 dil3<1",
            "sep5<1 max<0|sep5<1 sep5<2|sep3<0 sep3<3|sep3<1 sep3<2",
        ),
        "pc-darts-imagenet": PublishedCells(
            "Xu et al., ICLR 2020, arXiv 1907.05737, searched on ImageNet",
            "skip<1 sep3<0|sep3<0 skip<1|sep3<1 sep3<3|sep3<1 dil5<4",
            "sep3<0 skip<1|dil5<2 max<1|sep3<2 sep3<1|sep5<0 sep3<3",
        ),
        "densenas-a": PublishedBlocks(
            "Fang et al., CVPR 2020, arXiv 1906.09607, DenseNAS-A",
            "24 k3e3|48 k7e6 k7e3|72 k5e6 k3e3 k5e3|128 k3e3 k3e3|176 k3e3 k3e6 k3e3 k3e6|384 k5e6",
        ),
        "densenas-b": PublishedBlocks(
            "Fang et al., CVPR 2020, arXiv 1906.09607, DenseNAS-B",
            "24 k3e6|48 k5e3 k3e3 k3e3|72 k3e6 k3e3 k5e3|128 k3e6 k3e3|160 k3e6 k3e3 k5e6 k5e3|176 k3e3 k3e6 k3e6|384 k7e6",
        ),
        "densenas-c": PublishedBlocks(
            "Fang et al., CVPR 2020, arXiv 1906.09607, DenseNAS-C",
            "24 k3e6|48 k7e6 k3e3|72 k5e6 k3e6 k3e3|128 k3e6 k3e3 k3e3|160 k3e6 k7e3 k5e6 k7e3|"
            "176 k3e3 k3e6 k3e6 k3e6|384 k7e6",
        ),
    },
)
