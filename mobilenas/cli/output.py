"""What a command prints: results on stdout, all else on stderr."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from mobilenas.console import ConsoleListener, percent, print_error, print_table
from mobilenas.core import documents

if TYPE_CHECKING:
    from mobilenas.core.measurement import Measurement, SlowDown
    from mobilenas.export.verify import Agreement
    from mobilenas.latency.diff import TableDifference
    from mobilenas.latency.network_card import Proxy
    from mobilenas.latency.table import ModelFlags, NetworkScale
    from mobilenas.results import BudgetOutcome

R = TypeVar("R")


GOES_ON = "the same command goes on where it stopped"
BEGINS_ANEW = "nothing was written; the same command begins anew"
WORTH_A_DOUBT = 0.1
"""Share of a table's models with a flag that is told of."""
WORTH_SAYING = 0.02
"""Change of a device's speed that is told beside a measurement."""


def with_listener(quiet: bool, work: Callable[[ConsoleListener], R], after_stop: str) -> R:
    """Do ``work`` with progress on stderr; SIGINT ends it with 130 and SIGTERM with 143, both saying ``after_stop``.

    Of several processes those that leave the rest to the first one end with 0.
    """
    try:
        with ConsoleListener(quiet) as told:
            return work(told)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not stop.code:
            raise
        interrupted = isinstance(stop, KeyboardInterrupt)
        print_error(f"{'interrupted' if interrupted else 'terminated'}; {after_stop}")
        sys.exit(130 if interrupted else 143)


def budget_rows(budget: BudgetOutcome) -> list[tuple[str, str]]:
    """A budget and the three latencies that stand beside it."""
    if budget.measured_ms is None or budget.measured_repeatability_fraction is None:
        measured = "not verified on target"
    else:
        repeated = repeats(budget.measured_repeatability_fraction, bool(budget.measured_converged))
        if budget.statistic == "p90":
            repeated = "which nine runs in ten keep with 99 % confidence"
        measured = f"{budget.measured_ms:.4g} ms ({_gap(budget.measured_ms, budget)}), {repeated}"
        measured += speed_words(budget.table_sentinel_ms, budget.measured_sentinel_ms)
        measured += f"; after {budget.rounds} rounds of candidates" if budget.rounds > 1 else ""
    said = budget.text + ("" if budget.quantile == 0.5 else f" at the quantile {budget.quantile:g}")
    return [
        (
            "budget",
            f"{budget.target_ms:.4g} ms {budget.statistic} ({said}; the space: {budget.lowest_ms:.4g} to "
            f"{budget.highest_ms:.4g} ms)",
        ),
        ("expected", f"{budget.expected_ms:.4g} ms (supernet, last epoch)"),
        (
            budget.model if budget.model == "table" else f"{budget.model} model",
            f"{budget.table_ms:.4g} ms ({_gap(budget.table_ms, budget)}; {budget.table_low_ms:.4g} to "
            f"{budget.table_high_ms:.4g}{coverage_words(budget.coverage_fraction)})",
        ),
        ("measured", measured),
    ]


def _gap(ms: float, budget: BudgetOutcome) -> str:
    """How far over its budget a latency is, or below zero how much it leaves unused."""
    return f"{ms / budget.target_ms - 1:+.1%} of the budget"


def interval_words(measured: Measurement) -> str:
    """Format a measured value with the interval in which a later measurement lies."""
    return f"{measured.value_ms:.4g} ms ({measured.low_ms:.4g} to {measured.high_ms:.4g})"


def disagreement_rows(agrees: bool | None) -> list[tuple[str, str]]:
    """Return a warning row where the measured interval and the predicted one do not overlap."""
    said = (
        "the measured interval and the predicted one do not overlap: the device is not as fast as when its table was made, or "
        "one of them is wrong; measure again on an idle device"
    )
    return [("doubt", said)] if agrees is False else []


def coverage_words(fraction: float) -> str:
    """What an interval promises, where it is less than the nine networks in ten that are meant."""
    from mobilenas.latency.prediction import COVERAGE_FRACTION

    return "" if fraction >= COVERAGE_FRACTION else f", which promises to hold {fraction:.0%} of networks only"


def agreement_words(agreement: Agreement) -> str:
    """How an exported model compares with torch."""
    off = "logits that are no numbers"
    if agreement.maximum_difference is not None:
        off = f"largest difference from torch {agreement.maximum_difference:.2g}"
    right = ""
    if agreement.accuracy is not None and agreement.torch_accuracy is not None:
        right = f", {agreement.accuracy:.1%} of them right, torch {agreement.torch_accuracy:.1%}"
    return f"{off}, same class for {agreement.top_1_agreement_fraction:.1%} of {agreement.inputs} images{right}"


def repeats_of(measured: Measurement) -> str:
    """How well a measurement repeats, in words."""
    return repeats(measured.repeatability_fraction, measured.converged)


def repeats(fraction: float, converged: bool) -> str:
    """The same from its parts."""
    return f"repeatable within {percent(fraction)}" + ("" if converged else ", which is not yet settled: measure longer")


def speed_words(before_ms: float | None, now_ms: float | None) -> str:
    """How much slower or faster a device was than when its table was made, by the sentinel; nothing where that is little."""
    if before_ms is None or now_ms is None or abs(now_ms / before_ms - 1) < WORTH_SAYING:
        return ""
    word = "slower" if now_ms > before_ms else "faster"
    return f"; the device was {abs(now_ms / before_ms - 1):.1%} {word} than when its table was made"


def slow_down_words(found: SlowDown) -> str:
    """When a device became slower while it was measured."""
    at = datetime.fromtimestamp(found.at_s).isoformat(" ", "seconds")
    return f"the device became {found.fraction:.0%} slower at {at}: it probably throttles"


def moved_words(found: TableDifference) -> str:
    """How far a table has moved."""
    open_rows = len(found.moves) - found.converged
    return (
        f"median {found.median_ratio:.3f} x, {found.median_net_ratio:.3f} x net of the device's own speed; "
        f"{percent(found.moved_fraction)} of {found.converged} kernels moved by over 10 % net"
        + (f", {open_rows} did not converge" if open_rows else "")
    )


def proxy_row(proxy: Proxy) -> tuple[str, str]:
    """A table that a transfer started from."""
    key = proxy.key
    return "proxy", f"{key.device} {key.runtime} {key.precision} {key.threads} threads: weight {proxy.weight_fraction:.2f}"


def scale_words(scale: NetworkScale, spread_fraction: float) -> str:
    """From kernels to a network, and how well that is known."""
    doubling = f"{100 * scale.curvature * math.log(2):+.1f} % for each doubling"
    spread = f"known to {percent(spread_fraction)} at the median network"
    return f"{scale.factor:.3f} x the sum of their kernels at {scale.reference_ms:.3g} ms, {doubling}; {spread}"


def flag_words(flags: ModelFlags) -> list[str]:
    """What more than a tenth of a table's models were measured with."""
    named = {
        "had two modes, as on another core or at another step of the clock": flags.bimodal,
        "took another time by the wall clock than by the CPU clock": flags.clocks_disagree,
        "were not warm in half of their sweeps": flags.not_warm,
        "were disturbed in over a tenth of their runs": flags.disturbed,
    }
    limit = WORTH_A_DOUBT * flags.models
    return [f"{count} of {flags.models} models {words}" for words, count in named.items() if count > limit]


def show(result: Any, json: bool, title: str, rows: list[tuple[str, str]]) -> None:
    """Print ``result`` as one JSON object, or ``rows`` for people."""
    if json:
        print(documents.dump_json(result), end="")
    else:
        print_table(title, rows)


def say_next(json: bool, command: str) -> None:
    """Print the command that comes next; one of ``config.command_line``, which quotes what has to be."""
    if not json:
        print(f"next: {command}")
