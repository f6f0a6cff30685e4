"""Rank by the accuracy that a network has with the weights of the supernet (one-shot search: Guo et al., arXiv 1904.00420).

BatchNorm normalises by the statistics of the network's own batches, so that none are left over from other paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mobilenas.core.architecture import Architecture
from mobilenas.search.rankers.base import Ranker, Ranking


class Inherited(Ranker):
    """Accuracy on images of the validation half. Needs a supernet that was trained."""

    name: ClassVar[str] = "inherited"

    def rank(self, networks: Sequence[Architecture]) -> Ranking:
        return self.evidence.inherited(networks)
