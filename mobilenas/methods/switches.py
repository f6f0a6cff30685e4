"""What any method on cells can turn on, whichever paper it came from; methods have their own defaults.

Edge normalisation and partial channels: PC-DARTS, arXiv 1907.05737. Dropout of skips and their limit: P-DARTS, arXiv
1904.12760.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
from torch import Tensor

from mobilenas.core.architecture import Architecture
from mobilenas.errors import IncompatibleError
from mobilenas.spaces.base import DerivationProgram, SearchSpace
from mobilenas.supernet import NO_OPERATOR, SKIP

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

    def check(self, space: SearchSpace) -> None:
        """Raise ``IncompatibleError`` naming the switch that means nothing in ``space``."""
        for name, is_on, trait in (
            ("edge_normalisation", self.edge_normalisation, "edge normalisation"),
            ("partial_channels", self.partial_channels > 1, "partial channels"),
            ("skip_dropout", self.skip_dropout > 0, "skips"),
            ("skip_limit", self.skip_limit is not None, "skips"),
        ):
            if is_on and trait not in space.traits:
                raise IncompatibleError(f"switches.{name} needs a space with {trait}; {space.name} has none")
        edges = [decision.options for decision in space.decisions if decision.kind == "op"]
        if self.skip_dropout > 0 and not any(SKIP in options for options in edges):
            raise IncompatibleError(f"switches.skip_dropout: no edge of this space may be {SKIP}; add it to space.operators")
        if self.skip_limit is not None and any(set(options) <= {SKIP, NO_OPERATOR} for options in edges):
            raise IncompatibleError(f"switches.skip_limit: {SKIP} is all that edges may be; add to space.operators")

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
