"""PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search. Xu et al., ICLR 2020, arXiv 1907.05737.

One channel in K passes through the operators, the others go by, and a shuffle gives each its turn; a softmax over
the inputs of every node steadies the choice that so few channels make noisy. An edge is as strong as its best
operator's probability times its own. The logits stand still in the first 30 % of the epochs (15 of 50).

All of it is in the supernet and in ``Switches``; steps and gradient are first-order DARTS's. With K = 2 and the stem of three
convolutions (``space.options.stem = "imagenet"``) it is the variant that the paper runs on ImageNet.
"""

from __future__ import annotations

from typing import ClassVar

from mobilenas.methods.base import SearchMethod
from mobilenas.methods.switches import Switches


class PCDarts(SearchMethod):
    """K is 4, as for CIFAR; ``switches.partial_channels`` sets another."""

    name: ClassVar[str] = "pc-darts"
    needs: ClassVar[frozenset[str]] = frozenset({"cells"})
    warmup_fraction: ClassVar[float] = 0.3
    switches = Switches(edge_normalisation=True, partial_channels=4)
