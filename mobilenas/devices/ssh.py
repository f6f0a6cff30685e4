"""Devices behind the system's ssh, which brings the user's configuration, agents, jump hosts and known hosts."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from mobilenas.devices.remote import PAUSES_S, RemoteLink, short
from mobilenas.errors import LinkError, LostLinkError, MobileNASError, UsageError

SCHEME = "ssh://"
_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?/?"
)
CONNECT_S, ALIVE_S, ALIVE_COUNT = 10, 5, 3
"""Patience for a new connection; seconds between signs of life on one, and how many may be missing."""
PERSIST_S = 60
"""How long a connection is kept open for the next command."""
CONTROL_FOLDER = "/tmp"
"""Of the connection's socket, whose path may have about a hundred letters: ``TMPDIR`` can be longer."""


class SshAddress(NamedTuple):
    """Where ``ssh://user@host[:port]`` leads."""

    destination: str
    port: int | None

    @classmethod
    def parse(cls, address: str) -> SshAddress:
        """Raises ``UsageError`` for anything that is not such an address."""
        found = _ADDRESS.fullmatch(address)
        port = int(found["port"]) if found and found["port"] else None
        if not found or (port is not None and not 0 < port < 65536):
            raise UsageError(
                f"{address[:200]!r} is no address of a device: it must read ssh://user@host or ssh://user@host:port"
            )
        user = f"{found['user']}@" if found["user"] else ""
        return cls(user + found["host"].strip("[]"), port)


class SshLink(RemoteLink):
    """A device that an OpenSSH client reaches without a question: by a key, and with a host key that is known.

    Commands share one connection, which the client keeps open in the background.
    """

    client = "ssh"
    base = "${TMPDIR:-/tmp}"

    def __init__(self, address: str, python: str = "python3", pauses_s: Sequence[float] = PAUSES_S) -> None:
        super().__init__(python, pauses_s)
        self.address = SshAddress.parse(address)

    @property
    def where(self) -> str:
        port = f" port {self.address.port}" if self.address.port else ""
        return f"{self.address.destination}{port}"

    def open(self) -> None:
        self._control = tempfile.mkdtemp(prefix="mn-", dir=CONTROL_FOLDER)
        try:
            super().open()
        except BaseException:
            shutil.rmtree(self._control, ignore_errors=True)
            raise

    def close(self) -> None:
        super().close()
        self._hang_up()
        shutil.rmtree(self._control, ignore_errors=True)

    def client_argv(self, script: str) -> list[str]:
        """By way of ``sh``: the user's login shell may be another kind."""
        return [self.client, *self._client_options(), self.address.destination, f"exec sh -c {shlex.quote(script)}"]

    def _client_options(self) -> list[str]:
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "LogLevel": "ERROR",
            "ConnectTimeout": CONNECT_S,
            "ServerAliveInterval": ALIVE_S,
            "ServerAliveCountMax": ALIVE_COUNT,
            "ControlMaster": "auto",
            "ControlPath": f"{self._control}/%C",
            "ControlPersist": PERSIST_S,
        }
        port = ["-p", str(self.address.port)] if self.address.port else []
        return ["-T", *port, *(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))]

    def _hang_up(self) -> None:
        with suppress(MobileNASError):
            self._client([self.client, *self._client_options(), "-O", "exit", self.address.destination], b"", CONNECT_S)

    def complaint(self, words: str) -> MobileNASError:
        by_hand = f"ssh {f'-p {self.address.port} ' if self.address.port else ''}{self.address.destination}"
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in words:
            return LinkError(
                f"{self.where} shows another host key than the known one: it may be another machine, or someone between. "
                f"If the change is right, remove the old key (ssh-keygen -R) and connect once by hand: {by_hand}"
            )
        if "Host key verification failed" in words:
            return LinkError(f"the host key of {self.where} is not known yet: connect once by hand and accept it: {by_hand}")
        if "Permission denied" in words or "Too many authentication failures" in words:
            return LinkError(f"{self.where} lets nobody in without a question ({short(words)}): {by_hand} must work by a key")
        if "Could not resolve hostname" in words:
            return LinkError(f"{self.where}: no such host ({short(words)})")
        return LostLinkError(f"{self.where} is not reached, or the connection broke: {short(words) or 'ssh said nothing'}")
