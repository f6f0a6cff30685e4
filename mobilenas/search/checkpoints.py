"""Checkpoints: tensors in safetensors, everything else in JSON beside them; two generations, never half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mobilenas.core import documents
from mobilenas.core.run_directory import write_atomic
from mobilenas.errors import DocumentError

_TENSOR = "__tensor__"
KEPT_GENERATIONS = 2


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically; tensors are copied to the CPU."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, metadata))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises ``DocumentError`` if it is damaged."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except FileNotFoundError as error:
        raise DocumentError(f"{path}: no such file") from error
    except Exception as error:  # the library raises a bare exception type of its own
        raise DocumentError(f"{path}: not a whole safetensors file: {error}") from error


class Checkpoints:
    """The checkpoints of one run, in ``folder``; ``state`` is any nesting of dicts, lists, numbers, text and tensors."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, state: Any) -> None:
        """Write the checkpoint of ``step`` (JSON last: it makes the pair valid) and drop the oldest generations."""
        tensors: dict[str, Tensor] = {}
        plain = _split(state, "", tensors)
        save_tensors(self._folder / f"{step:06d}.safetensors", tensors)
        write_atomic(
            self._folder / f"{step:06d}.json",
            documents.dump_json({"schema": "mobilenas/checkpoint@1", "step": step, "state": plain}),
        )
        for old in self._steps()[:-KEPT_GENERATIONS]:
            (self._folder / f"{old:06d}.json").unlink()
            (self._folder / f"{old:06d}.safetensors").unlink(missing_ok=True)

    def load_latest(self) -> tuple[int, Any] | None:
        """Step and state of the newest checkpoint, ``None`` if there is none; raises ``DocumentError`` if it is damaged."""
        steps = self._steps()
        if not steps:
            return None
        path = self._folder / f"{steps[-1]:06d}.json"
        data = documents.check_schema(documents.parse_json(documents.read_text(path), str(path)), "checkpoint", 1, str(path))
        return steps[-1], _join(data["state"], load_tensors(path.with_suffix(".safetensors")))

    def _steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("[0-9]*.json"))


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


def random_state() -> Tensor:
    """State of torch's default generator, from which dropout, drop path and augmentations draw."""
    return torch.get_rng_state()


def set_random_state(state: Tensor) -> None:
    """Go on from ``random_state``."""
    torch.set_rng_state(state)
