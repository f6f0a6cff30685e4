from collections.abc import Sequence

import numpy as np

from mobilenas.core.architecture import Architecture
from mobilenas.search.rankers.base import Ranker, Ranking


class FewestLayers(Ranker):
    """The fewer layers, the better."""

    name = "fewest-layers"

    def rank(self, networks: Sequence[Architecture]) -> Ranking:
        layers = [len(self.evidence.space.blueprint(network).layers) for network in networks]
        return Ranking(scores=-np.array(layers, dtype=float), images=0)
