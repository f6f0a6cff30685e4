"""Which estimator of a model's latency repeats: two campaigns of one command, each estimated from its own sweeps.

``mobilenas profile --data digits --plan quick`` twice leaves two folders of records in the user's data directory, under
``campaigns``. ``python tests/benchmarks/estimators.py FIRST/rows.jsonl SECOND/rows.jsonl`` prints how far the two are apart, by
estimator, and how often a model was timed in a fast or a slow moment of the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mobilenas.core.run_directory import Journal
from mobilenas.runtimes.measure import SENTINEL, SweepLog

OVER_SWEEPS: dict[str, Callable[[np.ndarray], float]] = {
    "least": lambda values: float(values.min()),
    "second": lambda values: float(np.sort(values)[min(1, len(values) - 1)]),
    "lower quartile": lambda values: float(np.quantile(values, 0.25)),
    "lower third": lambda values: float(np.quantile(values, 1 / 3)),
    "median": lambda values: float(np.median(values)),
}
WITHIN_SWEEP: dict[str, Callable[[np.ndarray], float]] = {
    "least": lambda samples: float(samples.min()),
    "10th percentile": lambda samples: float(np.percentile(samples, 10)),
    "median": lambda samples: float(np.median(samples)),
}
FAST, SLOW = 0.94, 1.06
"""Moments in which a model took less, or more, than so many times what it usually takes."""
FEWEST_SWEEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journals", type=Path, nargs=2)
    first, second = (SweepLog.resume(Journal(path)) for path in parser.parse_args().journals)
    names = [name for name in first.records if name in second.records and name != SENTINEL]
    kernels = [name for name in names if name.startswith("kernel-")]
    networks = [name for name in names if name not in kernels]
    print(f"| over sweeps | within a sweep | {len(networks)} networks: mean, p90 | {len(kernels)} kernel models: mean, p90 |")
    print("|---|---|---|---|")
    for over, outer in OVER_SWEEPS.items():
        for within, inner in WITHIN_SWEEP.items():
            cells = [apart(first, second, some, outer, inner) for some in (networks, kernels)]
            print(f"| {over} | {within} | {' | '.join(cells)} |")
    for log in (first, second):
        print(moments(log))


def apart(first: SweepLog, second: SweepLog, names: list[str], outer: Callable, inner: Callable) -> str:
    """Mean and 90th percentile of how far two campaigns are apart."""
    found = []
    for name in names:
        sweeps = [np.array([inner(np.array(r.wall_ms)) for r in log.records[name].values()]) for log in (first, second)]
        if min(map(len, sweeps)) >= FEWEST_SWEEPS:
            found.append(abs(np.log(outer(sweeps[0]) / outer(sweeps[1]))))
    return f"{np.mean(found):.1%}, {np.quantile(found, 0.9):.1%}"


def moments(log: SweepLog) -> str:
    """How often models were timed faster or slower than usual."""
    ratios = []
    for name, records in log.records.items():
        values = np.array([np.percentile(record.wall_ms, 10) for record in records.values()])
        if name != SENTINEL and len(values) >= FEWEST_SWEEPS:
            ratios += list(values / np.median(values))
    found = np.array(ratios)
    return f"\n{len(found)} records: {(found < FAST).mean():.1%} in a fast moment, {(found > SLOW).mean():.1%} in a slow one"


if __name__ == "__main__":
    main()
