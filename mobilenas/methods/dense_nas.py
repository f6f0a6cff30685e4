"""DenseNAS: Densely Connected Search Space for More Flexible Neural Architecture Search. Fang, Sun, Zhang, Li, Liu, Wang,
CVPR 2020, arXiv 1906.09607.

Operators and routes are searched at once. A weight step runs one operator of every mixed one, drawn from their softmax
(uniformly while warming up); an architecture step runs two, drawn without replacement, weighted by the softmax over the
two. All routes stay open, weighted by the softmax over the routes out of each block. What was not drawn keeps its logit,
and after the step the drawn logits of each operator are shifted together, so that the probability of every other operator
stays what it was (as in ProxylessNAS, arXiv 1812.00332).

In each epoch the logits make one pass over their images, then the weights one over theirs. Shapes: ``D`` decisions, ``O``
options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mobilenas.core.architecture import Architecture, DecisionKind
from mobilenas.errors import UsageError
from mobilenas.methods.base import Moved, Progress, SearchMethod, Stage, Step, StepKind, frozen
from mobilenas.spaces.base import SearchSpace
from mobilenas.spaces.dense_layout import LAST
from mobilenas.supernet import ArchitectureParameters, LogitGroup, Mixture, gumbel_noise

DRAWN = 2
"""Operators that an architecture step runs in each mixed one."""


class DenseNas(SearchMethod):
    """``alternation`` is ``"epoch"``, as published, or ``"step"``: logits, then weights, with every batch.

    ``routes`` is ``"neutral"``: a route out of ``k`` counts ``k p`` in the choice, so that undecided routes make no path better
    than another; or ``"published"``: it counts ``p``, by which the shortest of undecided paths is the likeliest.
    ``temperature`` divides the logits before every softmax. The paper says no less; three things that the authors' code does
    besides can be asked for: ``temperature_of="routes"`` leaves the operators' softmax at temperature 1, ``drift`` lets
    the optimiser's momentum and decay move logits that were not drawn, and ``renormalise_last`` applies a second softmax
    to the routes that enter the last node, over its inputs.
    """

    name: ClassVar[str] = "dense-nas"
    draws: ClassVar[bool] = True
    searches: ClassVar[frozenset[DecisionKind]] = frozenset({"op", "route"})
    needs: ClassVar[frozenset[str]] = frozenset({"routes"})
    warmup_fraction: ClassVar[float] = 1 / 3

    def __init__(
        self,
        alternation: str = "epoch",
        temperature: float = 1.0,
        temperature_of: str = "all",
        drift: bool = False,
        renormalise_last: bool = False,
        routes: str = "neutral",
    ) -> None:
        for name, value, known in (
            ("routes", routes, ("neutral", "published")),
            ("alternation", alternation, ("epoch", "step")),
            ("temperature_of", temperature_of, ("all", "routes")),
        ):
            if value not in known:
                raise UsageError(f"method_options.{name} is {value!r}; available: {', '.join(known)}")
        if not isinstance(temperature, int | float) or not 0.01 <= temperature <= 100:
            raise UsageError(f"method_options.temperature is {temperature!r}; it must be from 0.01 to 100")
        self.alternation, self.drift, self.renormalise_last = alternation, drift, renormalise_last
        self.routes = routes
        self.route_temperature = float(temperature)
        self.op_temperature = self.route_temperature if temperature_of == "all" else 1.0
        self._drawn: dict[str, Sequence[int]] = {}
        """What the architecture step that is being made has drawn."""

    def phases(self, stage: Stage, epoch: int) -> tuple[tuple[StepKind, ...], ...]:
        if epoch < stage.warmup_epochs or self.alternation == "step":
            return super().phases(stage, epoch)
        return (("architecture",), ("weights",))

    def relax_weights(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        weights, active = self._draw(parameters, 1, uniformly=progress.is_warmup)
        return Mixture(weights | self._entering(self._routes(parameters), parameters), parameters.softmax(), active)

    def relax_architecture(self, parameters: ArchitectureParameters, progress: Progress) -> Mixture:
        weights, active = self._draw(parameters, DRAWN)
        routes = self._routes(parameters)
        return Mixture(weights | self._entering(routes, parameters), weights | routes, active)

    def _draw(
        self, parameters: ArchitectureParameters, count: int, uniformly: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Sequence[int]]]:
        """Weights of ``count`` operators of every mixed one, drawn without replacement (Gumbel top-k), and which."""
        drawn: list[list[int]] = []

        def relax(logits: Tensor) -> Tensor:
            scaled = logits / self.op_temperature
            seen = torch.zeros_like(scaled) if uniformly else scaled.detach()
            chosen = (seen + gumbel_noise(seen)).topk(min(count, logits.shape[1]), dim=-1).indices.sort(dim=-1).values
            drawn.extend(chosen.tolist())
            return torch.zeros_like(scaled).scatter(-1, chosen, scaled.gather(-1, chosen).softmax(dim=-1))

        weights = parameters.relax(relax, {"op"})
        return weights, dict(zip(weights, drawn, strict=True))

    def _routes(self, parameters: ArchitectureParameters) -> dict[str, Tensor]:
        """The probability of every route out of its node."""
        return parameters.relax(lambda logits: (logits / self.route_temperature).softmax(dim=-1), {"route"})

    def _entering(self, routes: dict[str, Tensor], parameters: ArchitectureParameters) -> dict[str, Tensor]:
        """What multiplies the inputs of blocks: the routes' probabilities, but for the last node's if asked for."""
        if not self.renormalise_last:
            return routes
        members = [decision for group in parameters.groups.values() for decision in group.members]
        place = {decision.name: decision.options.index(LAST) for decision in members if LAST in decision.options}
        again = torch.stack([routes[name][index] for name, index in place.items()]).softmax(dim=0)
        changed = {
            name: routes[name].index_put((torch.tensor(place[name]),), weight)
            for name, weight in zip(place, again.unbind(0), strict=True)
        }
        return routes | changed

    def architecture_gradient(self, step: Step) -> None:
        with frozen(step.weights):
            mixture = self.relax_architecture(step.parameters, step.progress)
            self._drawn = dict(mixture.active)
            step.backward(step.loss(step.valid, mixture) + step.constraint(mixture))

    def after_architecture_step(self, moved: Moved) -> None:
        """Undo what happened to logits that were not drawn; keep the drawn ones' share of their decision's probability."""
        drawn = {
            name: self._mask(group, moved.parameters.logits[name])
            for name, group in moved.parameters.groups.items()
            if group.kind == "op"
        }
        if not self.drift:
            moved.before.put_back(moved.parameters, moved.optimiser, {name: ~mask for name, mask in drawn.items()})
        for name, mask in drawn.items():
            row, before = moved.parameters.logits[name], moved.before.logits[name]
            mass = [(logits / self.op_temperature).masked_fill(~mask, -torch.inf).logsumexp(-1) for logits in (before, row)]
            row.add_(mask * (self.op_temperature * (mass[0] - mass[1]))[:, None])

    def decode(self, space: SearchSpace, parameters: ArchitectureParameters) -> Architecture:
        rows = {name: row.detach() for name, row in parameters.softmax().items()}
        return self.switches.decode(space, rows | {name: rows[name] / count for name, count in self._uncounted(space).items()})

    def scores(self, space: SearchSpace, parameters: ArchitectureParameters) -> Mapping[str, np.ndarray]:
        rows = super().scores(space, parameters)
        return {**rows, **{name: rows[name] - math.log(count) for name, count in self._uncounted(space).items()}}

    def _uncounted(self, space: SearchSpace) -> dict[str, int]:
        """How many routes there are where their number is not to count: what the space multiplies probabilities by."""
        if self.routes == "neutral":
            return {}
        return {decision.name: len(decision.options) for decision in space.decisions if decision.kind == "route"}

    def _mask(self, group: LogitGroup, row: Tensor) -> Tensor:
        """Which logits ``(D, O)`` of ``group`` were drawn."""
        chosen = torch.tensor([self._drawn[decision.name] for decision in group.members], device=row.device)
        return torch.zeros_like(row, dtype=torch.bool).scatter(-1, chosen, True)
