"""Batches that are computed part by part, one after another, where a whole one does not fit into memory.

The loss is the mean over all images and its gradient the same, but for BatchNorm, whose statistics are of one part at a time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mobilenas.core.system import NO_MEMORY
from mobilenas.errors import ResourceError, UsageError
from mobilenas.methods.base import Batch
from mobilenas.search.memory import MemoryEstimate

T = TypeVar("T")
HALVINGS = 3
"""How often a batch is halved before a run gives up."""
Rows = Mapping[str, Tensor]


class Parts:
    """How many parts each batch of ``batch_size`` images is computed in. Raises ``UsageError`` for more than it has pairs.

    ``may_halve`` says whether a step that did not fit may be computed again: not where other processes wait for this one, or
    the method differentiates twice. ``estimate`` says what a step on so many images takes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        may_halve: bool,
        announce: Callable[[str], None],
        estimate: Callable[[int], MemoryEstimate],
    ) -> None:
        check_parts(count, batch_size)
        self.count = self._asked = count
        self._batch_size, self._may_halve, self._announce, self._estimate = batch_size, may_halve, announce, estimate
        self._halvings = 0

    def loss(
        self,
        compute: Callable[[Batch, Rows], Tensor],
        batch: Batch,
        rows: Rows,
        weights: Sequence[Tensor],
        scale: Callable[[], float] = lambda: 1.0,
    ) -> Tensor:
        """The mean of ``compute`` over ``batch``, a scalar that can be differentiated once in ``rows`` and ``weights``.

        In several parts each is differentiated at once, so that what it held is free before the next; ``scale`` says what half
        precision multiplies losses by.
        """
        if self.count == 1:
            return compute(batch, rows)
        found: Tensor = _InParts.apply(compute, self.of(batch), list(rows), scale(), *rows.values(), *weights)
        return found

    def of(self, batch: Batch) -> list[Batch]:
        """The parts of ``batch``."""
        pairs = zip(batch.images.tensor_split(self.count), batch.labels.tensor_split(self.count), strict=True)
        return [Batch(images, labels) for images, labels in pairs]

    def within_memory(self, step: Callable[[], T]) -> T:
        """What ``step`` returns, done again in twice as many parts where it ran out of memory.

        Raises ``ResourceError`` where that was done three times already, or may not be.
        """
        while True:
            try:
                return step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                words = " ".join(str(error).split())[:200]
            self._halve(words)

    def _halve(self, words: str) -> None:
        told = f"a batch of {self._batch_size} in {self.count} parts" if self.count > 1 else f"a batch of {self._batch_size}"
        if not self._may_halve or self._halvings == HALVINGS or 2 * self.count > self._batch_size // 2:
            needed = self._estimate(-(-self._batch_size // self.count))
            raise ResourceError(
                f"out of memory by {told}, which takes about {needed}: {words}; lower data.batch, use a smaller network, or "
                "set compute.accumulate or supernet.checkpoint_cells and go on"
            )
        self.count, self._halvings = 2 * self.count, self._halvings + 1
        self._announce(f"warning: out of memory by {told}; computed in {self.count} parts from here on")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"least": self.count if self._halvings else 1, "halvings": self._halvings}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on from ``state``: in as many parts as are asked for now, and as had to be; the batch may be smaller here."""
        self.count, self._halvings = max(self._asked, min(state["least"], most_parts(self._batch_size))), state["halvings"]


def most_parts(batch_size: int) -> int:
    """That a batch can be computed in: BatchNorm needs two images."""
    return max(1, batch_size // 2)


def check_parts(count: int, batch_size: int) -> None:
    """Raise ``UsageError`` for more parts than a batch can be computed in."""
    if count > most_parts(batch_size):
        raise UsageError(
            f"compute.accumulate is {count}; it must be at most {most_parts(batch_size)}: a part needs two of the {batch_size} "
            "images, for BatchNorm"
        )


@contextmanager
def told_where_memory_runs_out() -> Iterator[None]:
    """What asks for more memory than there is, outside a step, ends with a ``ResourceError``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"out of memory: {' '.join(str(error).split())[:200]}; lower data.batch") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a larger memory would have helped."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in NO_MEMORY)


class _InParts(torch.autograd.Function):
    """The mean of losses whose gradients are taken on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable[[Batch, Rows], Tensor],
        batches: Sequence[Batch],
        names: Sequence[str],
        scale: float,
        *tensors: Tensor,
    ) -> Tensor:
        with torch.enable_grad():
            rows = {
                name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in zip(names, tensors, strict=False)
            }
            inputs = [*rows.values(), *tensors[len(names) :]]
            wanted = [index for index, tensor in enumerate(inputs) if tensor.requires_grad]
            gradients: dict[int, Tensor] = {}
            images = sum(len(batch.labels) for batch in batches)
            total = torch.zeros((), device=batches[0].images.device)
            for batch in batches:
                loss = compute(batch, rows) * (len(batch.labels) / images)
                total = total + loss.detach()
                if not wanted:
                    continue
                found = torch.autograd.grad(loss * scale, [inputs[index] for index in wanted], allow_unused=True)
                for index, gradient in zip(wanted, found, strict=True):
                    if gradient is not None:
                        gradients[index] = gradients[index].add_(gradient) if index in gradients else gradient.clone()
        ctx.gradients = [gradients[index].div_(scale) if index in gradients else None for index in range(len(inputs))]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        return (None, None, None, None, *(None if gradient is None else gradient * outer for gradient in ctx.gradients))
