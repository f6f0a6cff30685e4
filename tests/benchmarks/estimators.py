"""Which estimator of a latency repeats: two campaigns of one command, each estimated from its own sweeps.

``mobilenas profile --data digits --plan quick`` twice leaves two folders of records in the user's data directory, under
``campaigns``. ``python tests/benchmarks/estimators.py FIRST/rows.jsonl SECOND/rows.jsonl`` prints how far the two are apart, by
estimator, and how often a model was timed in a fast or a slow moment of the machine. So it does for the two journals of
``loaded_host.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mobilenas.core.run_directory import Journal
from mobilenas.latency.diff import SMALLEST_MS
from mobilenas.profiling import fit
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
    groups = groups_of([name for name in first.records if name in second.records and name != SENTINEL])
    titles = [f"{len(members)} {title}: mean, p90" for title, members in groups.items()]
    print(f"| over sweeps | within a sweep | {' | '.join(titles)} |\n|{'---|' * (2 + len(titles))}")
    for over, outer in OVER_SWEEPS.items():
        for within, inner in WITHIN_SWEEP.items():
            cells = [apart(first, second, members, outer, inner) for members in groups.values()]
            print(f"| {over} | {within} | {' | '.join(cells)} |")
    for log in (first, second):
        print(moments(log))


def groups_of(names: list[str]) -> dict[str, list[tuple[str, ...]]]:
    """What is compared, by kind: networks and models of kernels alone, rows as the pairs of models that they are made of."""
    models = [name for name in names if name.startswith("kernel-")]
    kernels = sorted({name.rpartition("-")[0] for name in models})
    groups: dict[str, list[tuple[str, ...]]] = {
        "networks": [(name,) for name in names if name not in models],
        "kernel models": [(name,) for name in models],
        "rows": [(f"{kernel}-{fit.FEW_COPIES}", f"{kernel}-{fit.MANY_COPIES}") for kernel in kernels],
    }
    return {title: members for title, members in groups.items() if members}


def apart(first: SweepLog, second: SweepLog, members: list[tuple[str, ...]], outer: Callable, inner: Callable) -> str:
    """Mean and 90th percentile of how far two campaigns are apart; rows below a tenth of a microsecond are noise, left out."""

    def value_ms(log: SweepLog, names: tuple[str, ...]) -> float:
        found = [outer(np.array([inner(np.array(r.wall_ms)) for r in log.records[name].values()])) for name in names]
        return found[0] if len(found) == 1 else (found[1] - found[0]) / (fit.MANY_COPIES - fit.FEW_COPIES)

    found = []
    for names in members:
        if min(len(log.records[name]) for log in (first, second) for name in names) >= FEWEST_SWEEPS:
            pair = value_ms(first, names), value_ms(second, names)
            if min(pair) >= SMALLEST_MS:
                found.append(abs(np.log(pair[0] / pair[1])))
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
