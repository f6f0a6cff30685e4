"""How numbers of tables and of predictors may contradict themselves or each other: checked when written and when read."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mobilenas.core.architecture import options_key
from mobilenas.core.workload import Kernel, TensorSpec
from mobilenas.latency.predictors.kernel_features import family_of, features_of

if TYPE_CHECKING:
    from mobilenas.latency.network_card import NetworkCard
    from mobilenas.latency.table import ErrorReport, LatencyTable, MeasuredNetwork, SpaceCard, TableCard, TableRow

ROUNDING = 1e-6
"""By how much numbers that follow from each other may differ, relative to the largest of them."""
MAXIMUM_ELEMENTS = 2**40
_DTYPE = re.compile(r"bool|bfloat16|(u?int|float|complex)\d+\w*")


def wrong_with_kernel(kernel: Kernel) -> str | None:
    """Say in which way ``kernel`` could not be executed, or ``None``: shapes, constants and attributes must go together."""
    for spec in (*kernel.inputs, *kernel.outputs):
        if spec is not None and (words := _wrong_with_tensor(spec)):
            return words
    try:
        family_of(kernel)
        is_finite = np.isfinite(features_of(kernel)).all()
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        return f"the attributes and tensors of {kernel.operator} do not go together ({error!r})"
    return None if is_finite else f"the attributes of {kernel.operator} are not finite"


def _wrong_with_tensor(spec: TensorSpec) -> str | None:
    count = math.prod(spec.shape)
    if count > MAXIMUM_ELEMENTS:
        return f"a tensor of the shape {spec.shape} has more than {MAXIMUM_ELEMENTS:,} elements"
    if not _DTYPE.fullmatch(spec.dtype):
        return f"{spec.dtype[:40]!r} is no type of numbers"
    if spec.values is not None and (not spec.is_constant or len(spec.values) != count):
        return f"{len(spec.values)} values stand for a {'' if spec.is_constant else 'changing '}tensor of {count}"
    return None


def wrong_with_row(row: TableRow) -> str | None:
    """Say how a kernel's row contradicts itself, or ``None``."""
    if not row.low_ms <= row.value_ms <= row.high_ms:
        return f"value_ms {row.value_ms} is not between low_ms {row.low_ms} and high_ms {row.high_ms}"
    if not row.few_copies < row.many_copies:
        return f"few_copies {row.few_copies} is not below many_copies {row.many_copies}"
    slope_ms = max(0.0, (row.many_ms - row.few_ms) / (row.many_copies - row.few_copies))
    if abs(slope_ms - row.value_ms) > ROUNDING * max(row.few_ms, row.many_ms):
        return f"value_ms is {row.value_ms}, but few_ms {row.few_ms} and many_ms {row.many_ms} make it {slope_ms:.6g}"
    return wrong_with_kernel(row.kernel)


def wrong_with_network(row: MeasuredNetwork) -> str | None:
    """Say how a measured network's numbers contradict each other, or ``None``."""
    if not row.low_ms <= row.measured_ms <= row.high_ms:
        return f"measured_ms {row.measured_ms} is not between low_ms {row.low_ms} and high_ms {row.high_ms}"
    if row.p90_ms is not None and row.p90_ms < row.median_ms:
        return f"p90_ms {row.p90_ms} is below median_ms {row.median_ms}"
    return None


def wrong_with_error(error: ErrorReport) -> str | None:
    """Say how the errors of predictions contradict each other, or ``None``."""
    room = 1 + ROUNDING
    if error.mape_fraction > room * error.worst_fraction or error.p90_fraction > room * error.worst_fraction:
        return f"the mean or the 90th percentile of errors is above the worst, {error.worst_fraction}"
    if abs(error.bias_fraction) > room * error.mape_fraction + ROUNDING:
        return f"bias_fraction {error.bias_fraction} is larger than mape_fraction {error.mape_fraction}"
    if error.within_5_fraction > error.within_10_fraction:
        return f"within_5_fraction {error.within_5_fraction} is above within_10_fraction {error.within_10_fraction}"
    return None


def wrong_with_date(created: str) -> str | None:
    """Say why ``created`` is no time, or ``None``."""
    try:
        return None if datetime.fromisoformat(created).tzinfo else f"created {created!r} has no time zone"
    except ValueError:
        return f"created {created[:40]!r} is no time"


def wrong_with_card(card: TableCard) -> str | None:
    """Say how a table's card contradicts itself, or ``None``."""
    counts = (card.flags.bimodal, card.flags.clocks_disagree, card.flags.not_warm, card.flags.disturbed)
    if max(counts) > card.flags.models:
        return f"flags tell of {max(counts)} models, of {card.flags.models}"
    if card.rows_not_converged > card.rows:
        return f"rows_not_converged is {card.rows_not_converged}, of {card.rows}"
    if card.key.estimator != card.plan.estimator:
        return f"the key's estimator is {card.key.estimator}, the plan's {card.plan.estimator}"
    spaces = (words for key, space in card.spaces.items() if (words := _wrong_with_space(key, space)))
    return wrong_with_date(card.created) or next(spaces, None)


def _wrong_with_space(key: str, card: SpaceCard) -> str | None:
    own = key.partition("-b")[0] == card.space  # networks of all kinds, which no space draws
    if not own and key != options_key(card.space, card.options):
        return f"the space {key} has the key {options_key(card.space, card.options)} by its name and options"
    errors = [card.table_error, card.workload_error, card.madds_baseline_error, *(s.error for s in card.statistics.values())]
    return next((f"{key}: {words}" for e in errors if e is not None and (words := wrong_with_error(e))), None)


def wrong_between(table: LatencyTable) -> str | None:
    """Say how the card of a table and its rows contradict each other, or ``None``."""
    card, not_converged = table.card, sum(not row.converged for row in table.rows.values())
    if (card.rows, card.rows_not_converged) != (len(table.rows), not_converged):
        return (
            f"the card says {card.rows} rows, {card.rows_not_converged} of them not converged; kernels.csv has "
            f"{len(table.rows)}, {not_converged} of them not converged"
        )
    for key, space in card.spaces.items():
        tested = space.table_error.networks
        if table.networks and tested > len(table.networks):
            return f"the card's errors of {key} are of {tested} networks; networks.csv has {len(table.networks)}"
    names = {space.space for space in card.spaces.values()}
    strange = next((row for row in table.networks if names and row.architecture.space not in names), None)
    return f"networks.csv has a network of {strange.architecture.space}, which the card does not know" if strange else None


def wrong_with_network_card(card: NetworkCard) -> str | None:
    """Say how the card of a network predictor contradicts itself, or ``None``."""
    if options_key(card.space.rpartition("-")[0], card.options) != card.space:
        return f"the space {card.space} does not have these options"
    if card.key.estimator != card.plan.estimator:
        return f"the key's estimator is {card.key.estimator}, the plan's {card.plan.estimator}"
    if len({cost.workload for cost in card.costs}) < len(card.costs):
        return "the cost of a workload stands twice"
    if (card.origin == "transferred") is not (card.table is None):
        return f"its origin is {card.origin!r}, and its table {card.table}"
    if card.table is None and card.networks != len(card.measured):
        return f"it says {card.networks} networks and holds {len(card.measured)}"
    if len({network.architecture for network in card.measured}) < len(card.measured):
        return "a measured network stands twice"
    errors = (card.error, card.workload_error, *(statistic.error for statistic in card.statistics.values()))
    found = [wrong_with_date(card.created), *map(wrong_with_error, errors), *map(wrong_with_network, card.measured)]
    return next((words for words in found if words), None)


def wrong_with_fields(row: msgspec.Struct) -> str | None:
    """Say which field of ``row`` could not be read again, as it is not finite or out of its range, or ``None``."""
    plain = msgspec.to_builtins(row)
    for name, value in plain.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}"
    try:
        msgspec.convert(plain, type(row))
    except msgspec.ValidationError as error:
        return str(error)
    return None
