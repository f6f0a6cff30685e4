"""Search under budgets spread over a space's range, and once without: how close each comes, and whether it binds.

python tests/benchmarks/budgets.py --output runs/budgets --config docs/examples/quickstart-search.toml \\
    docs/examples/small-nas-bench-201-search.toml docs/examples/small-dense-search.toml
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mobilenas import BudgetError, SearchConfig, load_config, workflows
from mobilenas.core.run_directory import RunDirectory
from mobilenas.data import load_data
from mobilenas.results import BudgetOutcome, SearchResult

COLUMNS = (
    "configuration", "budget", "target ms", "table ms", "of the target", "measured ms", "of the target", "repeatability",
    "rounds", "first derivation over", "over in round 1", "MAdds", "exit",
)  # fmt: skip
FIRST_OVER = COLUMNS.index("first derivation over")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, nargs="+", required=True)
    parser.add_argument("--set", dest="sets", action="append", metavar="KEY=VALUE")
    parser.add_argument("--budgets", nargs="+", default=["10%", "25%", "40%", "60%", "80%"])
    parser.add_argument("--output", type=Path, required=True, help="one run directory per configuration and budget goes here")
    arguments = parser.parse_args()
    print_row(COLUMNS)
    print(f"|{'---|' * len(COLUMNS)}")
    derived = []
    for path in arguments.config:
        cfg, folder = load_config(SearchConfig, path, arguments.sets, {}), arguments.output / path.stem
        for text in arguments.budgets:
            derived.append((path.stem, text, *cells_of(cfg, text, folder / text.replace("%", "-percent"))))
            print_row(derived[-1])
        unbudgeted = workflows.search(cfg, folder / "none")
        print_row((path.stem, "none", "", f"{table_ms(cfg, unbudgeted):.4f}", *[""] * 7, f"{unbudgeted.madds:,}", "0"))
    within = sum(row[-1] == "0" for row in derived)
    first = sum(row[FIRST_OVER] == "yes" for row in derived)
    print(
        f"\n{len(derived)} derivations: {within} within the budget by their verdict; the first derivation was over in {first}."
    )


def print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def cells_of(cfg: SearchConfig, text: str, folder: Path) -> tuple[str, ...]:
    """One search: its row from the target on."""
    try:
        result = workflows.search(msgspec.structs.replace(cfg, latency_budget=text), folder)
    except BudgetError as error:
        told = folder / "rounds.json"
        rounds = RunDirectory(folder).read_document(told.name) if told.exists() else {"rounds": []}
        judged = of_rounds(rounds["rounds"], rounds["target_ms"]) if rounds["rounds"] else ("0", "", "")
        return (str(error), *[""] * 5, *judged, "", str(error.exit_code))
    [b] = result.budgets
    assert result.selection is not None
    rounds = msgspec.to_builtins(result.selection.rounds)
    return (
        f"{b.target_ms:.4f}", f"{b.table_ms:.4f}", gap(b.predicted_gap_fraction), *measured_of(b),
        *of_rounds(rounds, b.target_ms), f"{result.madds:,}", "0",
    )  # fmt: skip


def measured_of(budget: BudgetOutcome) -> tuple[str, str, str]:
    """The verdict, how far over the target it is, and how well it repeats."""
    assert budget.measured_ms is not None
    assert budget.measured_repeatability_fraction is not None
    return f"{budget.measured_ms:.4f}", gap(budget.measured_gap_fraction), f"{budget.measured_repeatability_fraction:.2%}"


def gap(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:+.1%}"


def of_rounds(rounds: Sequence[dict[str, Any]], target_ms: float) -> tuple[str, str, str]:
    """How many rounds; whether what was derived first, the best-scoring candidate, was over; how many candidates with it."""
    candidates = rounds[0]["candidates"]
    over = [c["measured_ms"] > target_ms for c in candidates]
    first = max(range(len(candidates)), key=lambda index: candidates[index]["score"])
    return str(len(rounds)), "yes" if over[first] else "no", f"{sum(over)} of {len(over)}"


def table_ms(cfg: SearchConfig, found: SearchResult) -> float:
    """What the table says of a network that was searched without a budget."""
    space = workflows.space_from_config(cfg.space, load_data(cfg.data.name), cfg.device.batch)
    target = workflows.Target.from_config(cfg.device)
    with target.device.open() as link:
        return workflows.latency_model(cfg, space, target, link).latency(found.architecture).ms


if __name__ == "__main__":
    main()
