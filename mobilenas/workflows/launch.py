"""Who computes a search or training: this process alone, or one of several that torchrun, Slurm or this module has started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO

import msgspec
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mobilenas.config import ComputeConfig, SearchConfig, TrainConfig
from mobilenas.core.run_directory import RunDirectory
from mobilenas.devices.streams import tail
from mobilenas.errors import LostProcessError, MobileNASError, UsageError
from mobilenas.search.processes import Processes
from mobilenas.workflows.naming import run_environment, uses_gpus

HERE, STORE = "127.0.0.1", "MOBILENAS_STORE"
"""Where processes of one host meet, and the variable that tells a started one the port."""
MAY_DIFFER = ("compute.devices", "compute.timeout_s", "compute.accumulate", "supernet.checkpoint_cells", "data.workers")
"""Settings that a run which goes on may have otherwise."""
POLL_S, LAST_S = 0.05, 10.0


@contextmanager
def processes_of(verb: str, cfg: SearchConfig | TrainConfig, folder: Path) -> Iterator[Processes]:
    """The processes at ``cfg``, in each of them; those that are to be started do ``verb`` in ``folder`` beside this one.

    Raises ``UsageError`` for more devices than there are, ``LostProcessError`` where another process ends before its time.
    """
    compute = cfg.compute
    if uses_gpus(compute):
        torch.cuda.set_device(local_rank())
    given = _given(compute)
    if given is None and compute.devices > 1:
        with _started(verb, cfg, folder) as processes:
            yield processes
        return
    processes = given or Processes()
    try:
        yield processes
    finally:
        processes.close()


@contextmanager
def writing(
    processes: Processes, directory: RunDirectory, text: str, inputs: Mapping[str, str], may_differ: Collection[str]
) -> Iterator[None]:
    """As ``RunDirectory.running`` of a configuration's ``text``, for the one process that writes."""
    if not processes.is_first:
        yield
        return
    with directory.running(text, run_environment(), inputs, may_differ):
        yield


def end_if_not_first(processes: Processes) -> None:
    """Leave the rest to the first process: raise ``SystemExit`` in the others."""
    if not processes.is_first:
        raise SystemExit(0)


def local_rank() -> int:
    """Which of its host's processes this one is."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def _given(compute: ComputeConfig) -> Processes | None:
    """As this process was started by another one, if it was."""
    limit = timedelta(seconds=compute.timeout_s)
    if STORE in os.environ:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = TCPStore(HERE, int(os.environ[STORE]), size, False, limit)
        store.set(_joined(rank), "")
        return Processes(rank, size, store, compute.timeout_s)
    if SLURMEnvironment.detect() and "RANK" not in os.environ:
        slurm = SLURMEnvironment()
        names = {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": slurm.main_port}
        os.environ.update({name: str(value) for name, value in names.items()})
        rank, size = slurm.global_rank(), slurm.world_size()
    elif "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    else:
        return None
    if size == 1:
        return Processes()
    store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=limit)))
    return Processes(rank, size, store, compute.timeout_s)


@contextmanager
def _started(verb: str, cfg: SearchConfig | TrainConfig, folder: Path) -> Iterator[Processes]:
    """This process as the first of several on this host, the others begun now and gone at the end."""
    compute, size = cfg.compute, cfg.compute.devices
    if uses_gpus(compute) and size > torch.cuda.device_count():
        raise UsageError(f"--devices is {size}, and this host has {torch.cuda.device_count()} GPUs")
    store = TCPStore(HERE, 0, size, True, timedelta(seconds=compute.timeout_s), wait_for_workers=False)
    job = msgspec.json.encode({"verb": verb, "config": msgspec.to_builtins(cfg), "folder": str(folder)})
    threads = max(1, (os.cpu_count() or 1) // size)
    if not compute.threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, STORE: str(store.port), "WORLD_SIZE": str(size)}
    with contextlib.ExitStack() as held:
        others = [held.enter_context(_Other(rank, size, job, environment)) for rank in range(1, size)]
        while not store.check([_joined(other.rank) for other in others]):
            _check_alive(others)
            time.sleep(POLL_S)
        processes = Processes(0, size, store, compute.timeout_s)
        try:
            yield processes
        except LostProcessError as error:
            raise _named(error, others) from None
        finally:
            processes.close()


class _Other:
    """A process that was started, as a context manager: it is killed where this one ends with an error."""

    def __init__(self, rank: int, size: int, job: bytes, environment: Mapping[str, str]) -> None:
        self.rank, self.name = rank, f"process {rank} of {size}"
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        argv = [sys.executable, "-m", "mobilenas.workflows.beside"]
        own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._words, env=own)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as given:
            given.write(job)

    def __enter__(self) -> _Other:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        try:
            self.process.wait(0 if isinstance(error, MobileNASError) else LAST_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._words.close()

    def ending(self) -> str | None:
        """How it ended, ``None`` while it has not, or did so without an error."""
        code = self.process.poll()
        if not code:
            return None
        last = [line for line in tail(self._words).splitlines() if line.strip()][-1:]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{self.name} {how}{''.join(f': {line}' for line in last)}"


def _check_alive(others: Sequence[_Other]) -> None:
    for other in others:
        ending = other.ending()
        if ending or other.process.poll() is not None:
            raise LostProcessError(ending or f"{other.name} ended before it began")


def _named(error: LostProcessError, others: Sequence[_Other]) -> LostProcessError:
    """The error with how the others ended, where they did by themselves."""
    time.sleep(POLL_S)
    endings = [words for other in others if (words := other.ending()) and " is lost at " not in words]
    return LostProcessError("; ".join([str(error), *endings]))


def _joined(rank: int) -> str:
    return f"mobilenas/joined/{rank}"
