import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.loopback_adb import LoopbackAdb
from tests.devices.loopback_ssh import CLIENT, LoopbackSsh

needs_ssh = pytest.mark.skipif(CLIENT is None, reason="no ssh client: apt-get install openssh-client")
needs_adb = pytest.mark.skipif(shutil.which("adb") is None, reason="no adb: apt-get install adb")


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackSsh]:
    folder = tmp_path / "ssh"
    folder.mkdir()
    server = LoopbackSsh(folder)
    monkeypatch.setenv("PATH", f"{server.client()}:{os.environ['PATH']}")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An adb server of the tests' own, on a free port, with keys of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(tmp_path_factory.mktemp("adb"))}
    subprocess.run(["adb", "start-server"], env={**os.environ, **environment}, capture_output=True, check=True, timeout=60)
    yield environment
    subprocess.run(["adb", "kill-server"], env={**os.environ, **environment}, capture_output=True, check=False, timeout=60)


@pytest.fixture
def adb(tmp_path: Path, adb_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackAdb]:
    for name, value in adb_server.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "adb"
    folder.mkdir()
    device = LoopbackAdb(folder)
    yield device
    device.stop()
