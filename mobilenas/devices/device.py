"""Devices: where code runs. A card of facts and a link to reach it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from mobilenas.core.environment import detect_environment
from mobilenas.devices.links import Link, LocalLink
from mobilenas.errors import UnknownNameError

LOCAL = "local"


class DeviceCard(msgspec.Struct, frozen=True):
    """Facts about a device that do not change while one measures."""

    name: str
    machine: str
    cpu_model: str
    cpu_count: int
    system: str


@dataclass(frozen=True)
class Device:
    """A device that can be opened; ``open`` returns a link that is not yet entered."""

    card: DeviceCard
    open: Callable[[], Link]


def find_device(name: str) -> Device:
    """The device called ``name``: ``local`` is this host. Raises ``UnknownNameError``."""
    if name != LOCAL:
        raise UnknownNameError("device", name, [LOCAL])
    environment = detect_environment({})
    card = DeviceCard(
        name=f"{LOCAL}-{platform.node() or 'host'}",
        machine=environment.machine,
        cpu_model=environment.cpu_model,
        cpu_count=environment.cpu_count,
        system=environment.system,
    )
    return Device(card, LocalLink)
