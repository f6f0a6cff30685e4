"""Android devices behind the system's adb: on a cable by their serial number, or in the network by host and port."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mobilenas.devices.remote import PAUSES_S, RemoteLink, short
from mobilenas.errors import LinkError, LostLinkError, MobileNASError, UsageError

SCHEME = "adb:"
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(?P<port>:[0-9]{1,5})?")
CONNECT_S = 20.0


class AdbLink(RemoteLink):
    """An Android device, 7 or later, whose user has allowed debugging from this host."""

    client = "adb"
    base = "/data/local/tmp"

    def __init__(self, address: str, python: str = "python3", pauses_s: Sequence[float] = PAUSES_S) -> None:
        super().__init__(python, pauses_s)
        self.serial = address.removeprefix(SCHEME)
        found = _SERIAL.fullmatch(self.serial)
        if not address.startswith(SCHEME) or not found:
            raise UsageError(f"{address[:200]!r} is no address of a device: it must read adb:SERIAL or adb:HOST:PORT")
        self.is_networked = found["port"] is not None

    @property
    def where(self) -> str:
        return f"the device {self.serial}"

    def client_argv(self, script: str) -> list[str]:
        return [self.client, "-s", self.serial, "shell", "-T", script]

    def prepare_call(self) -> None:
        """A device in the network is connected to; one that is connected already stays so."""
        if not self.is_networked:
            return
        printed, said = self._client([self.client, "connect", self.serial], b"", CONNECT_S)
        words = printed.decode(errors="replace") + said
        if "connected to" not in words:
            raise self.complaint(words)

    def complaint(self, words: str) -> MobileNASError:
        if "unauthorized" in words:
            return LinkError(f"{self.where} has not allowed debugging from this host: confirm the question on its screen")
        if "no permissions" in words:
            return LinkError(f"this user may not talk to {self.where} over USB ({short(words)}): see udev rules for adb")
        if "more than one device" in words:
            return LinkError(f"adb knows several devices as {self.serial}: name one of `adb devices`")
        return LostLinkError(f"{self.where} is not reached, or the connection broke: {short(words) or 'adb said nothing'}")
