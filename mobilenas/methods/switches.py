"""What any method on cells can turn on, whichever paper it came from; methods have their own defaults.

Edge normalisation and partial channels: PC-DARTS, arXiv 1907.05737. Dropout of skips and their limit: P-DARTS, arXiv
1904.12760. Decay of the logits: beta-DARTS, arXiv 2203.01665. Auxiliary skips: DARTS-, arXiv 2009.01027.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mobilenas.core.architecture import Architecture
from mobilenas.errors import IncompatibleError
from mobilenas.spaces.base import DerivationProgram, SearchSpace
from mobilenas.supernet import NO_OPERATOR, SKIP, ArchitectureParameters, Mixture

AUTOMATIC = "auto"
LIMITED = "normal."
"""Beginning of the names of the decisions that a skip limit is about."""


class Switches(msgspec.Struct, frozen=True):
    """All off."""

    edge_normalisation: bool = False
    """Each node's inputs have logits of their own: their softmax multiplies the edges, also in the choice."""
    partial_channels: int = 1
    """K: one channel in K passes through the operators, the others go by; then they are shuffled."""
    skip_dropout: float = 0.0
    """Chance at first that an element of an identity is dropped while searching; it falls, see ``Stage``."""
    skip_limit: int | None = None
    """How many skip connections a normal cell may have at most."""
    beta_decay: float | str = 0.0
    """What the mean of ``log(sum(exp(logits)))`` over edges weighs in the loss at the end; it grows from nothing, linearly.

    ``AUTOMATIC`` makes its gradient as long as the loss's at the end. The paper ends at 25 for its own space and 50 for
    NAS-Bench-201, after epochs of 391 steps.
    """
    auxiliary_skip: bool = False
    """Every edge is also a skip, whose weight falls linearly from 1 to 0. Where the sizes differ it shares the weights of the
    candidate skip, and an edge from which a stage has dropped that has none.
    """

    def check(self, space: SearchSpace) -> None:
        """Raise ``IncompatibleError`` naming the switch that means nothing in ``space``."""
        for name, is_on, trait in (
            ("edge_normalisation", self.edge_normalisation, "edge normalisation"),
            ("partial_channels", self.partial_channels > 1, "partial channels"),
            ("skip_dropout", self.skip_dropout > 0, "skips"),
            ("skip_limit", self.skip_limit is not None, "skips"),
            ("beta_decay", self.beta_decay != 0.0, "cells"),
            ("auxiliary_skip", self.auxiliary_skip, "cells"),
        ):
            if is_on and trait not in space.traits:
                raise IncompatibleError(f"switches.{name} needs a space with {trait}; {space.name} has none")
        edges = [decision.options for decision in space.decisions if decision.kind == "op"]
        for name, is_on in (("skip_dropout", self.skip_dropout > 0), ("auxiliary_skip", self.auxiliary_skip)):
            if is_on and not any(SKIP in options for options in edges):
                raise IncompatibleError(
                    f"switches.{name}: no edge of this space may be {SKIP}; add it to space.options.operators"
                )
        if self.skip_limit is not None and any(set(options) <= {SKIP, NO_OPERATOR} for options in edges):
            raise IncompatibleError(f"switches.skip_limit: {SKIP} is all that edges may be; add to space.options.operators")

    def relaxed(self, mixture: Mixture, space: SearchSpace, fraction: float) -> Mixture:
        """``mixture`` with the auxiliary skips of ``space``, at ``fraction`` of a stage's epochs."""
        if not self.auxiliary_skip or fraction >= 1.0:
            return mixture
        weights, active = dict(mixture.weights), dict(mixture.active)
        for decision in space.decisions:
            if decision.kind == "op" and decision.name in weights and SKIP in decision.options:
                row, skip = weights[decision.name], decision.options.index(SKIP)
                weights[decision.name] = row + (1.0 - fraction) * functional.one_hot(torch.tensor(skip), len(row)).to(row)
                if decision.name in active:
                    active[decision.name] = tuple({*active[decision.name], skip})
        return msgspec.structs.replace(mixture, weights=weights, active=active)

    def decay(self, parameters: ArchitectureParameters, fraction: float) -> None:
        """Add the gradient of the logits' decay at ``fraction`` of a stage's epochs to theirs."""
        if self.beta_decay == 0.0:
            return
        rows = [parameters.logits[name] for name, group in parameters.groups.items() if group.kind == "op"]
        edges = sum(len(row) for row in rows)
        gradients = [row.detach().softmax(dim=-1) / edges for row in rows]
        strength: float | Tensor
        if self.beta_decay == AUTOMATIC:
            strength = fraction * _length([row.grad for row in rows if row.grad is not None]) / _length(gradients)
        else:
            strength = fraction * float(self.beta_decay)
        for row, gradient in zip(rows, gradients, strict=True):
            row.grad = strength * gradient if row.grad is None else row.grad + strength * gradient

    def decode(self, space: SearchSpace, probabilities: Mapping[str, Tensor]) -> Architecture:
        """The space's own choice; over the skip limit, the least likely skip of the normal cell is ruled out and the choice
        made again, until it fits (the P-DARTS authors' loop).
        """
        rows = dict(probabilities)
        while True:
            architecture = space.decode(rows)
            skips = [name for name, option in architecture.choices.items() if option == SKIP and name.startswith(LIMITED)]
            if self.skip_limit is None or len(skips) <= self.skip_limit:
                return architecture
            column = {d.name: d.options.index(SKIP) for d in space.decisions if d.name in skips}
            weakest = min(skips, key=lambda name: float(rows[name][column[name]]))
            rows[weakest] = rows[weakest].clone()
            rows[weakest][column[weakest]] = 0

    def restrict(self, program: DerivationProgram) -> DerivationProgram:
        """The skip limit as a row of the program."""
        if self.skip_limit is None:
            return program
        row = np.array([float(option == SKIP and name.startswith(LIMITED)) for name, option in program.variables])
        return replace(
            program,
            rows=np.vstack([program.rows, row]),
            lower=np.append(program.lower, 0.0),
            upper=np.append(program.upper, self.skip_limit),
        )


def _length(tensors: Sequence[Tensor]) -> Tensor:
    """Of all together, as one vector."""
    length: Tensor = torch.cat([tensor.flatten() for tensor in tensors]).norm()
    return length
