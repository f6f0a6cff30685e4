"""What each option is worth to the supernet: by how much the loss rises without it.

Wang et al., "Rethinking Architecture Selection in Differentiable NAS" (DARTS-PT, ICLR 2021, arXiv 2108.04392): the logit of an
option says little of what it contributes. The paper removes options one edge at a time and trains in between; here each option
is removed alone from the finished supernet, so that all scores are of one network and a budget can choose among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from torch import Tensor

from mobilenas.core.architecture import Decision
from mobilenas.methods.base import DROPPED_SCORE
from mobilenas.supernet import Mixture

Rows = Mapping[str, Tensor]


def importance(
    rows: Rows, decisions: Iterable[Decision], of: Iterable[Decision], loss: Callable[[Mixture], float]
) -> dict[str, np.ndarray]:
    """Per decision of a stage, for each option of the space's (``of``) the rise of ``loss`` without it, in its unit.

    ``rows`` are the probabilities ``(O,)`` of the space's options. What the stage lacks scores as low as in ``scores`` of a
    method.
    """
    whole = {decision.name: decision.options for decision in of}
    before, scores = loss(Mixture.soft(rows)), {}
    for decision in decisions:
        options = whole[decision.name]
        row = np.full(len(options), DROPPED_SCORE)
        for option in decision.options:
            without = rows[decision.name].clone()
            without[options.index(option)] = 0
            row[options.index(option)] = loss(Mixture.soft({**rows, decision.name: without})) - before
        scores[decision.name] = row
    return scores
