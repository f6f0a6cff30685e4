"""GDAS: Searching for a Robust Neural Architecture in Four GPU Hours. Dong, Yang, CVPR 2019, arXiv 1910.04465.

One operator per edge is drawn from the Gumbel-max distribution and only that one runs (equations 3 to 7); its gradient
reaches the logits through the softmax at temperature ``tau`` (straight-through). One draw per step serves all cells of a
type and the whole batch. Weights are stepped before the logits, each with a draw of its own; ``tau`` falls linearly from
10 to 0.1. An operator that was not drawn gets no gradient at all, so momentum and weight decay leave it alone too.

The estimator is the cell space's: the scalars of the operators that were not drawn are not added to the edge, as the
authors' NAS-Bench-201 variant does. Shapes: ``D`` decisions, ``O`` options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from mobilenas.methods.base import Progress, SearchMethod, StepKind
from mobilenas.supernet import ArchitectureParameters, Mixture, gumbel_noise

FIRST_TAU, LAST_TAU = 10.0, 0.1


class Gdas(SearchMethod):
    """Sampled single paths with a straight-through gradient. ``noise`` maps logits ``(D, O)`` to noise of that shape."""

    name: ClassVar[str] = "gdas"
    draws: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"cells"})
    step_order: ClassVar[tuple[StepKind, ...]] = ("weights", "architecture")

    def __init__(self, noise: Callable[[Tensor], Tensor] = gumbel_noise) -> None:
        self.noise = noise

    def relax_weights(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        return self.relax_architecture(parameters, progress)

    def relax_architecture(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        tau = FIRST_TAU + (LAST_TAU - FIRST_TAU) * progress.fraction
        drawn = parameters.relax(lambda logits: self._sample(logits, tau), {"op"})
        winners = torch.stack([row.detach().argmax() for row in drawn.values()]).tolist()
        return Mixture(
            weights=drawn | parameters.softmax({"input"}),
            probabilities=parameters.softmax(),
            active={name: (winner,) for name, winner in zip(drawn, winners, strict=True)},
        )

    def _sample(self, logits: Tensor, tau: float) -> Tensor:
        """Equations 5 and 7: exactly one-hot in value, the gradient of ``softmax((log p + g) / tau)``."""
        soft = ((logits.log_softmax(dim=-1) + self.noise(logits)) / tau).softmax(dim=-1)
        hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
        return hard + (soft - soft.detach())
