"""From measurements to a table's numbers: rows, workload costs, the scale, and errors on networks kept apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog, lsq_linear, nnls

from mobilenas import ops
from mobilenas.core.measurement import Estimator, Measurement, Statistic
from mobilenas.core.workload import Kernel, Workload
from mobilenas.latency.diff import SMALLEST_MS
from mobilenas.latency.prediction import conformal_factor
from mobilenas.latency.predictors.kernel_features import Context, context_of
from mobilenas.latency.table import (
    ColdWeights,
    ErrorReport,
    MeasuredNetwork,
    NetworkContext,
    StatisticFit,
    TableRow,
    WorkloadCosts,
)

FEW_COPIES, MANY_COPIES = 2, 8
"""A row is the slope between models of so many copies: what a call costs, whatever it runs, cancels."""
ROW_TOLERANCE_FRACTION = 0.1
SPAN_FOR_A_LINE = 1.2
"""How far the sums of the slowest and of the fastest network must be apart for a line to be fitted."""
LOWEST_SCALE, MUST_PAY = 0.5, 0.005
BOOTSTRAPS = 100
WEIGHT_LIMITS_MIB = (2.0, None)
"""Sizes of kernels up to which a price of cold weights may hold; ``None`` is all."""
_FOLDS = 5
_PRIOR_WEIGHT = 1e-3


def row_from_measurements(kernel: Kernel, few: Measurement, many: Measurement) -> TableRow:
    """The row of one kernel, never below zero. Its interval takes the two models' errors to be independent.

    It has converged when both models have and the slope between them is known to within a tenth, or to ``SMALLEST_MS``:
    models that repeat within 3 % can leave their slope open.
    """
    copies = MANY_COPIES - FEW_COPIES
    slope_ms = (many.value_ms - few.value_ms) / copies
    down_ms = math.hypot(many.value_ms - many.low_ms, few.high_ms - few.value_ms) / copies
    up_ms = math.hypot(many.high_ms - many.value_ms, few.value_ms - few.low_ms) / copies
    is_known = (down_ms + up_ms) / 2 <= max(ROW_TOLERANCE_FRACTION * slope_ms, SMALLEST_MS)
    return TableRow(
        kernel=kernel,
        value_ms=max(0.0, slope_ms),
        low_ms=max(0.0, slope_ms - down_ms),
        high_ms=max(0.0, slope_ms + up_ms),
        t2_ms=few.value_ms,
        t8_ms=many.value_ms,
        sweeps=min(few.sweeps, many.sweeps),
        converged=few.converged and many.converged and is_known,
    )


class NetworkTerms(NamedTuple):
    """What ``n`` networks are made of, ``(n,)`` each: sums of all rows, with the call's own cost, and of those of two kinds;
    ``(n, len(WEIGHT_LIMITS_MIB))``: the weights of kernels that hold no more than so many.
    """

    kernels_ms: np.ndarray
    depthwise_ms: np.ndarray
    moving_ms: np.ndarray
    weights_mib: np.ndarray

    @classmethod
    def of(cls, networks: Sequence[Counter[Kernel]], rows: Mapping[Kernel, TableRow], session_ms: float) -> NetworkTerms:
        """Of networks whose kernels all have rows."""
        contexts = {kernel: context_of(kernel) for kernel in set().union(*networks)}

        def total(each: Callable[[Kernel], float]) -> np.ndarray:
            return np.array([math.fsum(n * each(kernel) for kernel, n in counts.items()) for counts in networks])

        def where(context: Context) -> np.ndarray:
            return total(lambda kernel: rows[kernel].value_ms if contexts[kernel] == context else 0.0)

        whole = session_ms + total(lambda kernel: rows[kernel].value_ms)
        prices = [ColdWeights(limit, 0.0) for limit in WEIGHT_LIMITS_MIB]
        weights = [total(lambda kernel, price=price: kernel.weight_mib * price.is_of(kernel)) for price in prices]
        return cls(whole, where("depthwise"), where("moving"), np.stack(weights, axis=1))

    def take(self, chosen: np.ndarray) -> NetworkTerms:
        """Those of some networks, by their numbers or a mask."""
        return NetworkTerms(*(column[chosen] for column in self))


class NetworkLine(NamedTuple):
    """From kernels to a network: ``scale`` times what its kernels take in their context, and ``offset_ms``."""

    scale: float
    offset_ms: float
    context: NetworkContext

    def kernel_sums_ms(self, networks: NetworkTerms) -> np.ndarray:
        """``(n,)``, before the scale: what ``LatencyTable.kernel_sum_ms`` gives."""
        slowed_ms = (self.context.depthwise_factor - 1) * networks.depthwise_ms + (
            self.context.moving_factor - 1
        ) * networks.moving_ms
        prices_ms = {cold.up_to_mib: cold.ms_per_mib for cold in self.context.cold_weights}
        cold_ms = networks.weights_mib @ [prices_ms.get(limit, 0.0) for limit in WEIGHT_LIMITS_MIB]
        return np.asarray(networks.kernels_ms + slowed_ms + cold_ms)

    def predict(self, networks: NetworkTerms) -> np.ndarray:
        """``(n,)`` in milliseconds."""
        return self.scale * self.kernel_sums_ms(networks) + self.offset_ms


def fit_networks(networks: NetworkTerms, measured_ms: np.ndarray) -> NetworkLine:
    """The line with the least mean absolute relative error.

    That is what a table is judged by, and a single bad network hardly moves it. Each price of weights, and that depthwise
    convolutions and kernels without multiply-adds have another scale than the rest, must pay: each per cent of the networks'
    time that it explains has to lower the error by ``MUST_PAY`` per cent, so that there is none where weights, say, are in
    proportion to the time. Where the networks differ too little to tell a slope there is a scale only. By linear
    programming, exact.
    """
    n, sums = len(measured_ms), networks.kernels_ms
    is_line = sums.max() >= SPAN_FOR_A_LINE * sums.min()
    apart = [sign * column for column in (networks.depthwise_ms, networks.moving_ms) for sign in (1.0, -1.0)]
    terms = np.stack([sums, *apart, *networks.weights_mib.T, np.ones(n)], axis=1) / measured_ms[:, None]
    limits = len(WEIGHT_LIMITS_MIB)
    most = [None, LOWEST_SCALE / 2] * 2 + [None] * limits if is_line else [0] * (4 + limits)
    found = linprog(
        np.concatenate([[0.0], MUST_PAY * np.abs(terms[:, 1:-1]).sum(axis=0), [0.0], np.ones(n)]),
        A_ub=np.block([[terms, -np.eye(n)], [-terms, -np.eye(n)]]),
        b_ub=np.concatenate([np.ones(n), -np.ones(n)]),
        bounds=[(LOWEST_SCALE, None), *((0, high) for high in most), (None, None) if is_line else (0, 0), *([(0, None)] * n)],
    )
    scale, more, less, moving_more, moving_less, *prices_ms, offset_ms = (float(value) for value in found.x[: 6 + limits])
    priced = zip(WEIGHT_LIMITS_MIB, prices_ms, strict=True)
    context = NetworkContext(
        cold_weights=tuple(ColdWeights(limit, ms / scale) for limit, ms in priced if ms > 0),
        depthwise_factor=1 + (more - less) / scale,
        moving_factor=1 + (moving_more - moving_less) / scale,
    )
    return NetworkLine(scale, offset_ms, context)


def line_spread_fraction(networks: NetworkTerms, measured_ms: np.ndarray) -> float:
    """Standard deviation of the line's prediction of the median network, relative to it, over lines that are fitted on
    networks drawn anew from the given ones (the bootstrap). Scale and offset alone vary more, against each other.
    """
    generator, n = np.random.default_rng(0), len(measured_ms)
    median = np.argsort(measured_ms)[[n // 2]]
    predicted = []
    for _ in range(BOOTSTRAPS):
        drawn = generator.integers(0, n, n)
        predicted.append(fit_networks(networks.take(drawn), measured_ms[drawn]).predict(networks.take(median)))
    return float(np.std(predicted) / np.mean(predicted))


def fit_madds_baseline(madds: np.ndarray, measured_ms: np.ndarray) -> tuple[float, float]:
    """``(a, b)`` of ``a * MAdds + b`` by least squares of relative errors: what every table has to beat."""
    design = np.stack([madds, np.ones(len(madds))], axis=1) / measured_ms[:, None]
    (a, b), *_ = np.linalg.lstsq(design, np.ones(len(madds)), rcond=None)
    return float(a), float(b)


def fit_statistics(
    fitted: Sequence[MeasuredNetwork], tested: Sequence[MeasuredNetwork], predicted_ms: np.ndarray, estimator: Estimator
) -> dict[Statistic, StatisticFit]:
    """Median and p90 as multiples of the estimator's value; left out where they are unknown.

    ``predicted_ms`` ``(n,)`` are predictions of ``tested`` by the estimator, made without them. A network that is in both is
    tested with the multiple of the others.
    """

    def columns(networks: Sequence[MeasuredNetwork]) -> dict[Statistic, list[float | None]]:
        return {"median": [n.median_ms for n in networks], "p90": [n.p90_ms for n in networks]}

    estimated = np.array([network.measured_ms for network in fitted])
    truths = columns(tested)
    found: dict[Statistic, StatisticFit] = {}
    for statistic, values in columns(fitted).items():
        if statistic == estimator or None in values or None in truths[statistic]:
            continue
        ratios = np.array(values, dtype=float) / estimated
        factors = [np.median(ratios[[f.architecture != t.architecture for f in fitted]]) for t in tested]
        predicted, truth = np.array(factors) * predicted_ms, np.array(truths[statistic], dtype=float)
        found[statistic] = StatisticFit(
            float(np.median(ratios)), conformal_factor(predicted, truth), ErrorReport.of(predicted, truth)
        )
    return found


def fit_workload_costs(
    networks: Sequence[Counter[Workload]], kernel_sums_ms: np.ndarray, workloads: Sequence[Workload]
) -> WorkloadCosts:
    """A non-negative cost per workload so that sums over workloads reproduce ``kernel_sums_ms`` ``(n,)``.

    Least squares of relative errors. Directions that the networks leave open (the glue that all of them share) follow a
    weak prior: what a workload would cost by its multiply-adds and its bytes. The error is on networks that were not
    fitted on, by cross-validation (every fifth network in turn); the costs returned are fitted on all.
    """
    design = np.array([[counts[w] for w in workloads] for counts in networks], dtype=float)
    predicted = np.empty_like(kernel_sums_ms)
    fold = np.arange(len(networks)) % _FOLDS
    for held_out in (fold == k for k in range(min(_FOLDS, len(networks)))):
        predicted[held_out] = design[held_out] @ _solve(design[~held_out], kernel_sums_ms[~held_out], workloads)
    final = _solve(design, kernel_sums_ms, workloads)
    return WorkloadCosts(
        costs_ms={workload: float(cost) for workload, cost in zip(workloads, final, strict=True)},
        error=ErrorReport.of(predicted, kernel_sums_ms),
    )


def _solve(design: np.ndarray, sums: np.ndarray, workloads: Sequence[Workload]) -> np.ndarray:
    features = np.array([[ops.madds(w), _elements(w), 1.0] for w in workloads])
    features /= features.max(axis=0)
    weighted = design / sums[:, None]
    coefficients, _ = nnls(weighted @ features, np.ones(len(sums)))
    prior = features @ coefficients
    stiffness = _PRIOR_WEIGHT * np.sqrt(len(sums)) / np.maximum(prior, 0.01 * prior.mean())
    solution = lsq_linear(
        np.vstack([weighted, np.diag(stiffness)]),
        np.concatenate([np.ones(len(sums)), stiffness * prior]),
        bounds=(0, np.inf),
    )
    return np.asarray(solution.x)


def _elements(w: Workload) -> float:
    """Tensor elements read and written, weights included."""
    read = w.batch * w.inputs * w.in_channels * w.height * w.width
    return float(read + w.batch * w.out_channels * w.out_height * w.out_width + ops.params(w))
