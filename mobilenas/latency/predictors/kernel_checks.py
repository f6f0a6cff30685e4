"""What a file may hold of a kernel predictor: arrays that are finite, of the known features, and fit each other."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from mobilenas.core.documents import MAXIMUM_BYTES
from mobilenas.errors import DocumentError
from mobilenas.latency.predictors.kernel_features import FEATURES

if TYPE_CHECKING:
    from mobilenas.latency.predictors.kernel import FamilyPredictor, KernelPredictor

INFLATED = 4
"""Times as large as a document may be what its archive unpacks to."""
LARGEST_LOG_MS = 50.0
"""Of any time that is predicted, in either direction."""
WORKS = 4
"""What the roofline prices: one, multiply-adds, elements moved, weights."""


def check_archive(content: bytes) -> None:
    """Raise ``DocumentError`` for an archive that would unpack to more than a predictor ever holds."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > INFLATED * MAXIMUM_BYTES:
        raise DocumentError(f"unpacks to {size / 2**20:,.0f} MiB, more than any predictor")


def check_predictor(found: KernelPredictor) -> None:
    """Raise ``DocumentError`` for numbers that are not finite, and for arrays that do not fit each other."""
    families, factors, width = found.families_, found.factors_, found.common_width_
    if not isinstance(families, dict) or not isinstance(factors, dict) or not families.keys() <= factors.keys():
        raise DocumentError("families and factors do not go together")
    if not all(isinstance(factor, float) and 1 <= factor <= 1e6 for factor in factors.values()):
        raise DocumentError(f"the families' factors are {factors}: from 1 on, and finite")
    if not (isinstance(width, float) and 0 <= width <= LARGEST_LOG_MS) or not (0 < found.slowness < math.inf):
        raise DocumentError(f"common_width is {width}, slowness {found.slowness}")
    for name, family in families.items():
        for place, value in _numbers(family, name):
            if value.dtype.kind not in "fiub" or not np.isfinite(value).all():
                raise DocumentError(f"{place} holds numbers that are not finite, or no numbers")
        _check_family(name, family)


def _check_family(name: str, family: FamilyPredictor) -> None:
    count = len(FEATURES)
    shapes = {f"{field}_": (count,) for field in ("lowest", "highest", "mean", "spread", "used")}
    for field, shape in {**shapes, "roofline_": (WORKS,)}.items():
        if np.shape(getattr(family, field)) != shape:
            raise DocumentError(f"{name}: {field} has the shape {np.shape(getattr(family, field))}, not {shape}")
    used = family.used_
    is_sane = (family.lowest_ <= family.highest_).all() and (family.spread_ > 0).all() and (family.roofline_ >= 0).all()
    if not is_sane or used.dtype != bool or np.ndim(family.activations_) != 1 or not abs(family.rest_) <= LARGEST_LOG_MS:
        raise DocumentError(f"{name}: its ranges, spreads or prices contradict each other")
    if (family.process_ is None) is bool(used.any()):
        raise DocumentError(f"{name}: uses {used.sum()} features, and has {'no' if family.process_ is None else 'a'} process")
    if family.process_ is not None and np.shape(family.process_.X_train_)[1:] != (used.sum(),):
        raise DocumentError(f"{name}: learnt from rows of the shape {np.shape(family.process_.X_train_)}, not of {used.sum()}")
    ends = np.hstack([[family.lowest_, family.highest_], np.ones((2, WORKS))])
    for asked in (ends, ends[:1]):  # of two lengths, as an array of one length may fit it by chance
        predicted = family.predict(asked)
        if predicted.shape != (len(asked),) or not (np.abs(predicted) <= LARGEST_LOG_MS).all():
            raise DocumentError(f"{name}: predicts {predicted} as logarithms of milliseconds")


def _numbers(value: Any, place: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield all numbers and arrays inside an estimator, with their places."""
    if isinstance(value, np.ndarray | np.generic | float):
        yield place, np.asarray(value)
    elif isinstance(value, list | tuple):
        for index, inside in enumerate(value):
            yield from _numbers(inside, f"{place}[{index}]")
    elif isinstance(value, BaseEstimator) or hasattr(value, "get_params"):  # kernels of a process are no estimators
        for name, inside in vars(value).items():
            yield from _numbers(inside, f"{place}.{name}")
