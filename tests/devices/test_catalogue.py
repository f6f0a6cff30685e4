"""Device cards: what a device tells of itself, kept under a name, from the command line."""

import json
from collections.abc import Callable

import msgspec
import pytest

from mobilenas.devices.catalogue import DeviceCard, ask, folder, load_card, save_card
from mobilenas.devices.device import find_device, name_of_address
from mobilenas.errors import DocumentError, RunnerError, UnknownNameError, UsageError
from mobilenas.testing.fake_devices import FakeLink
from tests.conftest import Outcome
from tests.devices.conftest import needs_adb, needs_ssh
from tests.devices.loopback_adb import LoopbackAdb
from tests.devices.loopback_ssh import LoopbackSsh

Command = Callable[..., Outcome]
CARD = DeviceCard("board", "ssh://user@board:2222", python="/opt/bin/python", soc="BCM2712", engines={"onnxruntime": "1.32"})


def test_a_card_comes_back_as_it_was() -> None:
    save_card(CARD)
    assert load_card("board") == CARD
    device = find_device("board")
    assert device.card == CARD
    assert device.open().python == "/opt/bin/python"
    assert find_device("board", "python3.12").open().python == "python3.12"


@pytest.mark.parametrize("name", ["", "local", "../x", "a/b", ".hidden", "-x", "two words", "x" * 65, "ä"])
def test_what_cannot_be_a_name_is_refused(name: str, command: Command) -> None:
    with pytest.raises(UsageError, match="cannot name a device"):
        save_card(msgspec.structs.replace(CARD, name=name))
    assert command("devices", "add", "--", name, "ssh://user@host").code == 2
    assert not list(folder().glob("**/*"))


def test_a_name_that_nobody_has_given() -> None:
    save_card(CARD)
    with pytest.raises(UnknownNameError, match=r"no device named 'bord': did you mean board\?.*ssh://user@host"):
        find_device("bord")


def test_a_damaged_card_is_named(command: Command) -> None:
    path = save_card(CARD)
    path.write_text(path.read_text().replace("soc", "sock"))
    with pytest.raises(DocumentError, match=r"board.toml.*sock"):
        find_device("board")
    assert command("devices", "show", "board").code == 3


def test_a_damaged_card_hides_no_other(command: Command) -> None:
    save_card(CARD)
    path = save_card(msgspec.structs.replace(CARD, name="other"))
    path.write_text(path.read_text().replace("soc", "sock"))
    listed = json.loads(command("devices", "list", "--json").out)
    assert [entry["device"] for entry in listed["devices"]] == ["local", "board"]
    assert "sock" in listed["damaged"]["other"]


def test_an_address_as_a_name_in_tables() -> None:
    assert name_of_address("ssh://pi@[fe80::1]:22") == "ssh-pi-fe80-1-22"
    assert name_of_address("adb:127.0.0.1:5555") == "adb-127.0.0.1-5555"


@pytest.mark.parametrize("printed", ["", "[]", "{", '{"machine": 3}', '{"machines": "x"}', "garbage"])
def test_facts_that_are_none_are_refused(printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: FakeLink, argv: list[str], *, timeout_s: float, on_line: Callable[[str], None]) -> None:
        on_line(printed)

    monkeypatch.setattr(FakeLink, "run", run)
    with FakeLink() as link, pytest.raises(RunnerError, match="board told facts that are none"):
        ask(link, CARD)


def test_this_host_is_asked_like_any_other(command: Command) -> None:
    save_card(CARD)
    local, board = json.loads(command("devices", "list", "--json").out)["devices"]
    assert local["card"]["cpu_count"] >= 1
    assert local["card"]["memory_mib"] > 0
    assert "onnxruntime" in local["card"]["engines"]
    assert board == {"device": "board", "card": msgspec.to_builtins(CARD)}
    assert "onnxruntime" in command("devices", "check").out
    assert "BCM2712" in command("devices", "show", "board").out


@needs_ssh
def test_a_device_behind_ssh_is_added_and_checked(ssh: LoopbackSsh, command: Command) -> None:
    _added(command, ssh.address)


@needs_adb
def test_a_device_behind_adb_is_added_and_checked(adb: LoopbackAdb, command: Command) -> None:
    _added(command, adb.address)


def _added(command: Command, address: str) -> None:
    added = command("devices", "add", "board", address)
    assert added.code == 0, added.err
    card = load_card("board")
    assert card.address == address
    assert card.engines["onnxruntime"]
    save_card(msgspec.structs.replace(card, engines={**card.engines, "onnxruntime": "0.9"}, system="Older"))
    checked = command("devices", "check", "board")
    assert checked.code == 0, checked.err
    assert "onnxruntime 0.9 -> " in checked.out
    assert "system 'Older' -> " in checked.out
    assert load_card("board").system == "Older", "looking changes nothing"
