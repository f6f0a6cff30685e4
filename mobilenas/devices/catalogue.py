"""Device cards: facts that a device tells of itself, kept as TOML in the user's directory under a name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tomli_w

from mobilenas.core import documents
from mobilenas.core.resources import shipped, user_data_directory
from mobilenas.core.run_directory import write_atomic
from mobilenas.devices.links import Link
from mobilenas.errors import DocumentError, RunnerError, UsageError

FACTS = "device_facts.py"
FACTS_S = 60.0
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cores that share a highest clock."""

    cores: Positive
    highest_mhz: Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class DeviceCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of a device that does not change while one measures; of one that was never asked, its name and address."""

    name: str
    address: str
    python: str | None = None
    """The interpreter on the device that has the engines; its own ``python3`` where none is named."""
    machine: str = "unknown"
    cpu_model: str = "unknown"
    cpu_count: Positive = 1
    system: str = "unknown"
    soc: str | None = None
    clusters: tuple[Cluster, ...] = ()
    memory_mib: Positive | None = None
    governors: tuple[str, ...] = ()
    thermal_zones: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    engines: dict[str, str] = {}
    """Packages of engines that its interpreter has, with their versions."""

    @property
    def identity(self) -> tuple[str, str, str, int, str]:
        """What makes it the same device for a campaign that goes on: not how it is reached, nor which engines it has."""
        return (self.name, self.machine, self.cpu_model, self.cpu_count, self.system)


def ask(link: Link, card: DeviceCard) -> DeviceCard:
    """``card`` with the facts that the device tells now; raises ``DeviceError`` kinds."""
    lines: list[str] = []
    link.push({FACTS: (shipped("export") / "runners" / FACTS).read_bytes()})
    link.run([link.python, FACTS], timeout_s=FACTS_S, on_line=lines.append)
    try:
        facts: dict[str, Any] = documents.parse_json("\n".join(lines), FACTS)
        facts.pop("python")
        return documents.convert(
            {"name": card.name, "address": card.address, "python": card.python, **facts}, DeviceCard, FACTS
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunnerError(f"the device {card.name} told facts that are none: {error}") from error


def folder() -> Path:
    """Where this user's cards are."""
    return user_data_directory() / "devices"


def known_devices() -> list[str]:
    """The names that were given."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def check_name(name: str) -> None:
    """Raise ``UsageError`` for a name that could be no file's."""
    if not _NAME.fullmatch(name) or name == "local":
        raise UsageError(
            f"{name[:80]!r} cannot name a device: up to 64 letters, digits, dots, dashes and underscores, a letter or digit "
            "first; 'local' is this host"
        )


def load_card(name: str) -> DeviceCard:
    """Load the card of a device; raises ``DocumentError``, also for one whose name is not its file's."""
    path = folder() / f"{name}.toml"
    card = documents.convert(documents.parse_toml(documents.read_text(path), str(path)), DeviceCard, str(path))
    if card.name != name:
        raise DocumentError(
            f"{path}: is the card of {card.name[:80]!r}, another device than its file is named for: rename the file, or add "
            "the device again"
        )
    return card


def save_card(card: DeviceCard) -> Path:
    """Keep a card under its name, over an older one; raises ``UsageError`` for a name that cannot be one."""
    check_name(card.name)
    path = folder() / f"{card.name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {key: value for key, value in msgspec.to_builtins(card).items() if value is not None}
    write_atomic(path, tomli_w.dumps(facts))
    return path
