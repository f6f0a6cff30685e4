"""Links over a client program that runs a shell command on another machine: what ssh and adb have in common.

All goes through one primitive, the client's command line for a script: files travel as a tar archive on its standard input,
and come back on its standard output. So a device needs a shell, tar and cat, and no file server. Marks stand around what a
script prints, on both outputs: a login shell may print before it and behind it.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shlex
import tarfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from mobilenas.devices.links import Link, check_ended
from mobilenas.devices.streams import MAXIMUM_ANSWER_BYTES, Ended, answer, stream
from mobilenas.errors import DeviceTimeoutError, LinkError, LostLinkError, MobileNASError, ResourceError, RunnerError

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Before each further try to reach a device that was lost."""
CALL_S = 60.0
"""How long a command that moves no data may take."""
SLOWEST_BYTES_PER_S = 100_000
"""What a connection must at least carry before it is given up."""
ARCHIVE_BYTES = 2**25
"""Of files that travel together, so that little is sent again when a connection breaks."""
PASSED_ON = ("MOBILENAS_RUNNER_MEMORY",)
"""Variables of this host's environment that programs on the device are given too."""
NOT_FOUND = 127
"""What a shell ends with where there is no such program."""
MAXIMUM_FILE_BYTES = 2**31
"""Of a file that is fetched."""
LONGEST_COMPLAINT = 300
"""Characters of what a client says that are passed on."""


class RemoteLink(Link):
    """A device behind a client program. A subclass says how the client is called, and what its complaints mean."""

    client: str
    """The program on this host."""
    base: str
    """Where on the device the working directory is made; a shell's words."""

    def __init__(self, python: str, pauses_s: Sequence[float] = PAUSES_S) -> None:
        super().__init__()
        self._python, self._pauses_s = python, tuple(pauses_s)

    @property
    @abstractmethod
    def where(self) -> str:
        """The device, for people."""

    @abstractmethod
    def client_argv(self, script: str) -> list[str]:
        """The command line that runs ``script`` in a shell on the device."""

    @abstractmethod
    def complaint(self, words: str) -> MobileNASError:
        """What the client means by ``words`` when it did not get through: ``LostLinkError`` where a further try may help."""

    def prepare_call(self) -> None:
        """What a client needs before a try to reach the device; raises as ``complaint`` says."""

    @property
    def python(self) -> str:
        return self._python

    def open(self) -> None:
        """Make the working folder; this host names it, so that a try whose answer was lost leaves no second one behind."""
        folder = f'"{self.base}/mobilenas-{secrets.token_hex(8)}"'
        try:
            printed = self._call(f'umask 077; d={folder}; {{ test -d "$d" || mkdir "$d"; }} && cd "$d" && pwd')
            found = os.fsdecode(printed.removesuffix(b"\n"))
            if not found.startswith("/"):
                raise LinkError(f"{self.where} names {found[:LONGEST_COMPLAINT]!r} as a new folder: that is no path to work in")
        except (LostLinkError, DeviceTimeoutError):
            raise  # nothing more can be said to it
        except BaseException:
            self._say_once(f"rm -rf {folder}")
            raise
        self._folder = found
        self._directory = shlex.quote(found)

    def close(self) -> None:
        self._say_once(f"{self._kill_script()} rm -rf {self._directory}")

    def _say_once(self, script: str) -> None:
        """Run a script that tidies up; the device may be gone, and what is left there lies where temporary files lie."""
        with suppress(MobileNASError):
            self._call_once(script, b"", CALL_S)

    def push(self, files: Mapping[str, bytes]) -> None:
        for part in _archives(files):
            try:
                self._call(f"tar -xf - -C {self._directory}", part)
            except LostLinkError:
                raise
            except LinkError as error:
                raise LinkError(f"{error}{self._room()}") from error

    def _room(self) -> str:
        """What a full disk would show; nothing where even that cannot be asked."""
        with suppress(MobileNASError, LookupError, ValueError):
            free_kib = self._call(f"df -Pk {self._directory}").decode(errors="replace").splitlines()[-1].split()[3]
            return f"; {int(free_kib) // 1024} MiB are free in {self._folder} there"
        return ""

    def pull(self, name: str) -> bytes:
        """Its size goes ahead: the word that ends a call comes by another stream, and may overtake what a broken link loses."""
        path = self._path(name)
        printed = self._call(f"wc -c <{path} && cat {path}", is_whole=_has_its_size, limit_bytes=MAXIMUM_FILE_BYTES)
        return printed.partition(b"\n")[2]

    def delete(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), 500):  # a command line is not endless
            self._call("rm -f " + " ".join(self._path(name) for name in names[start : start + 500]))

    def run(self, argv: Sequence[str], *, timeout_s: float, on_line: Callable[[str], None]) -> None:
        """The exit code is told behind the error output under a word that no program can know: without it, the link broke.

        What an earlier, lost run left on the device is killed first: it would be measured beside.
        """
        marks = _Marks()
        script = marks.around(
            f"cd {self._directory} || exit 1; {self._kill_script()}"
            f"OMP_NUM_THREADS=1 {passed_on()}{shlex.join(argv)} </dev/null & echo $! >{self._pid}; "
            f"wait $!; s=$?; rm -f {self._pid}; (exit $s)"
        )
        lines = marks.lines(on_line)
        try:
            ended = self._stream(script, timeout_s, lines.take)
        except BaseException:
            self._kill()
            raise
        if ended.exit_code is None:
            self._kill()
            check_ended(argv, None, "", timeout_s, self.where)
        words, code = marks.errors("\n".join(ended.error_lines))
        if code is None:
            raise self.complaint(words)
        if not lines.is_whole:
            raise LostLinkError(
                f"{self.where}: the connection broke at the end of {argv[0]}; what it printed may lack something"
            )
        if code == NOT_FOUND:
            raise LinkError(f"{self.where} has no {argv[0]}: install it there, or name the interpreter by device.python")
        last_words = Ended(code, tuple(words.splitlines())).last_words
        check_ended(argv, code if code <= 128 else 128 - code, last_words, timeout_s, self.where)

    def _path(self, name: str) -> str:
        return f"{self._directory}/{shlex.quote(name)}"

    @property
    def _pid(self) -> str:
        """Where the number of the running command is written down: beside the working directory, which is the user's."""
        return shlex.quote(f"{self._folder}.pid")

    def _kill_script(self) -> str:
        return f"test ! -f {self._pid} || kill -9 $(cat {self._pid}) 2>/dev/null; rm -f {self._pid}; "

    def _kill(self) -> None:
        self._say_once(self._kill_script())

    def _stream(self, script: str, timeout_s: float, on_line: Callable[[str], None]) -> Ended:
        try:
            return stream(self.client_argv(script), timeout_s=timeout_s, on_line=on_line)
        except FileNotFoundError as error:
            raise self._no_client() from error

    def _call(
        self,
        script: str,
        content: bytes = b"",
        is_whole: Callable[[bytes], bool] = lambda printed: True,
        limit_bytes: int = MAXIMUM_ANSWER_BYTES,
    ) -> bytes:
        """What a script prints that moves files or looks at them: tried again where the connection breaks."""
        timeout_s = CALL_S + len(content) / SLOWEST_BYTES_PER_S
        for pause_s in (*self._pauses_s, None):
            try:
                printed = self._call_once(script, content, timeout_s, limit_bytes)
                if not is_whole(printed):
                    raise LostLinkError(f"{self.where}: the connection broke while a file was fetched")
                return printed
            except (LostLinkError, DeviceTimeoutError):
                if pause_s is None:
                    raise
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _call_once(self, script: str, content: bytes, timeout_s: float, limit_bytes: int = MAXIMUM_ANSWER_BYTES) -> bytes:
        self.prepare_call()
        marks = _Marks()
        printed, said = self._client(self.client_argv(marks.around(script)), content, timeout_s, limit_bytes)
        words, code = marks.errors(said)
        if code is None:
            raise self.complaint(words)
        if code != 0:
            raise LinkError(f"{self.where}: {short(words) or f'{script.split()[0]} ended with exit code {code}'}")
        found = marks.output(printed)
        if found is None:
            raise LostLinkError(f"{self.where}: the connection broke at the end of {script.split()[0]}")
        return found

    def _client(
        self, argv: Sequence[str], content: bytes, timeout_s: float, limit_bytes: int = MAXIMUM_ANSWER_BYTES
    ) -> tuple[bytes, str]:
        """What a client prints and says."""
        try:
            code, printed, said = answer(argv, content, timeout_s=timeout_s, limit_bytes=limit_bytes)
        except FileNotFoundError as error:
            raise self._no_client() from error
        except RunnerError as error:
            raise LinkError(f"{self.where}: {error}") from error
        if code is None:
            raise DeviceTimeoutError(f"{self.where} did not answer within {timeout_s:.0f} s")
        return printed, said

    def _no_client(self) -> ResourceError:
        return ResourceError(f"{self.where} is reached by the program {self.client}, which is not on this host: install it")


class _Marks:
    """Words that no program can know, around what one script prints; the last one is followed by its exit code."""

    def __init__(self) -> None:
        self.begin, self.end = secrets.token_hex(8), secrets.token_hex(8)

    def around(self, script: str) -> str:
        """Return the script with marks printed around both of its outputs."""
        return (
            f"{{ set +v +x; }} 2>/dev/null; printf '{self.begin}\\n'; printf '{self.begin}\\n' >&2; "
            f"{{ {script.rstrip('; ')}; }}; s=$?; "
            f"printf '\\n{self.end}\\n'; printf '\\n{self.end} %s\\n' $s >&2"
        )

    def output(self, printed: bytes) -> bytes | None:
        """Return what the script itself printed, ``None`` if a mark is missing."""
        _, begun, rest = printed.partition(f"{self.begin}\n".encode())
        found, ended, _ = rest.rpartition(f"\n{self.end}\n".encode())
        return found if begun and ended else None

    def errors(self, said: str) -> tuple[str, int | None]:
        """Return the script's error output and exit code; all error output and ``None`` where the end mark is missing."""
        said = said.rpartition(f"{self.begin}\n")[2]
        ended = re.search(rf"(?m)^{self.end} (\d+)$", said)
        return (said[: ended.start()].removesuffix("\n"), int(ended[1])) if ended else (said, None)

    def lines(self, on_line: Callable[[str], None]) -> _MarkedLines:
        """Return a filter that passes on the script's output, line by line."""
        return _MarkedLines(self, on_line)


class _MarkedLines:
    """Hands on the lines between the marks. An empty one is held back until another follows: the end mark brings its own."""

    def __init__(self, marks: _Marks, on_line: Callable[[str], None]) -> None:
        self._marks, self._on_line = marks, on_line
        self._has_begun = self._holds_empty = False
        self.is_whole = False

    def take(self, line: str) -> None:
        """Take one line of the client's output."""
        if not self._has_begun:
            self._has_begun = line.endswith(self._marks.begin)  # a greeting may lack its end of the line
            return
        if self.is_whole:
            return
        if line == self._marks.end:
            self.is_whole = True
            return
        if self._holds_empty:
            self._on_line("")
        self._holds_empty = not line
        if line:
            self._on_line(line)


def _has_its_size(printed: bytes) -> bool:
    """Whether what follows the first line has as many bytes as that says."""
    size, _, content = printed.partition(b"\n")
    return size.strip().isdigit() and int(size) == len(content)


def _archives(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """Tar archives of all files, each of about ``ARCHIVE_BYTES`` at most unless one file is larger."""
    waiting = list(files.items())
    while waiting:
        size, buffer = 0, io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            while waiting and (size == 0 or size + len(waiting[0][1]) <= ARCHIVE_BYTES):
                name, content = waiting.pop(0)
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o600
                archive.addfile(entry, io.BytesIO(content))
                size += len(content) + 1
        yield buffer.getvalue()


def passed_on() -> str:
    """Format the environment variables of this host that also apply on a device, as shell assignments."""
    return "".join(f"{name}={shlex.quote(os.environ[name])} " for name in PASSED_ON if name in os.environ)


def short(words: str) -> str:
    """What a client says, in one line."""
    return " ".join(words.split())[-LONGEST_COMPLAINT:]
