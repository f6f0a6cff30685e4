"""The document of a network predictor: what it is of, where it comes from, and how wrong it is. It loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from mobilenas.core import documents
from mobilenas.core.architecture import OptionValue
from mobilenas.core.environment import Environment
from mobilenas.core.measurement import MeasurementPlan, SlowDown, Statistic
from mobilenas.core.workload import Workload
from mobilenas.errors import DocumentError
from mobilenas.latency.store import NETWORK_CARD, files_named, table_roots
from mobilenas.latency.table import (
    ErrorReport,
    MeasuredNetwork,
    Milliseconds,
    ModelMilliseconds,
    Positive,
    StatisticFit,
    TableKey,
)
from mobilenas.latency.table_checks import wrong_with_network_card

TENSORS = "network-predictor.safetensors"
"""File name of what was learnt, beside the card."""
SCHEMA_NAME, SCHEMA_VERSION = "network-predictor", 2


class WorkloadCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one workload adds to the linear stand-in."""

    workload: Workload
    cost_ms: Milliseconds


class Proxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of another target that a transfer started from; ``weight_fraction`` is how much it is believed in."""

    key: TableKey
    digest: str
    weight_fraction: Annotated[float, msgspec.Meta(ge=-1e-6, le=1 + 1e-6)]


class NetworkCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Provenance of a predictor. ``origin`` says whether it was learnt from the target alone, or with tables of others."""

    origin: Literal["measured", "transferred"]
    created: str
    key: TableKey
    space: str
    """The space's key."""
    options: dict[str, OptionValue]
    plan: MeasurementPlan
    environment: Environment
    """The device before anything was measured."""
    doubts: tuple[str, ...]
    """What spoke against it."""
    slow_down: SlowDown | None
    """When the device became slower for good, as one does that throttles."""
    sentinel_ms: ModelMilliseconds
    """What the sentinel took meanwhile: the speed of the device that all predictions are at."""
    networks: Positive
    """How many measured ones it was learnt from."""
    error: ErrorReport
    """On measured networks, each predicted without itself."""
    interval_factor: Annotated[float, msgspec.Meta(ge=1, le=1e6)]
    statistics: dict[Statistic, StatisticFit]
    """By statistic, for budgets that bind it."""
    workload_error: ErrorReport
    """Of the linear stand-in against the predictor, on random networks that it was not fitted on."""
    costs: tuple[WorkloadCost, ...]
    """The linear stand-in, complete: nothing is to be added."""
    table: str | None
    """Digest of the table beside it, whose networks it was learnt from; ``None`` where no kernels were measured."""
    measured: tuple[MeasuredNetwork, ...]
    """The networks of a transfer, which no table holds."""
    proxies: tuple[Proxy, ...]


def load_card(folder: Path) -> NetworkCard:
    """The card alone; raises ``DocumentError`` if it is missing, damaged or was edited."""
    return read_card(folder)[0]


def read_card(folder: Path) -> tuple[NetworkCard, Mapping[str, str]]:
    """The card, and the SHA-256 of the other files by their names; raises as ``load_card``."""
    return parse_card(documents.read_text(folder / NETWORK_CARD), str(folder / NETWORK_CARD))


def parse_card(text: str, where: str) -> tuple[NetworkCard, Mapping[str, str]]:
    """Parse a card's text; errors name the place ``where``."""
    whole = documents.parse_json(text, where)
    data = documents.check_schema(whole, SCHEMA_NAME, SCHEMA_VERSION, where, lambda: "profile the space again")
    digests = documents.convert(data.pop("sha256", {}), dict[str, str], f"{where}: sha256")
    card = documents.convert(data, NetworkCard, where)
    if digests.pop(NETWORK_CARD, None) != documents.digest({**whole, "sha256": digests}):
        raise DocumentError(f"{where}: changed since it was learnt (its SHA-256 is another)")
    if words := wrong_with_network_card(card):
        raise DocumentError(f"{where}: {words}")
    return card, digests


def known_cards() -> tuple[list[tuple[Path, NetworkCard]], list[DocumentError]]:
    """Folder and card of every predictor that a search looks through, the user's own first; what is wrong with the others."""
    read = [cards_below(root) for root in table_roots()]
    return [found for cards, _ in read for found in cards], [error for _, errors in read for error in errors]


def cards_below(root: Path) -> tuple[list[tuple[Path, NetworkCard]], list[DocumentError]]:
    """Every card below ``root`` with its folder, and what is wrong with those that cannot be read."""
    cards: list[tuple[Path, NetworkCard]] = []
    errors: list[DocumentError] = []
    for path in files_named(NETWORK_CARD, root):
        try:
            cards.append((path.parent, load_card(path.parent)))
        except DocumentError as error:
            errors.append(error)
    return cards, errors
