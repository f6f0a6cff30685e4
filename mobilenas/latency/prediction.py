"""A predicted latency with its interval, which is as wide as others of its kind have turned out to be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

import msgspec
import numpy as np

from mobilenas.errors import MeasurementError

COVERAGE_FRACTION = 0.9
"""Share of the networks that intervals are to hold."""
MOST_LESS = 0.99
"""By which fraction of itself a sum may be lower at most: it stays above zero."""


class Prediction(msgspec.Struct, frozen=True):
    """A latency in milliseconds; nine networks in ten lie within ``low_ms`` to ``high_ms``."""

    ms: float
    low_ms: float
    high_ms: float

    @classmethod
    def within(cls, ms: float, factor: float) -> Prediction:
        """``ms``, which may be ``factor`` times too low or too high."""
        return cls(ms, ms / factor, ms * factor)

    def half_width(self, error: float) -> float:
        """Return how far the interval reaches, as a logarithm, on the side of an ``error`` of this sign."""
        return math.log(self.high_ms / self.ms) if error > 0 else math.log(self.ms / self.low_ms)

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
    return math.exp(conformal_quantile(np.abs(np.log(measured_ms / predicted_ms)), coverage))


def promised_coverage(networks: int) -> float:
    """The share of networks that an interval promises to hold which so many were held out for."""
    return min(COVERAGE_FRACTION, networks / (networks + 1))


def conformal_quantile(scores: np.ndarray, coverage: float = COVERAGE_FRACTION) -> float:
    """The ``ceil((n + 1) coverage)``-th smallest of ``scores`` ``(n,)``, or the largest; ``MeasurementError`` for none."""
    if len(scores) == 0:
        raise MeasurementError("nothing tells how far predictions are off: at least one network must be measured to test them")
    rank = min(len(scores), math.ceil((len(scores) + 1) * coverage - 1e-9))
    return float(np.sort(scores)[rank - 1])


def network_interval(
    calibration: float, spreads: Iterable[tuple[float, float]], learnt_fraction: float, common: float
) -> tuple[float, float]:
    """Return how far a network's interval reaches down and up from its prediction, both as logarithms, 0 or more.

    The error of a sum has independent parts, whose half-widths add in quadrature since they promise the same coverage:

    - ``calibration``: what sums of measured rows miss of whole networks.
    - ``spreads``: of each kind of kernel how much less and how much more it may take, as fractions of the sum. Kernels of one
      kind err together, kinds independently.
    - What learnt times have in common, as they lean to one side throughout a network: within ``common`` for a network of learnt
      times only, and ``learnt_fraction`` of it here. It is found last, on whole networks, as what these intervals lack to hold
      nine in ten: where the assumptions are wrong, it is larger.

    Spreads of rows are part of ``calibration`` already, as far as its networks are made of such rows: counted twice they add
    little, and where rows repeat far worse than those they are what should be seen.
    """
    down, up = [calibration, learnt_fraction * common], [calibration, learnt_fraction * common]
    for less, more in spreads:
        down.append(-math.log1p(-min(less, MOST_LESS)))
        up.append(math.log1p(more))
    return math.hypot(*down), math.hypot(*up)
