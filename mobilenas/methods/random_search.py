"""Random search, the baseline of all others: logits that nothing has trained.

They are independent noise, so that each option of a decision is as likely as another to be the likeliest. Under a budget what
is chosen is the network of the highest sum of noise that meets it, and candidates are measured as those of any method are.
(Li, Talwalkar, UAI 2019, arXiv 1902.07638; Yu et al., ICLR 2020, arXiv 1902.08142, on why a search must be compared with it.)
"""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar

from mobilenas.core.architecture import DecisionKind
from mobilenas.methods.base import SearchMethod, Stage
from mobilenas.spaces.base import SearchSpace, SupernetSize
from mobilenas.supernet import ArchitectureParameters


class RandomSearch(SearchMethod):
    """No epoch is trained, whatever the search asks for."""

    name: ClassVar[str] = "random"
    trains: ClassVar[bool] = False
    searches: ClassVar[frozenset[DecisionKind]] = frozenset({"op", "route"})

    def stages(
        self, space: SearchSpace, size: SupernetSize | None, epochs: int, warmup_epochs: int
    ) -> Generator[Stage, ArchitectureParameters, None]:
        yield Stage(size, self.searched(space), epochs=0)
