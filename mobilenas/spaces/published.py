"""The papers' published architectures by name.

Cells are written as in the papers' genotypes, node by node: ``operator<source``, sources 0 and 1 being the outputs of the two
cells before. Sizes are the ones that each paper trained: 36 channels and 20 cells for CIFAR, 48 to 52 channels and 14 cells for
ImageNet. Each can be had at any other size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mobilenas.core.architecture import Architecture, OptionValue
from mobilenas.core.registry import Registry
from mobilenas.spaces.cells import CellSpace

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


@dataclass(frozen=True)
class PublishedCells:
    """A pair of cells. ``reduce`` is empty for GDAS's fixed reduction cell; ``imagenet_channels`` is the paper's width there.

    ``auxiliary_norm`` tells whether the authors' auxiliary head for ImageNet has a second BatchNorm.
    """

    paper: str
    normal: str
    reduce: str
    imagenet_channels: int = 48
    auxiliary_norm: bool = False

    def options(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """The options of the paper's network for ``given["stem"]``, overridden by those that are ``given``."""
        paper = {**_IMAGENET, "channels": self.imagenet_channels} if given.get("stem") == "imagenet" else _CIFAR
        return {**paper, "reduction": "searched" if self.reduce else "fixed", **given}

    def architecture(self, space: CellSpace) -> Architecture:
        """These cells in ``space``."""
        return space.architecture(
            (f"{kind}.{source}-{node}", _OPERATORS[operator])
            for kind, cell in (("normal", self.normal), ("reduce", self.reduce))
            for node, edges in enumerate(cell.split("|") if cell else (), 2)
            for operator, _, source in (edge.partition("<") for edge in edges.split())
        )


PUBLISHED: Registry[PublishedCells] = Registry(
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
    },
)
