"""Tasks: what a network's output means, its loss and its metric. Classification is the one built; the seam is here."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional


class Task(Protocol):
    """Turns outputs and targets into a loss and a metric."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """A scalar to minimise; ``output (B, ...)``, ``target (B, ...)``."""
        ...

    def correct(self, output: Tensor, target: Tensor, guesses: int = 1) -> int:
        """How many of the ``B`` samples are right with so many ``guesses``."""
        ...


class Classification:
    """Cross entropy on ``(B, classes)`` logits, with label smoothing from 0 to 1."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def correct(self, output: Tensor, target: Tensor, guesses: int = 1) -> int:
        if guesses == 1:
            return int((output.argmax(dim=1) == target).sum())
        return int((output.topk(guesses, dim=1).indices == target[:, None]).sum())
