"""Times of kernels that nobody measured, learnt from those that somebody did.

Per family of kernels: a roofline (a constant, and a time per multiply-add, element moved and weight, none negative), and a
Gaussian process on what it leaves of the log time. Measured against monotone gradient boosting in docs/decisions/0012.

Shapes: ``N`` kernels, ``F`` features.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import GroupKFold

from mobilenas.core import documents
from mobilenas.core.run_directory import write_atomic
from mobilenas.core.workload import Kernel
from mobilenas.errors import DocumentError
from mobilenas.latency.prediction import Prediction, conformal_factor
from mobilenas.latency.predictors.kernel_checks import check_archive, check_predictor
from mobilenas.latency.predictors.kernel_features import FEATURES, WORK_FEATURES, family_of, features_of, work_of
from mobilenas.latency.table import LatencyTable, TableRow

ACTIVATION = FEATURES.index("activation")
FEWEST_ROWS = 8
"""Of a family, to say anything of it."""
LEAST_MS = 1e-5
"""Rows below are noise around nothing; their kernels count as this."""
ROOF_ERROR = 0.1
"""How far times are from a roofline, about: rows that were measured worse than this count less for it."""
NOTHING_KNOWN = 1e6
"""The relative error of a time that is noise around nothing, about which its logarithm says nothing."""
FOLDS = 5
BEYOND = math.log(1.25)
"""How far over the largest work seen, and under the least, still counts as seen."""
BEYOND_FACTOR, BEYOND_PER_E = 2.0, 0.25
"""By how much a time beyond the shapes that were learnt from may be wrong, at least; and the half-width, as a logarithm, that
is added in quadrature for each factor of e.
"""
TRUSTED_TYPES = [
    "mobilenas.latency.predictors.kernel.FamilyPredictor",
    "mobilenas.latency.predictors.kernel.KernelPredictor",
    *(f"sklearn.gaussian_process.kernels.{name}" for name in ("ConstantKernel", "Matern", "Product", "Sum", "WhiteKernel")),
]
"""What a file of a predictor may hold beside the types that skops itself trusts."""


class FamilyPredictor(RegressorMixin, BaseEstimator):
    """The kernels of one family. ``X`` ``(N, F + 4)``: features, then the work that the roofline prices; ``y`` log ms."""

    def __init__(self, length_scale: float = 2.0, noise: float = 0.01) -> None:
        self.length_scale = length_scale
        self.noise = noise

    def fit(
        self, X: np.ndarray, y: np.ndarray, relative_error: np.ndarray | None = None, like: FamilyPredictor | None = None
    ) -> FamilyPredictor:
        """Learn; ``relative_error`` ``(N,)`` is how far each time may be off, by which it counts less.

        ``like`` was learnt from similar rows: its length scales are where the search for ours begins, which is quicker.
        """
        features, work = X[:, : len(FEATURES)], X[:, len(FEATURES) :]
        errors = np.zeros(len(y)) if relative_error is None else relative_error
        unit = np.maximum(work.max(axis=0), 1.0)
        weights = 1 / np.hypot(errors, ROOF_ERROR)
        self.roofline_, _ = nnls(work / unit * (weights / np.exp(y))[:, None], weights)
        self.roofline_ = self.roofline_ / unit
        self.lowest_, self.highest_ = features.min(axis=0), features.max(axis=0)
        self.activations_ = np.unique(features[:, ACTIVATION])
        self.mean_, spread = features.mean(axis=0), features.std(axis=0)
        self.used_ = spread > 1e-9
        self.spread_ = np.where(self.used_, spread, 1.0)
        rest = y - self._roof(work)
        self.rest_ = float(np.average(rest, weights=weights))
        self.process_: GaussianProcessRegressor | None = None
        if not self.used_.any():
            return self
        if like is not None and like.process_ is not None and np.array_equal(like.used_, self.used_):
            kernel = like.process_.kernel_
        else:
            scales = np.full(self.used_.sum(), self.length_scale)
            kernel = ConstantKernel(0.1) * Matern(scales, (0.3, 50.0), nu=2.5) + WhiteKernel(self.noise, (1e-4, 0.1))
        process = GaussianProcessRegressor(kernel, alpha=1e-8 + errors**2, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.process_ = process.fit(self._scaled(features), rest - self.rest_)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Log milliseconds, ``(N,)``."""
        features, work = X[:, : len(FEATURES)], X[:, len(FEATURES) :]
        rest = 0.0 if self.process_ is None else self.process_.predict(self._scaled(features))
        return np.asarray(self._roof(work) + self.rest_ + rest)

    def has_seen(self, X: np.ndarray) -> np.ndarray:
        """Whether kernels lie where there were some to learn from, ``(N,)`` of bool."""
        features = X[:, len(WORK_FEATURES) : len(FEATURES)]
        low, high = self.lowest_[len(WORK_FEATURES) :], self.highest_[len(WORK_FEATURES) :]
        inside = ((features >= low) & (features <= high)).all(axis=1)
        return np.asarray(inside & np.isin(X[:, ACTIVATION], self.activations_) & (self.distance(X) <= BEYOND))

    def distance(self, X: np.ndarray) -> np.ndarray:
        """Return how far the work of kernels lies beyond that of all learnt ones, as a logarithm, ``(N,)``."""
        work = X[:, : len(WORK_FEATURES)]
        low, high = self.lowest_[: len(WORK_FEATURES)], self.highest_[: len(WORK_FEATURES)]
        return np.asarray(np.maximum(0.0, np.maximum(low - work, work - high)).max(axis=1))

    def _roof(self, work: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(np.maximum(work @ self.roofline_, LEAST_MS)))

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(((features - self.mean_) / self.spread_)[:, self.used_])


class LearntTime(msgspec.Struct, frozen=True):
    """What a kernel is predicted to take, and whether it lies where there were others to learn from, or how far beyond."""

    prediction: Prediction
    is_seen: bool
    distance: float
    """As a logarithm, of its work beyond that of the others; 0 within."""


class KernelPredictor(BaseEstimator):
    """A predictor per family of kernels, with the factor by which each was wrong on shapes that it had not seen."""

    slowness = 1.0
    """How much slower the device is now than it was when the rows were measured."""

    def __init__(self, length_scale: float = 2.0, noise: float = 0.01) -> None:
        self.length_scale = length_scale
        self.noise = noise

    def fit(self, rows: Iterable[TableRow]) -> KernelPredictor:
        """Learn from rows of one table. Errors are by cross-validation: kernels of one shape are never on both sides."""
        self.families_: dict[str, FamilyPredictor] = {}
        self.factors_: dict[str, float] = {}
        for family, members in _by_family(rows).items():
            x, y, errors = _columns(members)
            groups = [shape_of(row.kernel) for row in members]
            whole = self._family().fit(x, y, errors)
            predicted = np.empty_like(y)
            for train, test in GroupKFold(min(FOLDS, len(set(groups)))).split(x, y, groups):
                predicted[test] = self._family().fit(x[train], y[train], errors[train], whole).predict(x[test])
            self.families_[family] = whole
            self.factors_[family] = conformal_factor(np.exp(predicted), np.exp(y))
        return self

    def refitted(self, rows: Iterable[TableRow]) -> KernelPredictor:
        """The same, learnt from these rows only; families keep the factors by which they were wrong."""
        other = KernelPredictor(self.length_scale, self.noise)
        other.families_ = {
            family: self._family().fit(*_columns(members), self.families_[family])
            for family, members in _by_family(rows).items()
            if family in self.families_
        }
        other.factors_ = self.factors_
        return other

    def times(self, factor: float) -> KernelPredictor:
        """The same on a device that is so much slower."""
        other = copy(self)
        other.slowness = factor * self.slowness
        return other

    def _family(self) -> FamilyPredictor:
        return FamilyPredictor(self.length_scale, self.noise)

    def knows(self, kernel: Kernel) -> bool:
        """Whether there were kernels of this family to learn from."""
        return family_of(kernel) in self.families_

    def predict(self, kernels: Sequence[Kernel]) -> list[LearntTime]:
        """Times of kernels whose families are known, with 90 % intervals.

        A kernel beyond the shapes that were learnt from may be wrong by the square of its family's factor, by ``BEYOND_FACTOR``
        at least, and by more the farther it lies beyond (docs/decisions/0037).
        """
        found: dict[int, LearntTime] = {}
        members: dict[str, list[int]] = defaultdict(list)
        for index, kernel in enumerate(kernels):
            members[family_of(kernel)].append(index)
        for family, indices in members.items():
            x = _inputs([kernels[index] for index in indices])
            learnt, factor = self.families_[family], self.factors_[family]
            columns = zip(indices, learnt.predict(x), learnt.has_seen(x), learnt.distance(x).tolist(), strict=True)
            for index, log_ms, is_seen, distance in columns:
                beyond = math.hypot(math.log(max(factor**2, BEYOND_FACTOR)), BEYOND_PER_E * distance)
                within = Prediction.within(self.slowness * float(np.exp(log_ms)), factor if is_seen else math.exp(beyond))
                found[index] = LearntTime(within, bool(is_seen), distance)
        return [found[index] for index in range(len(kernels))]

    def save(self, path: Path) -> None:
        """Write with skops: no pickle, and nothing runs when it is read."""
        from skops.io import dumps

        write_atomic(path, dumps(self))

    @classmethod
    def load(cls, path: Path, table: LatencyTable) -> KernelPredictor:
        """Read what ``save`` wrote. Raises ``DocumentError`` for a file that is damaged, holds types beyond the known, or was
        learnt from another table.
        """
        from skops.io import get_untrusted_types, loads

        content = documents.read_bytes(path, documents.MAXIMUM_BYTES)
        try:
            check_archive(content)
            unknown = sorted(set(get_untrusted_types(data=content)) - set(TRUSTED_TYPES))
            if unknown:
                raise DocumentError(f"{path}: holds {', '.join(unknown)}, which no predictor is made of: not opened")
            loaded: Any = loads(content, trusted=TRUSTED_TYPES)
        except DocumentError:
            raise
        except Exception as error:  # skops lets through what zip, JSON and numpy raise
            raise DocumentError(f"{path}: not a predictor of this mobilenas ({error}): profile with --kernels again") from error
        if not isinstance(loaded, cls):
            raise DocumentError(f"{path}: holds {type(loaded).__name__}, not a predictor of kernels")
        if getattr(loaded, "learnt_from_", None) != table.digest or not hasattr(loaded, "common_width_"):
            raise DocumentError(f"{path}: learnt from another table than the one beside it: profile with --kernels again")
        try:
            check_predictor(loaded)
        except Exception as error:  # whatever numpy and scikit-learn make of strange parts
            raise DocumentError(f"{path}: damaged ({error}): profile with --kernels again") from error
        return loaded


def _inputs(kernels: Sequence[Kernel]) -> np.ndarray:
    """``(N, F + 4)``: features, then one, multiply-adds, elements moved, weights."""
    rows = []
    for kernel in kernels:
        work = work_of(kernel)
        rows.append(np.concatenate([features_of(kernel), [1.0, work.madds, work.read + work.written, work.weights]]))
    return np.array(rows)


def _by_family(rows: Iterable[TableRow]) -> dict[str, list[TableRow]]:
    """Rows of every family that has enough of them to learn from."""
    found: dict[str, list[TableRow]] = defaultdict(list)
    for row in rows:
        found[family_of(row.kernel)].append(row)
    return {name: found[name] for name in sorted(found) if len({shape_of(r.kernel) for r in found[name]}) >= FEWEST_ROWS}


def _columns(rows: Sequence[TableRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, log times and relative errors of rows."""
    log_ms = np.log([max(row.value_ms, LEAST_MS) for row in rows])
    return _inputs([row.kernel for row in rows]), log_ms, np.array([_relative_error(row) for row in rows])


def shape_of(kernel: Kernel) -> str:
    """Kernels that differ in an attribute or an activation only are of one shape."""
    return " ".join("x".join(map(str, spec.shape)) for spec in kernel.inputs if spec is not None)


def _relative_error(row: TableRow) -> float:
    if row.value_ms <= LEAST_MS:
        return NOTHING_KNOWN
    return min(1.0, (row.high_ms - row.low_ms) / (2 * row.value_ms))
