import errno
import json
import os
import resource
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilenas.core import documents
from mobilenas.core.run_directory import (
    Journal,
    RunDirectory,
    Status,
    locked,
    read_status,
    write_atomic,
    write_together,
)
from mobilenas.core.system import Process
from mobilenas.errors import DocumentError, ResourceError, UsageError


def test_write_atomic_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="file: cannot be written: No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir() if p.is_file()] == ["file"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "below", "x")


def test_journal_keeps_records_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "sub" / "journal.jsonl")
    assert journal.read() == []
    journal.append({"n": 1})
    journal.append({"n": [2, 2.5]})
    assert Journal(journal.path).read() == [{"n": 1}, {"n": [2, 2.5]}]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"n": 1})
    journal.append({"n": 2})
    whole = journal.path.read_bytes()
    assert len(whole) == 18
    journal.path.write_bytes(whole[:-cut])
    assert journal.read() == [{"n": 1}]
    assert journal.path.read_bytes() == whole[:-cut], "reading leaves the file as it is"
    journal.append({"n": 3})
    assert journal.read() == [{"n": 1}, {"n": 3}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(DocumentError, match=r"journal\.jsonl:2"):
        Journal(path).read()


def test_a_journal_of_too_many_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text("{}\n" * 1_000_001)
    with pytest.raises(DocumentError, match=r"j\.jsonl: holds more than 1,000,000"):
        Journal(tmp_path / "j.jsonl").read()


def test_a_journal_may_be_larger_than_a_document_but_not_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAXIMUM_BYTES", 1000)
    monkeypatch.setattr(documents, "MAXIMUM_LINE_BYTES", 50)
    journal = Journal(tmp_path / "j.jsonl")
    for n in range(200):
        journal.append({"n": n})
    assert [record["n"] for record in journal.read()] == list(range(200))
    journal.append({"long": "x" * 60})
    with pytest.raises(DocumentError, match=r"j\.jsonl:201: longer than"):
        journal.read()


def test_a_run_that_ends_well(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert not run.is_finished
    with run.running("a = 1\n", {"machine": "x"}, {}):
        assert (run.path / "STATUS").read_text().split()[0] == "running"
        assert read_status(run.path) == Status("running")
        assert not run.is_finished
        run.write_document("result.json", {"x": 1})
    assert run.is_finished
    assert run.read_document("result.json") == {"x": 1}
    assert run.read_document("environment.json") == {"machine": "x"}
    assert (run.path / "config.toml").read_text() == "a = 1\n"
    assert (run.path / "command.txt").read_text().strip()


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("too bad"), Status("failed", "ValueError: too bad")), (KeyboardInterrupt(), Status("interrupted"))],
)
def test_a_run_that_does_not(tmp_path: Path, error: BaseException, status: Status) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(type(error)), run.running("", {}, {}):
        raise error
    assert read_status(tmp_path) == status
    assert not run.is_finished
    with run.running("", {}, {}):
        pass
    assert run.is_finished, "the lock was let go"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).running("a = 1", {}, {}):
        with (
            pytest.raises(UsageError, match="another process works in this folder"),
            RunDirectory(tmp_path).running("a = 1", {}, {}),
        ):
            pass
        assert read_status(tmp_path) == Status("running"), "the run in progress is not disturbed"


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).running("a = 1\nb = 2\n", {}, {}):
        pass
    with pytest.raises(UsageError) as error, RunDirectory(tmp_path).running("a = 1\nb = 3\n", {}, {}):
        pass
    assert "another configuration" in str(error.value)
    assert "\n  b: 2 -> 3" in str(error.value)
    assert "a: " not in str(error.value)
    assert (tmp_path / "config.toml").read_text() == "a = 1\nb = 2\n"
    assert RunDirectory(tmp_path).is_finished


def test_a_setting_that_has_its_content_among_the_inputs_is_compared_by_it(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).running('table = "t"\n', {}, {"table": "abc"}):
        pass
    with RunDirectory(tmp_path).running('table = "/here/t"\n', {}, {"table": "abc"}):
        pass
    with pytest.raises(UsageError) as error, RunDirectory(tmp_path).running('table = "t"\n', {}, {"table": "abd"}):
        pass
    assert str(error.value).splitlines()[1:] == ["  table (content): abc -> abd"]


def test_settings_that_nothing_was_done_by_yet_may_differ_until_the_run_is_finished(tmp_path: Path) -> None:
    def go_on(config: str, error: Exception | None = None) -> None:
        with RunDirectory(tmp_path).running(config, {}, {}, may_differ=("rounds",)):
            write_atomic(tmp_path / "checkpoints" / "000001.json", "{}")
            if error:
                raise error

    with pytest.raises(ValueError):
        go_on("a = 1\nrounds = 3\n", ValueError())
    with pytest.raises(UsageError) as refused:
        go_on("a = 2\nrounds = 6\n")
    assert str(refused.value).splitlines()[1:] == ["  a: 1 -> 2"]
    go_on("a = 1\nrounds = 6\n")
    assert (tmp_path / "config.toml").read_text() == "a = 1\nrounds = 6\n"
    with pytest.raises(UsageError, match="rounds: 6 -> 3"):
        go_on("a = 1\nrounds = 3\n")


def test_a_difference_always_shows(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).running("a = 1\n", {}, {"table": "abc"}):
        pass
    with pytest.raises(UsageError) as error, RunDirectory(tmp_path).running('a = 1\ntable = "abc"\n', {}, {}):
        pass
    assert str(error.value).splitlines()[1:] == ["  table: unset -> abc", "  table (content): abc -> unset"]


def test_metrics_are_json_lines(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.append({"epoch": 0})
    run.metrics.append({"epoch": 1})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 0}, {"epoch": 1}]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_signal_leaves_the_run_interrupted(tmp_path: Path, stop: type[BaseException]) -> None:
    with pytest.raises(stop), RunDirectory(tmp_path).running("a = 1\n", {}, {}):
        raise stop
    assert read_status(tmp_path) == Status("interrupted")


def test_a_full_disk_leaves_every_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_together(tmp_path, {"a": "old a", "b": "old b"})
    written = []

    def fsync(handle: int) -> None:
        written.append(handle)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ResourceError, match=r"b: cannot be written: No space"):
        write_together(tmp_path, {"a": "new a", "b": "new b"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old a", "b": "old b"}


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none", "dangling"])
def test_a_folder_that_cannot_be_made_is_not_held(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to("/proc/none")
    with pytest.raises(ResourceError, match="cannot be written"), locked(tmp_path / place):
        pass


PROCESS = "process {}, boot {}, started {}"


def in_child(work: Callable[[], None]) -> None:
    """Do ``work`` in a process that ends without unwinding."""
    if (child := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(1)
    os.waitpid(child, 0)


def test_a_killed_run_is_interrupted_not_running(tmp_path: Path) -> None:
    def work() -> None:
        with RunDirectory(tmp_path).running("", {}, {}):
            os.kill(os.getpid(), signal.SIGKILL)

    in_child(work)
    assert (tmp_path / "STATUS").read_text().startswith("running\n")
    status = read_status(tmp_path)
    assert status is not None
    assert status.word == "interrupted"
    assert "has ended without a word" in status.reason
    assert (tmp_path / ".lock").read_bytes() == b""


def test_a_process_is_told_by_boot_and_start_too(tmp_path: Path) -> None:
    own = Process.own()
    for process, word in (
        (own, "running"),
        (own._replace(boot="x"), "interrupted"),
        (own._replace(started="1"), "interrupted"),
    ):
        (tmp_path / "STATUS").write_text(f"running\n{PROCESS.format(*process)}\n")
        status = read_status(tmp_path)
        assert status is not None
        assert status.word == word
    with locked(tmp_path):  # as of another machine that shares the disk
        assert read_status(tmp_path) == Status("running")


def test_the_first_error_is_told_where_status_cannot_be_written(tmp_path: Path) -> None:
    def work() -> None:
        with pytest.raises(ResourceError) as caught, RunDirectory(tmp_path).running("", {}, {}):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            write_atomic(tmp_path / "weights", "x")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (tmp_path / "caught").write_text(str(caught.value))

    in_child(work)
    assert "weights: cannot be written: File too large" in (tmp_path / "caught").read_text()
    status = read_status(tmp_path)
    assert status is not None
    assert status.word == "interrupted"


def test_a_full_disk_does_not_leave_status_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ResourceError), RunDirectory(tmp_path).running("", {}, {}):
        monkeypatch.setattr("tempfile.mkstemp", full)
        write_atomic(tmp_path / "weights", "x")
    reason = f"ResourceError: {tmp_path}/weights: cannot be written: No space left on device"
    assert read_status(tmp_path) == Status("failed", reason)


@pytest.mark.parametrize("kind", ["directory", "fifo", "endless", "not UTF-8", "unknown", "empty"])
def test_an_odd_status_is_a_document_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "STATUS"
    make = {
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "not UTF-8": lambda: path.write_bytes(b"ok\xff"),
        "unknown": lambda: path.write_text("okay\n"),
        "empty": path.touch,
    }
    make[kind]()
    with pytest.raises(DocumentError, match="STATUS"):
        RunDirectory(tmp_path).is_finished  # noqa: B018


def test_a_journal_that_cannot_be_written_names_itself(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"rows\.jsonl: cannot be written: No space left on device"):
        Journal(tmp_path / "rows.jsonl").append({"n": 1})


def test_the_recorded_command_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["mobilenas", "search", "-o", "a b; touch PWN #"]
    monkeypatch.setattr("sys.argv", argv)
    with RunDirectory(tmp_path).running("", {}, {}):
        pass
    assert shlex.split((tmp_path / "command.txt").read_text()) == argv


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), "/etc/x: Permission denied"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "out of memory"),
        (ValueError("I/O error: Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
    ],
)
def test_what_the_system_refuses_is_a_resource_error(error: Exception, said: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=said) as caught, locked(tmp_path):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), ValueError("x"), DocumentError("x")])
def test_other_errors_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)), locked(tmp_path):
        raise error


def test_too_many_open_files_are_no_fault_of_the_document(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(ResourceError, match="Too many open files"):
            documents.read_text(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
