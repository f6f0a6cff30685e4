"""Quantities as users write them: ``5ms``, ``800us``, ``0.005s``, and ``40%`` of a space's range."""

from __future__ import annotations

import math
import re

import msgspec

from mobilenas.errors import UsageError

_LATENCY_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
MAXIMUM_MS = 1e6
ACCEPTED = "say a positive number with its unit, as 5ms, 800us or 0.005s, or a share of the space's range, as 40%"


class LatencyTarget(msgspec.Struct, frozen=True):
    """A latency budget as asked for: milliseconds, or a fraction of the space's range that a table resolves."""

    text: str
    ms: float | None = None
    range_fraction: float | None = None

    def resolve_ms(self, lowest_ms: float, highest_ms: float) -> float:
        """The target in milliseconds, given the latencies of the space's fastest and slowest network."""
        if self.ms is not None:
            return self.ms
        assert self.range_fraction is not None
        return lowest_ms + self.range_fraction * (highest_ms - lowest_ms)


def parse_latency_target(text: str, flag: str = "--latency-budget") -> LatencyTarget:
    """Parse ``5ms``, ``800us``, ``0.005s`` or ``40%``; raises ``UsageError`` for anything else, a bare number included."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(us|ms|s|%)\s*", text)
    if match is None:
        raise UsageError(f"{flag} is {text!r}: {ACCEPTED}")
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if not 0 <= number <= 100:
            raise UsageError(f"{flag} is {text!r}: a share of the space's range lies between 0% and 100%; {ACCEPTED}")
        return LatencyTarget(text.strip(), range_fraction=number / 100)
    value_ms = number * _LATENCY_MS[unit]
    if not math.isfinite(value_ms) or not 0 < value_ms <= MAXIMUM_MS:
        raise UsageError(f"{flag} is {text!r}: it must be above 0 and at most {MAXIMUM_MS:.0f} ms; {ACCEPTED}")
    return LatencyTarget(text.strip(), ms=value_ms)
