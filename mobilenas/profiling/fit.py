"""From measurements to a table's numbers: rows, workload costs, the scale, and errors on networks kept apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec
import numpy as np
from scipy.optimize import lsq_linear, nnls

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
    NetworkScale,
    StatisticFit,
    TableRow,
    WorkloadCosts,
)

ROW_TOLERANCE_FRACTION = 0.1
ROW_SPREAD = 0.06
"""How far a row is off in networks, beyond its interval: tensors lie elsewhere there, and other kernels ran before."""
SCALE_SPREAD, CURVATURE_SPREAD, CONTEXT_SPREAD = 0.3, 0.1, 0.1
"""How far from one the scale may be thought, how far from nothing its curvature, and what share of a network's time each part
of the context adds or takes.
"""
NOISE, FREEDOM = 0.01, 4.0
"""What no model explains of a network's time: scale and degrees of freedom of a Student distribution."""
LEAST_SCALE, LEAST_FACTOR, LEAST_MIB, ITERATIONS = 0.5, 0.1, 1e-3, 10
BOOTSTRAPS = 100
PRICES = (ColdWeights(2.0, 0.0, "others"), ColdWeights(None, 0.0, "others"), ColdWeights(None, 0.0, "products"))
"""What may cost more where it is cold. Linear layers apart: the large ones take in networks what they take in rows."""
_FOLDS = 5
_PRIOR_WEIGHT = 1e-3


def row_from_measurements(kernel: Kernel, few: Measurement, many: Measurement, counts: tuple[int, int]) -> TableRow:
    """The row of one kernel: the slope between models of so many copies, in which the cost of a call cancels; never below zero.

    Its interval takes the two models' errors to be independent.

    It has converged when both models have and the slope between them is known to within a tenth, or to ``SMALLEST_MS``:
    models that repeat within 3 % can leave their slope open.
    """
    copies = counts[1] - counts[0]
    slope_ms = (many.value_ms - few.value_ms) / copies
    down_ms = math.hypot(many.value_ms - many.low_ms, few.high_ms - few.value_ms) / copies
    up_ms = math.hypot(many.high_ms - many.value_ms, few.value_ms - few.low_ms) / copies
    is_known = (down_ms + up_ms) / 2 <= max(ROW_TOLERANCE_FRACTION * slope_ms, SMALLEST_MS)
    return TableRow(
        kernel=kernel,
        value_ms=max(0.0, slope_ms),
        low_ms=max(0.0, slope_ms - down_ms),
        high_ms=max(0.0, slope_ms + up_ms),
        few_ms=few.value_ms,
        many_ms=many.value_ms,
        few_copies=counts[0],
        many_copies=counts[1],
        sweeps=min(few.sweeps, many.sweeps),
        converged=few.converged and many.converged and is_known,
    )


@dataclass(frozen=True)
class NetworkTerms:
    """What ``n`` networks are made of: ``(n,)`` the cost of a call, ``(n, k)`` what each of the ``rows`` adds, and
    ``(n, len(PRICES))`` the weights that each price is asked for; ``(k,)`` what surrounds each row's kernel.
    """

    session_ms: np.ndarray
    each_ms: np.ndarray
    weights_mib: np.ndarray
    rows: tuple[TableRow, ...]
    contexts: np.ndarray

    @classmethod
    def of(cls, networks: Sequence[Counter[Kernel]], rows: Mapping[Kernel, TableRow], session_ms: float) -> NetworkTerms:
        """Of networks whose kernels all have rows."""
        kernels = sorted(set().union(*networks))
        counts = np.array([[network[kernel] for kernel in kernels] for network in networks], dtype=float)
        weights_mib = np.array([[kernel.weight_mib * price.is_of(kernel) for price in PRICES] for kernel in kernels])
        return cls(
            session_ms=np.full(len(networks), session_ms),
            each_ms=counts * [rows[kernel].value_ms for kernel in kernels],
            weights_mib=counts @ weights_mib,
            rows=tuple(rows[kernel] for kernel in kernels),
            contexts=np.array([context_of(kernel) for kernel in kernels]),
        )

    def take(self, chosen: np.ndarray) -> NetworkTerms:
        """Those of some networks, by their numbers or a mask."""
        return replace(
            self, session_ms=self.session_ms[chosen], each_ms=self.each_ms[chosen], weights_mib=self.weights_mib[chosen]
        )

    def of_context_ms(self, context: Context) -> np.ndarray:
        """``(n,)``: what the rows of such kernels add up to."""
        return np.asarray(self.each_ms[:, self.contexts == context].sum(axis=1))


class NetworkFit(NamedTuple):
    """From kernels to networks: what each kernel takes in its context, and the scale of their sum."""

    scale: NetworkScale
    context: NetworkContext
    row_factors: np.ndarray
    """``(k,)``: of the rows that it was fitted with, how many times as long they take in networks as context and row say."""

    def kernel_sums_ms(self, networks: NetworkTerms) -> np.ndarray:
        """``(n,)``, before the scale: what ``LatencyTable.kernel_sum_ms`` gives once the rows have these factors."""
        factors = np.array([self.context.factors[context] for context in networks.contexts])
        prices_ms = {(cold.kernels, cold.up_to_mib): cold.ms_per_mib for cold in self.context.cold_weights}
        cold_ms = networks.weights_mib @ [prices_ms.get((price.kernels, price.up_to_mib), 0.0) for price in PRICES]
        return np.asarray(networks.session_ms + networks.each_ms @ (factors * self.row_factors) + cold_ms)

    def predict(self, networks: NetworkTerms) -> np.ndarray:
        """``(n,)`` in milliseconds."""
        return self.scale.network_ms(self.kernel_sums_ms(networks))


def fit_networks(networks: NetworkTerms, measured_ms: np.ndarray) -> NetworkFit:
    """What is most likely, given what is known beforehand: a linear mixed model (Henderson 1975), of relative errors.

    Rows are off by ``ROW_SPREAD`` and by their own interval, each for itself; scale, curvature and context by their spreads;
    what is left of a network is noise with a Student distribution, which a single bad network hardly moves (expectation
    and maximisation: Lange et al. 1989). With little that tells a factor it stays near one, with little that tells a price
    near nothing.
    """
    n, prices = len(measured_ms), len(PRICES)
    sums_ms = networks.session_ms + networks.each_ms.sum(axis=1)
    reference_ms = float(np.median(sums_ms))
    per_mib = CONTEXT_SPREAD * reference_ms / max(float(np.median(networks.weights_mib.max(axis=1))), LEAST_MIB)
    usual = np.array([1.0, *[0.0] * (3 + prices)])
    spread = np.array([SCALE_SPREAD, CURVATURE_SPREAD, CONTEXT_SPREAD, CONTEXT_SPREAD, *[per_mib] * prices])
    least = np.array([LEAST_SCALE, 0.0, *[-LEAST_SCALE / 2] * 2, *[0.0] * prices])

    each = networks.each_ms / measured_ms[:, None]
    row_variance = np.array([ROW_SPREAD**2 + _half_width_fraction(row) ** 2 for row in networks.rows])
    of_rows = (each * row_variance) @ each.T
    parts_ms = [networks.of_context_ms("depthwise"), networks.of_context_ms("moving"), *networks.weights_mib.T]
    weights, in_context_ms = np.ones(n), sums_ms
    for _ in range(ITERATIONS):
        bent_ms = in_context_ms * np.log(in_context_ms / reference_ms)
        design = np.stack([sums_ms, bent_ms, *parts_ms], axis=1) / measured_ms[:, None]
        covariance = of_rows + np.diag(NOISE**2 / weights)
        root = np.linalg.cholesky(covariance)
        found = lsq_linear(
            np.vstack([np.linalg.solve(root, design), np.diag(1 / spread)]),
            np.concatenate([np.linalg.solve(root, np.ones(n)), usual / spread]),
            bounds=(least, np.inf),
            method="bvls",
        ).x
        left = 1 - design @ found
        of_each_row = row_variance * (each.T @ np.linalg.solve(covariance, left))
        weights = (FREEDOM + 1) / (FREEDOM + ((left - each @ of_each_row) / NOISE) ** 2)
        scale, bent, depthwise, moving, *prices_ms = (float(value) for value in found)
        context = NetworkContext(
            cold_weights=tuple(
                msgspec.structs.replace(price, ms_per_mib=ms / scale)
                for price, ms in zip(PRICES, prices_ms, strict=True)
                if ms > 0
            ),
            depthwise_factor=1 + depthwise / scale,
            moving_factor=1 + moving / scale,
        )
        slopes = scale * np.array([context.factors[kind] for kind in networks.contexts])
        row_factors = np.maximum(LEAST_FACTOR, 1 + of_each_row / slopes)
        fitted = NetworkFit(NetworkScale(scale, bent / scale, reference_ms), context, row_factors)
        in_context_ms = fitted.kernel_sums_ms(networks)
    return fitted


def _half_width_fraction(row: TableRow) -> float:
    return min(1.0, (row.high_ms - row.low_ms) / 2 / max(row.value_ms, SMALLEST_MS))


def left_out_ms(networks: NetworkTerms, measured_ms: np.ndarray) -> np.ndarray:
    """``(n,)``: what is predicted of each network by a fit on the others."""
    everyone = np.arange(len(measured_ms))
    return np.concatenate(
        [
            fit_networks(networks.take(everyone != one), measured_ms[everyone != one]).predict(networks.take(everyone == one))
            for one in everyone
        ]
    )


def scale_spread_fraction(networks: NetworkTerms, measured_ms: np.ndarray) -> float:
    """Standard deviation of the prediction of the median network, relative to it, over fits on networks drawn anew from the
    given ones (the bootstrap). Scale and curvature alone vary more, against each other.
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
