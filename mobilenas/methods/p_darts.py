"""P-DARTS: Progressive Differentiable Architecture Search. Chen, Xie, Wu, Tian, ICCV 2019, arXiv 1904.12760.

Three stages, each with fresh weights and logits: the supernet grows from 5 to 11 and 17 cells, while each edge keeps only the
likeliest operators of the stage before (8, 5, 3). Identities lose elements to dropout that fades away in each stage, and the
normal cell keeps at most two skip connections (``Switches``). In the first 40 % of a stage's epochs the logits
stand still. Steps and gradient are first-order DARTS's. Stages that grow the channels too (``added_channels``) are not the
paper's but an idea of ours.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar

from torch import Tensor

from mobilenas.core.architecture import Decision
from mobilenas.errors import IncompatibleError, UsageError
from mobilenas.methods.base import SearchMethod, Stage
from mobilenas.methods.switches import Switches
from mobilenas.spaces.base import SearchSpace, SupernetSize
from mobilenas.supernet import NO_OPERATOR, SKIP, ArchitectureParameters


class PDarts(SearchMethod):
    """``added_layers`` and ``added_channels`` are what each stage's supernet has more than the size that was asked for,
    ``skip_dropout`` where its dropout begins, ``kept`` how many operators an edge keeps after each stage but the last.
    """

    name: ClassVar[str] = "p-darts"
    needs: ClassVar[frozenset[str]] = frozenset({"cells"})
    warmup_fraction: ClassVar[float] = 0.4
    switches = Switches(skip_limit=2)

    def __init__(
        self,
        added_layers: tuple[int, ...] = (0, 6, 12),
        added_channels: tuple[int, ...] = (0, 0, 0),
        kept: tuple[int, ...] = (5, 3),
        skip_dropout: tuple[float, ...] = (0.0, 0.4, 0.7),
    ) -> None:
        self.added_layers, self.added_channels, self.kept = tuple(added_layers), tuple(added_channels), tuple(kept)
        self.skip_dropout = tuple(skip_dropout)
        for name in ("added_layers", "added_channels", "kept"):
            if not all(isinstance(value, int) for value in getattr(self, name)):
                raise UsageError(f"method_options.{name} is {list(getattr(self, name))}; it must hold whole numbers")
        count = len(self.added_layers)
        for name, values, length, lowest, highest in (
            ("added_layers", self.added_layers, count, 0, 1000),
            ("added_channels", self.added_channels, count, 0, 1000),
            ("kept", self.kept, count - 1, 2, 1000),
            ("skip_dropout", self.skip_dropout, count, 0, 0.99),
        ):
            if len(values) != length or not all(lowest <= value <= highest for value in values):
                raise UsageError(
                    f"method_options.{name} is {list(values)}; it must hold {length} numbers from {lowest} to {highest}, as "
                    f"added_layers has {count} stages"
                )

    def check(self, space: SearchSpace) -> None:
        if space.proxy is None:
            raise IncompatibleError(
                f"the method p-darts grows the supernet from stage to stage; that of {space.name} is always as large as the "
                "deployed network"
            )
        super().check(space)
        unwanted = max(len({SKIP, NO_OPERATOR} & set(d.options)) for d in space.decisions if d.kind == "op")
        if self.switches.skip_limit is not None and min(self.kept, default=1000) <= unwanted:
            raise IncompatibleError(
                f"method_options.kept is {list(self.kept)} with switches.skip_limit: an edge could be left without an operator "
                f"to take a skip's place; keep at least {unwanted + 1}"
            )
        if self.switches.skip_dropout > 0:
            raise IncompatibleError(
                "switches.skip_dropout with p-darts, whose stages have dropouts of their own: set method_options.skip_dropout"
            )

    def stages(
        self, space: SearchSpace, size: SupernetSize | None, epochs: int, warmup_epochs: int
    ) -> Generator[Stage, ArchitectureParameters, None]:
        assert size is not None, "cells have a proxy"
        decisions = self.searched(space)
        for index, (layers, channels) in enumerate(zip(self.added_layers, self.added_channels, strict=True)):
            larger = SupernetSize(size.channels + channels, size.layers + layers)
            parameters = yield Stage(larger, decisions, epochs, warmup_epochs, self.skip_dropout[index])
            if index < len(self.kept):
                probabilities = {name: row.detach() for name, row in parameters.softmax().items()}
                whole = {decision.name: decision.options for decision in space.decisions}
                decisions = tuple(
                    keep_likeliest(decision, whole[decision.name], probabilities[decision.name], self.kept[index])
                    for decision in decisions
                )


def keep_likeliest(decision: Decision, options: tuple[str, ...], probabilities: Tensor, count: int) -> Decision:
    """``decision`` with ``count`` of its options, in their order; of equal ones the earlier is dropped.

    ``probabilities (O,)`` are over all ``options``. Decisions of other kinds than operators stay as they are.
    """
    if decision.kind != "op":
        return decision
    likelihood = {option: float(probabilities[options.index(option)]) for option in decision.options}
    ranked = sorted(decision.options, key=lambda option: (likelihood[option], options.index(option)), reverse=True)
    kept = set(ranked[:count])
    return Decision(decision.name, tuple(option for option in decision.options if option in kept), decision.kind)
