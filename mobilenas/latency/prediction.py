"""A predicted latency with its interval, which is as wide as others of its kind have turned out to be wrong."""

from __future__ import annotations

import math
from statistics import NormalDist

import msgspec
import numpy as np

COVERAGE_FRACTION = 0.9
"""Share of the networks that intervals are to hold."""


class Prediction(msgspec.Struct, frozen=True):
    """A latency in milliseconds; nine networks in ten lie within ``low_ms`` to ``high_ms``."""

    ms: float
    low_ms: float
    high_ms: float

    @classmethod
    def within(cls, ms: float, factor: float) -> Prediction:
        """``ms``, which may be ``factor`` times too low or too high."""
        return cls(ms, ms / factor, ms * factor)

    def at_quantile(self, quantile: float) -> float:
        """The latency that a network stays below with chance ``quantile``; ``ms`` at 0.5.

        The interval's upper end is the quantile 0.95, since a twentieth lies on either side. Others are read off the
        log-normal distribution of which that is true.
        """
        deviations = NormalDist().inv_cdf(quantile) / NormalDist().inv_cdf((1 + COVERAGE_FRACTION) / 2)
        return self.ms * math.exp(deviations * math.log(self.high_ms / self.ms))


def conformal_factor(predicted_ms: np.ndarray, measured_ms: np.ndarray, coverage: float = COVERAGE_FRACTION) -> float:
    """By which factor predictions may be wrong, from networks that nothing was fitted on; both ``(n,)``, at least 1.

    Split conformal prediction (Lei et al., JASA 2018, algorithm 2) with ``|log(measured / predicted)|`` as the score: its
    ``ceil((n + 1) coverage)``-th smallest. A new network drawn like those ``n`` lies within the factor with at least that
    chance, whatever the distribution. Fewer than ``coverage / (1 - coverage)`` networks can promise less only, by the
    worst of them: ``n / (n + 1)``.
    """
    scores = np.sort(np.abs(np.log(measured_ms / predicted_ms)))
    rank = min(len(scores), math.ceil((len(scores) + 1) * coverage - 1e-9))
    return float(np.exp(scores[rank - 1]))
