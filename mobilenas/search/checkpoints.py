"""Checkpoints: tensors in safetensors, everything else in JSON beside them; two generations, never half-written."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mobilenas.core import documents
from mobilenas.core.run_directory import write_atomic
from mobilenas.core.signals import StopRequest
from mobilenas.errors import DocumentError, ResourceError
from mobilenas.search.processes import Processes

_TENSOR = "__tensor__"
KEPT_GENERATIONS = 2
ROOM = 1.5
"""Times what checkpoints take, of the disk before the first."""
SAVE_EVERY_S = 600.0


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file atomically and return its SHA-256; tensors are copied to the CPU."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(plain, metadata)
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file; raises ``DocumentError`` if it cannot be read."""
    with documents.opened(path, documents.MAXIMUM_TENSORS_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # of any open file of bytes


def load_tensors(path: Path, fingerprint: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; raises ``DocumentError`` if it is damaged or says another ``fingerprint`` than asked for."""
    with documents.opened(path, documents.MAXIMUM_TENSORS_BYTES):
        pass  # the library would wait for a pipe, and read a device for ever
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("fingerprint")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library raises a bare exception type of its own
        raise DocumentError(f"{path}: not a whole safetensors file: {error}") from error
    if fingerprint is not None and found != fingerprint:
        raise DocumentError(f"{path}: the weights are of the architecture {found}, not of {fingerprint}: train it again")
    return tensors


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold a number which is not finite."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def one_line(error: Exception) -> str:
    """What ``error`` says, of torch's long lists of tensors only the first."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def check_like(found: Any, own: Any, place: str = "state") -> None:
    """Raise ``ValueError`` where a state that was ``found`` is not of the form of one's ``own``.

    Names are the same, counts none below zero, tensors of one type and shape. ``None`` and what is empty of one's own, as
    before a first step, may be anything; states of each process are as many as there were.
    """
    if own is None or found is None:
        return
    if isinstance(own, Tensor):
        if not isinstance(found, Tensor) or (found.dtype, found.shape) != (own.dtype, own.shape):
            raise ValueError(f"{place} is no tensor of {own.dtype} and the shape {tuple(own.shape)}")
    elif isinstance(own, Mapping):
        if place.endswith((".buffers", ".optimiser.state")):
            return  # of a single process; of the weights that a step was made of: an optimiser sees to its own shapes
        if not isinstance(found, Mapping) or (own and found.keys() != own.keys()):
            keys = sorted(map(str, found.keys() ^ own.keys())) if isinstance(found, Mapping) else type(found).__name__
            raise ValueError(f"{place} has missing or unknown entries: {keys}")
        for name in own:
            check_like(found[name], own[name], f"{place}.{name}")
    elif isinstance(own, list | tuple):
        if not isinstance(found, list | tuple) or (own and len(found) != len(own) and not place.endswith(".apart")):
            raise ValueError(f"{place} is no list of {len(own)}")
        for index, inside in enumerate(found if own else ()):
            check_like(inside, own[min(index, len(own) - 1)], f"{place}[{index}]")
    elif isinstance(own, float):
        if type(found) not in (int, float):
            raise ValueError(f"{place} is {found!r}, no number")
    elif type(found) is not type(own) or (isinstance(own, int) and found < 0):
        raise ValueError(f"{place} is {found!r}, no {type(own).__name__} that it could be")


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of a checkpoint."""

    sha256: dict[str, str]
    state: Any
    is_end: bool = True


class Checkpoints:
    """The checkpoints of one run, in ``folder``; a state is any nesting of dicts, lists, numbers, text and tensors.

    ``announce`` is told when the newest checkpoint is damaged and the one before it is taken.
    """

    def __init__(self, folder: Path, announce: Callable[[str], None] = lambda _: None) -> None:
        self._folder = folder
        self._announce = announce
        self._damaged: set[int] = set()
        self._ends: set[int] = set()
        """Known to have been written at the end of an epoch."""

    def save(self, state: Any, is_end: bool = True) -> None:
        """Write the next checkpoint (its JSON last: that makes the pair valid) and drop the oldest generations.

        The newest one from the end of an epoch (``is_end``) is kept too.
        """
        self._tidy()
        number = max(self._numbers(), default=0) + 1
        tensors: dict[str, Tensor] = {}
        plain = _split(state, "", tensors)
        path = self._folder / f"{number:06d}.safetensors"
        sha256 = {"state": documents.digest(plain), "tensors": save_tensors(path, tensors)}
        document = {"schema": "mobilenas/checkpoint@2", "is_end": is_end, "sha256": sha256, "state": plain}
        write_atomic(path.with_suffix(".json"), documents.dump_json(document))
        self._damaged.discard(number)
        if is_end:
            self._ends.add(number)
        self._tidy()

    def _tidy(self) -> None:
        """Leave the newest generations and nothing else of ours, as what a process that was killed has left half-written."""
        whole = [number for number in self._numbers() if number not in self._damaged]
        ends = [number for number in whole if number in self._ends]
        kept = {f"{number:06d}" for number in (*whole[-KEPT_GENERATIONS:], *ends[-1:])}
        for path in self._folder.iterdir() if self._folder.exists() else ():
            is_ours = path.name.startswith(".") or (path.stem.isdigit() and path.suffix in (".json", ".safetensors"))
            if is_ours and path.is_file() and path.stem not in kept:
                path.unlink()

    def check_room(self, size: int) -> None:
        """Raise ``ResourceError`` unless there is room for all generations of states of ``size`` bytes, and half as much."""
        needed, folder = int(ROOM * (KEPT_GENERATIONS + 2) * size), self._folder
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ResourceError(
                f"{self._folder}: checkpoints need {needed / 2**20:.0f} MiB, and the disk has {free / 2**20:.0f} MiB: "
                "make room, or name another folder"
            )

    def load_latest(self, at_end: bool = False) -> Any:
        """The state of the newest checkpoint that is whole, ``None`` if there never was one; of those from the ends of epochs,
        if ``at_end``.

        Raises ``DocumentError`` if all of them are damaged.
        """
        damaged: DocumentError | None = None
        for number in reversed(self._numbers()):
            try:
                is_end, state = self._load(self._folder / f"{number:06d}.json")
                if is_end:
                    self._ends.add(number)
                if at_end and not is_end:
                    continue
            except DocumentError as error:
                damaged = error
                self._damaged.add(number)
                self._announce(f"warning: {error}; going back to the checkpoint before it")
            else:
                return state
        if damaged is not None:
            raise DocumentError(f"no checkpoint in {self._folder} is whole, the oldest says: {damaged}")
        return None

    def resume(self, load_state: Callable[[Any], None], processes: Processes) -> None:
        """Pass the newest whole state, as the first process reads it, to ``load_state``, if there is one.

        Raises ``DocumentError`` if it does not fit.
        """
        self._pass_on(self.load_latest() if processes.is_first else None, load_state, processes)

    def go_back(self, load_state: Callable[[Any], None], processes: Processes, first: Any) -> None:
        """Pass the newest whole state of an epoch's end to ``load_state``; without one ``first``, where this process began."""
        found = self._pass_on(self.load_latest(at_end=True) if processes.is_first else None, load_state, processes)
        if not found:
            load_state(first)

    def _pass_on(self, own: Any, load_state: Callable[[Any], None], processes: Processes) -> bool:
        state = processes.share(own)
        if state is None:
            return False
        try:
            load_state(state)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise DocumentError(
                f"the checkpoint in {self._folder} is of another search or training ({one_line(error)}): remove it "
                "to begin anew"
            ) from error
        return True

    def _load(self, path: Path) -> tuple[bool, Any]:
        """Whether it is from the end of an epoch, and its state."""
        data = documents.check_schema(documents.parse_json(documents.read_text(path), str(path)), "checkpoint", 2, str(path))
        document = documents.convert(data, _Document, str(path))
        tensors = path.with_suffix(".safetensors")
        found = {"state": documents.digest(document.state), "tensors": sha256_of(tensors)}
        if document.sha256 != found:
            raise DocumentError(f"{path}: it or its safetensors file has changed since it was written (SHA-256)")
        if document.state is None:
            raise DocumentError(f"{path}: holds no state")
        loaded = load_tensors(tensors)
        for name, tensor in loaded.items():
            if not bool(tensor.isfinite().all()):
                raise DocumentError(f"{tensors}: {name} holds numbers that are not finite")
        try:
            return document.is_end, _join(document.state, loaded)
        except (KeyError, TypeError, ValueError) as error:
            raise DocumentError(f"{path}: does not fit its safetensors file ({one_line(error)})") from error

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("[0-9]" * 6 + ".json"))


class Saver:
    """When a run is saved: at the end of an epoch, every ten minutes, and before it stops for a signal.

    Several processes save and stop after the same step, whichever of them was signalled; the first one writes.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: Callable[[], Any],
        stop: StopRequest,
        processes: Processes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoints, self._state, self._stop, self._clock = checkpoints, state, stop, clock
        self._processes = processes
        self._saved_at = clock()

    def save(self, is_end: bool = True) -> None:
        """Save now, at the end of an epoch or within one."""
        state = self._state()
        if self._processes.is_first:
            self._checkpoints.save(state, is_end)
        self._saved_at = self._clock()

    def after_step(self) -> None:
        """Save if it is time to; leave if a signal asked for it."""
        is_due = self._clock() - self._saved_at >= SAVE_EVERY_S
        # asked once: a signal from here on waits for the next step
        number, due = self._processes.largest([self._stop.number, is_due and self._processes.is_first])
        if number or due:
            self.save(is_end=False)
        self._stop.leave(number)

    def after_epoch(self) -> None:
        """Leave if a signal asked for it."""
        self._stop.leave(*self._processes.largest([self._stop.number]))


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        if all(isinstance(key, int) for key in value):
            return {"__int_keys__": [[key, _split(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
        return {key: _split(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if "__int_keys__" in value:
            return {key: _join(item, tensors) for key, item in value["__int_keys__"]}
        return {key: _join(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    return value


def states_apart(processes: Processes, module: nn.Module, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """What is not the same in each process, of all of them: random numbers, BatchNorm's statistics, sums of an epoch.

    What all draw together, from torch's default generator, is there once.
    """
    own = {
        "random": processes.state(),
        "buffers": {name: buffer.cpu() for name, buffer in module.named_buffers()} if processes.size > 1 else {},
        "tallies": {name: tally.state() for name, tally in tallies.items()},
    }
    return {"random": torch.get_rng_state(), "apart": processes.gather(own)}


def load_states_apart(processes: Processes, module: nn.Module, state: Mapping[str, Any]) -> dict[str, Tally]:
    """The inverse, but for what ``module`` had of its state already; returns the tallies.

    Where the number of processes has changed, the first takes over the sums, and the others begin at nothing.
    """
    torch.set_rng_state(state["random"])
    found = state["apart"]
    if len(found) == processes.size:
        own = found[processes.rank]
        processes.load_state(own["random"])
        buffers = dict(module.named_buffers())
        for name, buffer in own["buffers"].items():
            buffers[name].copy_(buffer)
        return {name: Tally.of_state(tally) for name, tally in own["tallies"].items()}
    processes.load_state(None)
    names = found[0]["tallies"]
    if not processes.is_first:
        return {name: Tally() for name in names}
    return {name: Tally.together([Tally.of_state(other["tallies"][name]) for other in found]) for name in names}


@dataclass
class Tally:
    """Loss and hits summed over an epoch's batches, on the device that computes them until they are read."""

    loss: Tensor | float = 0.0
    batches: int = 0
    correct: int = 0
    count: int = 0

    def add(self, loss: Tensor, correct: int, count: int) -> None:
        """Add one batch: its mean loss, its hits, its size; one without a finite loss is left out."""
        if not loss.isfinite():
            return
        self.loss = self.loss + loss.detach().double()
        self.batches += 1
        self.correct += correct
        self.count += count

    def merge(self, other: Tally) -> None:
        """Add all of another one."""
        self.loss = self.loss + other.loss
        self.batches += other.batches
        self.correct += other.correct
        self.count += other.count

    def mean_loss(self) -> float | None:
        """Mean loss over batches, ``None`` before the first."""
        return float(self.loss) / self.batches if self.batches else None

    def accuracy(self) -> float | None:
        """Share of hits, ``None`` before the first batch."""
        return self.correct / self.count if self.count else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"loss": float(self.loss), "batches": self.batches, "correct": self.correct, "count": self.count}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Tally:
        """Restore a tally from its state; raises ``ValueError`` for sums that contradict each other."""
        if not 0 <= state["correct"] <= state["count"] or state["batches"] < 0:
            raise ValueError(f"{state['correct']} of {state['count']} images right, in {state['batches']} batches")
        return cls(**state)

    @classmethod
    def together(cls, tallies: Sequence[Tally]) -> Tally:
        """The sum of all, as of the parts of each batch in several processes."""
        return cls(
            loss=sum(float(tally.loss) for tally in tallies),
            batches=sum(tally.batches for tally in tallies),
            correct=sum(tally.correct for tally in tallies),
            count=sum(tally.count for tally in tallies),
        )

    def over(self, processes: Processes) -> Tally:
        """Of all processes together."""
        return self if processes.size == 1 else Tally.together([Tally(**state) for state in processes.gather(self.state())])
