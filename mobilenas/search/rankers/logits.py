"""Rank by the logits of the search: the likelier its choices, the better a network is taken to be (DARTS and most others)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mobilenas.core.architecture import Architecture
from mobilenas.search.rankers.base import Ranker, Ranking


class Logits(Ranker):
    """Summed log probabilities. As the only ranker it is the published choice: nothing is drawn, see ``select``."""

    name: ClassVar[str] = "logits"

    def rank(self, networks: Sequence[Architecture]) -> Ranking:
        return Ranking(self.evidence.logit_scores(networks), 0)
