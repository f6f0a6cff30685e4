"""Every cell method from profile to measured export, under one budget: digits and Fashion-MNIST, small, seeds fixed.

``OMP_NUM_THREADS=1 python tests/benchmarks/methods.py --output runs/methods`` prints a table for docs/benchmarks/methods.md. It
can be stopped and run again: what is done is kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec

from mobilenas import MobileNASError, workflows
from mobilenas.config import ExportConfig, ProfileConfig, SearchConfig, TrainConfig, load_config, load_preset

METHODS = {
    "darts": ("darts", []),
    "darts, second order": ("darts", ["method_options.order=2"]),
    "darts, edge normalisation": ("darts", ["switches.edge_normalisation=true"]),
    "gdas": ("gdas", []),
    "gdas-frc": ("gdas", ["space.options.reduction=fixed"]),
    "p-darts": ("p-darts", []),
    "pc-darts": ("pc-darts", []),
}
DATA = {
    "digits": ([], ["epochs=30"]),
    "fashion-mnist": (["data.train_fraction=0.025"], ["epochs=4", "data.train_fraction=0.1"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budget", default="40%")
    arguments = parser.parse_args()
    columns = "data | method | budget ms | table ms | measured ms | exported ms | parameters | test accuracy | normal skips"
    print(f"| {columns} | search s | train s |\n|{'---|' * 11}")
    for data in arguments.data:
        for name in arguments.methods:
            print(f"| {data} | {name} | {_row(arguments.output, data, name, arguments.budget)} |", flush=True)


def _row(output: Path, data: str, name: str, budget: str) -> str:
    method, sets = METHODS[name]
    search_sets, train_sets = DATA[data]
    searched = load_config(
        SearchConfig,
        None,
        [*sets, *search_sets],
        {"method": method, "data.name": data, "latency_budget": budget},
        load_preset(method, "quick"),
    )
    table = output / data / f"table-{searched.space.options.get('reduction', 'searched')}"
    run = output / data / name.replace(", ", "-").replace(" ", "-")
    try:
        if not (table / "card.json").exists():
            space = [f"space.options.{key}={value}" for key, value in searched.space.options.items()]
            workflows.profile(load_config(ProfileConfig, None, space, {"data.name": data, "output": str(table)}))
        searched = msgspec.structs.replace(searched, table=str(table))
        found = workflows.search(searched, run)
        trained = workflows.train(run, load_config(TrainConfig, None, train_sets, {"data.name": data}))
        if not (run / "export" / "report.json").exists():
            workflows.export(run, load_config(ExportConfig, None, [], {}))
    except MobileNASError as error:
        return f"{type(error).__name__}: {error} | | | | | | | |"
    exported = json.loads((run / "export" / "report.json").read_text())
    normal = [option for edge, option in found.architecture.choices.items() if edge.startswith("normal")]
    [b] = found.budgets
    assert b.table_ms <= b.target_ms
    exported_ms = exported["measured"]["value_ms"]
    return (
        f"{b.target_ms:.4f} | {b.table_ms:.4f} | {b.measured_ms:.4f} | {exported_ms:.4f} | {found.params:,} | "
        f"{trained.test_accuracy:.1%} | {normal.count('skip_connect')} of {len(normal)} | {found.duration_s:.0f} | "
        f"{trained.duration_s:.0f}"
    )


if __name__ == "__main__":
    main()
