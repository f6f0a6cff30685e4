"""A real SSH server on loopback: what it is asked to run, runs on this host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any

import asyncssh

USER = "tester"
CLIENT = shutil.which("ssh")


class LoopbackSsh:
    """Answers on a free port of 127.0.0.1 to one key; ``drop`` breaks every connection at once, as a cable would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.is_down = False
        self.login = "{}"
        """What its login shell does around a command."""
        self.temporary = "tmp"
        self.children: list[subprocess.Popen[bytes]] = []
        self.key, self.host_key = folder / "id", asyncssh.generate_private_key("ssh-ed25519")
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(self.key)
        self.key.chmod(0o600)
        (folder / "authorized").write_bytes(key.export_public_key())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._do(self._listen())
        self.know(self.host_key)

    @property
    def address(self) -> str:
        return f"ssh://{USER}@127.0.0.1:{self.port}"

    def know(self, key: asyncssh.SSHKey | None) -> None:
        """Let the client know this host key of the server, or none."""
        words = key.export_public_key().decode().split()[:2] if key else []
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {' '.join(words)}\n" if words else "")

    def client(self) -> Path:
        """A folder with an ``ssh`` that is the system's with a configuration of its own: put it first on the path."""
        config = self.folder / "config"
        config.write_text(
            f"IdentityFile {self.key}\nIdentitiesOnly yes\nUserKnownHostsFile {self.folder / 'known_hosts'}\n"
            "GlobalKnownHostsFile /dev/null\n"
        )
        binaries = self.folder / "bin"
        binaries.mkdir(exist_ok=True)
        (binaries / "ssh").write_text(f'#!/bin/sh\nexec {CLIENT} -F {shlex.quote(str(config))} "$@"\n')
        (binaries / "ssh").chmod(0o755)
        return binaries

    def drop(self) -> None:
        """Break all connections."""

        async def abort() -> None:
            for connection in self.connections:
                connection.abort()
            self.connections.clear()

        self._do(abort())

    def stop_listening(self) -> None:
        self._do(self._close())

    def stop(self) -> None:
        self.drop()
        self.stop_listening()
        end(self.children)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> int:
        owner = self

        class Server(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                owner.connections.append(conn)
                if owner.is_down:
                    conn.abort()

        self._server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Server,
            server_host_keys=[self.host_key],
            authorized_client_keys=str(self.folder / "authorized"),
            process_factory=self._run,
            encoding=None,
        )
        return int(self._server.get_port())

    async def _close(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        child = subprocess.Popen(
            ["sh", "-c", self.login.replace("{}", process.command or "true")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=device_environment(self.folder, self.temporary),
            start_new_session=True,
        )
        self.children.append(child)
        do, (stdin, stdout, stderr) = self._loop.run_in_executor, (child.stdin, child.stdout, child.stderr)
        assert stdin is not None

        async def take() -> None:
            while content := await process.stdin.read(2**16):
                await do(None, write_all, stdin, content)
            stdin.close()

        async def give(pipe: IO[bytes] | None, channel: asyncssh.SSHWriter[bytes]) -> None:
            assert pipe is not None
            while content := await do(None, pipe.read, 2**16):
                channel.write(content)
                await channel.drain()

        taking = asyncio.ensure_future(take())
        try:
            await asyncio.gather(give(stdout, process.stdout), give(stderr, process.stderr))
            process.exit(await do(None, child.wait))
        except (OSError, asyncssh.Error):
            pass  # the other side is gone: what the command prints next breaks its pipe
        finally:
            taking.cancel()
            for pipe in (child.stdin, child.stdout, child.stderr):
                assert pipe is not None
                pipe.close()


def end(children: list[subprocess.Popen[bytes]]) -> None:
    """Whatever still runs of what the device was asked to run."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def write_all(pipe: IO[bytes], content: bytes) -> None:
    """A command that reads no more is no error of the one who writes."""
    with contextlib.suppress(BrokenPipeError):
        view = memoryview(content)
        while view:
            view = view[pipe.write(view) :]


def device_environment(folder: Path, temporary: str = "tmp") -> dict[str, str]:
    """What a command on the device sees: this interpreter first, its own folder for temporary files."""
    (folder / temporary).mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "TMPDIR": str(folder / temporary), "HOME": str(folder), "LANG": "C.UTF-8"}
