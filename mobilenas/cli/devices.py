"""The commands on devices: add, check, list, show."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenas.cli.options import Json
from mobilenas.cli.output import show

if TYPE_CHECKING:
    from mobilenas.devices.catalogue import DeviceCard

devices = typer.Typer(name="devices", help="Look at devices.", no_args_is_help=True, rich_markup_mode=None)
Python = Annotated[
    str | None, typer.Option("--python", help="The interpreter on the device that has the engines; python3 by default.")
]


@devices.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What to call the device.", metavar="NAME")],
    address: Annotated[str, typer.Argument(help="ssh://user@host[:port] or adb:SERIAL.", metavar="ADDRESS")],
    python: Python = None,
    json: Json = False,
) -> None:
    """Ask a device what it is, and keep the answer under a name that --device takes."""
    from mobilenas.devices.catalogue import DeviceCard, ask, check_name, save_card
    from mobilenas.devices.device import find_device, is_address
    from mobilenas.errors import UsageError

    check_name(name)
    if not is_address(address):
        raise UsageError(f"{address!r} is no address of a device: it must read ssh://user@host[:port] or adb:SERIAL")
    with find_device(address, python).open() as link:
        card = ask(link, DeviceCard(name=name, address=address, python=python))
    path = save_card(card)
    show({"device": name, "card": card, "kept": path}, json, f"devices add {name}", [*_facts(card), ("kept", str(path))])


@devices.command("check")
def check(
    name: Annotated[str, typer.Argument(help="What --device takes.", metavar="DEVICE")] = "local",
    python: Python = None,
    json: Json = False,
) -> None:
    """Whether a device answers, what it is now, and what of it has changed since it was added."""
    from mobilenas.devices.catalogue import ask
    from mobilenas.devices.device import find_device

    device = find_device(name, python)
    begin = time.perf_counter()
    with device.open() as link:
        reached_ms = 1e3 * (time.perf_counter() - begin)
        now = ask(link, device.card)
    changed = _changes(device.card, now)
    rows = [*_facts(now), ("reached", f"within {reached_ms:.0f} ms"), *(("changed", words) for words in changed)]
    show({"device": name, "card": now, "reached_ms": reached_ms, "changed": changed}, json, f"devices check {name}", rows)


@devices.command("list")
def list_devices(json: Json = False) -> None:
    """The devices that --device takes by a name, and the engines found on them."""
    from mobilenas.devices.catalogue import ask, known_devices, load_card
    from mobilenas.devices.device import LOCAL, find_device
    from mobilenas.errors import DocumentError

    here = find_device(LOCAL)
    with here.open() as link:
        cards = {LOCAL: ask(link, here.card)}
    damaged: dict[str, str] = {}
    for name in known_devices():
        try:
            cards[name] = load_card(name)
        except DocumentError as error:
            damaged[name] = str(error)
    show(
        {"devices": [{"device": name, "card": card} for name, card in cards.items()], "damaged": damaged},
        json,
        "devices",
        [
            *((name, f"{c.address}: {c.cpu_model}, {c.cpu_count} cores; {_engines(c)}") for name, c in cards.items()),
            *((name, f"damaged: {words}") for name, words in damaged.items()),
        ],
    )


@devices.command("show")
def show_device(
    name: Annotated[str, typer.Argument(help="The name of a device that was added.", metavar="NAME")], json: Json = False
) -> None:
    """What is kept of a device; it is not asked."""
    from mobilenas.devices.catalogue import folder
    from mobilenas.devices.device import find_device

    card = find_device(name).card
    show({"device": name, "card": card}, json, f"devices show {name}", [*_facts(card), ("kept in", str(folder()))])


def _facts(card: DeviceCard) -> list[tuple[str, str]]:
    """What is known, in words; what the device did not tell is left out."""
    clusters = ", ".join(f"{c.cores} x {c.highest_mhz:.0f} MHz" for c in card.clusters)
    told = {
        "address": card.address,
        "SoC": card.soc,
        "cores": f"{card.cpu_count} ({card.machine}, {card.cpu_model})",
        "highest clocks": clusters,
        "memory": f"{card.memory_mib} MiB" if card.memory_mib else None,
        "system": card.system,
        "governor": ", ".join(card.governors),
        "thermal zones": ", ".join(card.thermal_zones),
        "accelerators": ", ".join(card.accelerators),
        "interpreter": card.python,
        "engines": _engines(card),
    }
    return [(name, words) for name, words in told.items() if words]


def _engines(card: DeviceCard) -> str:
    return ", ".join(f"{name} {version}" for name, version in card.engines.items()) or "no engine known"


def _changes(before: DeviceCard, now: DeviceCard) -> list[str]:
    """Of what was known before."""
    pairs = [(name, getattr(before, name), getattr(now, name)) for name in ("cpu_model", "cpu_count", "system", "governors")]
    found = [f"{name} {old!r} -> {new!r}" for name, old, new in pairs if old not in ("unknown", 1, ()) and old != new]
    names = sorted({*before.engines, *now.engines}) if before.engines else []
    engines = [(name, before.engines.get(name, "none"), now.engines.get(name, "none")) for name in names]
    return [*found, *(f"{name} {old} -> {new}" for name, old, new in engines if old != new)]
