"""What a search reached for its budget and a training for its network, as their run directories keep it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from mobilenas.core.measurement import Statistic
from mobilenas.errors import DocumentError

Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e30)]
PositiveMilliseconds = Annotated[float, msgspec.Meta(gt=0, le=1e30)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e30)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
ROUNDING = 1e-6
"""By how much numbers that follow from each other may differ, relative to the larger."""


class DataFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data set that a command used."""

    name: str
    train_images: Count
    test_images: Count
    digest: str
    """Of the list of images with their classes, training and test apart; of small data sets of their pixels."""
    split: Fraction | None
    """Share of each class's images that was drawn for testing; ``None`` where the data set says which are."""
    notes: tuple[str, ...]
    """What was not read."""


class BudgetOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One budget and the four numbers that stand beside it, in milliseconds."""

    text: str
    statistic: Statistic
    target_ms: PositiveMilliseconds
    lowest_ms: Milliseconds
    highest_ms: Milliseconds
    expected_ms: Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
    table_ms: Milliseconds
    table_low_ms: Milliseconds
    table_high_ms: Milliseconds
    measured_ms: PositiveMilliseconds | None
    measured_repeatability_fraction: NotNegative | None
    measured_converged: bool | None
    quantile: Fraction = 0.5
    """Of the prediction; ``lowest_ms`` and ``highest_ms`` are at it too."""
    model: str = "table"
    """The latency model that ``table_ms`` and its interval are of."""
    table_sentinel_ms: PositiveMilliseconds | None = None
    """How fast the device was when its table was made: what a small model, the sentinel, took; ``None`` if not known."""
    measured_sentinel_ms: PositiveMilliseconds | None = None
    """What the sentinel took when this network was measured."""
    predicted_gap_fraction: float | None = None
    """``table_ms`` over the target, less one; below zero where some of the budget is unused. ``None`` in older results."""
    measured_gap_fraction: float | None = None
    """The same of ``measured_ms``."""
    rounds: Count = 0
    """Rounds of candidates that were measured."""
    coverage_fraction: Fraction = 0.9
    """Share of networks that the interval from ``table_low_ms`` to ``table_high_ms`` promises to hold."""
    agrees: bool | None = None
    """Whether the measured interval and the table's have anything in common; ``None`` where nothing was measured."""

    def __post_init__(self) -> None:
        room = 1 + ROUNDING
        if not self.table_low_ms <= room * self.table_ms or not self.table_ms <= room * self.table_high_ms:
            raise DocumentError(f"table_ms {self.table_ms} is not between {self.table_low_ms} and {self.table_high_ms}")
        if not self.lowest_ms <= room * self.highest_ms:
            raise DocumentError(f"lowest_ms {self.lowest_ms} is above highest_ms {self.highest_ms}")
        for gap, ms in ((self.predicted_gap_fraction, self.table_ms), (self.measured_gap_fraction, self.measured_ms)):
            if gap is not None and (ms is None or abs(ms / self.target_ms - 1 - gap) > ROUNDING * max(1.0, abs(gap))):
                raise DocumentError(f"a gap is {gap}, and {ms} ms of {self.target_ms} ms make it another")


class TrainResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``train`` reached; ``result.json`` of the run's ``train`` folder."""

    weights: str
    sha256: str
    """Of the file of weights."""
    fingerprint: str
    test_accuracy: Fraction
    train_accuracy: Fraction
    epochs: Count
    duration_s: NotNegative
    top_5_accuracy: Fraction | None = None
    """``None`` for fewer than six classes."""
    data: DataFacts | None = None


class SearchOutcome(msgspec.Struct, frozen=True):
    """What other commands read of a search's ``result.json``; a run that was made of a network holds no more than this."""

    budgets: Annotated[tuple[BudgetOutcome, ...], msgspec.Meta(max_length=1)]
    fingerprint: str | None = None
