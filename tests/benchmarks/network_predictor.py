"""The network predictor from 20 to 500 measured networks, on published latencies of real devices, beside what else there is.

python tests/benchmarks/network_predictor.py --data ../shared/data

Per draw a shuffle; the first networks are measured, of the last 10,000 the test is 2,000. Needs the extra ``benchmarks``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import Ridge
from transfer import nasbench201_positions, one_hot, read

from mobilenas.latency.prediction import conformal_factor
from mobilenas.latency.predictors.network import NetworkPredictor
from mobilenas.latency.table import ErrorReport
from mobilenas.profiling.learn import held_out_predictions

COUNTS, TEST = (20, 50, 100, 200, 500), 2000
COVERED = (20, 50, 100)
"""Counts for which intervals are judged, which takes ten fits each."""

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Uses of options of measured networks ``(n, F)``, their milliseconds ``(n,)``, uses of others -> milliseconds of these."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=2)
    arguments = parser.parse_args()
    codes, devices, latency_ms = read(arguments.data / "nasbench201_latency_ms.parquet", len(nasbench201_positions()))
    uses = one_hot(codes)
    shared = np.tile(np.eye(codes.max() + 1), (codes.shape[1], 1))
    methods: Mapping[str, Predict] = {
        "ridge": lambda x, y, others: Ridge(alpha=1.0).fit(x, y).predict(others),
        "perceptron": lambda x, y, others: perceptron(np.hstack([x, x @ shared]), y, np.hstack([others, others @ shared])),
        "predictor": lambda x, y, others: NetworkPredictor(shared).fit(x, y).predict(others),
    }
    for count in COUNTS:
        found = {
            name: [[judge(method, uses, y, count, draw) for draw in range(arguments.draws)] for y in latency_ms.T]
            for name, method in methods.items()
        }
        print_table(count, devices, found)
        if count in COVERED:
            covered = [coverage(NetworkPredictor(shared), uses, y, count) for y in latency_ms.T]
            print(
                f"\nIntervals meant to hold 90 % hold {np.mean(covered):.0%} on average, {min(covered):.0%} at worst.",
                flush=True,
            )


def perceptron(x: np.ndarray, y: np.ndarray, others: np.ndarray, members: int = 4, epochs: int = 300) -> np.ndarray:
    """The mean of four networks of two hidden layers on log time: what stood in the design."""
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-3
    inputs, asked = (torch.as_tensor((part - mean) / spread, dtype=torch.float32) for part in (x, others))
    level, unit = np.log(y).mean(), np.log(y).std()
    target = torch.as_tensor((np.log(y) - level) / unit, dtype=torch.float32)[:, None]
    total = torch.zeros(len(others), 1)
    for member in range(members):
        torch.manual_seed(member)
        layers = [
            torch.nn.Linear(x.shape[1], 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 1),
        ]
        model = torch.nn.Sequential(*layers)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
        for _ in range(epochs):
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), target).backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            total += model(asked) / members
    return np.asarray(np.exp(level + unit * total.numpy()[:, 0].astype(float)))


def split(networks: int, count: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(draw).permutation(networks)
    return order[:count], order[-TEST:]


def judge(method: Predict, uses: np.ndarray, y: np.ndarray, count: int, draw: int) -> tuple[float, ...]:
    """Mean error, share within 5 % and within 10 %, Spearman."""
    measured, test = split(len(uses), count, draw)
    found = ErrorReport.of(np.maximum(method(uses[measured], y[measured], uses[test]), 1e-3), y[test])
    return found.mape_fraction, found.within_5_fraction, found.within_10_fraction, found.spearman


def coverage(predictor: NetworkPredictor, uses: np.ndarray, y: np.ndarray, count: int) -> float:
    """Of intervals as ``mobilenas profile`` makes them: from each measured network as the others predict it."""
    measured, test = split(len(uses), count, 0)
    factor = conformal_factor(held_out_predictions(predictor, uses[measured], y[measured], 0), y[measured])
    predicted = predictor.fit(uses[measured], y[measured]).predict(uses[test])
    return float((np.abs(np.log(predicted / y[test])) <= np.log(factor)).mean())


def print_table(count: int, devices: list[str], found: Mapping[str, list[list[tuple[float, ...]]]]) -> None:
    print(f"\n{count} measured networks: mean error / within 5 % / within 10 % / Spearman\n")
    print(f"| device | {' | '.join(found)} |\n|---{'|---' * len(found)}|")
    by_device = {name: np.mean(figures, axis=1) for name, figures in found.items()}
    for index, device in enumerate(devices):
        print(f"| {device} | " + " | ".join(text(figures[index]) for figures in by_device.values()) + " |")
    print("| **mean** | " + " | ".join(text(figures.mean(axis=0)) for figures in by_device.values()) + " |", flush=True)


def text(figures: np.ndarray) -> str:
    error, within_5, within_10, spearman = figures
    return f"{error:.1%} / {within_5:.0%} / {within_10:.0%} / {spearman:.3f}"


if __name__ == "__main__":
    main()
