"""Search under budgets spread over a space's range, and once without: how close each comes, and whether it binds.

python tests/benchmarks/budgets.py --config docs/examples/quickstart-search.toml --output runs/budgets
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from mobilenas import BudgetError, SearchConfig, load_config, workflows
from mobilenas.data import load_data
from mobilenas.results import SearchResult


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", dest="sets", action="append", metavar="KEY=VALUE")
    parser.add_argument("--budgets", nargs="+", default=["10%", "25%", "40%", "60%", "80%"])
    parser.add_argument("--output", type=Path, required=True, help="one run directory per budget goes here")
    arguments = parser.parse_args()
    cfg = load_config(SearchConfig, arguments.config, arguments.sets, {})
    print(
        "| budget | target ms | table ms | of the target | measured ms | over the target | repeatability | rounds "
        "| over in round 1 | MAdds | exit |"
    )
    print(f"|{'---|' * 11}")
    for text in arguments.budgets:
        budgeted = msgspec.structs.replace(cfg, latency_budget=text)
        try:
            result = workflows.search(budgeted, arguments.output / text.replace("%", "-percent"))
        except BudgetError as error:
            print(f"| {text} | {error} | | | | | | | | | {error.exit_code} |", flush=True)
            continue
        [b] = result.budgets
        assert b.table_ms <= b.target_ms
        assert b.measured_ms is not None
        assert b.measured_repeatability_fraction is not None
        assert result.selection is not None
        first, *_ = result.selection.rounds
        over = sum(c.measured_ms > b.target_ms for c in first.candidates)
        print(
            f"| {text} | {b.target_ms:.4f} | {b.table_ms:.4f} | {b.table_ms / b.target_ms - 1:+.1%} | {b.measured_ms:.4f} "
            f"| {b.measured_ms / b.target_ms - 1:+.1%} | {b.measured_repeatability_fraction:.2%} "
            f"| {len(result.selection.rounds)} | {over} of {len(first.candidates)} | {result.madds:,} | 0 |",
            flush=True,
        )
    unbudgeted = workflows.search(cfg, arguments.output / "none")
    print(f"| none | | {table_ms(cfg, unbudgeted):.4f} | | | | | | | {unbudgeted.madds:,} | 0 |")


def table_ms(cfg: SearchConfig, found: SearchResult) -> float:
    """What the table says of a network that was searched without a budget."""
    space = workflows.space_from_config(cfg.space, load_data(cfg.data.name), cfg.device.batch)
    target = workflows.Target.from_config(cfg.device)
    with target.device.open() as link:
        return workflows.latency_model(cfg, space, target, link).latency(found.architecture).ms


if __name__ == "__main__":
    main()
