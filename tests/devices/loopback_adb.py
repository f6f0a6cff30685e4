"""The device side of the ADB protocol on loopback: the system's adb talks to it, what it is asked to run, runs on this host.

Only what ``adb shell`` needs: CNXN, AUTH, OPEN, OKAY, WRTE and CLSE, and the service ``shell,v2,raw``.
(https://android.googlesource.com/platform/packages/modules/adb, protocol.txt and shell_protocol.h)
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import IO

from tests.devices.loopback_ssh import device_environment, end, write_all

VERSION, MAXIMUM_DATA = 0x01000001, 256 * 1024
SHELL_FEATURE = "shell_v2"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
DEVICE_FOLDER = "/data/local/tmp"
"""What Android calls the folder that a shell may write to; here it is one of the test's own."""


class LoopbackAdb:
    """A device at ``adb:127.0.0.1:PORT``; ``drop`` breaks every connection at once, as a cable would."""

    def __init__(self, folder: Path, *, is_authorised: bool = True) -> None:
        self.folder, self.is_authorised, self.is_down = folder, is_authorised, False
        self.login = "{}"
        """What its shell does around a command."""
        self._sockets: list[socket.socket] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"adb:127.0.0.1:{self.port}"

    def drop(self) -> None:
        while self._sockets:
            hang_up(self._sockets.pop())

    def stop(self) -> None:
        hang_up(self._listener)
        self.drop()
        end(self.children)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                if self.is_down:
                    connection.close()
                    continue
                self._sockets.append(connection)
                threading.Thread(target=Connection(self, connection).serve, daemon=True).start()


def hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class Connection:
    """One host's connection, with the shells that it has opened."""

    def __init__(self, device: LoopbackAdb, connection: socket.socket) -> None:
        self.device, self._socket = device, connection
        self._sending = threading.Lock()
        self._shells: dict[int, Shell] = {}

    def serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                self._answer(*self._receive())
        for shell in list(self._shells.values()):
            shell.lose()
        hang_up(self._socket)

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        number = struct.unpack("<I", command)[0]
        header = struct.pack("<IIIIII", number, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        with self._sending:
            self._socket.sendall(header + data)

    def _receive(self) -> tuple[bytes, int, int, bytes]:
        command, first, second, length, _, _ = struct.unpack("<4sIIIII", self._exactly(24))
        return command, first, second, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._socket.recv(min(count, 2**16))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _answer(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if (command == b"CNXN" and not self.device.is_authorised) or (command == b"AUTH" and first == 2):
            self.send(b"AUTH", 1, 0, bytes(20))
        elif command == b"CNXN":
            banner = f"device::ro.product.name=loopback;ro.product.model=Loopback;features={SHELL_FEATURE}"
            self.send(b"CNXN", VERSION, MAXIMUM_DATA, banner.encode())
        elif command == b"OPEN":
            service, _, script = data.rstrip(b"\0").decode().partition(":")
            if not service.startswith("shell,v2"):
                self.send(b"CLSE", 0, first)
                return
            shell = self._shells[len(self._shells) + 1] = Shell(self, len(self._shells) + 1, first, script)
            self.send(b"OKAY", shell.number, first)
            shell.start()
        elif command == b"OKAY" and second in self._shells:
            self._shells[second].may_send.release()
        elif command == b"WRTE" and second in self._shells:
            self._shells[second].take(data)
            self.send(b"OKAY", second, first)
        elif command == b"CLSE" and second in self._shells:
            self._shells[second].lose()


class Shell:
    """One command that runs."""

    def __init__(self, connection: Connection, number: int, remote: int, script: str) -> None:
        self.connection, self.number, self.remote = connection, number, remote
        self.may_send = threading.Semaphore(1)
        self._writing = threading.Lock()
        self._pending = b""
        self._is_lost = False
        folder = self.connection.device.folder
        environment = device_environment(folder)
        self.child = subprocess.Popen(
            ["sh", "-c", self.connection.device.login.replace("{}", script.replace(DEVICE_FOLDER, environment["TMPDIR"]))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self.connection.device.children.append(self.child)

    def start(self) -> None:
        """Its output is passed on, once the host knows its number."""
        threading.Thread(target=self._attend, daemon=True).start()

    def take(self, data: bytes) -> None:
        """Packets of the shell protocol, which may be cut anywhere."""
        self._pending += data
        assert self.child.stdin is not None
        while len(self._pending) >= 5:
            kind, length = struct.unpack("<BI", self._pending[:5])
            if len(self._pending) < 5 + length:
                return
            content, self._pending = self._pending[5 : 5 + length], self._pending[5 + length :]
            with contextlib.suppress(BrokenPipeError, ValueError):
                if kind == STDIN:
                    write_all(self.child.stdin, content)
                elif kind == CLOSE_STDIN:
                    self.child.stdin.close()

    def lose(self) -> None:
        """The other side is gone: whatever the command prints breaks its pipe."""
        self._is_lost = True
        self.may_send.release()
        for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
            with contextlib.suppress(OSError, ValueError):
                assert pipe is not None
                pipe.close()

    def _attend(self) -> None:
        pipes = {STDOUT: self.child.stdout, STDERR: self.child.stderr}
        readers = [threading.Thread(target=self._pass_on, args=item, daemon=True) for item in pipes.items()]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        code = self.child.wait()
        with contextlib.suppress(OSError):
            self._send(EXIT, struct.pack("<B", code & 0xFF))
            self.connection.send(b"CLSE", self.number, self.remote)

    def _pass_on(self, kind: int, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while content := pipe.read(2**14):
                self._send(kind, content)

    def _send(self, kind: int, content: bytes) -> None:
        with self._writing:
            self.may_send.acquire()
            if not self._is_lost:
                self.connection.send(b"WRTE", self.number, self.remote, struct.pack("<BI", kind, len(content)) + content)
