"""Which regression tells the times of unseen kernels best: a roofline, monotone boosting, boosting on its rest, or ours.

``OMP_NUM_THREADS=1 python tests/benchmarks/kernel_predictors.py --table FOLDER`` compares them on one table's rows (that of
``mobilenas profile --kernels 1500``), kernels of one shape never on both sides, and prints a table for docs/decisions/0012.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold

from mobilenas.latency.predictors.kernel import FEWEST_ROWS, LEAST_MS, FamilyPredictor, _inputs, shape_of
from mobilenas.latency.predictors.kernel_features import FEATURES, WORK_FEATURES, family_of
from mobilenas.latency.table import LatencyTable

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Training inputs, their log times, test inputs -> log times."""


def roofline(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    work, unit = x[:, len(FEATURES) :], np.maximum(x[:, len(FEATURES) :].max(axis=0), 1.0)
    prices, _ = nnls(work / unit / np.exp(y)[:, None], np.ones(len(y)))
    return np.log(np.maximum(asked[:, len(FEATURES) :] / unit @ prices, LEAST_MS))


def monotone_boosting(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    rising = [1 if name in WORK_FEATURES[:4] else 0 for name in FEATURES]
    model = HistGradientBoostingRegressor(
        max_iter=300, learning_rate=0.08, min_samples_leaf=5, monotonic_cst=rising, random_state=0
    )
    return model.fit(x[:, : len(FEATURES)], y).predict(asked[:, : len(FEATURES)])


def boosting_on_the_rest(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    known, base = roofline(x, y, x), roofline(x, y, asked)
    model = HistGradientBoostingRegressor(max_iter=200, learning_rate=0.08, min_samples_leaf=5, random_state=0)
    return base + model.fit(x[:, : len(FEATURES)], y - known).predict(asked[:, : len(FEATURES)])


def ours(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    return FamilyPredictor().fit(x, y).predict(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    arguments = parser.parse_args()
    families = defaultdict(list)
    for row in LatencyTable.load(arguments.table).rows.values():
        families[family_of(row.kernel)].append(row)
    print("| regression | kernels | median error | within 10 % | within 20 % |\n|---|---|---|---|---|")
    for name, fit in (
        ("roofline", roofline),
        ("monotone boosting on log time", monotone_boosting),
        ("roofline, boosting on its rest", boosting_on_the_rest),
        ("roofline, Gaussian process on its rest", ours),
    ):
        errors = np.concatenate([_errors(rows, fit) for rows in families.values()])
        within = [f"{np.mean(errors <= limit):.0%}" for limit in (0.1, 0.2)]
        print(f"| {name} | {len(errors)} | {np.median(errors):.1%} | {within[0]} | {within[1]} |", flush=True)


def _errors(rows: list, fit: Fit) -> np.ndarray:
    groups = [shape_of(row.kernel) for row in rows]
    if len(set(groups)) < FEWEST_ROWS:
        return np.array([])
    x, y = _inputs([row.kernel for row in rows]), np.log([max(row.value_ms, LEAST_MS) for row in rows])
    errors = np.empty_like(y)
    for train, test in GroupKFold(5).split(x, y, groups):
        errors[test] = np.abs(np.exp(fit(x[train], y[train], x[test]) - y[test]) - 1)
    return errors


if __name__ == "__main__":
    main()
