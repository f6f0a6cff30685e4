"""What methods hand to supernets: architecture parameters, mixtures, relaxations and mixed operators.

Shapes: ``B`` batch, ``C`` channels, ``H`` height, ``W`` width, ``O`` options of a decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import msgspec
import torch
from torch import Tensor, nn

from mobilenas import ops
from mobilenas.core.architecture import Decision
from mobilenas.core.workload import Workload

NO_OPERATOR = "none"
"""The option that computes zero; no workload and no cost belong to it."""


class ArchitectureParameters(nn.Module):
    """One logit vector ``(O,)`` per searched decision, beside the supernet and with an optimiser of its own.

    The logits of all decisions with equally many options are rows of one matrix, so that relaxing them is one
    operation. Initialised as published: ``1e-3 * N(0, 1)``.
    """

    def __init__(self, decisions: Iterable[Decision], generator: torch.Generator) -> None:
        super().__init__()
        groups: dict[int, list[Decision]] = {}
        for decision in decisions:
            groups.setdefault(len(decision.options), []).append(decision)
        self.decisions = {n: tuple(members) for n, members in sorted(groups.items())}
        self.logits = nn.ParameterDict(
            {
                str(n): nn.Parameter(1e-3 * torch.randn(len(members), n, generator=generator))
                for n, members in self.decisions.items()
            }
        )

    def relax(self, relaxation: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Apply ``relaxation`` ``(D, O) -> (D, O)`` row by row; one vector ``(O,)`` per decision name."""
        relaxed: dict[str, Tensor] = {}
        for n, members in self.decisions.items():
            rows = relaxation(self.logits[str(n)]).unbind(0)
            relaxed.update((decision.name, row) for decision, row in zip(members, rows, strict=True))
        return relaxed

    def softmax(self) -> dict[str, Tensor]:
        """Probabilities ``(O,)`` per decision name, DARTS equation 2."""
        return self.relax(lambda logits: logits.softmax(dim=-1))


class Mixture(msgspec.Struct, frozen=True):
    """One relaxation of all decisions: the only thing that passes from a method to the supernet and the cost.

    ``weights[decision]`` ``(O,)`` multiply the candidates' outputs; ``active[decision]`` are the indices to evaluate
    (all where absent); ``probabilities[decision]`` ``(O,)`` are always soft and feed the cost.
    """

    weights: Mapping[str, Tensor]
    probabilities: Mapping[str, Tensor]
    active: Mapping[str, Sequence[int]]

    @classmethod
    def soft(cls, probabilities: Mapping[str, Tensor]) -> Mixture:
        """All candidates, weighted by their probabilities."""
        return cls(weights=probabilities, probabilities=probabilities, active={})


class Supernet(nn.Module, ABC):
    """All candidate networks in one; pure in the architecture, which comes in with each call."""

    @abstractmethod
    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        """``(B, C, H, W)`` images -> ``(B, classes)`` logits."""

    @abstractmethod
    def modules_of(self, choices: Mapping[str, str]) -> dict[str, nn.Module]:
        """The modules that a derived network keeps, by the names of its blueprint's layers."""


MixedOpBuilder = Callable[[Sequence[str], Callable[[str], Workload]], nn.Module]
"""``(options, workload of an option) -> module``; the module is called as ``(x, weights, active)``."""


class MixedOp(nn.Module):
    """The weighted sum of candidate operators on one edge, DARTS equation 2.

    ``forward(x (B, C, H, W), weights (O,), active) -> (B, C, H', W')``; ``none`` is never computed.
    """

    def __init__(self, options: Sequence[str], workload: Callable[[str], Workload]) -> None:
        super().__init__()
        self.options = tuple(options)
        self.candidates = nn.ModuleDict({option: candidate(workload(option)) for option in options if option != NO_OPERATOR})
        self._stride = workload(next(iter(self.candidates))).stride

    def forward(self, x: Tensor, weights: Tensor, active: Sequence[int] | None = None) -> Tensor:
        indices = range(len(self.options)) if active is None else active
        outputs = [
            weights[index] * self.candidates[self.options[index]](x) for index in indices if self.options[index] != NO_OPERATOR
        ]
        if not outputs:
            # zero, and still a function of the weights: where every edge draws none their gradient is zero, not absent
            return torch.zeros_like(x[:, :, :: self._stride, :: self._stride]) * weights.sum()
        return cast(Tensor, sum(outputs[1:], outputs[0]))


class SearchedPool(nn.Sequential):
    """A pooling candidate: while searching, DARTS normalises it by a BatchNorm that the derived network does not have."""


def candidate(workload: Workload) -> nn.Module:
    """The module of one candidate while searching: BatchNorms without scale and shift, one more after a pool."""
    module = ops.build_operator(workload, affine=False)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return SearchedPool(module, nn.BatchNorm2d(workload.out_channels, affine=False))
    return module
