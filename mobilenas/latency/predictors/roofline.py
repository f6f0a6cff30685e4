"""Physical estimate of kernels that are like none that was measured, from the speed of the device.

A roofline (Williams et al., CACM 2009) in additive form: a constant per kernel, and a time per multiply-add, per element
moved and per weight read. It is fitted on all rows of a device, whatever their family, and tested on families that it was not
fitted on.

Shapes: ``N`` kernels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import least_squares, nnls

from mobilenas.core.workload import Kernel
from mobilenas.latency.prediction import Prediction, conformal_quantile
from mobilenas.latency.predictors.kernel_features import family_of, work_of
from mobilenas.latency.table import TableRow

LEAST_MS = 2e-4
"""What a call of any kernel takes at least; rows below count as this."""
LEAST_FACTOR, FACTOR_WITHOUT_EVIDENCE = 2.0, 8.0
"""By how much an estimate may be wrong at least; and where too few families were measured to tell."""
FEWEST_FAMILIES = 4


class DeviceRoofline:
    """Prices of work on one device, apart for kernels that compute and for those that only move data."""

    def fit(self, rows: Iterable[TableRow]) -> DeviceRoofline:
        """Learn from all ``rows`` of a device; the error is by leaving out one family of kernels at a time."""
        by_family: dict[str, list[TableRow]] = defaultdict(list)
        for row in rows:
            by_family[family_of(row.kernel)].append(row)
        families = [(_work([r.kernel for r in members]), _times_ms(members)) for members in by_family.values()]
        self.prices_: dict[bool, np.ndarray] = {}
        self.factors_: dict[bool, float] = {}
        for computes in (True, False):
            parts = [part for part in families if bool(part[0][:, 1].any()) == computes] or families
            self.prices_[computes] = _fit(parts)
            scores = []
            for index, (work, times_ms) in enumerate(parts) if len(parts) >= FEWEST_FAMILIES else ():
                prices = _fit([*parts[:index], *parts[index + 1 :]])
                scores.append(float(np.median(np.abs(np.log(_predict(work, prices) / times_ms)))))
            factor = math.exp(conformal_quantile(np.array(scores))) if scores else FACTOR_WITHOUT_EVIDENCE
            self.factors_[computes] = max(LEAST_FACTOR, factor)
        return self

    def predict(self, kernels: Sequence[Kernel]) -> list[Prediction]:
        """Return the time of each kernel in milliseconds, with the factor by which other families were wrong."""
        found = []
        for kernel in kernels:
            work = _work([kernel])
            computes = bool(work[0, 1])
            found.append(Prediction.within(float(_predict(work, self.prices_[computes])[0]), self.factors_[computes]))
        return found


def _work(kernels: Sequence[Kernel]) -> np.ndarray:
    """``(N, 4)``: one, multiply-adds, elements moved, weights."""
    work = [work_of(kernel) for kernel in kernels]
    return np.array([[1.0, w.madds, w.read + w.written, w.weights] for w in work])


def _times_ms(rows: Sequence[TableRow]) -> np.ndarray:
    return np.array([max(row.value_ms, LEAST_MS) for row in rows])


def _fit(families: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return prices ``(4,)`` by robust least squares of log errors, in which all families have the same weight."""
    work, times_ms = (np.concatenate(column) for column in zip(*families, strict=True))
    weights = np.concatenate([np.full(len(part[1]), 1 / math.sqrt(len(part[1]))) for part in families])
    unit = np.maximum(work.max(axis=0), 1.0)
    start, _ = nnls(work / unit * (weights / times_ms)[:, None], weights)

    def errors(log_prices: np.ndarray) -> np.ndarray:
        return np.asarray(weights * np.log(_predict(work / unit, np.exp(log_prices)) / times_ms))

    found = least_squares(errors, np.log(np.maximum(start, LEAST_MS)), loss="soft_l1", f_scale=0.3)
    return np.asarray(np.exp(found.x) / unit)


def _predict(work: np.ndarray, prices: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(work @ prices, LEAST_MS))
