"""The contract of a search method: a handful of hooks, each with a default that is first-order DARTS.

The engine owns optimisers, data, precision, clipping, checkpoints, logging and the budget; a method owns what its paper
adds. Edge normalisation, partial channels, dropout of skips and their limit are ``Switches``, which any method on cells has.
Life of a search: ``stages`` yields a stage and is sent its finished logits; for each epoch of it ``phases`` says
in which order weights and architecture are stepped; each step relaxes the logits to a ``Mixture``; an architecture step
then calls ``architecture_gradient`` and, after the optimiser, ``after_architecture_step``; at the end ``decode`` and
``scores`` say what the logits stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from mobilenas.core.architecture import Architecture, Decision, DecisionKind
from mobilenas.errors import IncompatibleError
from mobilenas.methods.switches import Switches
from mobilenas.spaces.base import DerivationProgram, SearchSpace, SupernetSize
from mobilenas.supernet import ArchitectureParameters, LogitsBefore, Mixture

DROPPED_SCORE = -1000.0
"""Far below any sum of log probabilities."""

StepKind = Literal["architecture", "weights"]


class Batch(msgspec.Struct, frozen=True):
    """``images (B, C, H, W)`` and ``labels (B,)``."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Stage:
    """A part of the search with one supernet: its size, the decisions with their options, its length in epochs."""

    size: SupernetSize | None
    decisions: tuple[Decision, ...]
    epochs: int
    warmup_epochs: int = 0
    """Epochs at the start that train only the weights."""
    skip_dropout: float = 0.0
    """At first; see ``skip_dropout_at``."""

    def skip_dropout_at(self, epoch: int) -> float:
        """Chance that an element of an identity is dropped: falls linearly through the warm-up, then starts over and falls
        exponentially (the schedule of P-DARTS's authors, arXiv 1904.12760).
        """
        if epoch < self.warmup_epochs:
            return self.skip_dropout * (self.epochs - epoch - 1) / self.epochs
        return self.skip_dropout * math.exp(-0.2 * (epoch - self.warmup_epochs))


@dataclass(frozen=True)
class Progress:
    """Where the search is: epoch ``epoch`` of ``epochs`` in stage ``stage``, counted from 0."""

    stage: int
    epoch: int
    epochs: int
    warmup_epochs: int = 0

    @property
    def is_warmup(self) -> bool:
        """Whether only weights are trained yet."""
        return self.epoch < self.warmup_epochs

    @property
    def fraction(self) -> float:
        """From 0 in the first epoch to 1 in the last."""
        return self.epoch / max(1, self.epochs - 1)


@dataclass(frozen=True)
class Step:
    """What a method may use in one architecture step; it fills the logits' gradients and leaves all else as it was.

    ``loss(batch, mixture)`` is the task's loss of the supernet, ``constraint(mixture)`` the budgets' terms; both are
    scalars. ``backward`` takes the place of ``Tensor.backward``. ``weights`` are the supernet's; ``weights_after(gradients)``
    is what the weight optimiser would make of them, without doing it, and ``weights_lr`` its learning rate now. In a pass
    that makes no weight steps ``train`` is ``valid``. Batches are this process's part: ``average`` averages gradients over
    all, where a method goes on from them; those of the logits are averaged in the end. In half precision gradients are a
    multiple of what they say, the same one for all of a step.
    """

    parameters: ArchitectureParameters
    train: Batch
    valid: Batch
    progress: Progress
    loss: Callable[[Batch, Mixture], Tensor]
    constraint: Callable[[Mixture], Tensor]
    backward: Callable[[Tensor], None]
    weights: Sequence[nn.Parameter]
    weights_after: Callable[[Sequence[Tensor]], list[Tensor]]
    weights_lr: float
    average: Callable[[Sequence[Tensor]], None] = lambda tensors: None


@dataclass(frozen=True)
class Moved:
    """The logits after a step of their optimiser, and where both stood ``before``."""

    parameters: ArchitectureParameters
    before: LogitsBefore
    optimiser: torch.optim.Optimizer
    progress: Progress


@contextmanager
def frozen(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradients for ``weights`` inside: a pass that needs those of the logits only takes a quarter less time."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


class SearchMethod:
    """First-order DARTS unless overridden."""

    name: ClassVar[str]
    searches: ClassVar[frozenset[DecisionKind]] = frozenset({"op"})
    """Which kinds of decision get logits; ``input`` also where edges are normalised."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Traits that a space must have."""
    step_order: ClassVar[tuple[StepKind, ...]] = ("architecture", "weights")
    """The steps made with every pair of batches."""
    warmup_fraction: ClassVar[float] = 0.0
    """Share of a stage's epochs that train only weights, unless the search says how many."""
    trains: ClassVar[bool] = True
    """Whether there is a supernet with weights in the end that tell options apart."""
    is_uniform: ClassVar[bool] = False
    """Whether it stands for all networks alike, whatever its logits are."""
    draws: ClassVar[bool] = False
    """Whether mixtures are drawn anew in each step."""
    precisions: tuple[str, ...] = ("32-true", "bf16-mixed", "16-mixed")
    """Values of ``compute.precision`` that the method can be computed in."""
    may_be_in_parts = True
    """Whether a batch may be computed part by part: not where a method differentiates twice."""
    switches = Switches()
    """What this method turns on of what any method on cells may have; a search may set others on its instance."""

    def check(self, space: SearchSpace) -> None:
        """Raise ``IncompatibleError`` where the method cannot search ``space`` with its switches."""
        missing = self.needs - space.traits
        if missing:
            raise IncompatibleError(
                f"the method {self.name} needs a space with {', '.join(sorted(missing))}; "
                f"{space.name} has {', '.join(sorted(space.traits)) or 'none of that'}"
            )
        self.switches.check(space)

    def stages(
        self, space: SearchSpace, size: SupernetSize | None, epochs: int, warmup_epochs: int
    ) -> Generator[Stage, ArchitectureParameters, None]:
        """Yield the stages in order; each ``yield`` returns the stage's finished logits."""
        yield Stage(size, self.searched(space), epochs, warmup_epochs, self.switches.skip_dropout)

    def searched(self, space: SearchSpace) -> tuple[Decision, ...]:
        """The decisions of ``space`` that get logits."""
        kinds = self.searches | (frozenset({"input"}) if self.switches.edge_normalisation else frozenset())
        return tuple(decision for decision in space.decisions if decision.kind in kinds)

    def phases(self, stage: Stage, epoch: int) -> tuple[tuple[StepKind, ...], ...]:
        """Passes over the data in this epoch; each makes these steps with every batch of the halves that they read."""
        return (("weights",),) if epoch < stage.warmup_epochs else (self.step_order,)

    def relax_weights(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        """The mixture of a weight step."""
        return Mixture.soft(parameters.softmax())

    def relax_architecture(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        """The mixture of an architecture step."""
        return Mixture.soft(parameters.softmax())

    def architecture_gradient(self, step: Step) -> None:
        """Add the gradient of the validation loss and the constraints to the logits (DARTS, section 2.3, xi = 0)."""
        with frozen(step.weights):
            mixture = self.relax_architecture(step.parameters, step.progress)
            step.backward(step.loss(step.valid, mixture) + step.constraint(mixture))

    def after_architecture_step(self, moved: Moved) -> None:
        """Called after the optimiser moved the logits; may change them in place."""

    def decode(self, space: SearchSpace, parameters: ArchitectureParameters) -> Architecture:
        """The architecture that the logits stand for, without a budget."""
        return self.switches.decode(space, {name: row.detach() for name, row in parameters.softmax().items()})

    def scores(self, space: SearchSpace, parameters: ArchitectureParameters) -> Mapping[str, np.ndarray]:
        """Log probabilities ``(O,)`` per decision, what a derivation under budgets maximises.

        An option that the last stage lacks scores so low that only a budget which nothing else meets can bring it back.
        """
        logits = parameters.relax(lambda rows: rows.detach().double().log_softmax(dim=-1), dropped=DROPPED_SCORE)
        return {name: row.cpu().numpy() for name, row in logits.items()}

    def restrict(self, program: DerivationProgram) -> DerivationProgram:
        """Add the method's own rules to a space's program of what may be chosen together."""
        return self.switches.restrict(program)
