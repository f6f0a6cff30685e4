"""DenseNAS from profile to measured export on Fashion-MNIST under several budgets, beside random networks of the same budgets.

``OMP_NUM_THREADS=1 python tests/benchmarks/dense_blocks.py --output runs/dense`` prints a table for
docs/benchmarks/densenas.md. It can be stopped and run again: what is done is kept.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from mobilenas import workflows
from mobilenas.config import (
    DataSetConfig,
    DescribeConfig,
    ExportConfig,
    ProfileConfig,
    SearchConfig,
    TrainConfig,
    load_config,
    load_preset,
)
from mobilenas.data import load_data
from mobilenas.errors import MissingKernelError

DATA = "fashion-mnist"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["15%", "30%", "50%"])
    parser.add_argument("--search-fraction", default="0.3", help="share of the training images that the search sees")
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
        [reached] = workflows.search(cfg, found).budgets
        target_ms = reached.target_ms
        table_ms = {found: reached.table_ms, drawn: _draw(cfg, target_ms, generator, drawn)}
        for name, run in (("searched", found), ("random", drawn)):
            sets = [f"epochs={arguments.train_epochs}", f"data.train_fraction={arguments.train_fraction}"]
            trained = workflows.train(run, load_config(TrainConfig, None, sets, {"data.name": DATA}))
            if not (run / "export" / "report.json").exists():
                workflows.export(run, load_config(ExportConfig, None, [], {}))
            report = json.loads((run / "export" / "report.json").read_text())
            ms, high_ms = report["measured"]["value_ms"], report["measured"]["high_ms"]
            print(
                f"| {target_ms:.4f} | {name} | {table_ms[run]:.4f} | {ms:.4f} | {ms / target_ms - 1:+.1%} "
                f"| {high_ms / ms - 1:.2%} | {report['madds']:,} | {report['params']:,} | {trained.test_accuracy:.1%} |",
                flush=True,
            )


def _search_config(output: Path, budget: str, fraction: str) -> SearchConfig:
    preset, table = load_preset("dense-nas", "quick"), output / "table"
    if not (table / "card.json").exists():
        sets = [f"space.name={preset['space']['name']}"]
        workflows.profile(load_config(ProfileConfig, None, sets, {"data.name": DATA, "output": str(table)}))
    flags = {"method": "dense-nas", "data.name": DATA, "table": str(table), "latency_budget": budget}
    return load_config(SearchConfig, None, [f"data.train_fraction={fraction}"], flags, preset)


def _draw(cfg: SearchConfig, target_ms: float, generator: random.Random, run: Path) -> float:
    """A run of the first random network that the table says fits; its table latency in milliseconds."""
    space = workflows.space_from_config(cfg.space, load_data(DATA), cfg.device.batch)
    target = workflows.Target.from_config(cfg.device)
    with target.device.open() as link:
        model = workflows.latency_model(cfg, space, target, link)
        while True:
            architecture = space.random_architecture(generator)
            try:
                table_ms = model.latency(architecture).ms
            except MissingKernelError:
                continue
            if table_ms <= target_ms:
                break
    if not run.exists():
        written = run.with_suffix(".json")
        written.write_text(architecture.to_json())
        workflows.make_run(str(written), DescribeConfig(data=DataSetConfig(name=DATA)), run)
    return table_ms


if __name__ == "__main__":
    main()
