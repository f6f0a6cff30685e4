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
from mobilenas.core.workload import COPIES
from mobilenas.latency.diff import SMALLEST_MS
from mobilenas.runtimes.measure import SweepLog

OVER_SWEEPS: dict[str, Callable[[np.ndarray], float]] = {
    "least": lambda values: float(values.min()),
    "mean of the lowest quarter": lambda values: float(np.sort(values)[: max(2, -(-len(values) // 4))].mean()),
    "lower quartile": lambda values: float(np.quantile(values, 0.25)),
    "median": lambda values: float(np.median(values)),
}
WITHIN_SWEEP: dict[str, Callable[[np.ndarray], float]] = {
    "least": lambda samples: float(samples.min()),
    "10th percentile": lambda samples: float(np.percentile(samples, 10)),
    "median": lambda samples: float(np.median(samples)),
}
QUIET = 1.15
"""A record counts if the sentinel beside it took no more than so many times what it usually takes."""
FAST, SLOW = 0.94, 1.06
"""Moments in which a model took less, or more, than so many times what it usually takes."""
FEWEST_SWEEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journals", type=Path, nargs=2)
    first, second = (SweepLog.resume(Journal(path)) for path in parser.parse_args().journals)
    groups = groups_of([name for name in first.records if name in second.records])
    titles = [f"{len(members)} {title}: mean, p90" for title, members in groups.items()]
    print(f"| time | over sweeps | within a sweep | {' | '.join(titles)} |\n|{'---|' * (3 + len(titles))}")
    for time, read in (("as it was", as_it_was), ("by the sentinel", by_the_sentinel)):
        for over, outer in OVER_SWEEPS.items():
            for within, inner in WITHIN_SWEEP.items():
                seen = [{name: outer(read(log, name, inner)) for name in log.records} for log in (first, second)]
                cells = [apart(*seen, members) for members in groups.values()]
                print(f"| {time} | {over} | {within} | {' | '.join(cells)} |")
    for log in (first, second):
        print(moments(log))


def as_it_was(log: SweepLog, name: str, within: Callable[[np.ndarray], float]) -> np.ndarray:
    """One value per sweep."""
    return np.array([within(np.array(record.wall_ms)) for record in log.records[name].values()])


def by_the_sentinel(log: SweepLog, name: str, within: Callable[[np.ndarray], float]) -> np.ndarray:
    """The same at the speed that the device usually has, of records in which it was not much slower; if none, of all."""
    usual_ms = log.sentinel_ms
    beside = np.array([record.sentinel_floor_ms for record in log.records[name].values()])
    values, is_quiet = as_it_was(log, name, within) * usual_ms / beside, beside <= QUIET * usual_ms
    return values[is_quiet] if is_quiet.any() else values


def groups_of(names: list[str]) -> dict[str, list[tuple[str, ...]]]:
    """What is compared, by kind: networks and models of kernels alone, rows as the pairs of models that they are made of."""
    models = [name for name in names if name.startswith("kernel-")]
    kernels = sorted({name.rpartition("-")[0] for name in models})
    groups: dict[str, list[tuple[str, ...]]] = {
        "networks": [(name,) for name in names if name not in models],
        "kernel models": [(name,) for name in models],
        "rows": [(f"{kernel}-{COPIES[0]}", f"{kernel}-{COPIES[1]}") for kernel in kernels],
    }
    return {title: members for title, members in groups.items() if members}


def apart(first: dict[str, float], second: dict[str, float], members: list[tuple[str, ...]]) -> str:
    """Mean and 90th percentile of how far two campaigns are apart; rows below a tenth of a microsecond are noise, left out."""

    def value_ms(seen: dict[str, float], names: tuple[str, ...]) -> float:
        return seen[names[0]] if len(names) == 1 else (seen[names[1]] - seen[names[0]]) / (COPIES[1] - COPIES[0])

    pairs = [(value_ms(first, names), value_ms(second, names)) for names in members]
    found = [abs(np.log(one / other)) for one, other in pairs if min(one, other) >= SMALLEST_MS]
    return f"{np.mean(found):.1%}, {np.quantile(found, 0.9):.1%}"


def moments(log: SweepLog) -> str:
    """How often models were timed faster or slower than usual."""
    ratios = []
    for records in log.records.values():
        values = np.array([np.percentile(record.wall_ms, 10) for record in records.values()])
        if len(values) >= FEWEST_SWEEPS:
            ratios += list(values / np.median(values))
    found = np.array(ratios)
    return f"\n{len(found)} records: {(found < FAST).mean():.1%} in a fast moment, {(found > SLOW).mean():.1%} in a slow one"


if __name__ == "__main__":
    main()
