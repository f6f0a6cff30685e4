"""Devices: where code runs. A card of facts and a link to reach it."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass

from mobilenas.core.environment import detect_environment
from mobilenas.devices.adb import SCHEME as ADB
from mobilenas.devices.adb import AdbLink
from mobilenas.devices.catalogue import DeviceCard, known_devices, load_card
from mobilenas.devices.links import Link, LocalLink
from mobilenas.devices.ssh import SCHEME as SSH
from mobilenas.devices.ssh import SshLink
from mobilenas.errors import UnknownNameError, UsageError

LOCAL = "local"
PYTHON = "python3"
"""The interpreter on a device that names none."""


@dataclass(frozen=True)
class Device:
    """A device that can be opened; ``open`` returns a link that is not yet entered."""

    card: DeviceCard
    open: Callable[[], Link]


def find_device(name: str, python: str | None = None, governor: str | None = None) -> Device:
    """A device by what ``--device`` takes: ``local``, an address, or a name that ``mobilenas devices add`` has given.

    ``python`` is the interpreter on it, where it is not the card's; ``governor`` what its clock is held by while a link to it
    is open. Nothing is connected to yet. Raises ``UsageError`` for what is no address, ``UnknownNameError`` for a name that
    nobody has given, ``DocumentError`` for a damaged card.
    """
    if name == LOCAL:
        if python:
            raise UsageError(f"device.python is {python!r}, but this host is measured by the interpreter that runs mobilenas")
        return Device(_this_host(), _holding(LocalLink, governor))
    if is_address(name):
        card = DeviceCard(name=name_of_address(name), address=name)
    elif name in (known := known_devices()):
        card = load_card(name)
    else:
        raise UnknownNameError("device", name, [LOCAL, "ssh://user@host[:port]", "adb:SERIAL", *known])
    return Device(card, _holding(_link(card.address, python or card.python or PYTHON), governor))


def is_address(name: str) -> bool:
    """Whether ``name`` says how a device is reached."""
    return name.startswith((SSH, ADB))


def name_of_address(address: str) -> str:
    """What tables call a device that was given no name: its address in letters that are safe in file names."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", address).strip("-")


def _link(address: str, python: str) -> Callable[[], Link]:
    link = SshLink if address.startswith(SSH) else AdbLink
    link(address, python)  # an address that is none is told before anything is done
    return lambda: link(address, python)


def _holding(link: Callable[[], Link], governor: str | None) -> Callable[[], Link]:
    def opened() -> Link:
        found = link()
        found.governor = governor
        return found

    return opened


def _this_host() -> DeviceCard:
    environment = detect_environment({})
    return DeviceCard(
        name=f"{LOCAL}-{platform.node() or 'host'}",
        address=LOCAL,
        machine=environment.machine,
        cpu_model=environment.cpu_model,
        cpu_count=environment.cpu_count,
        system=environment.system,
    )
