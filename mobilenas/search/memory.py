"""How much memory a step of a search or training takes, told before it is made: tensors without data keep the account."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FLOAT_BYTES = 4


class MemoryEstimate(msgspec.Struct, frozen=True):
    """What a step holds at most at once, in bytes; not counted is what libraries and drivers take for themselves."""

    parameters: int
    weights_bytes: int
    """Weights, and the momentum that their optimiser keeps."""
    step_bytes: int
    """The most that one part of a batch holds beside them: what the way back needs, gradients, what is computed just then."""

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.weights_bytes + self.step_bytes

    def __str__(self) -> str:
        return f"{self.total_bytes / 2**30:.2f} GiB" if self.total_bytes >= 2**30 else f"{self.total_bytes / 2**20:.0f} MiB"


def estimate(module: nn.Module, loss: Callable[[], Tensor], number_bytes: int = FLOAT_BYTES) -> MemoryEstimate:
    """What ``loss()`` of ``module`` and its gradient take, where activations have ``number_bytes`` per number.

    Both may be on the ``meta`` device: nothing is allocated there, and nothing computed.
    """
    with _Ledger() as ledger:
        torch.autograd.backward(loss())
    module.zero_grad()
    parameters = sum(weight.numel() for weight in module.parameters())
    short = max(0, FLOAT_BYTES - number_bytes)  # of 16 bits: gradients of weights are whole all the same
    step_bytes = ledger.peak_bytes * number_bytes // FLOAT_BYTES + short * parameters
    return MemoryEstimate(parameters, 2 * FLOAT_BYTES * parameters, step_bytes)


def number_bytes_of(fabric: Fabric) -> int:
    """What a number takes in the precision that ``fabric`` computes in."""
    precision = str(fabric.strategy.precision.precision)
    return 2 if precision.endswith("16-mixed") else 8 if precision.startswith("64") else FLOAT_BYTES


def on_meta(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without data, to be differentiated in."""
    return {name: torch.empty_like(row, device="meta").requires_grad_() for name, row in rows.items()}


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the memory of all tensors that are made inside it, for as long as each lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._now_bytes = 0
        self._live: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in before and storage._cdata not in self._live:
                    self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._live.add(key)
        self._now_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._now_bytes)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._now_bytes -= size
