"""DenseNAS from profile to measured export on Fashion-MNIST under several budgets, beside random networks of the same budgets.

``OMP_NUM_THREADS=1 python tests/benchmarks/dense_blocks.py --output runs/dense`` prints a table for docs/benchmarks/densenas.md. It
can be stopped and run again: what is done is kept.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from mobilenas import workflows
from mobilenas.config import DescribeConfig, ExportConfig, TrainConfig, load_config

DATA = "fashion-mnist"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["15%", "30%", "50%"])
    parser.add_argument("--search-fraction", default="0.1", help="share of the training images that the search sees")
    parser.add_argument("--train-fraction", default="0.3", help="share that the found networks are trained on")
    parser.add_argument("--train-epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the random networks")
    arguments = parser.parse_args()
    columns = "budget ms | network | table ms | exported, measured ms | over the budget | repeatability | MAdds | parameters"
    print(f"| {columns} | test accuracy |\n|{'---|' * 9}")
    generator = random.Random(arguments.seed)
    for budget in arguments.budgets:
        found = arguments.output / budget.replace("%", "-percent")
        drawn = arguments.output / f"{found.name}-random"
        cfg = _search_config(arguments.output, budget, arguments.search_fraction)
        target_ms = workflows.search(cfg, found).budgets[0].target_ms
        _draw(cfg, target_ms, generator, drawn)
        for name, run in (("searched", found), ("random", drawn)):
            sets = [f"epochs={arguments.train_epochs}", f"data.train_fraction={arguments.train_fraction}"]
            trained = workflows.train(run, load_config(TrainConfig, None, sets, {"data.name": DATA}))
            if not (run / "export" / "report.json").exists():
                workflows.export(run, load_config(ExportConfig, None, [], {}))
            report = json.loads((run / "export" / "report.json").read_text())
            ms, high_ms = report["measured"]["value_ms"], report["measured"]["high_ms"]
            with _table_model(cfg) as model:
                table_ms = model.latency(workflows.find_network(str(run), DescribeConfig()).architecture).ms
            print(
                f"| {target_ms:.4f} | {name} | {table_ms:.4f} | {ms:.4f} | {ms / target_ms - 1:+.1%} | {high_ms / ms - 1:.2%} "
                f"| {report['madds']:,} | {report['params']:,} | {trained.test_accuracy:.1%} |",
                flush=True,
            )
