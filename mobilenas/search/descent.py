"""Descending weights or logits: the rate, the precision, the clipping, and gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilenas.errors import DivergedError
from mobilenas.search.processes import Processes

LAST_EPOCHS = 5
"""At the end of the linear schedule, in which it falls more slowly."""
PATIENCE = 3
"""Steps in a row without a finite gradient that are one too many."""


class SgdSettings(msgspec.Struct, frozen=True):
    """SGD with momentum, a schedule of its rate, and clipping of the gradient's norm.

    In the first ``warmup_epochs`` the rate rises linearly to ``lr``; it then follows ``schedule`` as if there had been none:
    ``cosine`` from ``lr`` to ``min_lr``; ``exponential``, times ``decay`` each epoch; or ``linear``, less by one and the same
    each epoch, and by a fifth of that in the last five, to nothing (P-DARTS's authors, arXiv 1904.12760).
    """

    lr: float
    min_lr: float
    momentum: float
    weight_decay: float
    clip_norm: float
    warmup_epochs: int = 0
    nesterov: bool = False
    schedule: str = "cosine"
    decay: float = 0.97
    per_step: bool = False
    """Whether the rate changes with every step instead of every epoch."""

    def optimiser(self, weights: Sequence[nn.Parameter]) -> torch.optim.SGD:
        """That of ``weights``."""
        return torch.optim.SGD(weights, self.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)

    def lr_at(self, epoch: float, epochs: int) -> float:
        """Learning rate of ``epoch``, counted from 0; a part of one is told by a fraction."""
        if epoch < self.warmup_epochs:
            return self.lr * min(1.0, (epoch + 1) / self.warmup_epochs)
        if self.schedule == "exponential":
            return float(self.lr * self.decay**epoch)
        if self.schedule == "linear":
            steep = max(1, epochs - LAST_EPOCHS)
            left = epochs - epoch
            return self.lr * ((left - LAST_EPOCHS) / steep if left > LAST_EPOCHS else left / (steep * LAST_EPOCHS))
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * epoch / epochs)) / 2

    def lr_in(self, epoch: int, step: int, steps: int, epochs: int) -> float:
        """Learning rate of step ``step`` of ``steps`` of an epoch."""
        return self.lr_at(epoch + step / steps if self.per_step else epoch, epochs)


class AdamSettings(msgspec.Struct, frozen=True):
    """Adam of the logits, with L2 decay and, where it is set, clipping of the gradient's norm."""

    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float | None = None

    def optimiser(self, logits: Sequence[nn.Parameter]) -> torch.optim.Adam:
        """That of ``logits``."""
        return torch.optim.Adam(logits, self.lr, (self.beta1, self.beta2), weight_decay=self.weight_decay)


_OWN = ("params", "lr", "initial_lr")
"""What is not a setting of an optimiser's group."""


class Guard:
    """What is done where gradients are not finite: such a step is left out, and after three in a row the run has diverged.

    It may then go back to the end of an epoch once, at half its learning rates. In half precision, where gradients are
    multiplied by a large scale, some such steps are how the scale is found: they are left out and not counted until it is 1.
    """

    def __init__(self, fabric: Fabric, module: nn.Module, processes: Processes, announce: Callable[[str], None]) -> None:
        self._module, self._processes, self._announce = module, processes, announce
        self._precision: Any = fabric.strategy.precision
        self.has_halved = False
        """Whether this run has gone back once."""

    @property
    def rate_factor(self) -> float:
        """What learning rates are multiplied by."""
        return 0.5 if self.has_halved else 1.0

    @property
    def has_scale(self) -> bool:
        """Whether losses are multiplied by a scale, as in half precision."""
        return getattr(self._precision, "scaler", None) is not None

    @property
    def scale(self) -> float:
        """What losses are multiplied by before they are differentiated."""
        return float(self._precision.scaler.get_scale()) if self.has_scale else 1.0

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Divide gradients by the scale."""
        self._precision.unscale_gradients(optimiser)

    def count(self, in_a_row: int) -> int:
        """A step was left out, after ``in_a_row`` others of its kind; how many that makes. Raises ``DivergedError`` for one too
        many.
        """
        is_spoilt = not all(bool(buffer.isfinite().all()) for buffer in self._module.buffers())
        if any(self._processes.largest([is_spoilt])):
            raise DivergedError("a batch made the statistics of BatchNorm infinite")
        if self.scale > 1.0:
            return in_a_row
        if in_a_row + 1 >= PATIENCE:
            raise DivergedError(f"no gradient was finite in {PATIENCE} steps in a row")
        self._announce("warning: a gradient is not finite: this step is left out")
        return in_a_row + 1

    def go_back(self, error: DivergedError) -> None:
        """Halve the rates; raises ``DivergedError`` where that was done before."""
        if self.has_halved:
            raise DivergedError(f"{error}, at half the learning rates too; lower weights.lr or architecture.lr") from error
        self._announce(f"warning: diverged: {error}; back to where the epoch began, and on at half the learning rates")
        self.has_halved = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"has_halved": self.has_halved, "precision": self._precision.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; rates that are halved stay so."""
        self.has_halved = self.has_halved or state["has_halved"]
        if state["precision"]:
            self._precision.load_state_dict(state["precision"])


class Descent:
    """The steps of one ``optimiser`` of ``tensors``, the same in all ``processes``."""

    def __init__(
        self,
        optimiser: Any,
        tensors: Sequence[nn.Parameter],
        clip_norm: float | None,
        guard: Guard,
        processes: Processes,
    ) -> None:
        self.optimiser, self.tensors = optimiser, tensors
        self._clip_norm = math.inf if clip_norm is None else clip_norm
        self._guard, self._processes = guard, processes
        self.left_out = 0
        """Steps in a row."""

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimiser.param_groups[0]["lr"])

    def set_rate(self, lr: float) -> None:
        """Give the next steps the rate ``lr``, halved where the run has gone back."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr * self._guard.rate_factor

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self.optimiser.zero_grad()

    def average(self) -> None:
        """Average the gradients over all processes, and divide them by the scale of half precision."""
        self._processes.average(self.tensors)
        self._guard.unscale(self.optimiser.optimizer)

    def step(self) -> bool:
        """Clip and go; ``False`` where the gradient was not finite and nothing was done. Raises ``DivergedError``."""
        norm: Tensor = nn.utils.clip_grad_norm_(self.tensors, self._clip_norm)
        is_finite = bool(norm.isfinite())
        if is_finite or self._guard.has_scale:  # which a step without a finite gradient lowers, and does nothing else
            self.optimiser.step()
        self.left_out = 0 if is_finite else self._guard.count(self.left_out)
        return is_finite

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"optimiser": self.optimiser.state_dict(), "left_out": self.left_out}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; raises ``ValueError`` for one of another optimiser."""
        before = self._settings()
        self.optimiser.load_state_dict(state["optimiser"])
        if self._settings() != before:
            raise ValueError(f"the optimiser has the settings {self._settings()}, not {before}")
        for tensor, kept in self.optimiser.state.items():
            shapes = {tuple(value.shape) for value in kept.values() if isinstance(value, Tensor) and value.dim()}
            if not shapes <= {tuple(tensor.shape)}:
                raise ValueError(f"the optimiser keeps the shapes {shapes} of a weight of {tuple(tensor.shape)}")
        self.left_out = state["left_out"]

    def _settings(self) -> list[dict[str, Any]]:
        """Return all settings but the learning rate, which is set at every step."""
        return [
            {name: list(value) if isinstance(value, tuple) else value for name, value in group.items() if name not in _OWN}
            for group in self.optimiser.param_groups
        ]
