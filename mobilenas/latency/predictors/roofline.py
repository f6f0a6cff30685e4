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
from mobilenas.latency.predictors.kernel_features import Context, context_of, family_of, work_of
from mobilenas.latency.table import TableRow

LEAST_MS = 2e-4
"""What a call of any kernel takes at least; rows below count as this."""
LEAST_FACTOR, FACTOR_WITHOUT_EVIDENCE = 3.0, 8.0
"""By how much an estimate may be wrong at least; and where too few families were measured to tell."""
FEWEST_FAMILIES = 4
Family = tuple[np.ndarray, np.ndarray]
"""Work ``(N, 4)`` and times in milliseconds ``(N,)`` of the kernels of one family."""
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Size")
"""Operators that leave the numbers where they are: what they cost does not grow with the tensors."""


class DeviceRoofline:
    """Prices of work on one device, apart for kernels that compute, that are depthwise, and that only move data."""

    def fit(self, rows: Iterable[TableRow]) -> DeviceRoofline:
        """Learn from all ``rows`` of a device; the error is by leaving out one family of kernels at a time."""
        by_family: dict[str, list[TableRow]] = defaultdict(list)
        for row in rows:
            by_family[family_of(row.kernel)].append(row)
        families: dict[Context, list[Family]] = {"computing": [], "depthwise": [], "moving": []}
        for members in by_family.values():
            part = (_work([row.kernel for row in members]), _times_ms(members))
            families[context_of(members[0].kernel)].append(part)
        everything = [part for parts in families.values() for part in parts]
        self.prices_ = {context: _fit(parts or everything) for context, parts in families.items()}
        self.factors_ = {context: _factor(parts) for context, parts in families.items()}
        return self

    def predict(self, kernels: Sequence[Kernel]) -> list[Prediction]:
        """Return the time of each kernel in milliseconds, with the factor by which other families were wrong."""
        found = []
        for kernel in kernels:
            context = context_of(kernel)
            [ms] = _predict(_work([kernel]), self.prices_[context])
            found.append(Prediction.within(float(ms), self.factors_[context]))
        return found


def _factor(families: Sequence[Family]) -> float:
    """Return by which factor families were wrong that nothing was fitted on, at the median of each, for nine in ten."""
    if len(families) < FEWEST_FAMILIES:
        return FACTOR_WITHOUT_EVIDENCE
    scores = []
    for index, (work, times_ms) in enumerate(families):
        prices = _fit([*families[:index], *families[index + 1 :]])
        scores.append(float(np.median(np.abs(np.log(_predict(work, prices) / times_ms)))))
    return max(LEAST_FACTOR, math.exp(conformal_quantile(np.array(scores))))


def _work(kernels: Sequence[Kernel]) -> np.ndarray:
    """Return ``(N, 4)``: one, multiply-adds, elements moved, weights."""
    rows = []
    for kernel in kernels:
        work = work_of(kernel)
        moved = 0 if kernel.operator in VIEWS else work.read + work.written
        rows.append([1.0, work.madds, moved, work.weights])
    return np.array(rows)


def _times_ms(rows: Sequence[TableRow]) -> np.ndarray:
    return np.array([max(row.value_ms, LEAST_MS) for row in rows])


def _fit(families: Sequence[Family]) -> np.ndarray:
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
