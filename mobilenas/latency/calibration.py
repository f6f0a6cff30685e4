"""From the sum of a network's kernels to its latency: the scale of measured networks, and what it is worth beyond them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mobilenas.latency.table import MOBILE_NETWORKS, TINY_MS, LatencyTable, SpaceCard

ROOM = math.log(1.25)
"""How far beyond the smallest and the largest measured network, as a logarithm, still counts as within their range."""
OTHER_KIND = math.log(1.12)
"""Half-width, as a logarithm, that nine networks in ten need where the scale comes from another kind of network
(docs/decisions/0037-predictions-beyond-what-was-measured.md).
"""
PER_E_ABOVE, PER_E_BELOW = 0.05, 0.2
"""The same for each factor of e between a network and the range of those that the scale comes from. Calls of kernels take
more of a small network than of a large one, which a scale of large ones does not tell.
"""


@dataclass(frozen=True)
class Calibration:
    """The card of one space in ``table``, with scale and interval, for networks that need not be of that space."""

    table: LatencyTable
    card: SpaceCard
    is_of_its_kind: bool
    """Whether the networks to predict are drawn like those that were measured."""

    @classmethod
    def of_table(cls, table: LatencyTable) -> Calibration:
        """Return the calibration of ``table``, which has measured networks: by networks of all kinds where it has them."""
        cards = sorted(table.card.spaces.values(), key=lambda card: card.space != MOBILE_NETWORKS)
        return cls(table, cards[0], is_of_its_kind=cards[0].space == MOBILE_NETWORKS)

    @property
    def from_ms(self) -> float:
        """Kernel sum of the smallest measured network, in milliseconds."""
        return min(row.kernel_sum_ms for row in self.table.networks)

    @property
    def to_ms(self) -> float:
        """Kernel sum of the largest measured network, in milliseconds."""
        return max(row.kernel_sum_ms for row in self.table.networks)

    def distance(self, kernel_sum_ms: float) -> float:
        """Return how far a sum lies beyond the measured networks, as a logarithm: 0 within their range."""
        log_sum = math.log(max(kernel_sum_ms, TINY_MS))
        return max(0.0, math.log(self.from_ms) - ROOM - log_sum, log_sum - math.log(self.to_ms) - ROOM)

    def is_within(self, kernel_sum_ms: float) -> bool:
        """Return whether networks like this one, of such a kernel sum, were measured."""
        return self.is_of_its_kind and self.distance(kernel_sum_ms) == 0

    def network_ms(self, kernel_sum_ms: float) -> float:
        """Return the latency in milliseconds.

        Beyond the measured networks the scale is held at that of the nearest one. What that takes over the sum of its kernels
        may grow with the network or stay what it is: of a larger one the result lies between the two.
        """
        least, most = self._bounds_ms(kernel_sum_ms)
        return math.sqrt(least * most)

    def _bounds_ms(self, kernel_sum_ms: float) -> tuple[float, float]:
        """Return the latencies if the excess over the kernels is that of the nearest network, as a time and as a share."""
        nearest_ms = min(max(kernel_sum_ms, self.from_ms), self.to_ms)
        excess_ms = float(self.card.scale.network_ms(nearest_ms)) - nearest_ms
        as_share_ms = kernel_sum_ms * (1 + excess_ms / nearest_ms)
        return (kernel_sum_ms + excess_ms if kernel_sum_ms > nearest_ms else as_share_ms), as_share_ms

    def half_width(self, kernel_sum_ms: float, plain_sum_ms: float) -> float:
        """Return half the width of the interval, as a logarithm, of a network whose kernels all have exact rows.

        Beyond the measured networks it grows with the distance. Networks of another kind share neither scale nor context for
        sure, so that for them the interval also reaches as far as what the context makes of the plain sum.
        """
        known = math.log(self.card.interval_factor)
        if self.is_within(kernel_sum_ms):
            return known
        context = math.log(max(kernel_sum_ms, TINY_MS) / max(plain_sum_ms, TINY_MS))
        other_kind = 0.0 if self.is_of_its_kind else math.hypot(OTHER_KIND, context)
        least, most = sorted(self._bounds_ms(kernel_sum_ms))
        per_e = PER_E_BELOW if kernel_sum_ms < self.from_ms else PER_E_ABOVE
        return math.hypot(known, other_kind, per_e * self.distance(kernel_sum_ms), math.log(most / least) / 2)


def nearest(tables: Iterable[LatencyTable], kernel_sum_ms: float) -> LatencyTable | None:
    """Return, of tables from the newest on, the one whose measured networks are nearest to a network of such a kernel sum.

    At the same distance networks of all kinds come before those of one space, and newer tables before older ones. ``None``
    where no table has measured networks.
    """
    found = [Calibration.of_table(table) for table in tables if table.networks]
    ranked = sorted(found, key=lambda one: (one.distance(kernel_sum_ms), not one.is_of_its_kind))
    return ranked[0].table if ranked else None
