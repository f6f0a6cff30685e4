"""Whether a search collapses: the network that its logits stand for turns into skip connections, or nothing.

Zela et al. (ICLR 2020, arXiv 1909.09656) and Liang et al. (DARTS+, arXiv 1909.06035) describe it. Watched after every epoch:
the share of idle ones among the operators that the logits choose, the entropy of the logits, and the accuracy of the chosen
network alone inside the supernet, on the same images each time. That accuracy tells nothing of a collapse: the more certain the
logits, the better the supernet's weights fit the one network, whichever it is. So what counts is that most operators are idle
though the budgets would allow more. A search that collapsed is reported; it is derived from where it stood before, as Zela et
al. do, where that is asked for. Spaces in which skips are how depth is searched, and cells half of which are fixed, are not
judged: published networks have more skips than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from torch import Tensor

from mobilenas.core import documents
from mobilenas.core.architecture import Architecture
from mobilenas.spaces.base import SearchSpace
from mobilenas.supernet import NO_OPERATOR, SKIP, ArchitectureParameters, Mixture

Watch = Literal["off", "warn", "restore"]
"""What is done about a collapse: nothing is looked at, it is reported, or the logits are set back to before it."""
MOSTLY_IDLE = 0.5
"""Share of idle operators from which on a search may have collapsed."""
IDLE = {SKIP, NO_OPERATOR}
SPARE = 0.8
"""Share of a budget below which a network could well be slower."""


class Health(msgspec.Struct, frozen=True):
    """How a search does after an epoch; numbers are from 0 to 1."""

    idle_share: float | None
    """Of the operators that the logits choose: skips and none at all, where that was possible; ``None`` for a space in which
    that tells nothing.
    """
    entropy: float
    """Of the logits of operators, on average, as a share of the largest: 1 says nothing yet, 0 is certain."""
    accuracy: float
    """Of the chosen network alone in the supernet."""
    may_be_slower: bool
    """Whether the chosen network is far below every budget; always, where there is none."""

    @property
    def is_collapsed(self) -> bool:
        """Whether most operators are idle and need not be."""
        return self.idle_share is not None and self.idle_share >= MOSTLY_IDLE and self.may_be_slower


class Snapshot(msgspec.Struct, frozen=True):
    """The logits after the epoch in which the supernet was the most accurate without having collapsed."""

    epoch: int
    valid_accuracy: float
    health: Health
    logits: Mapping[str, Tensor]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        health = msgspec.to_builtins(self.health)
        return {"epoch": self.epoch, "valid_accuracy": self.valid_accuracy, "health": health, "logits": dict(self.logits)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Snapshot:
        """The inverse."""
        health = documents.convert(state["health"], Health, "health")
        return cls(state["epoch"], state["valid_accuracy"], health, state["logits"])

    @classmethod
    def of(cls, epoch: int, valid_accuracy: float, health: Health, parameters: ArchitectureParameters) -> Snapshot:
        """That of now."""
        logits = {name: row.detach().clone() for name, row in parameters.state_dict().items()}
        return cls(epoch, valid_accuracy, health, logits)


def idle_share(space: SearchSpace, architecture: Architecture) -> float | None:
    """Return the share of ``architecture``'s operators that compute nothing, of those that may.

    0 where none may; ``None`` for a space in which the share tells nothing of a collapse.
    """
    if not space.may_collapse:
        return None
    may_be_idle = {decision.name for decision in space.decisions if decision.kind == "op" and IDLE & set(decision.options)}
    chosen = [option in IDLE for name, option in architecture.choices.items() if name in may_be_idle]
    return sum(chosen) / len(chosen) if chosen else 0.0


def entropy(parameters: ArchitectureParameters) -> float:
    """Mean over the decisions on operators with more than one option, as a share of the largest that is possible."""
    shares: list[float] = []
    for name, group in parameters.groups.items():
        rows = parameters.logits[name].detach().double().log_softmax(dim=-1)
        if group.kind == "op" and rows.shape[1] > 1:
            shares += (-(rows.exp() * rows).sum(dim=-1) / math.log(rows.shape[1])).tolist()
    return sum(shares) / len(shares) if shares else 0.0


def certain(space: SearchSpace, architecture: Architecture, like: Tensor) -> Mixture:
    """The mixture of ``architecture`` alone, in numbers ``like`` these: what it does not choose is off, and its inputs are
    left unweighted.
    """
    weights, active = {}, {}
    for decision in space.decisions:
        if decision.kind == "input":
            continue
        chosen = architecture.choices.get(decision.name)
        weights[decision.name] = like.new_tensor([float(option == chosen) for option in decision.options])
        active[decision.name] = (decision.options.index(chosen) if chosen in decision.options else 0,)  # what is off weighs 0
    return Mixture(weights, weights, active)
