"""The conformance kit on links to devices on loopback, through the system's own clients."""

import pytest

from mobilenas.devices.adb import AdbLink
from mobilenas.devices.links import Link
from mobilenas.devices.ssh import SshLink
from mobilenas.testing.device_contracts import LinkContract
from tests.devices.conftest import needs_adb, needs_ssh
from tests.devices.loopback_adb import LoopbackAdb
from tests.devices.loopback_ssh import LoopbackSsh


@needs_ssh
class TestSshLink(LinkContract):
    @pytest.fixture(autouse=True)
    def _server(self, ssh: LoopbackSsh) -> None:
        self.address = ssh.address

    def make(self) -> Link:
        return SshLink(self.address)


@needs_adb
class TestAdbLink(LinkContract):
    @pytest.fixture(autouse=True)
    def _device(self, adb: LoopbackAdb) -> None:
        self.address = adb.address

    def make(self) -> Link:
        return AdbLink(self.address)
