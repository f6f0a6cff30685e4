"""Several processes at one search or training: each computes a part of every batch, and all make the same steps.

Gradients are averaged by an all-reduce of their own, not by a wrapper of the network: a method may differentiate as it likes,
and operators that were not drawn have no gradient anywhere. What a method draws is the same in all processes, since all begin
with the same seed; what drops elements of an image draws apart. Each process compares what must be the same with the others'
at intervals. One process needs none of this: each call returns at once.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]

from mobilenas.errors import LostProcessError

T = TypeVar("T")
GROUP = "cpu:gloo,cuda:nccl"
"""What talks between processes: of tensors on the CPU, and on GPUs."""


class Processes:
    """All processes of one search or training, as one of them sees them. Without arguments it is the only one.

    They meet at ``store``. Any method raises ``LostProcessError`` where another process ended, or does not answer within
    ``timeout_s``.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None, timeout_s: float = 600.0) -> None:
        self.rank, self.size = rank, size
        self._store, self._meetings, self._where = store, 0, "the start"
        self._own: Tensor | None = None
        if store is not None:
            backend, limit = GROUP if torch.cuda.is_available() else "gloo", timedelta(seconds=timeout_s)
            with self._told():
                dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)

    @property
    def is_first(self) -> bool:
        """Whether this one writes, measures and tells."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the others; they may go on."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def at(self, where: str) -> None:
        """Say where this process is, for the others to tell if it is lost."""
        self._where = where

    def part_of(self, count: int) -> slice:
        """This process's part of ``count`` things in a row."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    # ---- the same in all -------------------------------------------------------------------------------------------------

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average the gradients of ``tensors``, those that have one; the same ones in each process."""
        if self.size == 1:
            return
        self.average_values([tensor.grad for tensor in tensors if tensor.grad is not None])

    def average_values(self, values: Sequence[Tensor]) -> None:
        """Average tensors in place; all of one type."""
        if self.size == 1 or not values:
            return
        flat = torch.cat([value.reshape(-1) for value in values])
        self._meet(lambda: dist.all_reduce(flat))
        flat /= self.size
        parts = torch.split(flat, [value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view_as(value))

    def average_statistics(self, module: nn.Module) -> None:
        """Average what BatchNorm has gathered in each process, in place."""
        self.average_values([buffer for buffer in module.buffers() if buffer.is_floating_point()])

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        self._meet(lambda: dist.all_reduce(found, dist.ReduceOp.MAX))
        return [int(number) for number in found]

    def gather(self, value: T) -> list[T]:
        """What each process has, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._meet(lambda: dist.all_gather_object(found, value))
        return found

    def share(self, value: T) -> T:
        """What the first process has."""
        if self.size == 1:
            return value
        found: list[Any] = [value]
        self._meet(lambda: dist.broadcast_object_list(found, 0))
        shared: T = found[0]
        return shared

    def check_same(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ``LostProcessError`` naming the processes whose ``tensors`` are not the first one's, bit by bit."""
        digests = self.gather({name: _digest(tensor) for name, tensor in tensors.items()})
        for rank, found in enumerate(digests):
            differing = [name for name, digest in found.items() if digest != digests[0][name]]
            if differing:
                raise LostProcessError(
                    f"process {rank} of {self.size} has gone another way than process 0 at {self._where}: "
                    f"{', '.join(differing)} differ: all need the same versions, data and kind of device; the checkpoint "
                    "before is whole, so run again"
                )

    # ---- apart -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def drawing_apart(self) -> Iterator[None]:
        """Inside, random numbers are this process's own; beside others' what it would draw alone would be the same."""
        if self.size == 1:
            yield
            return
        shared = torch.get_rng_state()
        torch.set_rng_state(self._own_state(shared))
        try:
            yield
        finally:
            self._own = torch.get_rng_state()
            torch.set_rng_state(shared)

    def _own_state(self, shared: Tensor) -> Tensor:
        if self._own is None:
            seed = int.from_bytes(hashlib.sha256(shared.numpy().tobytes() + bytes([self.rank])).digest()[:7], "big")
            self._own = torch.Generator().manual_seed(seed).get_state()
        return self._own

    def state(self) -> dict[str, Any]:
        """Of the random numbers that this process draws alone."""
        return {"own": self._own, "cuda": torch.cuda.get_rng_state_all()}

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on from ``state``; without one, as where their number has changed, they are seeded anew from the shared ones."""
        self._own = state["own"] if state else None
        if state and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])

    # ---- the lost --------------------------------------------------------------------------------------------------------

    def _meet(self, call: Callable[[], Any]) -> None:
        assert self._store is not None
        self._meetings += 1
        with self._told():
            self._store.set(_key(self.rank), f"{self._meetings} {platform.node()}/{os.getpid()} {self._where}")
            call()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostProcessError(f"{self._lost(error)}; what was saved goes on with the same command") from error

    def _lost(self, error: Exception) -> str:
        """Which process does not answer: the one that came to fewer meetings, or that is no longer there."""
        assert self._store is not None
        found = {}
        for rank in range(self.size):
            try:
                self._store.set_timeout(timedelta(seconds=5))
                meetings, pid, where = self._store.get(_key(rank)).decode().split(" ", 2)
                found[rank] = int(meetings), pid, where
            except (RuntimeError, ValueError):
                return f"process {rank if found else 0} of {self.size} is lost"
        behind = [rank for rank, (meetings, pid, _) in found.items() if meetings < self._meetings or not _is_running(pid)]
        if not behind:
            return f"one of {self.size} processes is lost at {self._where} ({_first_line(error)})"
        words = [f"process {rank} of {self.size} is lost at {found[rank][2]}" for rank in behind if rank != self.rank]
        return ", ".join(words) or f"process {self.rank} of {self.size} fell behind at {self._where}"


def _key(rank: int) -> str:
    return f"mobilenas/{rank}"


def _is_running(process: str) -> bool:
    """Of ``host/number``, neither ended nor stopped; one on another host is taken to run."""
    host, _, number = process.rpartition("/")
    if host != platform.node():
        return True
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "TZX"
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    return hashlib.sha256(plain.view(torch.uint8).numpy().tobytes() if plain.dim() else str(plain.item()).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
