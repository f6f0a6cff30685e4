"""What methods hand to supernets: architecture parameters, mixtures, relaxations and mixed operators.

Shapes: ``B`` batch, ``C`` channels, ``H`` height, ``W`` width, ``O`` options of a decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn

from mobilenas import ops
from mobilenas.core.architecture import Decision
from mobilenas.core.workload import Workload

NO_OPERATOR = "none"
"""The option that computes zero; no workload and no cost belong to it."""
SKIP = "skip_connect"
"""The option that passes its input on, where the shapes agree."""


@dataclass(frozen=True)
class LogitGroup:
    """Decisions whose logits are rows of one matrix; ``places`` are the columns of their options among ``width``."""

    kind: str
    members: tuple[Decision, ...]
    width: int
    places: tuple[tuple[int, ...], ...]


class ArchitectureParameters(nn.Module):
    """One logit per option of every searched decision, beside the supernet and with an optimiser of its own.

    ``decisions`` are those of a stage. Where a stage has dropped options of the space's decisions (``of``), their logits do
    not exist; what ``relax`` returns is over the space's options all the same, so that everyone else counts options alike.
    Decisions of one kind and number of options are rows of one matrix: relaxing them is one operation. Initialised as
    published: ``1e-3 * N(0, 1)``.
    """

    def __init__(self, decisions: Iterable[Decision], generator: torch.Generator, of: Iterable[Decision] | None = None) -> None:
        super().__init__()
        decisions = tuple(decisions)
        whole = {decision.name: decision.options for decision in (decisions if of is None else of)}
        self.groups: dict[str, LogitGroup] = {}
        for kind, n in sorted({(decision.kind, len(decision.options)) for decision in decisions}):
            members = tuple(d for d in decisions if (d.kind, len(d.options)) == (kind, n))
            places = tuple(tuple(whole[d.name].index(option) for option in d.options) for d in members)
            self.groups[f"{kind}{n}"] = LogitGroup(kind, members, len(whole[members[0].name]), places)
        self.logits = nn.ParameterDict(
            {
                name: nn.Parameter(1e-3 * torch.randn(len(group.members), len(group.places[0]), generator=generator))
                for name, group in self.groups.items()
            }
        )

    def relax(
        self, relaxation: Callable[[Tensor], Tensor], kinds: Collection[str] | None = None, dropped: float = 0.0
    ) -> dict[str, Tensor]:
        """Apply ``relaxation`` ``(D, O) -> (D, O)`` row by row; one vector over the space's options per decision name.

        Only decisions of the given ``kinds``, all by default. An option that the stage lacks gets the value ``dropped``.
        """
        relaxed: dict[str, Tensor] = {}
        for name, group in self.groups.items():
            if kinds is not None and group.kind not in kinds:
                continue
            rows = relaxation(self.logits[name])
            if rows.shape[1] < group.width:
                filled = rows.new_full((len(rows), group.width), dropped)
                rows = filled.scatter(1, torch.tensor(group.places, device=rows.device), rows)
            relaxed.update((decision.name, row) for decision, row in zip(group.members, rows.unbind(0), strict=True))
        return relaxed

    def softmax(self, kinds: Collection[str] | None = None) -> dict[str, Tensor]:
        """Probabilities ``(O,)`` per decision name, DARTS equation 2; zero for an option that the stage lacks."""
        return self.relax(lambda logits: logits.softmax(dim=-1), kinds)


@dataclass(frozen=True)
class LogitsBefore:
    """Where logits and their optimiser stood before a step; ``logits`` are rows ``(D, O)`` by name of their group.

    What an optimiser keeps for a whole group goes on whatever is put back: Adam's count of its steps.
    """

    logits: Mapping[str, Tensor]
    _states: Mapping[str, Mapping[str, Tensor]]

    @classmethod
    def of(cls, parameters: ArchitectureParameters, optimiser: torch.optim.Optimizer) -> LogitsBefore:
        """Take note of everything."""
        states = {
            name: {key: value.clone() for key, value in optimiser.state.get(row, {}).items() if value.shape == row.shape}
            for name, row in parameters.logits.items()
        }
        return cls({name: row.detach().clone() for name, row in parameters.logits.items()}, states)

    def put_back(
        self, parameters: ArchitectureParameters, optimiser: torch.optim.Optimizer, which: Mapping[str, Tensor]
    ) -> None:
        """Undo the step for the logits in ``which``, masks ``(D, O)`` by group, and for what the optimiser knows of them."""
        with torch.no_grad():
            for name, mask in which.items():
                row = parameters.logits[name]
                row.copy_(torch.where(mask, self.logits[name], row))
                for key, value in optimiser.state.get(row, {}).items():
                    if value.shape == row.shape:
                        before = self._states[name].get(key, torch.zeros_like(value))
                        value.copy_(torch.where(mask, before, value))


def gumbel_noise(logits: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape of ``logits``: ``-log(E)`` with ``E`` exponential of rate 1, drawn on the CPU."""
    exponential = torch.empty(logits.shape, dtype=logits.dtype).exponential_()
    return -exponential.clamp_min(torch.finfo(logits.dtype).tiny).log().to(logits.device)


class Mixture(msgspec.Struct, frozen=True):
    """One relaxation of all decisions: the only thing that passes from a method to the supernet and the cost.

    ``weights[decision]`` ``(O,)`` multiply the candidates' outputs (of a decision of kind ``input``: the inputs);
    ``active[decision]`` are the indices to evaluate (all where absent); ``probabilities[decision]`` ``(O,)`` are always soft
    and feed the cost. ``skip_dropout`` is the chance that an element of an identity is dropped; the engine fills it in.
    """

    weights: Mapping[str, Tensor]
    probabilities: Mapping[str, Tensor]
    active: Mapping[str, Sequence[int]]
    skip_dropout: float = 0.0

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


class MixedOp(nn.Module):
    """The weighted sum of candidate operators on one edge, DARTS equation 2.

    ``forward(x (B, C, H, W), weights (O,), active) -> (B, C, H', W')``; ``none`` is never computed. Without ``pool_norm``
    pools have no BatchNorm behind them.
    """

    def __init__(self, options: Sequence[str], workload: Callable[[str], Workload], pool_norm: bool = True) -> None:
        super().__init__()
        self.options = tuple(options)
        self.candidates = nn.ModuleDict(
            {option: candidate(workload(option), pool_norm) for option in options if option != NO_OPERATOR}
        )
        self._stride = workload(next(iter(self.candidates))).stride

    def forward(self, x: Tensor, weights: Tensor, active: Sequence[int] | None = None) -> Tensor:
        indices = range(len(self.options)) if active is None else active
        outputs = [
            weights[index] * self.candidates[self.options[index]](x) for index in indices if self.options[index] != NO_OPERATOR
        ]
        if not outputs:
            # zero, and still a function of the weights: where every edge draws none their gradient is zero, not absent
            return torch.zeros_like(x[:, :, :: self._stride, :: self._stride]) * weights.sum()
        return sum_of(outputs)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Their sum; at least one, all of one shape."""
    return sum(tensors[1:], tensors[0])


class SearchedPool(nn.Sequential):
    """A pooling candidate: while searching, DARTS normalises it by a BatchNorm that the derived network does not have."""


def candidate(workload: Workload, pool_norm: bool = True) -> nn.Module:
    """The module of one candidate while searching: BatchNorms without scale and shift; with ``pool_norm`` one after a pool."""
    module = ops.build_operator(workload, affine=False)
    if pool_norm and isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return SearchedPool(module, ops.norm(workload.out_channels, affine=False))
    return module
