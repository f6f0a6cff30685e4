"""What may go wrong on the way to a device: each is one clear error, and what a further try can mend is tried again."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from mobilenas.core.measurement import PLANS
from mobilenas.devices.adb import AdbLink
from mobilenas.devices.device import find_device
from mobilenas.devices.links import Link
from mobilenas.devices.ssh import SshLink
from mobilenas.errors import DeviceError, LinkError, LostLinkError, ResourceError, RunnerError, UsageError
from mobilenas.runtimes.base import RunSettings
from mobilenas.runtimes.onnx_runtime import OnnxRuntime
from mobilenas.testing.device_contracts import AWKWARD_ARGUMENTS
from tests.devices.conftest import needs_adb, needs_ssh
from tests.devices.loopback_adb import LoopbackAdb
from tests.devices.loopback_ssh import LoopbackSsh

AWKWARD = [words for words in AWKWARD_ARGUMENTS if words not in ("", "-x")]
QUICK_S = (0.05,) * 4
"""Pauses of a test's patience."""
ADB_S = (0.3,) * 8
"""Where adb's server has to notice first."""


def refused(link: Link) -> DeviceError:
    with pytest.raises(DeviceError) as caught, link:
        pass
    return caught.value


def check_half_a_line(opened: Link, drop: Callable[[], None]) -> None:
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        threading.Timer(0.5, drop).start()

    program = "import sys, time; print('whole', flush=True); sys.stdout.write('ha'); sys.stdout.flush(); time.sleep(600)"
    with opened as link, pytest.raises(LostLinkError):
        link.run([link.python, "-c", program], timeout_s=60, on_line=take)
    assert lines == ["whole"]


def check_last_line(opened: Link) -> None:
    lines: list[str] = []
    with opened as link:
        link.run([link.python, "-c", "import sys; sys.stdout.write('a\\nb')"], timeout_s=60, on_line=lines.append)
    assert lines == ["a", "b"]


LOGINS = {
    "greeting": "echo Welcome; printf 'no end'; echo on stderr >&2; {}",
    "goodbye": "({}); echo logged out; echo logged out >&2; exit 3",
    "echo": "set -v -x; {}",
}


def check_talkative(opened: Link, folder: Path) -> None:
    lines: list[str] = []
    content = bytes(range(256)) * 300
    with opened as link:
        link.push({"file": content})
        assert link.pull("file") == content
        script = r"print('a\n\nb\n'); import sys; sys.stdout.write('end')"
        link.run([link.python, "-c", script], timeout_s=60, on_line=lines.append)
        with pytest.raises(RunnerError, match=r"exit code 7.*\nit broke$"):
            link.run(
                [link.python, "-c", "import sys; sys.exit(sys.stderr.write('it broke') and 7)"], timeout_s=60, on_line=print
            )
        with pytest.raises(LinkError):
            link.pull("none")
    assert lines == ["a", "", "b", "", "end"]
    assert not list(folder.iterdir())


@needs_ssh
class TestSsh:
    @pytest.fixture(autouse=True)
    def _server(self, ssh: LoopbackSsh) -> None:
        self.server = ssh

    def link(self, python: str = "python3") -> SshLink:
        return SshLink(self.server.address, python, QUICK_S)

    def test_an_unknown_host_key_is_not_taken(self) -> None:
        self.server.know(None)
        error = refused(self.link())
        assert "not known yet: connect once by hand and accept it: ssh -p" in str(error)
        assert not isinstance(error, LostLinkError)

    def test_a_changed_host_key_is_a_hard_stop(self) -> None:
        self.server.know(asyncssh.generate_private_key("ssh-ed25519"))
        begin = time.monotonic()
        error = refused(SshLink(self.server.address, pauses_s=(60.0,)))
        assert "another host key than the known one" in str(error)
        assert time.monotonic() - begin < 30, "it was tried again"

    def test_a_key_that_the_device_does_not_know(self) -> None:
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(self.server.key)
        assert "lets nobody in without a question" in str(refused(self.link()))

    def test_a_device_that_is_off(self) -> None:
        self.server.stop_listening()
        error = refused(self.link())
        assert isinstance(error, LostLinkError)
        assert "Connection refused" in str(error)

    def test_a_host_that_does_not_exist(self) -> None:
        assert "no such host" in str(refused(SshLink("ssh://nobody@no-such-host.invalid", pauses_s=(60.0,))))

    def test_an_interpreter_that_is_not_there(self) -> None:
        with (
            self.link("/opt/no such/python3") as link,
            pytest.raises(LinkError, match=r"has no /opt/no such/python3: install it"),
        ):
            link.run([link.python, "-V"], timeout_s=60, on_line=print)

    def test_an_engine_that_is_not_there(self) -> None:
        """``-S`` leaves out all packages."""
        bare = self.server.folder / "bare python"
        bare.write_text('#!/bin/sh\nexec python3 -S "$@"\n')
        bare.chmod(0o755)
        with (
            self.link(str(bare)) as link,
            pytest.raises(RunnerError, match=r"has no package '(numpy|onnxruntime)': install it there"),
        ):
            OnnxRuntime().hello(link, RunSettings())

    def test_a_full_disk(self) -> None:
        folder = self.server.folder / "tmp"
        folder.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("may not mount a small disk")
        try:
            with self.link() as link:
                link.push({"small": b"x"})
                with pytest.raises(LinkError, match="; 0 MiB are free in"):
                    link.push({"large": bytes(2**21)})
                assert link.pull("small") == b"x"
        finally:
            subprocess.run(["umount", "-l", folder], check=True)

    def test_a_working_folder_that_has_gone(self) -> None:
        with self.link() as link:
            [folder] = (self.server.folder / "tmp").iterdir()
            folder.rmdir()
            with pytest.raises(LinkError, match="Cannot open: No such file") as caught:
                link.push({"x": b"x"})
            assert not isinstance(caught.value, LostLinkError)

    def test_no_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(ResourceError, match="the program ssh, which is not on this host: install it"), self.link():
            pass

    def test_a_connection_that_breaks_is_made_again_for_files(self) -> None:
        with self.link() as link:
            for content in (b"a", b"b", b"c"):
                link.push({"file": content})
                self.server.drop()
                assert link.pull("file") == content

    def test_a_run_whose_connection_breaks_says_so_and_its_command_does_not_stay(self) -> None:
        script = b"import time\nprint('here', flush=True)\ntime.sleep(600)\n"
        with self.link() as link:
            link.push({"wait.py": script})
            with pytest.raises(LostLinkError):
                link.run([link.python, "wait.py"], timeout_s=60, on_line=lambda _: self.server.drop())
            assert self.running("wait.py")
            link.run(["true"], timeout_s=60, on_line=print)
            assert not self.running("wait.py"), "it would be measured beside"

    def test_half_a_line_of_a_broken_connection_is_no_line(self) -> None:
        check_half_a_line(self.link(), self.server.drop)

    def test_a_last_line_without_an_end_is_one(self) -> None:
        check_last_line(self.link())

    def test_a_runner_that_crashes_is_told_by_its_signal(self) -> None:
        with self.link() as link, pytest.raises(RunnerError, match="signal 11"):
            link.run([link.python, "-c", "import os; os.kill(os.getpid(), 11)"], timeout_s=60, on_line=print)

    @pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS)
    def test_what_a_login_shell_prints_is_ignored(self, login: str) -> None:
        self.server.login = login
        check_talkative(self.link(), self.server.folder / "tmp")

    def test_a_folder_for_temporary_files_may_have_any_name(self) -> None:
        self.server.temporary = "a 'b' $HOME; c"
        check_talkative(self.link(), self.server.folder / self.server.temporary)

    def test_an_endless_answer_of_a_shell_ends_with_4(self) -> None:
        self.server.login = 'timeout 20 yes aaaaaaaa | tr -d "\\n"'
        with pytest.raises(LinkError, match="printed more than 16 MiB") as caught, self.link():
            pass
        assert caught.value.exit_code == 4

    def test_nothing_stays_on_the_device(self) -> None:
        with self.link() as link:
            link.push({"x": b"x"})
            assert list((self.server.folder / "tmp").iterdir())
        assert not list((self.server.folder / "tmp").iterdir())

    def running(self, words: str) -> bool:
        return subprocess.run(["pgrep", "-f", f"{words}$"], capture_output=True, check=False).returncode == 0


@needs_adb
class TestAdb:
    @pytest.fixture(autouse=True)
    def _device(self, adb: LoopbackAdb) -> Iterator[None]:
        self.device = adb
        yield
        subprocess.run(["adb", "disconnect", adb.address.removeprefix("adb:")], capture_output=True, check=False, timeout=60)

    def link(self) -> AdbLink:
        return AdbLink(self.device.address, pauses_s=ADB_S)

    def test_a_device_that_has_not_allowed_debugging(self) -> None:
        self.device.is_authorised = False
        assert "confirm the question on its screen" in str(refused(self.link()))

    @pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS)
    def test_what_a_shell_prints_is_ignored(self, login: str) -> None:
        self.device.login = login
        check_talkative(self.link(), self.device.folder / "tmp")

    def test_a_device_that_is_not_there(self) -> None:
        error = refused(AdbLink("adb:0123456789ABCDEF", pauses_s=QUICK_S))
        assert isinstance(error, LostLinkError)
        assert "not found" in str(error)

    def test_a_connection_that_breaks_is_made_again_for_files(self) -> None:
        with self.link() as link:
            for content in (b"a", b"b" * 300_000, b"c"):
                link.push({"file": content})
                self.device.drop()
                assert link.pull("file") == content

    def test_a_run_whose_connection_breaks_says_so(self) -> None:
        with self.link() as link, pytest.raises(LostLinkError):
            link.run(
                [link.python, "-c", "import time; print('here', flush=True); time.sleep(600)"],
                timeout_s=60,
                on_line=lambda _: self.device.drop(),
            )

    def test_half_a_line_of_a_broken_connection_is_no_line(self) -> None:
        check_half_a_line(self.link(), self.device.drop)

    def test_a_last_line_without_an_end_is_one(self) -> None:
        check_last_line(self.link())

    def test_a_runner_that_crashes_is_told_by_its_signal(self) -> None:
        with self.link() as link, pytest.raises(RunnerError, match="signal 11"):
            link.run([link.python, "-c", "import os; os.kill(os.getpid(), 11)"], timeout_s=60, on_line=print)


@needs_ssh
def test_a_long_temporary_folder_does_not_hinder_ssh(ssh: LoopbackSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60) / ("y" * 60)
    long.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with SshLink(ssh.address, pauses_s=QUICK_S) as link:
        link.push({"a": b"1"})
        assert link.pull("a") == b"1"


@needs_ssh
def test_sweeps_go_on_where_the_connection_broke(ssh: LoopbackSsh) -> None:
    """Each model is recorded once, though the connection breaks ten times."""
    runtime, settings = OnnxRuntime(), RunSettings()
    models = {f"model{index}": runtime.session_model() for index in range(12)}
    recorded: list[str] = []
    drops = 0

    def on_record(name: str, record: object) -> None:
        nonlocal drops
        recorded.append(name)
        if drops < 10 and len(recorded) % 2 == 0:
            drops += 1
            threading.Timer(0.01 * drops, ssh.drop).start()

    with SshLink(ssh.address, pauses_s=QUICK_S) as link:
        for _ in range(2):
            runtime.time_models(models, link, settings, PLANS["quick"], on_record)
    assert drops == 10
    assert sorted(recorded) == sorted([*models, *models])


@pytest.mark.parametrize(
    "address",
    [
        "ssh://",
        "ssh://-oProxyCommand=touch x",
        "ssh://user@-oProxyCommand=id",
        "ssh://-l@host",
        "ssh://host:99999",
        "ssh://host:22/path",
        "ssh://host\nname",
        "ssh://" + "x" * 10_000 + "/y",
        "adb:",
        "adb:-d",
        "adb:two words",
        *(
            f"{scheme}{words}"
            for scheme in ("ssh://user@host", "adb:serial")
            for words in AWKWARD_ARGUMENTS
            if words not in ("", "-x")
        ),
    ],
)
def test_what_is_no_address_reaches_no_client(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError) as caught:
        find_device(address)
    assert "must read" in str(caught.value)
    assert len(str(caught.value)) < 500
