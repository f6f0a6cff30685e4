"""What a command prints is read within limits: an endless line, answer or error output ends it."""

import resource
import sys

import pytest

from mobilenas.devices import streams
from mobilenas.devices.device import find_device
from mobilenas.devices.streams import answer, stream
from mobilenas.errors import RunnerError

ENDLESS = "import sys\nwhile True: sys.{}.write({!r})"


def program(where: str, words: str) -> list[str]:
    return [sys.executable, "-S", "-c", ENDLESS.format(where, words)]


@pytest.mark.parametrize(
    ("where", "words", "said"),
    [
        ("stdout", "a" * 2**16, "a line of more than 16 MiB"),
        ("stdout", "a\n" * 2**15, "lines"),
        ("stderr", "a" * 2**16, "MiB on its error"),
    ],
    ids=["line", "lines", "errors"],
)
def test_an_endless_output_ends_the_command(where: str, words: str, said: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunnerError, match=said) as caught:
        stream(program(where, words), timeout_s=60, on_line=lambda _: None)
    assert caught.value.exit_code == 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_an_endless_answer_ends_the_command(where: str) -> None:
    with pytest.raises(RunnerError, match="printed more than"):
        answer(program(where, "a" * 2**16), timeout_s=60)


def test_an_answer_is_whole_and_a_slow_one_is_given_up() -> None:
    echo = [
        sys.executable,
        "-S",
        "-c",
        "import sys; sys.stdout.write(sys.stdin.read()); sys.stderr.write('words'); sys.exit(3)",
    ]
    assert answer(echo, b"x" * 2**22, timeout_s=60) == (3, b"x" * 2**22, "words")
    assert answer(["sleep", "60"], timeout_s=0.1)[0] is None
    assert answer(["true"], b"x" * 2**22, timeout_s=60)[0] == 0, "a command need not read"


def test_a_runner_may_print_a_long_line() -> None:
    lines: list[str] = []
    with find_device("local").open() as link:
        link.run([link.python, "-S", "-c", "print('a' * (2**24 - 1))"], timeout_s=60, on_line=lines.append)
    assert len(lines[0]) == streams.MAXIMUM_LINE_BYTES - 1
