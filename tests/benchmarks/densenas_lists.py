"""DenseNAS's own latency lists through our chained cost: against another derivation, and A, B and C against the paper.

The lists (github.com/JaminFong/DenseNAS, latency_list/, Apache-2.0) are flattened to CSV with the columns list, index_path
and latency_ms; the index path is that of the nested list
``[stem, blocks, last, classifier]``, a block being ``[heads, stack]``.

    python tests/benchmarks/densenas_lists.py --lists densenas_latency_lists.csv.gz
"""

from __future__ import annotations

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np
import torch

from mobilenas.config import DescribeConfig
from mobilenas.spaces.base import OptionCosts, Probabilities
from mobilenas.spaces.dense_blocks import DenseBlockSpace, densenas_mbv2, densenas_resnet
from mobilenas.spaces.dense_layout import LAST, STEM, head, route, stacked
from mobilenas.workflows import find_network

PUBLISHED_MS = {"densenas-a": 13.6, "densenas-b": 15.4, "densenas-c": 17.9}
"""On a TITAN Xp, batch 32, as the paper says."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, required=True)
    arguments = parser.parse_args()
    with gzip.open(arguments.lists, "rt") as file:
        rows = list(csv.DictReader(file))
    print("| list | logits | chained ms | by visits ms | relative difference |\n|---|---|---|---|---|")
    spaces = {"lat_list_densenas_mbv2_xp32": densenas_mbv2(), "lat_list_resv2_32": densenas_resnet()}
    for name, space in spaces.items():
        costs = option_costs(space, {row["index_path"]: float(row["latency_ms"]) for row in rows if row["list"] == name})
        for spread in (0.0, 1.0, 5.0):
            generator = torch.Generator().manual_seed(int(spread))
            probabilities = {
                d.name: (spread * torch.randn(len(d.options), generator=generator, dtype=torch.float64)).softmax(0)
                for d in space.decisions
            }
            chained, visits = float(space.expected_cost(probabilities, costs)), by_visits(space, probabilities, costs)
            print(f"| {name} | {spread:g} * N(0, 1) | {chained:.6f} | {visits:.6f} | {abs(chained / visits - 1):.1e} |")
    print("\n| network | sum of the list, ms | published, ms | ratio |\n|---|---|---|---|")
    mobile = next(iter(spaces))
    costs = option_costs(spaces[mobile], {row["index_path"]: float(row["latency_ms"]) for row in rows if row["list"] == mobile})
    for name, published_ms in PUBLISHED_MS.items():
        architecture = find_network(name, DescribeConfig()).architecture
        total = float(spaces[mobile].expected_cost(spaces[mobile].one_hot(architecture), costs))
        print(f"| {name} | {total:.2f} | {published_ms} | {total / published_ms:.3f} |")


def option_costs(space: DenseBlockSpace, ms: dict[str, float]) -> OptionCosts:
    """The entries of a list at the decisions that they are about; lists have branches from the nearest source on."""
    options = {route(source): np.zeros(len(targets)) for source, targets in space.layout.routes.items()}
    for branch, source in enumerate(space.layout.sources[LAST]):
        options[route(source)][space.layout.routes[source].index(LAST)] = ms[f"2/{branch}"]
    for index, block in enumerate(space.layout.searched):
        for branch, source in enumerate(space.layout.sources[block.name]):
            options[head(block.name, source)] = np.array([ms[f"1/{index}/0/{branch}/{o}"] for o in range(len(space.heads))])
        for layer, name in enumerate(stacked(block)):
            options[name] = np.array([ms[f"1/{index}/1/{layer}/{o}"] for o in range(len(space.heads) + 1)])
    return OptionCosts(ms["0"] + ms["3"], options)


def by_visits(space: DenseBlockSpace, probabilities: Probabilities, costs: OptionCosts) -> float:
    """The same expectation forwards: how likely each route is taken, times what it costs."""
    mean = {name: float(row @ torch.as_tensor(costs.options[name])) for name, row in probabilities.items()}
    reached, total = {STEM: 1.0}, costs.fixed
    for source, targets in space.layout.routes.items():
        total += reached[source] * sum(mean[name] for name in stacked(space.layout.node[source]))
        for place, target in enumerate(targets):
            taken = reached[source] * float(probabilities[route(source)][place])
            reached[target] = reached.get(target, 0.0) + taken
            own = costs.options[route(source)][place]
            total += taken * (own if target == LAST else mean[head(target, source)])
    return total


if __name__ == "__main__":
    main()
