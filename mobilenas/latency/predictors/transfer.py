"""Latency on a new device from a few measured networks and the tables of other devices, the proxies.

A device is a draw from a Gaussian process over architectures whose mean and covariance the proxies give (Rasmussen and
Williams, Gaussian Processes for Machine Learning, MIT Press 2006, 2.7 for the linear mean, 5.4 for the evidence); measured
networks carry Student-t noise (Tipping and Lawrence, Neurocomputing 2005), since single latencies are often far off.

Every proxy in turn is the centre: the new device is the centre's curve (robust ridge on the encodings), times a slope, plus
an offset, a share of how the other proxies deviate from the centre, a small cost for each column of the encoding, and a
share of what the centre's measurements say beyond its curve. All combinations of a centre
with a few amplitudes and noise levels are fitted and averaged by their evidence: a proxy under which the measured times, in
milliseconds, are likely gets the weight, and next to nothing is left to tune on the few measured networks.

The map is linear in milliseconds, not in their logarithm: latencies of operators add up.

Shapes: `N` architectures of a space, `F` columns of the encoding, `P` proxies, `n` measured networks, `D` prior features.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, psi

from mobilenas.errors import DocumentError, UsageError

FEWEST_TO_FIT = 3
"""Measured networks without which nothing can be said."""
_AMPLITUDES = ((0.0, 0.0), *itertools.product((0.1, 1.0), (0.03, 0.3, 3.0)))
"""Variances of the proxies' deviations and of the columns' costs; the first is a line of one proxy and no more."""
_AMPLITUDES_TO_CHOOSE = (1.0, 0.3)
_NOISES = np.array([1e-4, 1e-3, 1e-2, 1e-1])
_NOISE_TO_CHOOSE = 1e-2
_OFFSET_VARIANCE, _SLOPE_VARIANCE, _ROUGHNESS_VARIANCE = 25.0, 0.1, 0.1
_RIDGE, _REWEIGHTINGS, _UPDATES = 1.0, 8, 6
_LEAST_WEIGHT = 1e-4


class DeviceTransfer:
    """Latency of any architecture on a device of which few were measured; ``tail`` is the degrees of freedom of the noise.

    After ``fit``: ``proxy_weights_`` ``(P,)``, how much each proxy is believed in as the centre, of sum one.
    """

    def __init__(self, tail: float = 3.0) -> None:
        self.tail = tail

    def fit(
        self, encodings: np.ndarray, proxies_ms: np.ndarray, measured_rows: np.ndarray, measured_ms: np.ndarray
    ) -> DeviceTransfer:
        """Learn the prior from ``encodings`` ``(N, F)`` and ``proxies_ms`` ``(N, P)``, and the device from ``n`` rows of them.

        Columns of an encoding are best counts of workloads: what two positions share is then one column. The more unmeasured
        architectures the better the prior; a few hundred are enough.

        Raises ``UsageError`` for shapes that do not fit or fewer than three networks, ``DocumentError`` for a latency that is
        not a positive number.
        """
        encodings, proxies_ms = _checked(encodings, proxies_ms)
        rows, measured_ms = _checked_measured(measured_rows, measured_ms, len(encodings))
        if not self.tail > 2:
            raise UsageError(f"tail is {self.tail}: more than 2 is needed for the noise to have a variance")
        self.curves_ = _ProxyCurves.fit(encodings, proxies_ms)
        relative = proxies_ms[rows] / self.curves_.unit_ms
        self.unit_ms_ = float(np.median(measured_ms) / np.median(relative))
        self.floor_ms_ = 0.1 * float(measured_ms.min())
        prior = self.curves_.at(encodings[rows], proxies_ms[rows])
        models = [
            model
            for centre in range(proxies_ms.shape[1])
            for amplitudes in _AMPLITUDES
            for model in self._models(prior, centre, amplitudes, measured_ms / self.unit_ms_ - 1)
        ]
        evidence = np.array([model.log_evidence for model in models])
        weights = np.exp(evidence - evidence.max())
        weights /= weights.sum()
        self.proxy_weights_ = np.bincount([m.centre for m in models], weights, proxies_ms.shape[1])
        kept = weights > _LEAST_WEIGHT
        self.models_ = [model for model, keep in zip(models, kept, strict=True) if keep]
        self.weights_ = weights[kept] / weights[kept].sum()
        return self

    def predict(self, encodings: np.ndarray, proxies_ms: np.ndarray) -> np.ndarray:
        """Milliseconds ``(N,)`` on the new device, positive."""
        prior = self._prior(encodings, proxies_ms)
        relative = self.weights_ @ np.array([model.mean(prior) for model in self.models_])
        return np.asarray(np.maximum(self.unit_ms_ * (1 + relative), self.floor_ms_))

    def _models(self, prior: _Prior, centre: int, amplitudes: tuple[float, float], relative: np.ndarray) -> list[_Model]:
        """One model per noise level: variational posterior and its bound on the log evidence."""
        curve, features = prior.features(centre, amplitudes)
        covariance, residual = features @ features.T, relative - curve
        noise = _NOISES[:, None] * self.curves_.variation**2
        shape = (self.tail + 1) / 2
        precision = np.ones((len(_NOISES), len(relative)))  # of each measured network, relative to the noise level
        for update in range(_UPDATES):
            variances = noise / precision
            inverse = np.linalg.inv(covariance + variances[:, :, None] * np.eye(len(relative)))
            dual = inverse @ residual
            left = (variances * dual) ** 2 + variances - variances**2 * np.diagonal(inverse, axis1=1, axis2=2)
            rate = (self.tail + left / noise) / 2
            if update < _UPDATES - 1:
                precision = shape / rate
        gaussian = -0.5 * (dual @ residual) + 0.5 * np.linalg.slogdet(inverse)[1]
        evidence = gaussian + self._noise_evidence(precision, shape, rate).sum(axis=1)
        return [_Model(centre, amplitudes, float(evidence[k]), dual[k] @ features) for k in range(len(_NOISES))]

    def _noise_evidence(self, precision: np.ndarray, shape: float, rate: np.ndarray) -> np.ndarray:
        """What the precisions add to the bound: their likelihood terms less the divergence of two gamma distributions."""
        half = self.tail / 2
        log_precision = psi(shape) - np.log(rate)
        divergence = (
            shape * np.log(rate) - half * np.log(half) - gammaln(shape) + gammaln(half)
            + (shape - half) * log_precision - shape + half * shape / rate
        )  # fmt: skip
        return np.asarray(0.5 * (log_precision - np.log(precision)) - divergence)

    def _prior(self, encodings: np.ndarray, proxies_ms: np.ndarray) -> _Prior:
        encodings, proxies_ms = _checked(encodings, proxies_ms)
        columns, proxies = len(self.curves_.centre), len(self.curves_.unit_ms)
        if (encodings.shape[1], proxies_ms.shape[1]) != (columns, proxies):
            raise UsageError(
                f"encodings have {encodings.shape[1]} columns and there are {proxies_ms.shape[1]} proxies: "
                f"the estimator was fitted with {columns} and {proxies}"
            )
        return self.curves_.at(encodings, proxies_ms)


def choose_networks(encodings: np.ndarray, proxies_ms: np.ndarray, count: int) -> np.ndarray:
    """Rows ``(count,)`` of the networks to measure, in order: each is the one least known after those before it.

    Greedy D-optimal design under the prior of ``DeviceTransfer``; no randomness. Raises ``UsageError`` where ``count`` is
    below three or above ``N``, and as ``DeviceTransfer.fit``.
    """
    encodings, proxies_ms = _checked(encodings, proxies_ms)
    if not FEWEST_TO_FIT <= count <= len(encodings):
        raise UsageError(f"{count} networks to choose of {len(encodings)}: at least {FEWEST_TO_FIT} and at most all of them")
    curves = _ProxyCurves.fit(encodings, proxies_ms)
    features = curves.at(encodings, proxies_ms).features(None, _AMPLITUDES_TO_CHOOSE)[1]
    noise = _NOISE_TO_CHOOSE * curves.variation**2
    chosen: list[int] = []
    for _ in range(count):
        variance = (features**2).sum(axis=1)
        variance[chosen] = -1.0
        best = int(variance.argmax())
        chosen.append(best)
        gain = (1 - np.sqrt(noise / (noise + variance[best]))) / variance[best]
        features = features - gain * np.outer(features @ features[best], features[best])
    return np.array(chosen)


@dataclass(frozen=True)
class _Model:
    """Posterior under one centre, one set of amplitudes and one noise level."""

    centre: int
    amplitudes: tuple[float, float]
    log_evidence: float
    coefficients: np.ndarray
    """``(D,)``, of the prior's features."""

    def mean(self, prior: _Prior) -> np.ndarray:
        """Of the relative latency less one, ``(N,)``."""
        curve, features = prior.features(self.centre, self.amplitudes)
        return np.asarray(curve + features @ self.coefficients)


@dataclass(frozen=True)
class _ProxyCurves:
    """The proxies as functions of the encoding, each in units of its median latency."""

    centre: np.ndarray
    scale: np.ndarray
    """``(F,)`` each: an encoding is centred and divided by its scale, which is zero for columns that never vary."""
    unit_ms: np.ndarray
    coefficients: np.ndarray
    """``(1 + F, P)``, constant first."""
    variation: float
    """Root mean square of the curves about one: how much architectures differ."""
    column_variance: np.ndarray
    """``(F,)``, how far the proxies differ in a column's cost; sums to the square of ``variation``."""

    @classmethod
    def fit(cls, encodings: np.ndarray, proxies_ms: np.ndarray) -> _ProxyCurves:
        """Ridge regression of each proxy on the encodings, with weights that bound the pull of single networks (Huber)."""
        centre, deviation = encodings.mean(axis=0), encodings.std(axis=0)
        scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
        unit_ms = np.median(proxies_ms, axis=0)
        design = np.column_stack([np.ones(len(encodings)), (encodings - centre) * scale])
        coefficients = np.column_stack([_robust_ridge(design, column) for column in (proxies_ms / unit_ms).T])
        variation = max(float(np.sqrt(((design @ coefficients - 1) ** 2).mean())), 1e-9)
        spread = coefficients[1:].var(axis=1)
        shares = np.where(scale > 0, spread + spread.mean() + 1e-9, 0.0)
        column_variance = variation**2 * shares / max(shares.sum(), 1e-300)
        return cls(centre, scale, unit_ms, coefficients, variation, column_variance)

    def at(self, encodings: np.ndarray, proxies_ms: np.ndarray) -> _Prior:
        standard = (encodings - self.centre) * self.scale
        smooth = self.coefficients[0] + standard @ self.coefficients[1:] - 1
        return _Prior(smooth, proxies_ms / self.unit_ms - 1, standard * np.sqrt(self.column_variance))


@dataclass(frozen=True)
class _Prior:
    """Some architectures under the prior: proxies less one, smoothed and as measured ``(N, P)``, and columns ``(N, F)``."""

    smooth: np.ndarray
    raw: np.ndarray
    columns: np.ndarray

    def features(self, centre: int | None, amplitudes: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """The centre's curve ``(N,)``, smoothed, and ``(N, D)`` whose products are the prior covariance.

        With ``None`` the centre is the mean of all proxies. What the columns cannot say of a centre is a feature: the new
        device may share it.
        """
        deviations, columns = amplitudes
        curve = self.smooth.mean(axis=1) if centre is None else self.smooth[:, centre]
        blocks = [
            np.full((len(curve), 1), np.sqrt(_OFFSET_VARIANCE)),
            np.sqrt(_SLOPE_VARIANCE) * curve[:, None],
            np.sqrt(deviations / self.smooth.shape[1]) * (self.smooth - curve[:, None]),
            np.sqrt(columns) * self.columns,
        ]
        if centre is not None:
            blocks.append(np.sqrt(_ROUGHNESS_VARIANCE) * (self.raw[:, centre] - curve)[:, None])
        return curve, np.hstack(blocks)


def _robust_ridge(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    penalty = _RIDGE * np.diag([1e-9] + [1.0] * (design.shape[1] - 1))
    weights = np.ones(len(target))
    for _ in range(_REWEIGHTINGS):
        weighted = design * weights[:, None]
        coefficients = np.linalg.solve(design.T @ weighted + penalty, weighted.T @ target)
        residual = np.abs(target - design @ coefficients)
        limit = max(2 * 1.4826 * float(np.median(residual)), 1e-12)
        weights = limit / np.maximum(residual, limit)
    return np.asarray(coefficients)


def _checked(encodings: np.ndarray, proxies_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    encodings, proxies_ms = np.asarray(encodings, dtype=float), np.asarray(proxies_ms, dtype=float)
    shapes = f"encodings {encodings.shape}, proxy latencies {proxies_ms.shape}"
    if encodings.ndim != 2 or proxies_ms.ndim != 2 or len(encodings) != len(proxies_ms) or 0 in proxies_ms.shape:
        raise UsageError(f"{shapes}: one row per architecture is needed in both, and at least one proxy")
    if not np.isfinite(encodings).all():
        raise UsageError("encodings hold a number that is not finite")
    _refuse_bad_latencies("proxy latencies", proxies_ms)
    return encodings, proxies_ms


def _checked_measured(rows: np.ndarray, measured_ms: np.ndarray, architectures: int) -> tuple[np.ndarray, np.ndarray]:
    rows, measured_ms = np.asarray(rows), np.asarray(measured_ms, dtype=float)
    if rows.ndim != 1 or measured_ms.shape != rows.shape:
        raise UsageError(
            f"rows {rows.shape}, measured latencies {measured_ms.shape}: one latency per measured network is needed"
        )
    if len(rows) < FEWEST_TO_FIT:
        raise UsageError(f"{len(rows)} measured networks: at least {FEWEST_TO_FIT} are needed")
    if not np.issubdtype(rows.dtype, np.integer) or rows.min() < 0 or rows.max() >= architectures:
        raise UsageError(f"rows of measured networks must be whole numbers from 0 to {architectures - 1}")
    _refuse_bad_latencies("measured latencies", measured_ms)
    return rows, measured_ms


def _refuse_bad_latencies(name: str, latencies_ms: np.ndarray) -> None:
    bad = ~(np.isfinite(latencies_ms) & (latencies_ms > 0))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DocumentError(
            f"{name}: {latencies_ms[where]} ms at {where}, {int(bad.sum())} in all that are not positive numbers"
        )
