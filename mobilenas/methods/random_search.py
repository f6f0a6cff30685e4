"""Random search, the baseline of all others: networks drawn uniformly over the space.

Nothing is trained; the noise of the initial logits is where its random numbers come from. Under a budget the networks that use
it up are drawn from, and are ranked and measured as those of any method are.
(Li, Talwalkar, UAI 2019, arXiv 1902.07638; Yu et al., ICLR 2020, arXiv 1902.08142, on why a search must be compared with it.)
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from typing import ClassVar

import numpy as np
import torch

from mobilenas.core.architecture import Architecture, DecisionKind
from mobilenas.methods.base import SearchMethod, Stage
from mobilenas.spaces.base import SearchSpace, SupernetSize
from mobilenas.supernet import ArchitectureParameters


class RandomSearch(SearchMethod):
    """No epoch is trained, whatever the search asks for."""

    name: ClassVar[str] = "random"
    trains: ClassVar[bool] = False
    is_uniform: ClassVar[bool] = True
    searches: ClassVar[frozenset[DecisionKind]] = frozenset({"op", "route"})

    def stages(
        self, space: SearchSpace, size: SupernetSize | None, epochs: int, warmup_epochs: int
    ) -> Generator[Stage, ArchitectureParameters, None]:
        yield Stage(size, self.searched(space), epochs=0)

    def decode(self, space: SearchSpace, parameters: ArchitectureParameters) -> Architecture:
        noise = torch.cat([row.detach().cpu().flatten() for row in parameters.parameters()])
        return space.random_architecture(random.Random(noise.numpy().tobytes()))

    def scores(self, space: SearchSpace, parameters: ArchitectureParameters) -> Mapping[str, np.ndarray]:
        return space.undecided
